"""Where programming leaves devices: bias, spread against the target, what belongs to the device and what to the write.

The error of a programming, g - target, is Gaussian around a bias with a standard deviation that depends on the target:

    bias = b_0 + b_1 r,    sigma = s_0 + s_1 r + s_2 r**2,    r = target / highest target

with as many terms as the data support. A device may have an error of its own, the same at every write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from labrig_calibration.devices.maximum_likelihood import Found, Terms, clustered_covariance, maximise, propagate
from labrig_calibration.devices.values import (
    FloatArray,
    Quantity,
    Summary,
    Table,
    quantity,
    refuse,
    share,
)
from labrig_surrogates.device_curves import Polynomial
from labrig_surrogates.device_laws import Programmed
from labrig_surrogates.faults import counted

_FEWEST = 10
# Clusters of which a covariance can be made at all.
_FEWEST_DEVICES = 3
# Further from the middle than this in robust standard deviations, a device is counted as failed, not as spread.
_FAILED = 6.0


@dataclass(frozen=True)
class ProgrammedCells:
    """Programmings of cells, one a row.

    Attributes:
        target_s: Target in S, `[rows]`.
        conductance_s: Conductance in S that was read afterwards, `[rows]`.
        device: Number of the device, `[rows]`.
        read_sigma_s: Standard deviation in S that reading alone puts into `conductance_s`.

    Raises:
        DeviceFitError: Lengths differ, numbers are not finite, there are too few; every fault is named.
    """

    target_s: FloatArray
    conductance_s: FloatArray
    device: NDArray[np.int64]
    read_sigma_s: float = 0.0

    def __post_init__(self) -> None:
        lengths = {"target_s": self.target_s, "conductance_s": self.conductance_s, "device": self.device}
        faults = []
        if len({len(one) for one in lengths.values()}) != 1:
            faults.append(", ".join(f"{name} has {len(one)} rows" for name, one in lengths.items()))
        for name, one in lengths.items():
            if not np.isfinite(one).all():
                faults.append(f"{name}: {counted(int((~np.isfinite(one)).sum()), 'value is', 'values are')} not finite")
        if len(self.target_s) < _FEWEST:
            faults.append(f"{len(self.target_s)} programmings, at least {_FEWEST} are needed")
        if not self.read_sigma_s >= 0.0:
            faults.append(f"read_sigma_s = {self.read_sigma_s} must not be negative")
        if not faults and not self.target_s.max() > 0.0:
            faults.append("no target is above zero")
        refuse("programming statistics", faults)


@dataclass(frozen=True)
class ProgrammingFit:
    """What programming leaves.

    Attributes:
        bias: Coefficients of the bias in S, ascending in the relative target.
        spread: Coefficients of the standard deviation in S, the same way.
        reference_s: Highest target in S, which counts as one.
        device_sigma: Standard deviation in S of what stays with a device from write to write.
        failed: Rows so far from the others that they were left out, `[rows]`.
        levels: Bias, spread and quantiles of each target.
        comparison: Numbers of terms and their held-out loss.
        confusion: Part of the cells that lies nearer to another target than to its own.
        tails: Excess kurtosis of the standardised errors; 0 for a Gaussian, -1.2 where every error within a range is
            as likely.
        largest: Largest error that was not left out; where errors end at some size, that size is in its interval.
        read_sigma_s: What was taken out for reading.
        solved: Whether the fit came to rest.
    """

    bias: tuple[Quantity, ...]
    spread: tuple[Quantity, ...]
    reference_s: float
    device_sigma: Quantity
    failed: NDArray[np.bool_]
    levels: Table
    comparison: Table
    confusion: Quantity
    tails: Quantity
    largest: Quantity
    read_sigma_s: float
    solved: bool

    def sigma_s(self, target_s: FloatArray) -> FloatArray:
        """Standard deviation in S at targets."""
        relative = target_s / self.reference_s
        return np.asarray(sum(one.value * relative**power for power, one in enumerate(self.spread)))

    def law(self) -> Programmed:
        """The spread as a law of devices. A layer's law has no bias: calibrate that away, or add it to the targets."""
        coefficients = tuple(one.value for one in self.spread)
        return Programmed(Polynomial(coefficients), reference_s=self.reference_s, unit_s=1.0)

    def summary(self) -> Summary:
        """The laws and the levels."""
        notes = [] if self.solved else ["the fit did not come to rest"]
        if self.tails.value > 3.0 * self.tails.error:
            notes.append("the errors have tails that no Gaussian has: intervals of single cells are too narrow")
        if self.tails.value < -3.0 * self.tails.error:
            notes.append(
                "the errors end sooner than a Gaussian's, as where cells are programmed until they are accepted"
            )
        conditions: dict[str, str | float] = {
            "programmings": len(self.failed),
            "left out as failed": int(self.failed.sum()),
            "relative to (S)": self.reference_s,
            "reading taken out (S)": self.read_sigma_s,
        }
        quantities = (*self.bias, *self.spread, self.device_sigma, self.confusion, self.tails, self.largest)
        return Summary("programming", conditions, quantities, (self.levels, self.comparison), tuple(notes))


