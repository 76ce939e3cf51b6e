"""The smallest blocks: a few cells and their wires, solved as one dense system."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.wire_blocks import Sides


@dataclass(frozen=True)
class CellBlock:
    """Geometry of a block of `rows` by `columns` cells; cells are numbered row by row.

    Attributes:
        sides: The lines that leave it.
        word: Which cell is on which word line, `[cells, rows]`, 0 or 1.
        bit: Which cell is on which bit line, `[cells, columns]`, 0 or 1.
        from_left: Word-line segments between the left edge and each cell, `[cells]`.
        from_bottom: Bit-line segments between the bottom edge and each cell, `[cells]`.
        shared_word: Word-line segments that the currents of two cells share, `[cells, cells]`.
        shared_bit: Bit-line segments that they share, `[cells, cells]`.
    """

    sides: Sides
    word: Tensor
    bit: Tensor
    from_left: Tensor
    from_bottom: Tensor
    shared_word: Tensor
    shared_bit: Tensor

    @classmethod
    def of(cls, rows: int, columns: int, sides: Sides, like: Tensor) -> CellBlock:
        """The geometry as tensors of the kind of `like`; `sides` may leave out top and right."""
        row = torch.arange(rows, device=like.device).repeat_interleave(columns)
        column = torch.arange(columns, device=like.device).repeat(rows)
        left, bottom = column + 1, rows - row
        same_word, same_bit = row[:, None] == row, column[:, None] == column
        return cls(
            sides=sides,
            word=(row[:, None] == torch.arange(rows, device=like.device)).to(like),
            bit=(column[:, None] == torch.arange(columns, device=like.device)).to(like),
            from_left=left.to(like),
            from_bottom=bottom.to(like),
            shared_word=(same_word * torch.minimum(left[:, None], left)).to(like),
            shared_bit=(same_bit * torch.minimum(bottom[:, None], bottom)).to(like),
        )

    def drops(self, word_ohm: Tensor, bit_ohm: Tensor) -> Tensor:
        """Voltage across each cell per unit of each input if no cell conducts, `[..., cells, ports]`."""
        shape = (*word_ohm.shape[:-2], *self.word.shape)
        parts = [self.word.expand(shape), -self.bit.expand(*shape[:-1], -1)]
        if self.sides.top:
            parts.append(-bit_ohm * (self.from_bottom[:, None] * self.bit))
        if self.sides.right:
            parts.append(word_ohm * (self.from_left[:, None] * self.word))
        return torch.cat(parts, dim=-1)

    def wires(self, word_ohm: Tensor, bit_ohm: Tensor) -> Tensor:
        """The block's matrix if no cell conducts, `[..., ports, ports]`."""
        ports = sum(self.sides)
        matrix = word_ohm.new_zeros(*word_ohm.shape[:-2], ports, ports)
        rows, columns = self.word.shape[1], self.bit.shape[1]
        left, bottom = self.sides.left, self.sides.left + self.sides.bottom
        top = bottom + self.sides.top
        for near, far, ohm in ((left, bottom, bit_ohm * rows), (0, top, word_ohm * columns)):
            for line in range(self.sides.top if near else self.sides.right):
                matrix[..., near + line, far + line] = -1.0
                matrix[..., far + line, near + line] = -1.0
                matrix[..., far + line, far + line] = -ohm[..., 0, 0]
        return matrix


def solve_cells(block: CellBlock, conductance_s: Tensor, word_ohm: Tensor, bit_ohm: Tensor) -> tuple[Tensor, Tensor]:
    """Solves blocks of cells.

    The voltages `D` across the cells are those without cell currents, `F`, minus what the cell currents drop in the
    wires: `D = F - Z G D`, where `Z` holds the resistance that two cells' currents share. So `D = (1 + Z G)^-1 F` and
    `H = H_wires + F' G D`.

    Args:
        block: Geometry.
        conductance_s: Cell conductances in S, `[..., cells]`.
        word_ohm: Resistance in ohm of a word-line segment, broadcast against `[..., 1, 1]`.
        bit_ohm: Resistance in ohm of a bit-line segment, likewise.

    Returns:
        Matrices of the blocks, `[..., ports, ports]`, and the voltages across the cells, `[..., cells, ports]`.
    """
    shared_ohm = word_ohm * block.shared_word + bit_ohm * block.shared_bit
    system = shared_ohm * conductance_s[..., None, :]
    system.diagonal(dim1=-2, dim2=-1).add_(1.0)
    drops = block.drops(word_ohm, bit_ohm)
    across = torch.linalg.inv_ex(system).inverse @ drops
    matrix = drops.mT @ (conductance_s[..., None] * across)
    return matrix.add_(block.wires(word_ohm, bit_ohm)), across


def conductance_gradient(across: Tensor, cotangent: Tensor) -> Tensor:
    """Gradient by the conductances: each is the product of two voltages across the cell (Tellegen), `[..., cells]`.

    Args:
        across: Voltages across the cells, from `solve_cells`.
        cotangent: Symmetric gradient by the blocks' matrices, `[..., ports, ports]`.
    """
    return ((across @ cotangent) * across).sum(dim=-1)


def resistance_gradients(
    block: CellBlock, conductance_s: Tensor, across: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by the resistance of a word-line and of a bit-line segment, summed over a block, `[...]` each.

    Each segment contributes minus the product of two currents through it (Tellegen).

    Args:
        block: Geometry.
        conductance_s: Cell conductances in S, `[..., cells]`.
        across: Voltages across the cells, from `solve_cells`.
        cotangent: Symmetric gradient by the blocks' matrices, `[..., ports, ports]`.
    """
    rows, columns = block.word.shape[1], block.bit.shape[1]
    flat_a = conductance_s[..., None] * across
    cell_a = flat_a.reshape(*flat_a.shape[:-2], rows, columns, flat_a.shape[-1])
    # A word-line segment carries what the cells behind it take, and what leaves at the right end.
    word_a = cell_a.flip(-2).cumsum(-2).flip(-2)
    bit_a = cell_a.cumsum(-3)
    left, bottom, top, _ = block.sides
    above = left + bottom
    if block.sides.right:
        word_a[..., above + top :] -= torch.eye(rows, dtype=cell_a.dtype, device=cell_a.device)[:, None]
    if top:
        bit_a[..., above : above + top] += torch.eye(columns, dtype=cell_a.dtype, device=cell_a.device)
    word_a, bit_a = word_a.flatten(-3, -2), bit_a.flatten(-3, -2)
    return -((word_a @ cotangent) * word_a).sum(dim=(-2, -1)), -((bit_a @ cotangent) * bit_a).sum(dim=(-2, -1))
