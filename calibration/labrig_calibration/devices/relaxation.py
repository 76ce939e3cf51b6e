"""Relaxation and retention: laws fitted to early ages that predict later ones, and how well they did."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from labrig_calibration.devices.maximum_likelihood import Found, clustered_covariance, maximise
from labrig_calibration.devices.relaxation_laws import LAWS, DrawnShapes, RelaxationLaw, Shape, student_loss
from labrig_calibration.devices.values import (
    FloatArray,
    Progress,
    Quantity,
    Summary,
    Table,
    from_logarithm,
    quantity,
    quiet,
    refuse,
    share,
)
from labrig_surrogates.faults import counted
from labrig_surrogates.measured_device import Relaxation, RelaxationTable

_FEWEST_CELLS = 20
_MOST_KNOTS = 6
_DRAWS = 48
# Laws are compared on at most so many cells, evenly taken; the chosen one is fitted to all.
_COMPARED_CELLS = 2000
_NEVER = "no change after the last early age"


@dataclass(frozen=True)
class AgePrediction:
    """What a law said of an age that it was not fitted to.

    Attributes:
        law: Its name.
        age_s: The age in s.
        coverage: Part of the cells inside their 90 % intervals.
        half_coverage: The same of 50 % intervals.
        loss: Mean negative log-likelihood of a cell, shifts in S.
        width_s: Median width of the 90 % intervals in S.
    """

    law: str
    age_s: float
    coverage: Quantity
    half_coverage: Quantity
    loss: float
    width_s: float


@dataclass(frozen=True)
class RelaxationFit:
    """A law of the shifts after programming.

    Attributes:
        law: Its name.
        until_s: Latest age in s that it was fitted to.
        cells: How many cells.
        knots_s: Conductances in S at which location and scale were fitted, `[knots]`.
        unit_s: Unit in S of what the law works in.
        inner: The law in that unit, and its parameters with their covariance.
        found: See `inner`.
        comparison: Every law: its criterion on the early ages, and its loss in predicting each from those before.
        solved: Whether the fit came to rest.
    """

    law: str
    until_s: float
    cells: int
    knots_s: FloatArray
    unit_s: float
    inner: RelaxationLaw
    found: Found
    comparison: Table
    solved: bool

    def probability(
        self, programmed_s: FloatArray, age_s: FloatArray, state_s: FloatArray, seed: int = 0
    ) -> FloatArray:
        """Probability that a cell lies below a conductance, by the law and the errors of its parameters.

        Args:
            programmed_s: What was programmed in S, `[n]`.
            age_s: Ages in s, `[n]`.
            state_s: Conductances in S, `[n]`.
            seed: Of the draws of parameters.
        """
        return self._drawn(programmed_s, age_s, seed).below((state_s - programmed_s) / self.unit_s)

    def quantile_s(self, programmed_s: FloatArray, age_s: FloatArray, probability: float, seed: int = 0) -> FloatArray:
        """Conductances in S below which cells lie with a probability, `[n]`: the ends of prediction intervals.

        Args:
            programmed_s: What was programmed in S, `[n]`.
            age_s: Ages in s, `[n]`.
            probability: Between 0 and 1.
            seed: Of the draws of parameters.
        """
        shape = self._shape(self.found.parameters[0], programmed_s, age_s)
        middle = programmed_s + shape.location.numpy() * self.unit_s
        reach = 60.0 * shape.scale.numpy() * self.unit_s * (1.0 + 10.0 / shape.freedom.numpy())
        low, high = middle - reach, middle + reach
        drawn = self._drawn(programmed_s, age_s, seed)
        for _ in range(40):
            half = 0.5 * (low + high)
            above = drawn.below((half - programmed_s) / self.unit_s) > probability
            low, high = np.where(above, low, half), np.where(above, half, high)
        return np.asarray(0.5 * (low + high))

    def table(self, levels_s: FloatArray, ages_s: tuple[float, ...], *, quantiles: int = 64) -> RelaxationTable:
        """The law as a state law of layers, at ages that need not have been measured.

        Args:
            levels_s: Programmed conductances in S, ascending, two at least.
            ages_s: Ages in s, ascending.
            quantiles: How many the table has.
        """
        probabilities = (np.arange(quantiles) + 0.5) / quantiles
        shifts = np.zeros((len(ages_s), len(levels_s), quantiles))
        for row, age_s in enumerate(ages_s):
            shape = self._shape(self.found.parameters[0], levels_s, np.full(len(levels_s), age_s))
            standard = stats.t.ppf(probabilities[None], shape.freedom.numpy()[:, None])
            shifts[row] = (shape.location.numpy()[:, None] + shape.scale.numpy()[:, None] * standard) * self.unit_s
        return RelaxationTable(torch.from_numpy(levels_s), ages_s, torch.from_numpy(shifts))

    def judge(self, later: Relaxation, seed: int = 0) -> list[AgePrediction]:
        """How the law fares at each age of measurements that it was not fitted to.

        Args:
            later: Measurements.
            seed: Of the draws of parameters.
        """
        return [self._judge_age(later.rows(later.age_s == age_s), seed) for age_s in np.unique(later.age_s)]

    def _judge_age(self, rows: Relaxation, seed: int) -> AgePrediction:
        rank = self.probability(rows.programmed_s, rows.age_s, rows.state_s, seed)
        shape = self._shape(self.found.parameters[0], rows.programmed_s, rows.age_s)
        loss = student_loss(shape, torch.from_numpy((rows.state_s - rows.programmed_s) / self.unit_s))
        some = slice(None, None, max(1, len(rank) // 200))
        ends = [self.quantile_s(rows.programmed_s[some], rows.age_s[some], end, seed) for end in (0.05, 0.95)]
        return AgePrediction(
            self.law,
            float(rows.age_s[0]),
            share("inside 90 %", int(((rank > 0.05) & (rank < 0.95)).sum()), len(rank)),
            share("inside 50 %", int(((rank > 0.25) & (rank < 0.75)).sum()), len(rank)),
            float(loss.mean()) + math.log(self.unit_s),
            float(np.median(ends[1] - ends[0])),
        )

    def _drawn(self, programmed_s: FloatArray, age_s: FloatArray, seed: int) -> DrawnShapes:
        return DrawnShapes.of([self._shape(parameters, programmed_s, age_s) for parameters in self._draws(seed)])

    def _draws(self, seed: int) -> Tensor:
        """Parameters as the data leave them open, tails excepted: a tail that is not there has no Gaussian error."""
        covariance = torch.nan_to_num(self.found.covariance[0], posinf=0.0)
        tails = 2 * len(self.knots_s) + 1
        covariance[tails : tails + 2] = 0.0
        covariance[:, tails : tails + 2] = 0.0
        size, vectors = torch.linalg.eigh(covariance)
        normal = torch.randn((_DRAWS, len(size)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn: Tensor = self.found.parameters[0] + (normal * size.clamp(min=0.0).sqrt()) @ vectors.T
        return drawn

    def _shape(self, parameters: Tensor, programmed_s: FloatArray, age_s: FloatArray) -> Shape:
        return self.inner.shape(
            parameters, torch.from_numpy(programmed_s / self.unit_s), torch.from_numpy(np.asarray(age_s, dtype=float))
        )

    def summary(self) -> Summary:
        """Location and scale at the knots, growth and tails."""
        value, error = self.found.parameters[0].tolist(), self.found.error[0].tolist()
        knots, quantities = len(self.knots_s), []
        drift = self.law == "drift"
        for place, knot_s in enumerate(self.knots_s):
            where = f"at {1e6 * knot_s:.4g} uS"
            unit, factor = ("1", 1.0) if drift else ("S", self.unit_s)
            name = "drift exponent" if drift else "shift per unit of growth"
            quantities.append(quantity(f"{name} {where}", factor * value[place], factor * error[place], unit))
            at = knots + place
            quantities.append(from_logarithm(f"its spread {where}", value[at] + math.log(factor), error[at], unit))
        reading, tails, change, growth = (2 * knots + k for k in range(4))
        quantities.append(from_logarithm("reading", value[reading] + math.log(self.unit_s), error[reading], "S"))
        quantities.append(from_logarithm("tails, freedom - 1 at first", value[tails], error[tails], "1"))
        quantities.append(quantity("change of tails per ln age", value[change], error[change], "1"))
        if self.law == "power":
            quantities.append(from_logarithm("growth exponent", value[growth], error[growth], "1"))
        else:
            quantities.append(from_logarithm("t_0", value[growth] + math.log(self.inner.first), error[growth], "s"))
        if self.law == "bent logarithm":
            quantities.append(from_logarithm("bend", value[-1], error[-1], "1"))
        conditions: dict[str, str | float] = {
            "cells": self.cells,
            "fitted up to (s)": self.until_s,
            "law": self.law,
        }
        notes = () if self.solved else ("the fit did not come to rest",)
        return Summary("relaxation", conditions, tuple(quantities), (self.comparison,), notes)


def fit_relaxation(
    data: Relaxation, until_s: float, law: str | None = None, progress: Progress = quiet
) -> RelaxationFit:
    """Fits laws of the shift to early ages, and takes the one that predicted early ages from still earlier ones best.

    With less than three early ages the Bayesian information criterion decides instead. Errors hold although the
    readings of one cell resemble each other.

    Args:
        data: Measurements after programming; rows at age zero are what shifts are counted from and say nothing.
        until_s: Latest age in s that is used.
        law: One of `LAWS`; by prediction when None.
        progress: Told after each law.

    Raises:
        DeviceFitError: There are too few cells or ages, or numbers that are not finite; every fault is named.
    """
    early = _early(data, until_s)
    ages_s = np.unique(early.age_s)
    cells = len(np.unique(early.cell))
    faults = []
    if cells < _FEWEST_CELLS:
        faults.append(f"{cells} cells up to {until_s:g} s, at least {_FEWEST_CELLS} are needed")
    if len(ages_s) < 2:
        faults.append(f"{len(ages_s)} ages above zero up to {until_s:g} s, at least 2 are needed to see growth")
    for name, one in (("programmed_s", early.programmed_s), ("state_s", early.state_s)):
        if bad := int((~np.isfinite(one)).sum()):
            faults.append(f"{name}: {counted(bad, 'value is', 'values are')} not finite")
    if law is not None and law not in LAWS:
        faults.append(f"there is no law {law!r}; there are: {', '.join(LAWS)}")
    refuse("relaxation", faults)
    names = LAWS if law is None else (law,)
    some = _some_cells(early)
    fits, ahead = {}, {}
    for number, name in enumerate(names):
        progress("comparing laws", number / len(names))
        fits[name], ahead[name] = _fit(some, name), _one_age_ahead(some, name)
    progress("fitting all cells", 0.0)
    compared = len(np.unique(some.cell))
    criteria = {name: 2.0 * _loss(fit, some) + fit.inner.count * math.log(compared) for name, fit in fits.items()}
    score = ahead if len(ages_s) > 2 else criteria
    chosen = min(names, key=lambda name: score[name])
    rows = tuple((name, fits[name].inner.count, criteria[name] / len(some.cell), ahead[name]) for name in names)
    header = ("law", "parameters", "BIC per reading", "loss one age ahead per reading")
    comparison = Table("laws of the relaxation (smaller is better)", header, rows)
    fit = fits[chosen] if compared == cells else _fit(early, chosen, fits[chosen].found.parameters)
    return replace(fit, comparison=comparison, until_s=until_s)


def compare_predictions(
    data: Relaxation, until_s: float, seed: int = 0, progress: Progress = quiet
) -> tuple[RelaxationFit, Table]:
    """Fits to early ages and says how every law, and the belief that nothing changes any more, fares later.

    Args:
        data: Measurements at early and later ages.
        until_s: Latest age in s that is fitted to.
        seed: Of the draws of parameters.
        progress: Told after each law.

    Returns:
        The fit whose law the early ages chose, and a row for each law and later age.
    """
    best = fit_relaxation(data, until_s, progress=progress)
    later = data.rows(data.age_s > until_s)
    rows: list[tuple[str | float, ...]] = []
    for number, name in enumerate(LAWS):
        progress("predicting later ages", number / len(LAWS))
        fit = best if name == best.law else _fit(_some_cells(_early(data, until_s)), name)
        rows += [_row(one, chosen=name == best.law) for one in fit.judge(later, seed)]
    last = data.rows((data.age_s > 0) & (data.age_s <= until_s))
    last = last.rows(last.age_s == last.age_s.max())
    ages_s = np.unique(later.age_s)
    rows += [_row(_unchanged(last, later.rows(later.age_s == age_s)), chosen=False) for age_s in ages_s]
    header = ("law", "age (s)", "chosen", "inside 90 %", "low", "high", "inside 50 %", "loss per cell", "width (S)")
    return best, Table("predictions of ages that were not fitted", header, tuple(rows))


def level_retention(fit: RelaxationFit, data: Relaxation) -> Table:
    """How many cells lie nearer to another level than to their own at each age: measured, and as the law says.

    Args:
        fit: The law.
        data: Measurements of two levels at least.
    """
    numbers = np.unique(data.level)
    centres = np.array([data.programmed_s[data.level == number].mean() for number in numbers])
    numbers, centres = numbers[np.argsort(centres)], np.sort(centres)
    middles = np.concatenate([[-np.inf], 0.5 * (centres[1:] + centres[:-1]), [np.inf]])
    rows: list[tuple[str | float, ...]] = []
    for age_s in np.unique(data.age_s[data.age_s > 0]):
        some = data.rows(data.age_s == age_s)
        place = np.argsort(numbers)[np.searchsorted(np.sort(numbers), some.level)]
        low, high = middles[place], middles[place + 1]
        wrong = share("measured", int(((some.state_s < low) | (some.state_s > high)).sum()), len(place))
        below = fit.probability(some.programmed_s, some.age_s, np.where(np.isinf(low), -1.0, low))
        above = 1.0 - fit.probability(some.programmed_s, some.age_s, np.where(np.isinf(high), 1e3, high))
        said = float((np.where(np.isinf(low), 0.0, below) + np.where(np.isinf(high), 0.0, above)).mean())
        rows.append((float(age_s), len(place), wrong.value, wrong.low, wrong.high, said))
    header = ("age (s)", "cells", "measured", "low", "high", "by the law")
    return Table("cells nearer to another level", header, tuple(rows))


def _row(one: AgePrediction, *, chosen: bool) -> tuple[str | float, ...]:
    inside = (one.coverage.value, one.coverage.low, one.coverage.high, one.half_coverage.value)
    return (one.law, one.age_s, "yes" if chosen else "", *inside, one.loss, one.width_s)


def _unchanged(last: Relaxation, later: Relaxation) -> AgePrediction:
    """The quantiles of the last early age, by neighbourhoods of conductance, taken for those of a later one."""
    order = np.argsort(last.programmed_s)
    groups = np.array_split(order, max(1, min(32, len(order) // 50)))
    edges = np.array([last.programmed_s[group[-1]] for group in groups[:-1]])
    at = np.searchsorted(edges, later.programmed_s)
    shift = last.state_s - last.programmed_s
    low, first, third, high = (
        np.array([np.quantile(shift[group], end) for group in groups])[at] for end in (0.05, 0.25, 0.75, 0.95)
    )
    moved = later.state_s - later.programmed_s
    age_s, count = float(later.age_s[0]), len(moved)
    return AgePrediction(
        _NEVER,
        age_s,
        share("inside 90 %", int(((moved > low) & (moved < high)).sum()), count),
        share("inside 50 %", int(((moved > first) & (moved < third)).sum()), count),
        math.nan,
        float(np.median(high - low)),
    )


def _inputs(data: Relaxation, unit_s: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shift = (data.state_s - data.programmed_s) / unit_s
    arrays = (data.programmed_s / unit_s, data.age_s, shift, np.ones(len(shift)))
    programmed, age, moved, weight = (torch.from_numpy(np.asarray(one, dtype=float))[None] for one in arrays)
    return programmed, age, moved, weight


def _early(data: Relaxation, until_s: float) -> Relaxation:
    return data.rows((data.age_s > 0.0) & (data.age_s <= until_s))


def _some_cells(data: Relaxation) -> Relaxation:
    cells = np.unique(data.cell)
    every = -(-len(cells) // _COMPARED_CELLS)
    return data if every == 1 else data.rows(np.isin(data.cell, cells[::every]))


def _fit(data: Relaxation, name: str, start: Tensor | None = None) -> RelaxationFit:
    unit_s = 1.4826 * float(np.median(np.abs(data.state_s - data.programmed_s))) or 1e-9
    count = min(_MOST_KNOTS, len(np.unique(data.level)))
    ends = np.linspace(0.02, 0.98, count) if count > 1 else np.array([0.5])
    knots_s = np.unique(np.quantile(data.programmed_s, ends))
    inner = RelaxationLaw(name, torch.from_numpy(knots_s / unit_s), float(data.age_s.min()))
    inputs = _inputs(data, unit_s)
    found = maximise(inner.terms(), inner.start()[None] if start is None else start, inputs)
    cell = torch.from_numpy(np.unique(data.cell, return_inverse=True)[1])
    covariance = clustered_covariance(inner.terms(), found, inputs, cell, int(cell.max()) + 1)
    found = Found(found.parameters, covariance, found.loss, found.solved)
    nothing = Table("", (), ())
    cells = int(cell.max()) + 1
    return RelaxationFit(
        name, float(data.age_s.max()), cells, knots_s, unit_s, inner, found, nothing, bool(found.solved[0])
    )


def _loss(fit: RelaxationFit, data: Relaxation) -> float:
    shape = fit._shape(fit.found.parameters[0], data.programmed_s, data.age_s)
    shift = torch.from_numpy((data.state_s - data.programmed_s) / fit.unit_s)
    return float(student_loss(shape, shift).sum()) + len(shift) * math.log(fit.unit_s)


def _one_age_ahead(early: Relaxation, name: str) -> float:
    """Mean loss of a reading at an early age, by the law fitted to the ages before; NaN where there are too few."""
    ages_s = np.unique(early.age_s)
    losses = []
    for before, age_s in pairwise(ages_s[1:]):
        fit = _fit(early.rows(early.age_s <= before), name)
        some = early.rows(early.age_s == age_s)
        losses.append(_loss(fit, some) / len(some.cell))
    return float(np.mean(losses)) if losses else math.nan