def fit_programming(cells: ProgrammedCells, terms: tuple[int, int] | None = None) -> ProgrammingFit:
    """Fits bias and spread, with the number of terms that predicts devices it was not fitted to best.

    Errors of the coefficients hold although writes of one device resemble each other. Of the numbers of terms within
    one standard error of the best, the smallest is taken.

    Args:
        cells: What was measured.
        terms: How many the bias and the spread have, 0 to 2 and 1 to 3; by prediction when None.
    """
    reference_s = float(cells.target_s.max())
    relative = cells.target_s / reference_s
    error_s = cells.conductance_s - cells.target_s
    failed = _failed(error_s, cells.target_s)
    keep = ~failed
    unit_s = float(np.std(error_s[keep])) or 1.0
    data = _Data(
        torch.from_numpy(relative[keep]),
        torch.from_numpy(error_s[keep] / unit_s),
        (cells.read_sigma_s / unit_s) ** 2,
        np.unique(cells.device[keep], return_inverse=True)[1],
    )
    most = min(3, len(np.unique(cells.target_s)))
    choices = [(bias, spread) for bias in range(min(most, 2) + 1) for spread in range(1, most + 1)]
    choices = choices if terms is None else [terms]
    scores = {choice: _held_out(data, choice) for choice in choices}
    best = min(scores, key=lambda choice: scores[choice].mean())
    above = {one: _above(scores[one], scores[best], data.device) for one in choices}
    near = [one for one in choices if above[one][0] <= above[one][1] + 1e-9]
    chosen = min(near, key=lambda one: (sum(one), scores[one].mean()))
    rows = tuple((f"{bias} of bias, {spread} of spread", *above[bias, spread]) for bias, spread in choices)
    found = _fit(data, chosen)
    bias_count, spread_count = chosen
    values, covariance = propagate(found, lambda parameters: _coefficients(parameters, *chosen) * unit_s)
    value, error = values[0].numpy(), covariance[0].diagonal().sqrt().numpy()
    freedom = max(int(data.device.max()) + 1 - 1, 1)
    bias = tuple(quantity(f"bias_{k}", value[k], error[k], "S", freedom) for k in range(bias_count))
    spread = tuple(
        quantity(f"sigma_{k}", value[bias_count + k], error[bias_count + k], "S", freedom) for k in range(spread_count)
    )
    mean, sigma = _moments(found.parameters[0], data.relative, *chosen)
    standard = ((data.error - mean) / torch.sqrt(sigma**2 + data.known)).numpy()
    return ProgrammingFit(
        bias,
        spread,
        reference_s,
        _device_sigma((data.error - mean).numpy() * unit_s, data.device),
        failed,
        _levels(cells, failed),
        Table("terms of the law", ("terms", "held-out loss above the best", "+-"), rows),
        _confusion(cells),
        quantity("excess kurtosis", float(stats.kurtosis(standard)), math.sqrt(24.0 / len(standard)), "1"),
        _largest(error_s[keep]),
        cells.read_sigma_s,
        bool(found.solved[0]),
    )


