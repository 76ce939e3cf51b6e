"""Signed weights as the levels of their cells, and back, for effects that act on single cells.

A level is a conductance relative to what can be programmed: 0 is the lowest, 1 the highest, noise may lead beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labrig_surrogates.tilemap import ArrayGeometry, Scheme, cell_levels


@dataclass(frozen=True)
class WeightCells:
    """The cells of a weight matrix.

    Attributes:
        of_weights: Levels of the cells that weights add to, of the shape of the weights.
        of_references: Levels of the cells that are subtracted: of the same shape for `differential_pair`; for
            `offset_column` one for each input of each reference column, `[references, inputs, ...]`.
        reference_of: Number of the reference column of each output, `[outputs]`; None where each cell has its own.
        weight_per_level: Weight of one level of difference, a number or one for each output.
        read_variance: Of a reading of `of_weights` and of `of_references`, in squares of levels and of their shapes,
            fresh for every input vector; None without.
    """

    of_weights: Tensor
    of_references: Tensor
    reference_of: Tensor | None
    weight_per_level: Tensor
    read_variance: tuple[Tensor, Tensor] | None = None

    def changed(self, change: Callable[[str, Tensor], Tensor]) -> WeightCells:
        """The same weights after something happened to the cells, which are handed out with a name of their own."""
        return replace(
            self,
            of_weights=change("weights", self.of_weights),
            of_references=change("references", self.of_references),
        )

    def for_each_weight(self, of_references: Tensor) -> Tensor:
        """Values of references, made to stand beside the weights."""
        return of_references if self.reference_of is None else of_references.index_select(0, self.reference_of)

    def weights(self) -> Tensor:
        """What the cells stand for."""
        return (self.of_weights - self.for_each_weight(self.of_references)) * self.weight_per_level

    def moved_to(self, weights: Tensor) -> WeightCells:
        """Cells that stand for other weights: both of a pair go half of the way, a shared reference stays."""
        away = (weights - self.weights()) / self.weight_per_level
        if self.reference_of is not None:
            return replace(self, of_weights=self.of_weights + away)
        return replace(self, of_weights=self.of_weights + 0.5 * away, of_references=self.of_references - 0.5 * away)

    def with_read_variance(self, of_weights: Tensor, of_references: Tensor) -> WeightCells:
        """The same cells with noise of reading, on top of what they have."""
        if self.read_variance is not None:
            of_weights, of_references = self.read_variance[0] + of_weights, self.read_variance[1] + of_references
        return replace(self, read_variance=(of_weights, of_references))

    def cut(self, part: Callable[[Tensor], Tensor]) -> WeightCells:
        """Some inputs of all outputs; `part` takes them from a tensor `[any, inputs, ...]`."""
        variance = self.read_variance
        return replace(
            self,
            of_weights=part(self.of_weights),
            of_references=part(self.of_references),
            read_variance=None if variance is None else (part(variance[0]), part(variance[1])),
        )


def weight_cells(
    weights: Tensor, limit: Tensor, scheme: Scheme, geometry: ArrayGeometry | None, groups: int = 1
) -> WeightCells:
    """Target levels of weights, as `TileMap` lays them out; weights beyond the limit are clipped.

    Args:
        weights: `[outputs, inputs, ...]`.
        limit: Weight that the whole range of conductances stands for, one or one for each output.
        scheme: How a weight lies on cells.
        geometry: The arrays, which say how many outputs share a reference column; None is one array for each group.
        groups: Groups of outputs, each on arrays of its own.
    """
    own, reference = cell_levels(torch.clamp(weights / limit, -1.0, 1.0), scheme)
    if scheme == "differential_pair":
        return WeightCells(own, reference, None, limit)
    outputs = weights.shape[0] // groups
    per_block = outputs if geometry is None else min(geometry.outputs_of(scheme), outputs)
    blocks = -(-outputs // per_block)
    within = torch.arange(outputs, device=weights.device) // per_block
    first = blocks * torch.arange(groups, device=weights.device)
    references = reference.expand(groups * blocks, *reference.shape[1:])
    return WeightCells(own, references, (first[:, None] + within).flatten(), 2.0 * limit)
