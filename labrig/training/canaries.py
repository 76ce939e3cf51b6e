"""Canaries: fixed vectors whose answers are known, read again and again while a training lasts.

Each look reads sixteen vectors twice on what is on an array anyway, and makes three numbers of it that have mean zero
and variance one as long as the surrogate is right: gain, offset and noise. They go into cumulative sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig.training.cusum import RunningCusum
from labrig.training.physical import Held, PhysicalBackend
from labrig_calibration.alarms import Cusum, design_cusum
from labrig_drivers.crossbar import MvmResult
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.parameters import ArrayParameters

FloatArray = NDArray[np.float64]

PATTERNS = 16
_STATISTICS = ("gain", "offset", "noise")


@dataclass(frozen=True)
class CanarySettings:
    """When canaries are read, and when they alarm.

    Attributes:
        every: Physical steps between two looks; zero looks only as the drift clock says.
        first_s: Board time in s after a calibration at which the drift clock looks first; then at twice the time,
            and so on, since devices drift with the logarithm of time. Zero switches the clock off.
        false_alarm_looks: Looks between two false alarms, on average.
        shift: Shift of a statistic, in its standard deviations, that has to be found soon.
    """

    every: int = 10
    first_s: float = 60.0
    false_alarm_looks: float = 1000.0
    shift: float = 1.0


def canary_vectors(rows: int, limit_v: float, generator: torch.Generator) -> FloatArray:
    """Sixteen vectors in V, `[16, rows]`: zero, all on, pairs of signed Hadamard-like rows, and random ones."""
    vectors = [torch.zeros(rows), torch.full((rows,), limit_v)]
    for power in range(3):
        signs = 1.0 - 2.0 * ((torch.arange(rows) >> power) & 1)
        vectors += [limit_v * signs, -limit_v * signs]
    while len(vectors) < PATTERNS:
        vectors.append(limit_v * (2.0 * torch.rand(rows, generator=generator) - 1.0))
    return np.asarray(torch.stack(vectors).double().numpy())


@dataclass(frozen=True)
class CanaryLook:
    """One look at one array.

    Attributes:
        array: Which array.
        gain: Relative gain error in its standard deviations.
        offset: Mean offset error in its standard deviations.
        noise: Excess of the noise in its standard deviations.
    """

    array: int
    gain: float
    offset: float
    noise: float


def judge(
    parameters: ArrayParameters, held: Held, vectors: FloatArray, result: MvmResult
) -> tuple[float, float, float]:
    """Gain, offset and noise of one look, each with variance one where the calibration is right.

    Args:
        parameters: The array's calibration.
        held: What is on the array.
        vectors: The canaries in V, `[16, rows]`.
        result: Answers to all of them, twice over, `[32, columns]`.
    """
    model = ArraySurrogate(parameters).double()
    target = torch.as_tensor(held.commanded_s)
    inputs = torch.as_tensor(vectors)
    age_s = max(float(np.mean(result.time_s)) - held.time_s, 0.0)
    with torch.no_grad():
        cells = model.new_write(target)
        mean, sigma = model.moments(cells, inputs, age_s=age_s)
        spread = model.programming_sigma(target)
        if parameters.cell_slope_error is not None:
            slope_error = torch.as_tensor(parameters.cell_slope_error).nan_to_num(posinf=0.0)
            spread = torch.sqrt(spread**2 + (slope_error * target) ** 2)
    lsb_a = np.asarray(model.converters.adc_lsb_a)
    read = sigma**2 + torch.as_tensor(lsb_a) ** 2 / 12.0
    first, second = torch.as_tensor(result.current_a).reshape(2, *mean.shape)
    apart = 0.5 * (first + second) - mean
    offset = float((apart[0] / torch.sqrt(0.5 * read[0])).sum() / apart.shape[1] ** 0.5)
    gain = _gain(mean - mean[0], apart - apart[0], 0.5 * read, spread, inputs)
    squares = (first - second) ** 2 / (2.0 * read)
    noise = float((squares - 1.0).sum() / (2.0 * squares.numel()) ** 0.5)
    return gain, offset, noise


def _gain(signal: Tensor, apart: Tensor, read: Tensor, spread: Tensor, inputs: Tensor) -> float:
    """Common relative gain error; the errors of cells, equal in all vectors, are in its variance."""
    driven = (signal**2).sum(0) > 0.0  # a column without any conductance says nothing of its gain
    signal, apart, read, spread = signal[:, driven], apart[:, driven], read[:, driven], spread[:, driven]
    power = (signal**2).sum(0)
    error = (signal * apart).sum(0) / power
    variance = (signal**2 * read).sum(0) / power**2 + (spread**2 * (inputs.T @ signal) ** 2).sum(0) / power**2
    weight = 1.0 / variance
    return float((weight * error).sum() / weight.sum().sqrt()) if bool(driven.any()) else 0.0


@dataclass(frozen=True)
class Alarm:
    """A statistic that left its bounds.

    Attributes:
        array: Which array.
        reason: Which statistic, in words.
        began_s: Board time in s since which it seems to be another one.
    """

    array: int
    reason: str
    began_s: float


@dataclass
class Canaries:
    """Looks at arrays when it is time, and says when the surrogate is not right any more.

    Attributes:
        settings: When.
        vectors: The canaries in V, `[16, rows]`.
        since: Physical steps since the last look.
        calibrated_s: Board time in s of the last calibration; NaN before the board said anything.
        next_s: Board time after it at which the drift clock looks.
        sums: Cumulative sums by array and statistic.
    """

    settings: CanarySettings
    vectors: FloatArray
    since: int = 0
    calibrated_s: float = float("nan")
    next_s: float = 0.0
    sums: dict[str, RunningCusum] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.next_s = self.next_s or self.settings.first_s

    def due(self, now_s: float) -> bool:
        """Whether it is time to look; called once after each physical step.

        Args:
            now_s: The board's clock in s.
        """
        if np.isnan(self.calibrated_s):
            self.calibrated_s = now_s
        self.since += 1
        by_count = self.settings.every > 0 and self.since >= self.settings.every
        by_clock = self.settings.first_s > 0.0 and now_s - self.calibrated_s >= self.next_s
        while self.settings.first_s > 0.0 and now_s - self.calibrated_s >= self.next_s:
            self.next_s *= 2.0
        return by_count or by_clock

    def look(
        self,
        physical: PhysicalBackend,
        calibration: Mapping[int, ArrayParameters],
        last_s: float,
    ) -> tuple[list[CanaryLook], list[Alarm]]:
        """Reads the canaries on every array that holds something.

        Args:
            physical: The chip.
            calibration: What is thought of it.
            last_s: Board time in s of the look before, or of the calibration.

        Returns:
            What was found, and what alarms.

        Raises:
            LabrigError: The board failed; no sum has changed, no observer heard of it, and it is still time to look.
        """
        results: dict[int, MvmResult] = {}
        physical.hold_back()
        try:
            for array in sorted(physical.held):
                results[array] = physical.measure(array, np.concatenate([self.vectors, self.vectors]))
                physical.ledger.canary_mvms += 2 * PATTERNS
        except BaseException:
            physical.forget()
            raise
        physical.deliver()
        self.since = 0
        looks: list[CanaryLook] = []
        alarms: list[Alarm] = []
        for array, result in results.items():
            values = judge(calibration[array], physical.held[array], self.vectors, result)
            looks.append(CanaryLook(array, *values))
            for name, value in zip(_STATISTICS, values, strict=True):
                sums = self.sums.setdefault(f"{array}/{name}", RunningCusum(self._scheme(len(physical.held))))
                if sums.update(value, last_s):
                    alarms.append(Alarm(array, f"{name} of array {array} ({value:+.1f} sd)", sums.began_s))
        return looks, alarms

    def recalibrated(self, now_s: float) -> None:
        """Starts anew: sums at zero, the drift clock at its first time."""
        self.calibrated_s, self.next_s = now_s, self.settings.first_s
        for one in self.sums.values():
            one.reset()

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        found = {"since": float(self.since), "calibrated_s": self.calibrated_s, "next_s": self.next_s}
        for name, one in self.sums.items():
            found |= {f"{name}/high": one.high, f"{name}/low": one.low}
            found |= {f"{name}/arrays": one.scheme.canaries / len(_STATISTICS), f"{name}/began_s": one.began_s}
        return found

    def load_state(self, state: Mapping[str, float]) -> None:
        """Goes on from a checkpoint."""
        self.since, self.calibrated_s, self.next_s = int(state["since"]), state["calibrated_s"], state["next_s"]
        for key in (key for key in state if key.endswith("/high")):
            name = key.removesuffix("/high")
            scheme = self._scheme(round(state[f"{name}/arrays"]))
            self.sums[name] = RunningCusum(scheme, state[key], state[f"{name}/low"], state[f"{name}/began_s"])

    def _scheme(self, arrays: int) -> Cusum:
        looks = self.settings.false_alarm_looks
        return design_cusum(looks, canaries=len(_STATISTICS) * arrays, shift=self.settings.shift)
