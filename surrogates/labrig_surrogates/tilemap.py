"""`TileMap`: the one owner of weights -> tiles -> cells -> conductances, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from labrig_surrogates.errors import SurrogateError

Scheme = Literal["differential_pair", "offset_column"]


def cell_levels(relative: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Levels, 0 to 1, of the cells of relative weights -1 to 1, `[outputs, ...]`.

    Returns:
        Of the cells that weights add to, and of those that are subtracted: `[outputs, ...]` for `differential_pair`,
        `[1, ...]` for the reference of an `offset_column`.
    """
    if scheme == "offset_column":
        return 0.5 * (1.0 + relative), torch.full_like(relative[:1], 0.5)
    # A weight of zero may go either way: with the magnitude each of its cells has half of the gradient there.
    size = relative.abs()
    return 0.5 * (size + relative), 0.5 * (size - relative)


@dataclass(frozen=True)
class ArrayGeometry:
    """Size and conductance range of the arrays that a model is mapped to.

    Attributes:
        rows: Word lines.
        columns: Bit lines; two of them make one signed output.
        conductance_min_s: Lowest programmable conductance in S.
        conductance_max_s: Highest programmable conductance in S.
        voltage_max_v: Highest read voltage in V.
    """

    rows: int
    columns: int
    conductance_min_s: float
    conductance_max_s: float
    voltage_max_v: float

    @classmethod
    def relative(cls, *, rows: int, columns: int) -> Self:
        """Arrays of which only the size matters: conductances and voltages from 0 to 1."""
        return cls(rows, columns, conductance_min_s=0.0, conductance_max_s=1.0, voltage_max_v=1.0)

    @property
    def conductance_span_s(self) -> float:
        """Conductance in S between the lowest and the highest level."""
        return self.conductance_max_s - self.conductance_min_s

    @property
    def is_relative(self) -> bool:
        """Whether only the size matters, as in `relative`: no cell of an array conducts a siemens."""
        return self.conductance_max_s >= 1.0

    def outputs_of(self, scheme: Scheme) -> int:
        """Signed outputs of one array: two bit lines each, or one each and one for the reference."""
        return self.columns // 2 if scheme == "differential_pair" else self.columns - 1


@dataclass(frozen=True)
class Tile:
    """One block of a weight matrix that lives on one array: inputs `[first_in, last_in)`, outputs likewise."""

    first_in: int
    last_in: int
    first_out: int
    last_out: int

    @property
    def inputs(self) -> int:
        """Word lines in use."""
        return self.last_in - self.first_in

    @property
    def outputs(self) -> int:
        """Signed outputs in use."""
        return self.last_out - self.first_out


