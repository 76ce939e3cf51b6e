"""`TileMap`: the one owner of weights -> tiles -> differential pairs -> conductances, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.errors import SurrogateError


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

    @property
    def conductance_span_s(self) -> float:
        """Conductance in S between the lowest and the highest level."""
        return self.conductance_max_s - self.conductance_min_s


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
        """Signed outputs, each of two bit lines."""
        return self.last_out - self.first_out


class TileMap:
    """Splits an `[outputs, inputs]` weight matrix over arrays and turns it into conductances.

    A weight w is the pair `g_plus - g_minus = w / weight_max * span` on neighbouring columns 2k and 2k + 1; the idle
    device of the pair, and every unused cell, sits at the lowest level (aihwkit's single-pair converter).

    Args:
        outputs: Rows of the weight matrix.
        inputs: Columns of the weight matrix.
        geometry: The arrays.

    Raises:
        SurrogateError: A size is not positive, or an array has fewer than two columns.
    """

    def __init__(self, outputs: int, inputs: int, geometry: ArrayGeometry) -> None:
        if min(outputs, inputs, geometry.rows) < 1 or geometry.columns < 2:
            raise SurrogateError(f"cannot map {outputs} x {inputs} weights to arrays of {geometry}")
        self.outputs = outputs
        self.inputs = inputs
        self.geometry = geometry
        pairs = geometry.columns // 2
        self.tiles = tuple(
            Tile(first_in, min(first_in + geometry.rows, inputs), first_out, min(first_out + pairs, outputs))
            for first_in in range(0, inputs, geometry.rows)
            for first_out in range(0, outputs, pairs)
        )

    def conductances(self, weight: Tensor, weight_max: Tensor | float) -> list[Tensor]:
        """Target conductances in S of every tile, `[rows, columns]` each; weights are clipped to `weight_max`."""
        geometry = self.geometry
        scaled = torch.clamp(weight / weight_max, -1.0, 1.0) * geometry.conductance_span_s
        targets = []
        for tile in self.tiles:
            block = scaled[tile.first_out : tile.last_out, tile.first_in : tile.last_in].T
            pair = torch.stack([torch.clamp(block, min=0.0), torch.clamp(-block, min=0.0)], dim=-1)
            cells = pair.reshape(tile.inputs, 2 * tile.outputs)
            padding = (0, geometry.columns - 2 * tile.outputs, 0, geometry.rows - tile.inputs)
            targets.append(torch.nn.functional.pad(cells, padding) + geometry.conductance_min_s)
        return targets

    def voltages(self, tile: Tile, scaled_input: Tensor) -> Tensor:
        """Line voltages in V of one tile, `[batch, rows]`, from inputs scaled to -1 .. 1, `[batch, inputs]`."""
        block = torch.clamp(scaled_input[:, tile.first_in : tile.last_in], -1.0, 1.0) * self.geometry.voltage_max_v
        return torch.nn.functional.pad(block, (0, self.geometry.rows - tile.inputs))

    def collect(self, currents_a: list[Tensor]) -> Tensor:
        """Signed outputs `[batch, outputs]` in A from the currents of all tiles; tiles of one output are added."""
        batch = currents_a[0].shape[0]
        total = currents_a[0].new_zeros(batch, self.outputs)
        for tile, current_a in zip(self.tiles, currents_a, strict=True):
            used = current_a[:, : 2 * tile.outputs]
            difference = used[:, 0::2] - used[:, 1::2]
            total = total + torch.nn.functional.pad(difference, (tile.first_out, self.outputs - tile.last_out))
        return total

    def weight(self, conductances_s: list[Tensor], weight_max: Tensor | float) -> Tensor:
        """The weights `[outputs, inputs]` that a set of conductances stands for; inverse of `conductances`."""
        weight = conductances_s[0].new_zeros(self.outputs, self.inputs)
        for tile, cells in zip(self.tiles, conductances_s, strict=True):
            used = cells[: tile.inputs, : 2 * tile.outputs]
            block = (used[:, 0::2] - used[:, 1::2]).T / self.geometry.conductance_span_s * weight_max
            weight[tile.first_out : tile.last_out, tile.first_in : tile.last_in] = block
        return weight
