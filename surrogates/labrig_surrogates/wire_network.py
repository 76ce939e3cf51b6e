"""The admittance of a whole crossbar between its line ends, by joining blocks of cells, and its adjoint.

Nested dissection with dense blocks (George 1973), in the form of merging multiports: blocks of a few cells are joined
pair by pair until one is left. For an n x n array that is of the order of n^3 operations, in batched matrix products,
where eliminating row by row takes n^4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.wire_blocks import Joined, Joint, Sides, beside, join, stacked, unjoin
from labrig_surrogates.wire_cells import CellBlock, conductance_gradient, resistance_gradients, solve_cells

LARGEST_CELL_BLOCK = 7
"""Most rows and columns of a block that is solved at once; halving gives 4 to 7, which fill most sizes well."""


@dataclass(frozen=True)
class Dissection:
    """How an array is cut into equal blocks, and in which order they are joined.

    The array is enlarged to a multiple of the block by cells that do not conduct, above and on the right, where the
    lines end: no current flows there, so that nothing changes.

    Attributes:
        rows: Word lines of the array.
        columns: Bit lines of the array.
        grid: Rows and columns of blocks.
        cells: Rows and columns of cells in a block.
        sides: The lines that leave a block of cells.
        joints: The steps, from the blocks of cells to the whole array.
    """

    rows: int
    columns: int
    grid: tuple[int, int]
    cells: tuple[int, int]
    sides: Sides
    joints: tuple[Joint, ...]

    @classmethod
    def of(cls, rows: int, columns: int) -> Dissection:
        """The dissection of an array."""
        down, height = _halved(rows)
        across, width = _halved(columns)
        grid, cells = (down, across), (height, width)
        sides = Sides(height, width, 0 if down == 1 else width, 0 if across == 1 else height)
        joints, current = [], sides
        while down * across > 1:
            # The shorter side is cut: blocks stay near squares, whose sides are shortest for their cells.
            if across > 1 and (down == 1 or current.left >= current.bottom):
                joint = beside(current, whole=across == 2)
                across //= 2
            else:
                joint = stacked(current, whole=down == 2)
                down //= 2
            joints.append(joint)
            current = joint.sides
        return cls(rows, columns, grid, cells, sides, tuple(joints))

    def block_cells(self, conductance_s: Tensor) -> Tensor:
        """Cells of `[N, rows, columns]` by block, `[N, *grid, cells]`."""
        (down, across), (height, width) = self.grid, self.cells
        missing = (0, across * width - self.columns, down * height - self.rows, 0)
        padded = torch.nn.functional.pad(conductance_s, missing)
        return padded.reshape(-1, down, height, across, width).transpose(2, 3).flatten(3)

    def array_cells(self, blocks: Tensor) -> Tensor:
        """Inverse of `block_cells`."""
        (down, across), (height, width) = self.grid, self.cells
        padded = blocks.reshape(-1, down, across, height, width).transpose(2, 3)
        return padded.reshape(-1, down * height, across * width)[:, down * height - self.rows :, : self.columns]

    @property
    def ends(self) -> slice:
        """The ports of the last block that are line ends of the array: its word lines, then its bit lines."""
        height = self.grid[0] * self.cells[0]
        return slice(height - self.rows, height + self.columns)

    @property
    def ports(self) -> int:
        """Ports of the last block."""
        return self.grid[0] * self.cells[0] + self.grid[1] * self.cells[1]

    def kept_shapes(self, count: int) -> list[tuple[int, ...]]:
        """Shapes of what `solve` keeps of `count` arrays."""
        down, across = self.grid
        shapes: list[tuple[int, ...]] = [(count, down, across, self.cells[0] * self.cells[1], sum(self.sides))]
        for joint in self.joints:
            down, across = (down // 2, across) if joint.dim == 1 else (down, across // 2)
            cut = joint.first.cut.stop - joint.first.cut.start
            widths = (joint.first.width, joint.second.width, cut, cut, cut)
            shapes += [(count, down, across, cut, width) for width in widths]
        return shapes

    def sides_before(self, step: int) -> Sides:
        """The lines that leave a block before a step."""
        return self.joints[step - 1].sides if step else self.sides


def _halved(length: int) -> tuple[int, int]:
    parts = 1
    while -(-length // parts) > LARGEST_CELL_BLOCK:
        parts *= 2
    return parts, -(-length // parts)


def solve(conductance_s: Tensor, word_ohm: Tensor, bit_ohm: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Admittance between the line ends of arrays.

    Args:
        conductance_s: Cell conductances in S, `[N, rows, columns]`.
        word_ohm: Resistance in ohm of a word-line segment, `[N]`.
        bit_ohm: Resistance in ohm of a bit-line segment, `[N]`.
        keep: Whether to keep what the adjoint needs.

    Returns:
        Currents in A into the line ends per volt at each, `[N, rows + columns, rows + columns]`, and what was kept.
    """
    plan = Dissection.of(*conductance_s.shape[1:])
    cells = plan.block_cells(conductance_s)
    block = CellBlock.of(*plan.cells, plan.sides, conductance_s)
    grid, across = solve_cells(block, cells, word_ohm[:, None, None, None, None], bit_ohm[:, None, None, None, None])
    kept = [across] if keep else []
    for joint in plan.joints:
        grid, joined = join(joint, grid)
        if keep:
            kept += joined
    return grid[:, 0, 0, plan.ends, plan.ends].contiguous(), kept


def adjoint(
    conductance_s: Tensor, kept: Sequence[Tensor], cotangent: Tensor, resistances: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by conductances and resistances.

    Args:
        conductance_s: Cell conductances in S, `[N, rows, columns]`.
        kept: What `solve` kept.
        cotangent: Gradient by the admittance, `[N, rows + columns, rows + columns]`.
        resistances: Whether the gradients by the resistances are wanted; they are zero otherwise.

    Returns:
        Gradients, `[N, rows, columns]`, `[N]` and `[N]`.
    """
    plan = Dissection.of(*conductance_s.shape[1:])
    grid = cotangent.new_zeros(cotangent.shape[0], 1, 1, plan.ports, plan.ports)
    grid[:, 0, 0, plan.ends, plan.ends] = 0.5 * (cotangent + cotangent.mT)
    across, *factors = kept
    for step in reversed(range(len(plan.joints))):
        joined = Joined(*factors[5 * step : 5 * step + 5])
        grid = unjoin(plan.joints[step], joined, grid, plan.sides_before(step))
    by_cell = plan.array_cells(conductance_gradient(across, grid)).contiguous()
    if not resistances:
        zero = cotangent.new_zeros(cotangent.shape[0])
        return by_cell, zero, zero.clone()
    block = CellBlock.of(*plan.cells, plan.sides, conductance_s)
    word, bit = resistance_gradients(block, plan.block_cells(conductance_s), across, grid)
    return by_cell, word.sum(dim=(1, 2)), bit.sum(dim=(1, 2))
