"""Traces of repeated readings: level, spread, colour of the noise, and how the spread goes with the conductance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from labrig_calibration.devices.values import (
    DeviceFitError,
    FloatArray,
    Quantity,
    Summary,
    Table,
    from_logarithm,
    quantity,
    refuse,
)
from labrig_calibration.spectrum import NoiseColour, noise_colour
from labrig_surrogates.device_laws import StateNoise
from labrig_surrogates.faults import counted
from labrig_surrogates.noise_traces import Flicker

_FEWEST = 256


@dataclass(frozen=True)
class Traces:
    """Repeated readings at even intervals.

    Attributes:
        values: Readings, `[traces, readings]`.
        rate_hz: Readings for each second.
        unit: Unit of the readings, `S` or `A`.

    Raises:
        DeviceFitError: Traces are too short, not finite or constant, or there is no rate; every fault is named.
    """

    values: FloatArray
    rate_hz: float
    unit: str = "S"

    def __post_init__(self) -> None:
        faults = []
        if self.values.ndim != 2 or self.values.shape[1] < _FEWEST or not len(self.values):
            faults.append(f"traces of shape {list(self.values.shape)}: [traces, at least {_FEWEST} readings]")
        elif not np.isfinite(self.values).all():
            faults.append(f"{counted(int((~np.isfinite(self.values)).sum()), 'reading is', 'readings are')} not finite")
        elif constant := np.flatnonzero(np.ptp(self.values, axis=1) == 0).tolist():
            faults.append(f"traces {constant[:8]} never change: the converter's step hides the noise")
        if not (self.rate_hz > 0 and math.isfinite(self.rate_hz)):
            faults.append(f"rate_hz = {self.rate_hz} must be positive")
        refuse("read noise", faults)


@dataclass(frozen=True)
class PowerOfState:
    """`factor x**exponent`: a curve for laws of devices.

    Attributes:
        factor: At one.
        exponent: Of the state.
        floor: Smaller states count as this.
    """

    factor: float
    exponent: float
    floor: float = 1e-12

    def __call__(self, x: Tensor) -> Tensor:
        """The value at each x."""
        return self.factor * torch.clamp(x, min=self.floor) ** self.exponent


@dataclass(frozen=True)
class ReadNoiseFit:
    """Noise of each trace, and over the traces.

    Attributes:
        mean: Mean reading, `[traces]`.
        sigma: Standard deviation around it, `[traces]`.
        drift: Change over the trace by a straight line, `[traces]`.
        colour: White and 1/f noise of each trace.
        factor: Spread in units of the readings at a reading of `reference`, over the traces.
        exponent: How the spread goes with the mean: 0 is a constant, 1 a constant part of it.
        scatter: Standard deviation of the logarithm of a trace's spread around that: from device to device.
        reference: Geometric mean of the mean readings.
        rate_hz: Readings for each second; 1 where a reading is the unit of time.
        readings: Readings of a trace.
        unit: Unit of the readings.
    """

    mean: FloatArray
    sigma: FloatArray
    drift: FloatArray
    colour: tuple[NoiseColour, ...]
    factor: Quantity
    exponent: Quantity
    scatter: Quantity
    reference: float
    rate_hz: float
    readings: int
    unit: str

    def law(self) -> StateNoise:
        """Noise that depends on the conductance alone, as a law of devices: the power over the traces.

        Raises:
            DeviceFitError: There were too few traces of different levels.
        """
        if math.isnan(self.exponent.value):
            raise DeviceFitError("read noise: too few traces of different levels for a law of the spread")
        relative = self.factor.value / self.reference
        return StateNoise(PowerOfState(relative, self.exponent.value, 1e-6), unit_s=self.reference)

    def flicker(self, trace: int) -> Flicker | None:
        """The 1/f part of one trace as a law that makes such traces; None where it has none.

        The law falls as 1/f exactly; its variance is that of the fit over the frequencies of the trace.

        Args:
            trace: Which.
        """
        one = self.colour[trace]
        if one.flicker == 0.0:
            return None
        low, high = self.rate_hz / self.readings, 0.5 * self.rate_hz
        if abs(one.slope - 1.0) < 1e-9:
            variance = one.flicker * math.log(high / low)
        else:
            power = 1.0 - one.slope
            variance = one.flicker * (high**power - low**power) / power
        return Flicker.between(math.sqrt(variance), low, high)

    def summary(self) -> Summary:
        """The law over the traces, and each trace."""
        rows = tuple(
            (
                k,
                float(self.mean[k]),
                float(self.sigma[k]),
                float(self.sigma[k] / abs(self.mean[k])) if self.mean[k] else math.inf,
                float(self.drift[k]),
                one.slope,
                one.slope_interval[0],
                one.slope_interval[1],
                one.corner_hz,
                one.white,
                one.flicker,
                one.p_white,
            )
            for k, one in enumerate(self.colour)
        )
        start = ("trace", "mean", "sigma", "sigma / mean", "drift", "slope", "low", "high")
        header = (*start, "corner (Hz)", "white", "flicker at 1 Hz", "p white")
        notes = []
        if math.isinf(self.exponent.error):
            notes.append("too few traces of different levels: how the spread goes with the level is not known")
        coloured = sum(one.p_white < 0.01 for one in self.colour)
        conditions: dict[str, str | float] = {
            "traces": len(self.mean),
            "readings of a trace": self.readings,
            "rate (Hz)": self.rate_hz,
            "traces that are not white (p < 0.01)": coloured,
            f"reference ({self.unit})": self.reference,
        }
        table = Table(f"traces ({self.unit})", header, rows)
        return Summary("read noise", conditions, (self.factor, self.exponent, self.scatter), (table,), tuple(notes))


def fit_read_noise(traces: Traces) -> ReadNoiseFit:
    """Fits the noise of each trace, and a power of the mean reading to the spreads of all.

    The errors over the traces are those of the scatter from trace to trace: a trace is one device.

    Args:
        traces: What was read.
    """
    readings = traces.values.shape[1]
    mean, sigma = traces.values.mean(axis=1), traces.values.std(axis=1, ddof=1)
    time = np.linspace(-0.5, 0.5, readings)
    drift = (traces.values - mean[:, None]) @ time / float(time @ time)
    colour = tuple(noise_colour(traces.values.T, traces.rate_hz))
    usable = mean != 0.0  # a current of either sign has its noise
    levels = np.log(np.abs(mean[usable]))
    spreads = np.log(sigma[usable])
    middle = float(levels.mean()) if len(levels) else 0.0
    if len(levels) < 3 or np.ptp(levels) < 1e-3:
        average = float(spreads.mean()) if len(spreads) else float(np.log(sigma).mean())
        factor = from_logarithm("spread at the reference", average, math.inf, traces.unit)
        exponent = Quantity("exponent of the level", math.nan, math.inf, "1", -math.inf, math.inf)
        scatter = Quantity("scatter of ln spread", math.nan, math.inf, "1", 0.0, math.inf)
    else:
        freedom = len(levels) - 2
        x = levels - middle
        slope = float(x @ spreads / (x @ x))
        left = spreads - spreads.mean() - slope * x
        variance = float(left @ left) / freedom
        factor = from_logarithm(
            "spread at the reference", float(spreads.mean()), math.sqrt(variance / len(x)), traces.unit, freedom
        )
        exponent = quantity("exponent of the level", slope, math.sqrt(variance / float(x @ x)), "1", freedom)
        ends = (math.sqrt(freedom * variance / stats.chi2.ppf(part, freedom)) for part in (0.95, 0.05))
        deviation = math.sqrt(variance)
        scatter = Quantity("scatter of ln spread", deviation, deviation / math.sqrt(2 * freedom), "1", *ends)
    return ReadNoiseFit(
        mean,
        sigma,
        drift,
        colour,
        factor,
        exponent,
        scatter,
        math.exp(middle),
        traces.rate_hz,
        readings,
        traces.unit,
    )
