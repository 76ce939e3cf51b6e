"""A calibration renewed from the passes that a training made anyway.

To first order in what may have changed (offset and gain of each column, and every cell by a part of itself) a measured
output is its prediction plus a linear function of the changes, so that with normal priors around the old calibration
the new one is a batched linear regression, one small system for each column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig.training.physical import Observation
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.parameters import ArrayParameters, Estimate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RefitSettings:
    """What may have changed since the calibration, beside its own errors, and what is remembered.

    Attributes:
        gain_change: Relative change of a column's gain.
        offset_change: Change of a column's offset, as a part of the ADC's full scale.
        cell_change: Relative change of a cell.
        memory: Measured batches of an array that are kept.
        forgetting: Weight of a batch over that of the one after it.
        heldout: Part of the batches, the latest, that judges.
        images: Vectors of a batch that are kept.
    """

    gain_change: float = 0.05
    offset_change: float = 0.02
    cell_change: float = 0.05
    memory: int = 40
    forgetting: float = 0.97
    heldout: float = 0.2
    images: int = 64


@dataclass(frozen=True)
class Refit:
    """A renewed calibration and what speaks for it.

    Attributes:
        parameters: The renewed array.
        before: Mean squared error of the old one on the held-out batches, in units of the predicted variance.
        after: That of the new one.
        batches: Batches that it was fitted to.
    """

    parameters: ArrayParameters
    before: float
    after: float
    batches: int

    @property
    def better(self) -> bool:
        """Whether the held-out batches prefer it."""
        return self.after < self.before


def refit(old: ArrayParameters, observed: Sequence[Observation], settings: RefitSettings) -> Refit | None:
    """Renews the calibration of an array; None where too little was measured to fit and to judge.

    Args:
        old: The calibration.
        observed: Measured batches of the array, the latest last.
        settings: What may have changed.
    """
    kept = int(np.ceil(settings.heldout * len(observed)))
    fitted, heldout = observed[: len(observed) - kept], observed[len(observed) - kept :]
    if len(fitted) < 2 or not heldout:
        return None
    surrogate = ArraySurrogate(old).double()
    prior, start = _prior(old, settings)
    matrix, vector = start, torch.zeros_like(prior)
    for number, one in enumerate(fitted):
        features, apart, variance = _linearised(surrogate, old, one, settings)
        weight = settings.forgetting ** (len(fitted) - 1 - number) / variance
        matrix = matrix + torch.einsum("bcp,bc,bcq->cpq", features, weight, features)
        vector = vector + torch.einsum("bcp,bc->cp", features, weight * apart)
    factor = torch.linalg.cholesky(matrix)
    change = torch.cholesky_solve(vector.unsqueeze(-1), factor).squeeze(-1)
    errors = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).sqrt()
    new = _changed(old, change.numpy(), errors.numpy())
    renewed = ArraySurrogate(new).double()
    before, after = (_score(one, which, heldout, settings) for one, which in ((surrogate, old), (renewed, new)))
    return Refit(new, before, after, len(fitted))


def _prior(old: ArrayParameters, settings: RefitSettings) -> tuple[Tensor, Tensor]:
    """Standard deviations of the changes, `[columns, 2 + rows]`, and their precision as diagonal matrices."""
    full_a = np.asarray(old.converters.adc_lsb_a) * old.converters.code_max
    full_a = np.where(full_a > 0.0, full_a, old.converters.voltage_max_v * old.converters.conductance_max_s)
    slope_error = np.zeros_like(old.cell_slope) if old.cell_slope_error is None else old.cell_slope_error
    offset = np.hypot(_finite(old.offset.error), settings.offset_change * full_a)
    gain = np.hypot(_finite(old.gain.error / old.gain.value), settings.gain_change)
    cells = np.hypot(_finite(slope_error), settings.cell_change).T
    prior = torch.as_tensor(np.concatenate([offset[:, None], gain[:, None], cells], axis=1))
    return prior, torch.diag_embed(prior**-2.0)


def _linearised(
    surrogate: ArraySurrogate, array: ArrayParameters, one: Observation, settings: RefitSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by the changes `[batch, columns, 2 + rows]`, residuals and variances `[batch, columns]`."""
    inputs = torch.as_tensor(one.voltage_v[: settings.images])
    target = torch.as_tensor(one.held.commanded_s)
    age_s = torch.as_tensor(np.maximum(one.result.time_s[: settings.images] - one.held.time_s, 0.0))
    with torch.no_grad():
        cells = surrogate.new_write(target)
        mean, sigma = surrogate.moments(cells, inputs, age_s=age_s)
        spread = surrogate.programming_sigma(target)
        programming = surrogate.spread_of_cells(cells, spread, inputs, age_s=age_s)
        # The slope of the whole forward path, from a small common change of all cells.
        step = 1e-4
        moved, _ = surrogate.moments((1.0 + step) * cells, inputs, age_s=age_s)
        by_gain = (moved - mean) / step
        linear = inputs @ (surrogate.gain * cells)
        slope = torch.where(linear.abs() > 1e-15, by_gain / linear, torch.ones_like(linear))
    by_cell = slope.unsqueeze(-1) * inputs.unsqueeze(1) * (surrogate.gain * cells).T.unsqueeze(0)
    features = torch.cat([torch.ones_like(mean).unsqueeze(-1), by_gain.unsqueeze(-1), by_cell], dim=-1)
    # All vectors of a write meet the same programming errors: together they tell no more than one measurement of each.
    shared = max(1.0, inputs.shape[0] / array.rows)
    lsb_a = torch.as_tensor(np.asarray(array.converters.adc_lsb_a))
    variance = sigma**2 + lsb_a**2 / 12.0 + shared * programming + 1e-30
    measured = torch.as_tensor(one.result.current_a[: settings.images])
    lost = torch.as_tensor(one.result.saturated[: settings.images])
    return features, measured - mean, torch.where(lost, torch.inf, variance)


def _score(
    surrogate: ArraySurrogate, array: ArrayParameters, heldout: Sequence[Observation], settings: RefitSettings
) -> float:
    squares, count = 0.0, 0
    for one in heldout:
        _, apart, variance = _linearised(surrogate, array, one, settings)
        told = torch.isfinite(variance)
        squares += float((apart[told] ** 2 / variance[told]).sum())
        count += int(told.sum())
    return squares / max(count, 1)


def _changed(old: ArrayParameters, change: FloatArray, errors: FloatArray) -> ArrayParameters:
    offset = Estimate(old.offset.value + change[:, 0], errors[:, 0], old.offset.unit)
    gain = Estimate(old.gain.value * (1.0 + change[:, 1]), old.gain.value * errors[:, 1], old.gain.unit)
    factor = 1.0 + change[:, 2:].T
    moved = old.with_estimates({"offset": offset, "gain": gain})
    return replace(
        moved,
        cell_slope=old.cell_slope * factor,
        cell_intercept_s=old.cell_intercept_s * factor,
        cell_slope_error=np.abs(old.cell_slope) * errors[:, 2:].T,
    )


def _finite(values: FloatArray) -> FloatArray:
    return np.asarray(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))