class TileMap:
    """Splits an `[outputs, inputs]` weight matrix over arrays and turns it into conductances.

    `differential_pair`: a weight w is the pair `g_plus - g_minus = w / weight_max * span` on neighbouring columns 2k
    and 2k + 1; the idle device of the pair, and every unused cell, sits at the lowest level (aihwkit's single-pair
    converter). `offset_column`: a weight is one cell, `g = g_min + (1 + w / weight_max) / 2 * span`, and the column
    after the last output holds the middle level in every used row, as the reference that is subtracted.

    Args:
        outputs: Rows of the weight matrix.
        inputs: Columns of the weight matrix.
        geometry: The arrays.
        scheme: How a weight lies on cells.
        input_unit: Inputs that stay together on one array, such as the kernel positions of one channel; divides
            `inputs`.

    Raises:
        SurrogateError: A size is not positive, an array has fewer than two columns or too few rows for one unit, or
            there is no such scheme.
    """

    def __init__(
        self,
        outputs: int,
        inputs: int,
        geometry: ArrayGeometry,
        *,
        scheme: Scheme = "differential_pair",
        input_unit: int = 1,
    ) -> None:
        if scheme not in get_args(Scheme):
            raise SurrogateError(f"scheme = {scheme!r} is none of {', '.join(get_args(Scheme))}")
        if min(outputs, inputs, geometry.rows, input_unit) < 1 or geometry.columns < 2:
            raise SurrogateError(f"cannot map {outputs} x {inputs} weights to arrays of {geometry}")
        if inputs % input_unit or geometry.rows < input_unit:
            raise SurrogateError(
                f"cannot map {inputs} inputs in units of {input_unit} to arrays of {geometry.rows} rows: "
                "one unit has to fit on an array, and the units have to fill the inputs"
            )
        self.outputs = outputs
        self.inputs = inputs
        self.geometry = geometry
        self.scheme: Scheme = scheme
        rows = geometry.rows // input_unit * input_unit
        columns = geometry.outputs_of(scheme)
        self.input_blocks = tuple((first, min(first + rows, inputs)) for first in range(0, inputs, rows))
        self.output_blocks = tuple((first, min(first + columns, outputs)) for first in range(0, outputs, columns))
        self.tiles = tuple(Tile(*rows_, *columns_) for rows_ in self.input_blocks for columns_ in self.output_blocks)

    @property
    def product_current_a(self) -> float:
        """Current in A that the largest weight adds to a signed output at the largest voltage."""
        span_a = self.geometry.conductance_span_s * self.geometry.voltage_max_v
        return span_a if self.scheme == "differential_pair" else 0.5 * span_a

    @property
    def utilisation(self) -> float:
        """Part of the cells of all tiles that hold a weight or belong to its pair."""
        cells = 2 if self.scheme == "differential_pair" else 1
        used = sum(tile.inputs * tile.outputs * cells for tile in self.tiles)
        return used / (len(self.tiles) * self.geometry.rows * self.geometry.columns)

    def conductances(self, weight: Tensor, weight_max: Tensor | float) -> list[Tensor]:
        """Target conductances in S of every tile, `[rows, columns]` each; weights are clipped to `weight_max`."""
        own, reference = cell_levels(torch.clamp(weight / weight_max, -1.0, 1.0), self.scheme)
        if self.scheme == "offset_column":
            reference = reference.expand(len(self.output_blocks), -1)
        return self.place(own, reference)

    def place(self, of_weights: Tensor, of_references: Tensor) -> list[Tensor]:
        """Conductances in S of every tile, `[rows, columns]` each, from the levels of its cells.

        Args:
            of_weights: Cells that weights add to, 0 to 1 and where noise has been even beyond, `[outputs, inputs]`.
            of_references: Cells that are subtracted: `[outputs, inputs]` for `differential_pair`, one row for each of
                the `output_blocks` for `offset_column`.
        """
        geometry = self.geometry
        placed = []
        for tile in self.tiles:
            rows, columns = slice(tile.first_in, tile.last_in), slice(tile.first_out, tile.last_out)
            own = of_weights[columns, rows].T
            if self.scheme == "offset_column":
                block = self.output_blocks.index((tile.first_out, tile.last_out))
                used = torch.cat([own, of_references[block : block + 1, rows].T], dim=1)
            else:
                used = torch.stack([own, of_references[columns, rows].T], dim=-1).reshape(tile.inputs, -1)
            padding = (0, geometry.columns - used.shape[1], 0, geometry.rows - tile.inputs)
            padded = torch.nn.functional.pad(used * geometry.conductance_span_s, padding)
            placed.append(padded + geometry.conductance_min_s)
        return placed

    def lift(self, cells: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Values of the cells of weights and of their references, as `place` takes them, from those of every tile."""
        pairs = self.scheme == "differential_pair"
        own = cells[0].new_zeros(self.outputs, self.inputs)
        reference = torch.zeros_like(own) if pairs else own.new_zeros(len(self.output_blocks), self.inputs)
        for tile, values in zip(self.tiles, cells, strict=True):
            rows, columns = slice(tile.first_in, tile.last_in), slice(tile.first_out, tile.last_out)
            used = values[: tile.inputs].T
            if pairs:
                own[columns, rows] = used[0 : 2 * tile.outputs : 2]
                reference[columns, rows] = used[1 : 2 * tile.outputs : 2]
            else:
                own[columns, rows] = used[: tile.outputs]
                reference[self.output_blocks.index((tile.first_out, tile.last_out)), rows] = used[tile.outputs]
        return own, reference

    def _signed(self, columns: Tensor, outputs: int) -> Tensor:
        """Differences `[..., outputs]` of the columns of a tile."""
        if self.scheme == "offset_column":
            return columns[..., :outputs] - columns[..., outputs : outputs + 1]
        used = columns[..., : 2 * outputs]
        return used[..., 0::2] - used[..., 1::2]

    def voltages(self, tile: Tile, scaled_input: Tensor) -> Tensor:
        """Line voltages in V of one tile, `[batch, rows]`, from inputs scaled to -1 .. 1, `[batch, inputs]`."""
        block = torch.clamp(scaled_input[:, tile.first_in : tile.last_in], -1.0, 1.0) * self.geometry.voltage_max_v
        return torch.nn.functional.pad(block, (0, self.geometry.rows - tile.inputs))

    def collect(self, currents_a: list[Tensor]) -> Tensor:
        """Signed outputs `[batch, outputs]` in A from the currents of all tiles; tiles of one output are added."""
        batch = currents_a[0].shape[0]
        total = currents_a[0].new_zeros(batch, self.outputs)
        for tile, current_a in zip(self.tiles, currents_a, strict=True):
            difference = self._signed(current_a, tile.outputs)
            total = total + torch.nn.functional.pad(difference, (tile.first_out, self.outputs - tile.last_out))
        return total

    def weight(self, conductances_s: list[Tensor], weight_max: Tensor | float) -> Tensor:
        """The weights `[outputs, inputs]` that a set of conductances stands for; inverse of `conductances`."""
        relative = conductances_s[0].new_zeros(self.outputs, self.inputs)
        full = self.geometry.conductance_span_s * (1.0 if self.scheme == "differential_pair" else 0.5)
        for tile, cells in zip(self.tiles, conductances_s, strict=True):
            block = self._signed(cells[: tile.inputs], tile.outputs).T / full
            relative[tile.first_out : tile.last_out, tile.first_in : tile.last_in] = block
        return relative * weight_max