@dataclass(frozen=True)
class _Data:
    relative: Tensor
    error: Tensor
    known: float
    device: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> _Data:
        at = torch.from_numpy(chosen)
        return _Data(self.relative[at], self.error[at], self.known, self.device[chosen])


def _moments(parameters: Tensor, relative: Tensor, bias: int, spread: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the error. Spreads are set by their values at evenly spaced targets."""
    coefficients = _coefficients(parameters, bias, spread)
    mean = sum((coefficients[k] * relative**k for k in range(bias)), torch.zeros_like(relative))
    sigma = sum((coefficients[bias + k] * relative**k for k in range(spread)), torch.zeros_like(relative))
    return mean, sigma.clamp(min=1e-6)


def _coefficients(parameters: Tensor, bias: int, spread: int) -> Tensor:
    """Coefficients from the bias's own and the logarithms of the spread at evenly spaced targets: positive there."""
    solved = _SOLVE[spread].to(parameters.dtype) @ torch.exp(parameters[bias:])
    return torch.cat([parameters[:bias], solved])


def _solve(spread: int) -> Tensor:
    """From the values of a polynomial at evenly spaced places to its coefficients."""
    places = np.linspace(1.0 / spread, 1.0, spread)
    return torch.from_numpy(np.linalg.inv(places[:, None] ** np.arange(spread)))


_SOLVE = {spread: _solve(spread) for spread in (1, 2, 3)}


def _terms(bias: int, spread: int, known: float) -> Terms:
    def terms(parameters: Tensor, relative: Tensor, error: Tensor) -> Tensor:
        mean, sigma = _moments(parameters, relative, bias, spread)
        variance = sigma**2 + known
        return 0.5 * ((error - mean) ** 2 / variance + torch.log(2.0 * math.pi * variance))

    return terms


def _fit(data: _Data, choice: tuple[int, int]) -> Found:
    terms, inputs = _terms(*choice, data.known), (data.relative[None], data.error[None])
    start = torch.zeros((1, sum(choice)), dtype=torch.float64)
    found = maximise(terms, start, inputs)
    count = int(data.device.max()) + 1
    if count < _FEWEST_DEVICES or count == len(data.error):
        return found
    covariance = clustered_covariance(terms, found, inputs, torch.from_numpy(data.device), count)
    if count >= 5 * sum(choice):
        return Found(found.parameters, covariance, found.loss, found.solved)
    # So few devices make the one or the other too small by chance: the larger variance counts.
    mine, models = (one.diagonal(dim1=1, dim2=2) for one in (covariance, found.covariance))
    wider = torch.sqrt((models / mine.clamp(min=1e-300)).clamp(min=1.0))
    return Found(found.parameters, covariance * wider[:, :, None] * wider[:, None, :], found.loss, found.solved)


def _held_out(data: _Data, choice: tuple[int, int], folds: int = 5) -> FloatArray:
    """Loss of each programming by a law that was fitted to other devices."""
    rows = len(data.error)
    fold = torch.from_numpy(data.device if data.device.max() + 1 >= folds else np.arange(rows)) % folds
    inside = (fold[None] != torch.arange(folds)[:, None]).to(torch.float64)
    terms = _terms(*choice, data.known)

    def weighted(parameters: Tensor, weight: Tensor) -> Tensor:
        return weight * terms(parameters, data.relative, data.error)

    found = maximise(weighted, torch.zeros((folds, sum(choice)), dtype=torch.float64), (inside,))
    every = torch.func.vmap(weighted)(found.parameters, 1.0 - inside)
    return np.asarray(every.sum(dim=0).numpy())


def _above(one: FloatArray, best: FloatArray, device: NDArray[np.int64]) -> tuple[float, float]:
    """How much larger a loss is than the best, over all programmings, and the standard error of that, by device."""
    summed = np.bincount(device, one - best)
    return float(summed.sum()), float(math.sqrt(len(summed)) * summed.std())


def _failed(error_s: FloatArray, target_s: FloatArray) -> NDArray[np.bool_]:
    failed = np.zeros(len(error_s), dtype=np.bool_)
    for target in np.unique(target_s):
        at = target_s == target
        off = np.abs(error_s[at] - np.median(error_s[at]))
        scale = 1.4826 * np.median(off)
        if at.sum() >= _FEWEST and scale > 0:
            failed[at] = off > _FAILED * scale
    return failed


def _device_sigma(error_s: FloatArray, device: NDArray[np.int64]) -> Quantity:
    """Between devices, from an analysis of variance with one factor."""
    count = np.bincount(device)
    several = count > 1
    name, total, groups = "device to device", int(count[several].sum()), int(several.sum())
    if groups < 3:
        return Quantity(name, math.nan, math.inf, "S", 0.0, math.inf)
    use = several[device]
    mean = np.bincount(device, error_s)[several] / count[several]
    within = (np.bincount(device[use], error_s[use] ** 2, len(count))[several] - count[several] * mean**2).sum()
    within /= total - groups
    grand = error_s[use].mean()
    between = (count[several] * (mean - grand) ** 2).sum() / (groups - 1)
    each = (total - (count[several] ** 2).sum() / total) / (groups - 1)
    variance = (between - within) / each
    error = math.sqrt(2.0 * between**2 / (groups - 1) + 2.0 * within**2 / (total - groups)) / each
    reach = stats.norm.ppf(0.95) * error
    sigma = math.sqrt(max(variance, 0.0))
    return Quantity(
        name,
        sigma,
        error / (2.0 * sigma) if sigma > 0 else math.sqrt(error),
        "S",
        math.sqrt(max(variance - reach, 0.0)),
        math.sqrt(max(variance + reach, 0.0)),
    )


def _levels(cells: ProgrammedCells, failed: NDArray[np.bool_]) -> Table:
    rows = []
    for target in np.unique(cells.target_s):
        at = (cells.target_s == target) & ~failed
        error_s = cells.conductance_s[at] - target
        count = len(error_s)
        if count < 2:
            continue
        sigma = float(error_s.std(ddof=1))
        # The variance of a variance takes in the tails that the errors really have.
        tail = float(stats.kurtosis(error_s)) + 2.0 if count > 3 else 2.0
        low, high = np.quantile(error_s, [0.05, 0.95])
        rows.append(
            (
                float(target),
                count,
                float(error_s.mean()),
                sigma / math.sqrt(count),
                sigma,
                0.5 * sigma * math.sqrt(max(tail, 0.5) / count),
                float(low),
                float(high),
            )
        )
    header = ("target (S)", "cells", "bias (S)", "+-", "sigma (S)", "+-", "5 % (S)", "95 % (S)")
    return Table("levels", header, tuple(rows))


def _confusion(cells: ProgrammedCells) -> Quantity:
    """How often a cell would be read as another of the levels, by the nearest."""
    levels = np.unique(cells.target_s)
    if len(levels) < 2:
        return Quantity("nearer to another level", math.nan, math.inf, "1", 0.0, 1.0)
    nearest = levels[np.abs(cells.conductance_s[:, None] - levels).argmin(axis=1)]
    return share("nearer to another level", int((nearest != cells.target_s).sum()), len(nearest))


def _largest(error_s: FloatArray) -> Quantity:
    """The largest error, and what it could be were all errors within a range as likely."""
    largest, count = float(np.abs(error_s).max()), len(error_s)
    return Quantity("largest error", largest, largest / count, "S", largest, largest * 0.1 ** (-1.0 / count))
