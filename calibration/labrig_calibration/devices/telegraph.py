"""Random telegraph noise: jumps between two levels, told apart from white noise and from slow wandering.

A trace is a two-state Markov chain seen through Gaussian noise, which may itself remember the reading before
(autoregressive). Its likelihood is a product of 2 x 2 matrices, multiplied as a tree, so that second derivatives and
with them standard errors come from torch. Against it stand white noise and Gaussian noise with a long memory
(autoregressive of an order up to 16, which follows 1/f noise closely); the Bayesian information criterion decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_calibration.devices.maximum_likelihood import Found, Terms, better, maximise, propagate
from labrig_calibration.devices.read_noise import Traces
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
)
from labrig_surrogates.noise_traces import Telegraph

_LONG = "memory"
MODELS = ("white", _LONG, "jumps", "jumps + memory")
"""Names of the models."""

_FEWEST_JUMPS = 10.0
_FASTEST = 1.6
# Distinct values of a trace up to which the converter, and not the noise, decides what they are.
_FEW_VALUES = 8


@dataclass(frozen=True)
class TelegraphFit:
    """One trace.

    Attributes:
        model: One of `MODELS`: the best.
        amplitude: Height of a jump; NaN where the best model has none.
        up_hz: Rate of jumps up while down.
        down_hz: Rate of jumps down while up.
        sigma: Standard deviation of what is new in each reading.
        memory: Part of the noise of a reading that is left in the next; the first coefficient of a long memory.
        jumps: Expected number of jumps in the trace.
        resolved: Whether the state of a reading says something of the next one's: else the readings have two levels,
            but how fast they change is not known.
        comparison: Every model's criterion.
        unit: Unit of the readings.
    """

    model: str
    amplitude: Quantity
    up_hz: Quantity
    down_hz: Quantity
    sigma: Quantity
    memory: Quantity
    jumps: float
    resolved: bool
    comparison: Table
    unit: str

    @property
    def found(self) -> bool:
        """Whether jumps were found: the best model has them, ten at least happened, and not at every reading."""
        return "jumps" in self.model and self.jumps >= _FEWEST_JUMPS and self.resolved

    def law(self) -> Telegraph | None:
        """The jumps as a law of noise traces; None where none were found."""
        if not self.found:
            return None
        return Telegraph(self.amplitude.value, self.up_hz.value, self.down_hz.value)

    def summary(self) -> Summary:
        """The numbers and the comparison."""
        quantities = [self.sigma, self.memory]
        quantities += [self.amplitude, self.up_hz, self.down_hz] if "jumps" in self.model else []
        notes = []
        if "jumps" in self.model and not self.resolved:
            notes.append("two levels that change as fast as readings follow: the rates are not resolved")
        elif "jumps" in self.model and not self.found:
            notes.append(f"about {self.jumps:.0f} jumps in the trace: too few to call it telegraph noise")
        conditions: dict[str, str | float] = {"model": self.model, "telegraph noise": "yes" if self.found else "no"}
        return Summary("read noise: jumps", conditions, tuple(quantities), (self.comparison,), tuple(notes))


def fit_telegraph(
    traces: Traces, *, most_readings: int = 20_000, progress: Progress = quiet
) -> tuple[TelegraphFit, ...]:
    """Fits each trace.

    Args:
        traces: What was read.
        most_readings: Only so many from the beginning of a trace are used.
        progress: Told before each model.

    Raises:
        DeviceFitError: A trace does not change in the readings that are used; every such trace is named.
    """
    values = _spread(traces.values)[:, :most_readings]
    middle = np.median(values, axis=1)
    scale = values.std(axis=1)
    still = np.flatnonzero(scale == 0.0).tolist()
    refuse("jumps", [f"trace {one}: its first {values.shape[1]} readings are all the same" for one in still])
    readings = torch.from_numpy((values - middle[:, None]) / scale[:, None])
    fits = {}
    for number, name in enumerate(MODELS):
        progress("looking for jumps", number / len(MODELS))
        if name != _LONG:
            fits[name] = _best(name, readings)
    count = readings.shape[1]
    criteria = {name: (2.0 * fit.loss).numpy() + _count(name) * math.log(count) for name, fit in fits.items()}
    criteria[_LONG], orders, long = _autoregressive(readings.numpy())
    derived = {
        name: propagate(found, lambda parameters, of=name: _derived(of, parameters, traces.rate_hz))  # type: ignore[misc]
        for name, found in fits.items()
    }
    results = []
    for trace in range(len(values)):
        model = min(MODELS, key=lambda name: float(criteria[name][trace]))
        if model == _LONG:
            value, error = long[trace]
        else:
            value = derived[model][0][trace].numpy()
            error = derived[model][1][trace].diagonal().sqrt().numpy()
        counts = {name: 2 + int(orders[trace]) if name == _LONG else _count(name) for name in MODELS}
        rows = tuple((name, counts[name], float(criteria[name][trace])) for name in MODELS)
        results.append(
            _result(model, value, error, float(scale[trace]), count / traces.rate_hz, traces.rate_hz, rows, traces.unit)
        )
    return tuple(results)


def _spread(values: FloatArray) -> FloatArray:
    """Traces of few distinct values with their readings spread evenly over the steps of the converter.

    Noise that is quieter than a step is not seen: a likelihood would take it for none, and rates with it. The numbers
    are the same for the same traces.
    """
    rng = np.random.default_rng(0)
    spread = values.copy()
    for number, trace in enumerate(values):
        distinct = np.unique(trace)
        if 1 < len(distinct) <= _FEW_VALUES:
            spread[number] += np.diff(distinct).min() * (rng.random(len(trace)) - 0.5)
    return spread


def _result(
    model: str,
    value: FloatArray,
    error: FloatArray,
    scale: float,
    duration_s: float,
    rate_hz: float,
    rows: tuple[tuple[str | float, ...], ...],
    unit: str,
) -> TelegraphFit:
    size = math.log(scale)
    sigma = from_logarithm("sigma", value[0] + size, error[0], unit)
    memory = quantity("memory", value[1], error[1], "1")
    comparison = Table("models of the trace (smaller is better)", ("model", "parameters", "BIC"), rows)
    if "jumps" not in model:
        none = Quantity("", math.nan, math.inf, "1", 0.0, math.inf)
        return TelegraphFit(model, none, none, none, sigma, memory, 0.0, False, comparison, unit)
    amplitude = from_logarithm("amplitude", value[2] + size, error[2], unit)
    up = from_logarithm("rate up", value[3], error[3], "1/s")
    down = from_logarithm("rate down", value[4], error[4], "1/s")
    jumps = 2.0 * duration_s * up.value * down.value / (up.value + down.value)
    # Where less than a fifth of the difference of levels is left at the next reading, no rate can be told.
    resolved = math.exp(value[3]) + math.exp(value[4]) < _FASTEST * rate_hz
    return TelegraphFit(model, amplitude, up, down, sigma, memory, jumps, resolved, comparison, unit)


def _autoregressive(
    readings: FloatArray,
) -> tuple[FloatArray, NDArray[np.int64], list[tuple[FloatArray, FloatArray]]]:
    """The best order of each trace: its criterion, the order, and logarithm of sigma and first coefficient."""
    count = readings.shape[1]
    criteria, orders, numbers = [], [], []
    for trace in readings:
        best: tuple[float, int, FloatArray, FloatArray] | None = None
        for order in (1, 2, 4, 8, 16):
            past = np.stack([trace[order - k - 1 : count - k - 1] for k in range(order)] + [np.ones(count - order)], 1)
            solution = np.linalg.lstsq(past, trace[order:], rcond=None)[0]
            variance = float(np.mean((trace[order:] - past @ solution) ** 2))
            # The first readings count as if they had none before them: scale one.
            loss = 0.5 * (count - order) * (math.log(2.0 * math.pi * variance) + 1.0)
            loss += 0.5 * float((trace[:order] ** 2).sum()) + 0.5 * order * math.log(2.0 * math.pi)
            criterion = 2.0 * loss + (order + 2) * math.log(count)
            if best is None or criterion < best[0]:
                error = math.sqrt(variance * np.linalg.inv(past.T @ past)[0, 0])
                value = np.array([0.5 * math.log(variance), solution[0]])
                best = (criterion, order, value, np.array([math.sqrt(0.5 / count), error]))
        criterion, order, value, error_of = cast(tuple[float, int, FloatArray, FloatArray], best)
        criteria.append(criterion)
        orders.append(order)
        numbers.append((value, error_of))
    return np.array(criteria), np.array(orders), numbers


def _count(model: str) -> int:
    return 2 + ("memory" in model) + 3 * ("jumps" in model)


def _derived(model: str, parameters: Tensor, rate_hz: float) -> Tensor:
    """Logarithm of sigma, memory; logarithms of amplitude and rates in 1/s."""
    memory = torch.tanh(parameters[2]) if "memory" in model else torch.zeros_like(parameters[0])
    out = [parameters[1], memory]
    if "jumps" in model:
        amplitude, up, down = parameters[-3:]
        out += [amplitude, up + math.log(rate_hz), down + math.log(rate_hz)]
    return torch.stack(out)


def _terms(model: str) -> Terms:
    """Of one trace of mean about zero and standard deviation one."""

    def terms(parameters: Tensor, readings: Tensor) -> Tensor:
        mean, sigma = parameters[0], torch.exp(parameters[1])
        keep = torch.tanh(parameters[2]) if "memory" in model else torch.zeros_like(mean)
        # Weak, ten units wide: an end to directions in which nothing changes.
        tame = 0.5 * (parameters / 10.0).square().sum()[None]
        if "jumps" not in model:
            new = readings[1:] - mean - keep * (readings[:-1] - mean)
            first = (readings[:1] - mean) * torch.sqrt(1.0 - keep**2)
            square = torch.cat([first, new]) ** 2 / sigma**2
            constant = torch.log(sigma) + 0.5 * math.log(2.0 * math.pi)
            return torch.cat([0.5 * square + constant, -0.5 * torch.log(1.0 - keep**2)[None], tame])
        amplitude, up, down = torch.exp(parameters[-3]), torch.exp(parameters[-2]), torch.exp(parameters[-1])
        share, decay = up / (up + down), torch.exp(-(up + down))
        # From state i (row) to state j (column) in one interval.
        rise, fall = share * (1.0 - decay), (1.0 - share) * (1.0 - decay)
        change = torch.stack([torch.stack([1.0 - rise, rise]), torch.stack([fall, 1.0 - fall])])
        levels = mean + torch.stack([torch.zeros_like(amplitude), amplitude])
        weights = torch.stack([1.0 - share, share])
        log_sigma = parameters[1] + 0.5 * math.log(2.0 * math.pi)
        wide = sigma / torch.sqrt(1.0 - keep**2)
        begin = torch.log(weights.clamp(min=1e-300)) - 0.5 * ((readings[0] - levels) / wide) ** 2 - torch.log(wide)
        begin = begin - 0.5 * math.log(2.0 * math.pi)
        # The noise of the reading before depends on the state before.
        before = readings[:-1, None] - levels
        new = readings[1:, None, None] - levels[None, None, :] - keep * before[:, :, None]
        steps = torch.log(change.clamp(min=1e-300)) - 0.5 * (new / sigma) ** 2 - log_sigma
        total = torch.logsumexp(begin[:, None] + _log_product(steps), dim=(0, 1))
        return torch.cat([-total[None], tame])

    return terms


def _log_product(logarithms: Tensor) -> Tensor:
    """Logarithm of the product of matrices with these logarithms, `[n, 2, 2]`, halving their number at each turn."""
    while len(logarithms) > 1:
        left = logarithms[: len(logarithms) // 2 * 2 : 2]
        right = logarithms[1::2]
        paired = torch.logsumexp(left[:, :, :, None] + right[:, None, :, :], dim=2)
        rest = logarithms[len(logarithms) // 2 * 2 :]
        logarithms = torch.cat([paired, rest])
    return logarithms[0]


def _best(model: str, readings: Tensor) -> Found:
    """The best of several beginnings, for each trace."""
    if "jumps" not in model:
        return maximise(_terms(model), torch.zeros((len(readings), _count(model)), dtype=torch.float64), (readings,))
    low, high = readings.quantile(0.15, dim=1), readings.quantile(0.85, dim=1)
    best: Found | None = None
    for log_rate, shape in ((-2.0, 0.0), (-4.5, 0.0), (-3.5, 2.0), (-3.5, -2.0)):
        # Mostly down, or mostly up, or both alike.
        start = torch.zeros((len(readings), _count(model)), dtype=torch.float64)
        start[:, 0] = low if shape == 0.0 else (0.0 if shape < 0 else -2.0)
        start[:, 1] = -0.7
        if "memory" in model:
            start[:, 2] = 0.5
        start[:, -3] = torch.log((high - low).clamp(min=0.5)) if shape == 0.0 else math.log(2.0)
        start[:, -2], start[:, -1] = log_rate + 0.5 * shape, log_rate - 0.5 * shape
        # A few steps show which beginning leads furthest down.
        found = maximise(_terms(model), start, (readings,), steps=6)
        best = found if best is None else better(best, found)
    return maximise(_terms(model), cast(Found, best).parameters, (readings,), steps=40)
