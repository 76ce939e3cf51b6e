"""Signed weights as the conductances of their cells, and back, for effects that act on single cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labrig_surrogates.tilemap import ArrayGeometry, Scheme


@dataclass(frozen=True)
class WeightCells:
    """The cells of a weight matrix.

    Attributes:
        of_weights: Cells in S that a weight adds to, of the shape of the weights.
        of_references: Cells in S that are subtracted: of the same shape for `differential_pair`; for `offset_column`
            one for each input and block of outputs, `[blocks, inputs, ...]`.
        outputs_per_block: Outputs that share a reference; 1 for `differential_pair`.
        weight_per_s: Weight of one siemens of difference, broadcast against the weights.
    """

    of_weights: Tensor
    of_references: Tensor
    outputs_per_block: int
    weight_per_s: Tensor

    def changed(self, change: Callable[[str, Tensor], Tensor]) -> WeightCells:
        """The same weights after something happened to the cells, which are handed out with a name of their own."""
        return replace(
            self,
            of_weights=change("weights", self.of_weights),
            of_references=change("references", self.of_references),
        )

    def weights(self) -> Tensor:
        """What the cells stand for."""
        references = self.of_references
        if references.shape != self.of_weights.shape:
            references = references.repeat_interleave(self.outputs_per_block, dim=0)[: self.of_weights.shape[0]]
        return (self.of_weights - references) * self.weight_per_s


def weight_cells(
    weights: Tensor, limit: Tensor, scheme: Scheme, geometry: ArrayGeometry | None, low_s: float, high_s: float
) -> WeightCells:
    """Target conductances of weights, as `TileMap` lays them out; weights beyond the limit are clipped.

    Args:
        weights: `[outputs, inputs, ...]`.
        limit: Weight that the whole range of conductances stands for, one or one for each output.
        scheme: How a weight lies on cells.
        geometry: The arrays, which say how many outputs share a reference column; None is one array.
        low_s: Lowest conductance in S.
        high_s: Highest conductance in S.
    """
    relative, span_s = torch.clamp(weights / limit, -1.0, 1.0), high_s - low_s
    if scheme == "differential_pair":
        plus, minus = (low_s + span_s * torch.clamp(sign * relative, min=0.0) for sign in (1.0, -1.0))
        return WeightCells(plus, minus, 1, limit / span_s)
    per_block = weights.shape[0] if geometry is None else min(geometry.outputs_of(scheme), weights.shape[0])
    blocks = -(-weights.shape[0] // per_block)
    middle = torch.full_like(weights[:1], low_s + 0.5 * span_s).expand(blocks, *weights.shape[1:])
    return WeightCells(low_s + 0.5 * span_s * (1.0 + relative), middle, per_block, 2.0 * limit / span_s)
