"""Current-voltage curves: laws with intervals, and which of them a measurement supports.

Noise is Gaussian with a floor and a part in proportion to the current, both fitted. Which law holds is decided by
pieces of the curves that were left out of the fit. Readings of a sweep that follow each other resemble each other where
no law fits exactly; the errors hold nevertheless (Newey and West), and are then those of the law that comes nearest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_calibration.devices.iv_laws import LAWS, UNSCALED, scaled_current, thickness_permittivity_f
from labrig_calibration.devices.maximum_likelihood import Found, Terms, maximise, serial_covariance
from labrig_calibration.devices.values import (
    FloatArray,
    Quantity,
    Summary,
    Table,
    from_logarithm,
    quantity,
    refuse,
)
from labrig_surrogates.cell_curves import CubicCurve
from labrig_surrogates.faults import counted

_FEWEST = 12
_PIECES, _FOLDS = 10, 5
_FURTHEST = 7.0


@dataclass(frozen=True)
class Curve:
    """One curve, in the order of measurement.

    Attributes:
        name: Of which cell or device.
        voltage_v: Measured voltages in V, `[n]`.
        current_a: Measured currents in A, with their signs, `[n]`.
        in_compliance: Readings whose current was limited: they say nothing and are left out, `[n]`.
    """

    name: str
    voltage_v: FloatArray
    current_a: FloatArray
    in_compliance: NDArray[np.bool_]

    def within(self, low_v: float, high_v: float) -> Curve:
        """The readings between two voltages."""
        inside = (self.voltage_v >= low_v) & (self.voltage_v <= high_v)
        return Curve(self.name, self.voltage_v[inside], self.current_a[inside], self.in_compliance[inside])


@dataclass(frozen=True)
class LawFit:
    """One law, all curves.

    Attributes:
        law: One of `LAWS`.
        numbers: Parameters of each curve.
        floor_a: Standard deviation of the noise at zero current in A, `[curves]`.
        relative: Its part in proportion to the current, `[curves]`.
        held_out: Negative log-likelihood of a reading that was left out, currents in A, `[curves]`; one that lies
            further off than seven standard deviations counts as seven, lest one piece decide for all.
        misfit: Correlation of a reading's residual with the next one's, `[curves]`: near one where the law bends
            otherwise than the curve.
        solved: Curves whose fit came to rest, `[curves]`.
    """

    law: str
    numbers: tuple[tuple[Quantity, ...], ...]
    floor_a: FloatArray
    relative: FloatArray
    held_out: FloatArray
    misfit: FloatArray
    solved: NDArray[np.bool_]


@dataclass(frozen=True)
class IvFit:
    """All laws on all curves.

    Attributes:
        names: Of the curves.
        law: The law that predicts readings that were left out best, over all curves; the simplest of those within one
            standard error of it.
        best: The same for each curve.
        laws: Every law.
        readings: Readings of each curve that counted.
        left_out: Readings in compliance.
        temperature_k: Temperature in K that Poole-Frenkel's d eps is for.
    """

    names: tuple[str, ...]
    law: str
    best: tuple[str, ...]
    laws: dict[str, LawFit]
    readings: NDArray[np.int64]
    left_out: int
    temperature_k: float

    def curve(self) -> CubicCurve:
        """The odd cubic with the mean bend of the curves, as a law of cells: `CellCurves` takes it into a layer."""
        return CubicCurve(float(np.mean([one[1].value for one in self.laws["odd cubic"].numbers])))

    def poole_frenkel(self, place: int) -> tuple[Quantity, Quantity]:
        """Prefactor c in S and d eps in F of one curve, as `poole_frenkel_current_a` takes them.

        Args:
            place: Which curve.
        """
        prefactor, slope = self.laws["Poole-Frenkel"].numbers[place]
        ends = sorted(thickness_permittivity_f(end, self.temperature_k) for end in (slope.low, slope.high))
        value = thickness_permittivity_f(slope.value, self.temperature_k)
        error = 2.0 * value * slope.error / slope.value if slope.value > 0 else math.inf
        return prefactor, Quantity("d eps", value, error, "F", *ends)

    def summary(self) -> Summary:
        """The comparison of laws, and every curve by the law that was chosen."""
        chosen = self.laws[self.law]
        rows = []
        for name, fit in self.laws.items():
            wins = sum(one == name for one in self.best)
            rows.append((name, LAWS[name], float(fit.held_out.mean()), wins, float(np.median(fit.misfit))))
        header = ("law", "parameters", "held-out loss per reading", "curves that it is best for", "misfit")
        comparison = Table("laws of the curves (smaller is better)", header, tuple(rows))
        names = tuple(f"{one.name} ({one.unit})" for one in chosen.numbers[0])
        columns = ("curve", "readings", "best law", *(text for name in names for text in (name, "low", "high")))
        lines: tuple[tuple[str | float, ...], ...] = tuple(
            (
                self.names[place],
                int(self.readings[place]),
                self.best[place],
                *(number for one in numbers for number in (one.value, one.low, one.high)),
                float(chosen.floor_a[place]),
                float(chosen.relative[place]),
                float(chosen.misfit[place]),
            )
            for place, numbers in enumerate(chosen.numbers)
        )
        table = Table(f"curves by the law: {self.law}", (*columns, "floor (A)", "relative noise", "misfit"), lines)
        notes = []
        off = [self.names[place] for place in np.flatnonzero(chosen.misfit > 0.5)]
        if off:
            notes.append(
                f"the law bends otherwise than {len(off)} of the curves, such as {off[0]}: what is given is the nearest"
            )
        if self.law == "Poole-Frenkel" and any(one[1].value <= 0 for one in chosen.numbers):
            notes.append("some slopes b are not positive: that is no Poole-Frenkel emission, and d eps has no value")
        if (restless := int((~chosen.solved).sum())) > 0:
            notes.append(f"the fit of {counted(restless, 'curve')} of {len(self.names)} did not come to rest")
        conditions: dict[str, str | float] = {
            "curves": len(self.names),
            "law": self.law,
            "readings in compliance, left out": self.left_out,
        }
        return Summary("I-V curves", conditions, self._typical(chosen), (comparison, table), tuple(notes))

    def _typical(self, chosen: LawFit) -> tuple[Quantity, ...]:
        """Mean over the curves and its error, from their scatter."""
        count, typical = len(self.names), []
        for place, first in enumerate(chosen.numbers[0]):
            values = np.array([one[place].value for one in chosen.numbers])
            if count == 1:
                typical.append(first)
            else:
                error = float(values.std(ddof=1)) / math.sqrt(count)
                typical.append(quantity(f"{first.name}, mean", float(values.mean()), error, first.unit, count - 1))
        return tuple(typical)


def fit_iv(curves: Sequence[Curve], *, temperature_k: float = 293.15) -> IvFit:
    """Fits every law to every curve, all curves at once.

    Args:
        curves: What was measured; one branch each where there is hysteresis, since a law has one current for a voltage.
        temperature_k: Temperature in K, for Poole-Frenkel's d eps.

    Raises:
        DeviceFitError: Curves are too short, not finite, or without current; every fault is named.
    """
    kept = [_usable(one) for one in curves]
    faults = [] if curves else ["there are no curves"]
    for curve, (voltage, current) in zip(curves, kept, strict=True):
        if len({len(curve.voltage_v), len(curve.current_a), len(curve.in_compliance)}) != 1:
            lengths = f"{len(curve.voltage_v)} voltages, {len(curve.current_a)} currents"
            faults.append(f"{curve.name}: {lengths} and {len(curve.in_compliance)} flags must be as many")
        elif bad := int((~(np.isfinite(curve.voltage_v) & np.isfinite(curve.current_a))).sum()):
            faults.append(f"{curve.name}: {counted(bad, 'reading is', 'readings are')} not finite")
        elif len(voltage) < _FEWEST:
            faults.append(f"{curve.name}: {len(voltage)} readings outside compliance, at least {_FEWEST} are needed")
        elif not np.abs(voltage).max() > 0 or not (voltage * current).sum() > 0:
            faults.append(f"{curve.name}: the current does not follow the voltage; is one of the signs wrong?")
    refuse("I-V curves", faults)
    most = max(len(voltage) for voltage, _ in kept)
    scale_v = np.array([np.abs(voltage).max() for voltage, _ in kept])
    scale_a = np.array([np.abs(current).max() for _, current in kept])
    shape = (len(kept), most)
    voltage, current, weight, rounded, fold = (np.zeros(shape) for _ in range(5))
    for place, (v, i) in enumerate(kept):
        voltage[place, : len(v)], current[place, : len(v)] = v / scale_v[place], i / scale_a[place]
        weight[place, : len(v)] = 1.0
        rounded[place, : len(v)] = _rounding_variance(i) / scale_a[place] ** 2
        fold[place, : len(v)] = (np.arange(len(v)) * _PIECES // len(v)) % _FOLDS
    data = tuple(torch.from_numpy(one) for one in (voltage, current, weight, rounded))
    laws, losses = {}, {}
    for law in LAWS:
        laws[law], losses[law] = _fit_law(law, data, torch.from_numpy(fold), scale_v, scale_a)
    order, scores = list(LAWS), np.stack([one.held_out for one in laws.values()])
    best = tuple(order[place] for place in scores.argmin(axis=0))
    readings = np.array([len(v) for v, _ in kept])
    left_out = sum(int(one.in_compliance.sum()) for one in curves)
    return IvFit(tuple(one.name for one in curves), _chosen(losses), best, laws, readings, left_out, temperature_k)


def _usable(curve: Curve) -> tuple[FloatArray, FloatArray]:
    if len({len(curve.voltage_v), len(curve.current_a), len(curve.in_compliance)}) != 1:
        return np.empty(0), np.empty(0)
    free = ~curve.in_compliance
    return curve.voltage_v[free], curve.current_a[free]


def _rounding_variance(current_a: FloatArray) -> FloatArray:
    """Variance in A^2 of readings that a converter made exactly zero, and zero for the others.

    At zero volts they agree with every law, so that the noise that explains them best would be none at all; elsewhere
    they would count as exact. What was there lies within the smallest current that the converter showed.
    """
    step_a = float(np.abs(current_a[current_a != 0.0]).min())
    return np.where(current_a == 0.0, step_a**2 / 3.0, 0.0)


def _chosen(losses: dict[str, FloatArray]) -> str:
    """The simplest law within one standard error of the best, by pieces that were left out, `[curves, folds]` each."""
    best = min(losses, key=lambda law: float(losses[law].sum()))
    for law in sorted(LAWS, key=lambda name: LAWS[name]):
        above = (losses[law] - losses[best]).reshape(-1)
        if above.sum() <= math.sqrt(len(above)) * above.std():
            return law
    return best


def _terms(law: str, furthest: float = math.inf) -> Terms:
    def terms(parameters: Tensor, voltage: Tensor, current: Tensor, weight: Tensor, rounded: Tensor) -> Tensor:
        expected = scaled_current(law, parameters, voltage)
        variance = torch.exp(2.0 * parameters[-2]) + torch.exp(2.0 * parameters[-1]) * expected**2 + rounded
        # Noise terms that are not there have no lower end: ten units wide around a thousandth.
        tame = (0.5 * ((parameters[-2:] + 7.0) / 10.0) ** 2).sum() / weight.shape[0]
        square = ((current - expected) ** 2 / variance).clamp(max=furthest**2)
        return weight * 0.5 * (square + torch.log(2.0 * math.pi * variance)) + tame

    return terms


def _fit_law(
    law: str, data: tuple[Tensor, ...], fold: Tensor, scale_v: FloatArray, scale_a: FloatArray
) -> tuple[LawFit, FloatArray]:
    """The fit, and the losses of pieces that were left out, `[curves, folds]`."""
    voltage, current, weight, rounded = data
    count = LAWS[law]
    start = torch.zeros((len(voltage), count + 2), dtype=torch.float64)
    start[:, 0] = torch.log((voltage * current).sum(dim=1) / (voltage**2).sum(dim=1))
    start[:, count], start[:, count + 1] = -5.0, -3.0
    found = maximise(_terms(law), start, data)
    used = weight.sum(dim=1)
    lags = used.sqrt().round().clamp(min=1.0)
    honest = serial_covariance(_terms(law), found, data, lags)
    plain = found.covariance * (used / (used - count).clamp(min=1.0))[:, None, None]
    # Chance makes the one smaller than the other where readings are independent: the larger counts.
    variance = torch.maximum(honest.diagonal(dim1=1, dim2=2), plain.diagonal(dim1=1, dim2=2))
    folded = np.zeros((len(voltage), _FOLDS))
    for one in range(_FOLDS):
        inside = weight * (fold != one)
        other = maximise(_terms(law), found.parameters, (voltage, current, inside, rounded))
        terms = torch.func.vmap(_terms(law, _FURTHEST))(other.parameters, *data)
        folded[:, one] = (terms * weight * (fold == one)).sum(dim=1).numpy()
    pieces = torch.arange(_FOLDS, dtype=fold.dtype)
    members = (weight[:, None] * (fold[:, None] == pieces[:, None])).sum(dim=2).numpy()
    folded += np.log(scale_a)[:, None] * members
    value, error = found.parameters.numpy(), variance.sqrt().numpy()
    meaning = UNSCALED[law]
    numbers: list[tuple[Quantity, ...]] = []
    for place, (v, e) in enumerate(zip(value, error, strict=True)):
        freedom = max(float(used[place]) - count, 1.0)
        logarithm = v[0] + math.log(scale_a[place] / scale_v[place])
        mine = [from_logarithm(meaning.names[0], logarithm, e[0], meaning.units[0], freedom)]
        for k in range(1, count):
            factor = scale_v[place] ** meaning.powers[k]
            mine.append(quantity(meaning.names[k], factor * v[k], factor * e[k], meaning.units[k], freedom))
        numbers.append(tuple(mine))
    return (
        LawFit(
            law,
            tuple(numbers),
            np.exp(value[:, count]) * scale_a,
            np.exp(value[:, count + 1]),
            folded.sum(axis=1) / used.numpy(),
            _misfit(law, found, data),
            found.solved.numpy(),
        ),
        folded,
    )


def _misfit(law: str, found: Found, data: tuple[Tensor, ...]) -> FloatArray:
    """Correlation of neighbouring standardised residuals."""
    voltage, current, weight, rounded = data
    expected = torch.func.vmap(lambda p, v: scaled_current(law, p, v))(found.parameters, voltage)
    floor, relative = torch.exp(found.parameters[:, -2:-1]), torch.exp(found.parameters[:, -1:])
    sigma = torch.sqrt(floor**2 + (relative * expected) ** 2 + rounded)
    residual = weight * (current - expected) / sigma
    paired = (residual[:, 1:] * residual[:, :-1]).sum(dim=1)
    return np.asarray((paired / (residual**2).sum(dim=1)).numpy())


def split_branches(curve: Curve) -> list[Curve]:
    """Cuts a sweep where the voltage turns: the pieces of a hysteresis, in the order of measurement.

    Args:
        curve: A sweep of set voltages that has no noise in its direction.
    """
    direction = np.sign(np.diff(curve.voltage_v))
    moving = np.flatnonzero(direction)
    turns = moving[1:][np.diff(direction[moving]) != 0]
    pieces = np.split(np.arange(len(curve.voltage_v)), turns)
    return [
        Curve(f"{curve.name} piece {k}", curve.voltage_v[one], curve.current_a[one], curve.in_compliance[one])
        for k, one in enumerate(pieces)
        if len(one)
    ]
