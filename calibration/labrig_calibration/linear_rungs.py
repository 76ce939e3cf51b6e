"""The lower rungs of the ladder, which are linear: solved from the Gram matrix and the products of each write.

One pass over the data makes them all: `global` (one gain, one noise), `cells` (the conductance of every cell of every
write, its programming error a random effect around gain * target) and `columns` (offset, gain and noise of each one).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labrig_calibration.columns import ColumnState
from labrig_calibration.measurements import Measurements
from labrig_calibration.noise_law import NoiseTerms

_ROBUST = 1.4826


@dataclass(frozen=True)
class LinearSums:
    """Sums over the MVMs of each write, inputs with a one behind them: what linear rungs need to know of the data.

    Attributes:
        gram: `[writes, rows + 1, rows + 1]`.
        products: With the outputs, `[writes, rows + 1, columns]`.
        squares: Of the outputs, `[columns]`.
        count: MVMs in all.
        target_s: Target of each write in S, `[writes, rows, columns]`.
        floor_a2: Variance of the ADC, `[columns]`.
    """

    gram: Tensor
    products: Tensor
    squares: Tensor
    count: float
    target_s: Tensor
    floor_a2: Tensor

    @classmethod
    def of(cls, data: Measurements) -> LinearSums:
        """Sums a data set up, block by block."""
        target_s = torch.as_tensor(np.asarray(data.dataset.target_conductance_s[:, :, data.columns], dtype=np.float64))
        writes, rows, columns = target_s.shape
        gram = torch.zeros((writes, rows + 1, rows + 1), dtype=torch.float64)
        products = torch.zeros((writes, rows + 1, columns), dtype=torch.float64)
        squares, count = torch.zeros(columns, dtype=torch.float64), 0.0
        for block in data.blocks():
            inputs = torch.cat([block.voltage_v, torch.ones_like(block.log_age)], dim=1) * block.outputs.keep
            gram[block.write] += inputs.T @ inputs
            products[block.write] += inputs.T @ block.outputs.current_a
            squares += (block.outputs.current_a**2 * block.outputs.keep).sum(dim=0)
            count += float(block.outputs.keep.sum())
        floor_a2 = torch.as_tensor(data.dataset.converters.adc_lsb_a[data.columns]) ** 2 / 12.0
        return cls(gram, products, squares, count, target_s, floor_a2)

    def global_rung(self) -> ColumnState:
        """One gain of all targets, and one noise."""
        inner, cross = self._against_targets()
        gain = cross.sum() / inner.sum()
        variance = (self.squares.sum() - gain * cross.sum()) / (self.count * self.squares.shape[0])
        return self._state(torch.zeros_like(self.squares), gain * self.target_s, variance.expand_as(self.squares))

    def cells_rung(self) -> ColumnState:
        """Every cell of every write around one gain times its target, and one noise."""
        inner, cross = self._against_targets()
        gain = (cross.sum() / inner.sum()).expand_as(self.squares)
        return self._random_effects(torch.zeros_like(self.squares), gain, pooled=True)

    def columns_rung(self) -> ColumnState:
        """The same with offset, gain and noise of every column."""
        free = self._least_squares()
        offset = free[:, -1].mean(dim=0)
        follows = (free[:, :-1] * self.target_s).sum(dim=(0, 1)) / (self.target_s**2).sum(dim=(0, 1)).clamp(min=1e-300)
        return self._random_effects(offset, follows, pooled=False)

    def correlation(self) -> Tensor:
        """Correlation of each column's outputs with what its targets predict, `[columns]`; zero for a dead one."""
        inner, cross = self._against_targets()
        return cross / torch.sqrt(inner * self.squares).clamp(min=1e-300)

    def gain(self) -> Tensor:
        """Slope of each column's outputs over what its targets predict, `[columns]`."""
        inner, cross = self._against_targets()
        return cross / inner.clamp(min=1e-300)

    def _against_targets(self) -> tuple[Tensor, Tensor]:
        cells = self.gram[:, :-1, :-1]
        inner = (self.target_s * (cells @ self.target_s)).sum(dim=(0, 1))
        return inner, (self.target_s * self.products[:, :-1]).sum(dim=(0, 1))

    def _least_squares(self) -> Tensor:
        ridge = 1e-9 * self.gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(self.gram.shape[1])
        solution: Tensor = torch.linalg.solve(self.gram + ridge, self.products)
        return solution

    def _random_effects(self, offset: Tensor, gain: Tensor, *, pooled: bool) -> ColumnState:
        """Conductances shrunk towards gain * target as the spreads of both sides ask for."""
        cells = self.gram[:, :-1, :-1]
        products = self.products[:, :-1] - self.gram[:, :-1, -1:] * offset
        rows = cells.shape[1]
        ridge = 1e-9 * cells.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(rows, dtype=cells.dtype)
        inverse = torch.linalg.inv(cells + ridge)
        free = inverse @ products
        sums = (self.products[:, -1], self.gram[:, -1, -1, None])
        left = self.squares - 2.0 * offset * sums[0].sum(dim=0) + offset**2 * sums[1].sum()
        left = left - (free * products).sum(dim=(0, 1))
        freedom = max(self.count - rows * cells.shape[0], 0.1 * self.count)
        variance = (left / freedom).clamp(min=0.0) + 1e-3 * self.floor_a2 + 1e-60
        if pooled:
            variance = variance.mean().expand_as(variance)
        prior = gain * self.target_s
        own = inverse.diagonal(dim1=1, dim2=2)[..., None] * variance
        spread = ((free - prior) ** 2 - own).mean(dim=(0, 1)).clamp(min=1e-6 * (prior**2).mean(dim=(0, 1)) + 1e-60)
        if pooled:
            spread = spread.mean().expand_as(spread)
        ratio = variance / spread
        values, vectors = torch.linalg.eigh(cells)
        pull = vectors.transpose(1, 2) @ (products + ratio * prior)
        shrunk = vectors @ (pull / (values[..., None] + ratio))
        return self._state(offset, shrunk, variance)

    def _state(self, offset: Tensor, cells: Tensor, variance: Tensor) -> ColumnState:
        shared = offset.new_zeros((4, offset.shape[0]))
        shared[0] = offset
        return ColumnState(shared, cells, NoiseTerms.constant(variance, self.floor_a2))


def robust_start(data: Measurements) -> ColumnState:
    """Where the columns' fit starts: linear least squares without MVMs that lie far off in most columns."""
    state = LinearSums.of(data).columns_rung()
    scale = torch.sqrt(state.noise.value[0])
    dropped = np.zeros(len(data.dataset), dtype=np.bool_)
    for _ in range(3):
        kept = data.without(dropped)
        residuals, rows = [], []
        for block in kept.blocks():
            mean = state.shared[0] + block.voltage_v @ state.conductance_s[block.write]
            residuals.append((block.outputs.current_a - mean).abs())
            rows.append(np.arange(len(dropped))[block.rows])
        size = torch.cat(residuals)
        scale = _ROBUST * size.median(dim=0).values.clamp(min=1e-300)
        far = (size / scale).median(dim=1).values > 5.0
        found = np.concatenate(rows)[far.numpy()]
        fresh = found[~dropped[found]]
        if not fresh.size or dropped.sum() + fresh.size > 0.2 * size.shape[0]:
            break
        dropped[fresh] = True
        state = LinearSums.of(data.without(dropped)).columns_rung()
    floor_a2 = state.noise.floor_a2
    return ColumnState(state.shared, state.conductance_s, NoiseTerms.constant(scale**2, floor_a2))
