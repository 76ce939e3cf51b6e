"""Trains of pulses: steps that shrink on the way to a bound, spread of each step, noise of each reading.

A device that stands at w takes a step `s - k (w - w_0)` by each pulse. That is a soft bound: after p pulses the mean is

    w(p) = w_0 + (limit - w_0) (1 - exp(-p / A)),

NeuroSim's update curve with the curvature A in pulses; A without end is a linear device. Readings scatter around it
with a noise that is new each time, and besides by one of two: the spread of the steps (cycle to cycle), which stays in
the device as a step does, or a noise of the readings that is forgotten after some pulses, as 1/f noise and traps make
it. All being Gaussian, a Kalman filter gives the likelihood of a train exactly, and tells them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_calibration.devices.maximum_likelihood import Found, maximise, propagate
from labrig_calibration.devices.pulse_likelihood import LAWS, PulseLaw, pulse_numbers, pulse_terms, sum_of_powers
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
from labrig_surrogates.faults import counted
from labrig_surrogates.parameters import Estimate
from labrig_surrogates.pulse_update import ExponentialPulses

_FEWEST_PULSES = 20
# Trains are fitted to this part as well, and the rest is predicted.
_EARLY = 0.7
_LEAST_CURVATURE = 1e-6


@dataclass(frozen=True)
class PulseTrains:
    """Trains of one direction or both.

    Attributes:
        up: State after each of consecutive up pulses, `[devices, pulses]`.
        down: State after each of consecutive down pulses, `[devices, pulses]`.
        unit: Unit of the states, `S` or `1`.

    Raises:
        DeviceFitError: A train is too short, not finite, or does not go its way; every fault is named.
    """

    up: FloatArray
    down: FloatArray
    unit: str = "1"

    def __post_init__(self) -> None:
        faults = []
        for name, train, sign in (("up", self.up, 1.0), ("down", self.down, -1.0)):
            if train.ndim != 2 or train.shape[1] < _FEWEST_PULSES or not len(train):
                faults.append(f"{name} trains of shape {list(train.shape)}: [devices, at least {_FEWEST_PULSES}]")
            elif bad := int((~np.isfinite(train)).sum()):
                faults.append(f"{name} trains: {counted(bad, 'reading is', 'readings are')} not finite")
            else:
                fifth = train.shape[1] // 5
                gone = sign * (train[:, -fifth:].mean(axis=1) - train[:, :fifth].mean(axis=1))
                wrong = np.flatnonzero(gone <= 0)
                faults += [f"{name} trains of devices {wrong[:8].tolist()} go the other way"] if len(wrong) else []
        refuse("pulse response", faults)


@dataclass(frozen=True)
class TrainFit:
    """All devices, one direction. Steps are positive along it.

    Attributes:
        direction: `up` or `down`.
        start: State after the first pulse, `[devices]`.
        first_step: Mean step there, `[devices]`.
        rate: k: how much smaller a step is for each unit of the state, `[devices]`; 1 / A for small k.
        rise: From the first to the last pulse, along the direction, `[devices]`.
        read_sigma: Standard deviation of what is new in each reading, `[devices]`.
        cycle_sigma: Standard deviation of a step, `[devices]`; zero by a law without.
        lasting_sigma: Standard deviation of the noise of readings that lasts, `[devices]`; zero by a law without.
        memory: For how many pulses that is remembered, `[devices]`; zero by a law without.
        covariance: Of the errors of start, first step and rate, `[devices, 3, 3]`.
        solved: Devices whose fit came to rest, `[devices]`.
    """

    direction: str
    start: Estimate
    first_step: Estimate
    rate: Estimate
    rise: Estimate
    read_sigma: Estimate
    cycle_sigma: Estimate
    lasting_sigma: Estimate
    memory: Estimate
    covariance: FloatArray
    solved: NDArray[np.bool_]

    def step(self, state: FloatArray) -> FloatArray:
        """Mean step of each device at a state, signed."""
        sign = 1.0 if self.direction == "up" else -1.0
        return np.asarray(sign * (self.first_step.value - self.rate.value * sign * (state - self.start.value)))


@dataclass(frozen=True)
class PulseFit:
    """Both directions of all devices, by the law that they support.

    Attributes:
        up: Up trains.
        down: Down trains.
        law: `linear` or `soft bounds`, alone or with ` + cycle noise` or ` + lasting noise`.
        comparison: Every law: parameters of a train, Bayesian information criterion over all trains, and mean
            negative log-likelihood of a reading in the last 30 % of the trains, predicted from the rest.
        pulses: Pulses of the longer train.
        unit: Unit of the states.
    """

    up: TrainFit
    down: TrainFit
    law: str
    comparison: Table
    pulses: int
    unit: str

    @property
    def low(self) -> float:
        """Where up trains begin and down trains end, mean of all."""
        return float(np.mean([self.up.start.value, self.down.start.value - self.down.rise.value]))

    @property
    def high(self) -> float:
        """Where up trains end and down trains begin, mean of all."""
        return float(np.mean([self.down.start.value, self.up.start.value + self.up.rise.value]))

    def response(self) -> ExponentialPulses:
        """The mean device as the law of updates: states -1 to 1 stand for `low` to `high`."""
        span = self.high - self.low
        up, down = (
            1.0 / max(float(-np.log1p(-min(one.rate.value.mean(), 1 - 1e-9))), _LEAST_CURVATURE)
            for one in (self.up, self.down)
        )
        cycle = math.sqrt(0.5 * sum(float(np.mean(one.cycle_sigma.value**2)) for one in (self.up, self.down)))
        return ExponentialPulses(up, down, pulses=self.pulses, cycle_sigma=cycle / span)

    def symmetry_point(self) -> Quantity:
        """The state where an up and a down pulse of the mean device cancel."""
        k_up, k_down = self.up.rate.value.mean(), self.down.rate.value.mean()
        s_up, s_down = self.up.first_step.value.mean(), self.down.first_step.value.mean()
        w_up, w_down = self.up.start.value.mean(), self.down.start.value.mean()
        if not k_up + k_down > 0.0:
            return Quantity("symmetry point", math.nan, math.inf, self.unit, -math.inf, math.inf)
        point = (s_up + k_up * w_up - s_down + k_down * w_down) / (k_up + k_down)
        # The excess of the up step over the down step changes with start, first step and rate of each.
        variance = 0.0
        for fit, slopes in ((self.up, (k_up, 1.0, w_up - point)), (self.down, (k_down, -1.0, w_down - point))):
            slope = np.array(slopes)
            variance += float(np.mean(slope @ fit.covariance @ slope)) / len(fit.start.value)
        error = math.sqrt(variance) / (k_up + k_down)
        return quantity("symmetry point", float(point), error, self.unit)

    def summary(self) -> Summary:
        """Numbers of the mean device, spread over devices, and the comparison of laws."""
        quantities: list[Quantity] = []
        for one in (self.up, self.down):
            quantities += _of_devices(one, self.unit)
        if self.law.startswith("soft"):
            quantities.append(self.symmetry_point())
        notes = [
            f"{one.direction} trains of devices {np.flatnonzero(~one.solved)[:8].tolist()} were not solved"
            for one in (self.up, self.down)
            if not one.solved.all()
        ]
        devices = len(self.up.start.value)
        if devices == 1:
            notes.append("one device: nothing is known of the spread from device to device")
        conditions: dict[str, str | float] = {
            "devices": devices,
            "pulses of a train": self.pulses,
            "law": self.law,
            "low": self.low,
            "high": self.high,
        }
        return Summary("pulse response", conditions, tuple(quantities), (self.comparison,), tuple(notes))


def fit_pulses(trains: PulseTrains, progress: Progress = quiet) -> PulseFit:
    """Fits linear steps and soft bounds, with and without cycle noise, and takes the law that the trains support.

    One law for all devices and both directions, by the sum of their Bayesian information criteria.

    Args:
        trains: What was measured.
        progress: Told before each law.
    """
    scaled = [_Scaled.of(trains.up, 1.0), _Scaled.of(trains.down, -1.0)]
    readings = sum(one.readings.numel() for one in scaled)
    rows, fits, best = [], {}, (math.inf, "")
    for number, (name, law) in enumerate(LAWS.items()):
        progress("comparing laws", number / len(LAWS))
        found = [one.fit(law) for one in scaled]
        criterion = sum(
            2.0 * one.loss(fit, law) + law.count * len(one.readings) * math.log(one.pulses)
            for one, fit in zip(scaled, found, strict=True)
        )
        late = sum(one.held_out(law, fit) for one, fit in zip(scaled, found, strict=True))
        late /= sum(one.late_readings for one in scaled)
        rows.append((name, law.count, criterion, criterion / (2 * readings), late))
        fits[name] = found
        if criterion < best[0]:
            best = (criterion, name)
    header = ("law", "parameters", "BIC", "BIC per reading / 2", "held-out loss per reading")
    comparison = Table("laws of the pulse response (smaller is better)", header, tuple(rows))
    return _made(scaled, fits[best[1]], best[1], comparison, trains.unit)


def fit_pulse_law(trains: PulseTrains, law: str) -> PulseFit:
    """Fits one law, whatever the others would say.

    Args:
        trains: What was measured.
        law: One of `LAWS`.

    Raises:
        KeyError: There is no such law.
    """
    scaled = [_Scaled.of(trains.up, 1.0), _Scaled.of(trains.down, -1.0)]
    found = [one.fit(LAWS[law]) for one in scaled]
    return _made(scaled, found, law, Table("laws of the pulse response", ("law",), ((law,),)), trains.unit)


def _made(scaled: list[_Scaled], found: list[Found], law: str, comparison: Table, unit: str) -> PulseFit:
    up, down = (
        one.unscaled(fit, direction, unit, LAWS[law])
        for one, fit, direction in zip(scaled, found, ("up", "down"), strict=True)
    )
    return PulseFit(up, down, law, comparison, max(one.pulses for one in scaled), unit)


@dataclass(frozen=True)
class _Scaled:
    """Trains that rise from about 0 to about 1."""

    readings: Tensor
    offset: FloatArray
    span: FloatArray
    sign: float

    @classmethod
    def of(cls, train: FloatArray, sign: float) -> _Scaled:
        tenth = max(train.shape[1] // 10, 2)
        offset = np.median(train[:, :tenth], axis=1)
        span = np.abs(np.median(train[:, -tenth:], axis=1) - offset)
        span = np.maximum(span, 1e-12 * np.abs(train).max() + 1e-300)
        readings = sign * (train - offset[:, None]) / span[:, None]
        return cls(torch.from_numpy(readings), offset, span, sign)

    @property
    def pulses(self) -> int:
        return int(self.readings.shape[1])

    @property
    def late_readings(self) -> int:
        return len(self.readings) * (self.pulses - round(_EARLY * self.pulses))

    def fit(self, law: PulseLaw) -> Found:
        read = self.readings.diff(dim=1).std(dim=1) / math.sqrt(2.0)
        level = torch.log(read.clamp(min=1e-9))
        start = [torch.zeros_like(level), torch.full_like(level, 1.5 if law.soft else 1.0)]
        start += [torch.ones_like(level)] if law.soft else []
        start += [level]
        start += [level + 0.5 * math.log(3.0 / self.pulses)] if law.cycle else []
        start += [level, torch.full_like(level, -math.log(10.0))] if law.lasting else []
        return maximise(pulse_terms(law), torch.stack(start, dim=1), (self.readings, self._weight(early=False)))

    def loss(self, found: Found, law: PulseLaw) -> float:
        """Negative log-likelihood of all readings, in the unit of the states."""
        terms = torch.func.vmap(pulse_terms(law, adjusted=False))(
            found.parameters, self.readings, self._weight(early=False)
        )
        return float(terms.sum()) + float(np.log(self.span).sum()) * self.pulses

    def held_out(self, law: PulseLaw, whole: Found) -> float:
        """Negative log-likelihood of the later readings in the unit of the states, each predicted from all before.

        The parameters are those of the earlier readings alone; the search for them begins at those of all.
        """
        found = maximise(pulse_terms(law), whole.parameters, (self.readings, self._weight(early=True)))
        plain = torch.func.vmap(pulse_terms(law, adjusted=False))
        terms = plain(found.parameters, self.readings, self._weight(early=False))
        late = self.pulses - round(_EARLY * self.pulses)
        return float(terms[:, -late:].sum()) + float(np.log(self.span).sum()) * late

    def _weight(self, *, early: bool) -> Tensor:
        weight = torch.ones_like(self.readings)
        if early:
            weight[:, round(_EARLY * self.pulses) :] = 0.0
        return weight

    def unscaled(self, found: Found, direction: str, unit: str, law: PulseLaw) -> TrainFit:
        last = self.pulses - 1

        def derived(parameters: Tensor) -> Tensor:
            one = pulse_numbers(parameters, law)
            keep = torch.exp(-one.rate / self.pulses)
            rise = one.step / self.pulses * sum_of_powers(one.rate / self.pulses, last)
            noises = [torch.exp(size) for size in (one.read, one.cycle, one.lasting, -one.forgetting)]
            return torch.stack([one.start, one.step / self.pulses, 1.0 - keep, rise, *noises])

        value, covariance = (one.numpy() for one in propagate(found, derived))
        error = np.sqrt(covariance.diagonal(axis1=1, axis2=2))
        factors = np.stack([self.sign * self.span, self.span, np.ones(len(value))], axis=1)
        curve = factors[:, :, None] * covariance[:, :3, :3] * factors[:, None, :]

        def estimate(place: int, factor: FloatArray, unit_of: str, offset: FloatArray | float = 0.0) -> Estimate:
            return Estimate(offset + factor * value[:, place], np.abs(factor) * error[:, place], unit_of)

        one = np.ones(len(value))
        return TrainFit(
            direction,
            estimate(0, self.sign * self.span, unit, self.offset),
            estimate(1, self.span, unit),
            estimate(2, one, "1"),
            estimate(3, self.span, unit),
            estimate(4, self.span, unit),
            estimate(5, self.span, unit),
            estimate(6, self.span, unit),
            estimate(7, one, "1"),
            curve,
            found.solved.numpy(),
        )


def _mean_error(estimate: Estimate) -> float:
    """Standard error of the mean over devices: their own errors, or their spread where there are several."""
    count = len(estimate.value)
    own = float(np.sqrt(np.sum(estimate.error**2)) / count)
    return max(own, float(estimate.value.std(ddof=1) / math.sqrt(count))) if count > 1 else own


def _of_devices(fit: TrainFit, unit: str) -> list[Quantity]:
    named = (
        ("first step", fit.first_step, unit),
        ("rate", fit.rate, "1"),
        ("rise", fit.rise, unit),
        ("reading sigma", fit.read_sigma, unit),
        ("cycle sigma", fit.cycle_sigma, unit),
        ("lasting sigma", fit.lasting_sigma, unit),
        ("memory", fit.memory, "1"),
    )
    quantities = []
    for name, estimate, of_unit in named:
        if not estimate.value.any():  # not in the law
            continue
        count, mean, error = len(estimate.value), float(estimate.value.mean()), _mean_error(estimate)
        called = f"{fit.direction}: {name}"
        if count == 1 and name in {"reading sigma", "cycle sigma", "lasting sigma", "memory"}:
            quantities.append(from_logarithm(called, math.log(mean), error / mean, of_unit))
        else:
            quantities.append(quantity(called, mean, error, of_unit, count - 1 if count > 1 else math.inf))
        if count > 2:
            quantities.append(between_devices(f"{called}, device to device", estimate, of_unit))
    return quantities


def between_devices(name: str, estimate: Estimate, unit: str) -> Quantity:
    """Standard deviation over devices, without what the errors of their fits add (method of moments).

    Args:
        name: What it is called.
        estimate: One value for each device, at least three.
        unit: Its unit.
    """
    count = len(estimate.value)
    seen = float(np.var(estimate.value, ddof=1))
    true = max(seen - float(np.mean(estimate.error**2)), 0.0)
    error = seen * math.sqrt(2.0 / (count - 1)) / (2.0 * math.sqrt(true)) if true > 0 else math.sqrt(seen)
    symmetric = quantity(name, math.sqrt(true), error, unit, count - 1)
    return Quantity(name, symmetric.value, error, unit, max(symmetric.low, 0.0), symmetric.high)
