"""What a chip is taken to be before it is measured: data sheet, stated guesses, or an earlier fit. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.dataset import Converters
from labrig_surrogates.parameters import ArrayParameters

FloatArray = NDArray[np.float64]


class AssumptionError(ValueError):
    """What was assumed of a chip cannot be; the message lists every fault."""


@dataclass(frozen=True)
class AssumedChip:
    """One typical column of a chip, in the model of `labrig_surrogates.parameters.ArrayParameters`.

    Attributes:
        gain: Column gain.
        compression_per_a: Reciprocal saturation current in 1/A.
        drift: Drift exponent.
        drift_reference_s: Time constant of the drift law in s.
        amplifier_noise_a2: Variance after the curve in A^2.
        shot_noise_a: Variance per current in A.
        conductance_noise: Relative variance of the conductances.
        programming: Programming error over the relative target: `p0 + p1 r + p2 r**2`, in parts of the highest
            conductance.
        mismatch: Relative spread of the cells' slopes, the same at every write.
        wire_ohm: Resistance in ohm of one segment of a word or bit line.
        crosstalk: Share of a column's current that appears on each neighbour.
        source: Where these numbers come from, in words.
    """

    gain: float
    compression_per_a: float
    drift: float
    drift_reference_s: float
    amplifier_noise_a2: float
    shot_noise_a: float
    conductance_noise: float
    programming: tuple[float, float, float]
    mismatch: float
    wire_ohm: float
    crosstalk: float
    source: str

    def __post_init__(self) -> None:
        positive = ("gain", "compression_per_a", "drift_reference_s", "amplifier_noise_a2", "mismatch")
        values = {name: getattr(self, name) for name in _NUMBERS}
        faults = [f"{name} is {value}, must be finite" for name, value in values.items() if not math.isfinite(value)]
        faults += [f"{name} is {values[name]:g}, must be above zero" for name in positive if values[name] <= 0]
        faults += [
            f"{name} is {values[name]:g}, must not be negative"
            for name in ("shot_noise_a", "conductance_noise", "wire_ohm", "crosstalk")
            if values[name] < 0
        ]
        relative = np.linspace(0.0, 1.0, 11)
        if not (self.programming_sigma(relative) > 0).all():
            faults.append(f"programming is {self.programming}, its polynomial must be above zero from 0 to 1")
        if faults:
            raise AssumptionError("no such chip: " + "; ".join(faults))

    @classmethod
    def from_data_sheet(cls, converters: Converters) -> AssumedChip:
        """What a board says of itself, and a guess for everything else.

        The guesses are round numbers of published arrays: an amplifier whose noise is half an ADC step and that
        saturates at full scale, noise before it that equals its own at a quarter of full scale, 1 % read noise and
        3 % programming error of the conductances, devices that differ by 10 %, drift of 0.03 with a time constant of
        1 s, and 1 ohm per segment of the lines.
        """
        full_scale_a = float(np.median(converters.adc_full_scale_a))
        amplifier_a2 = (0.5 * float(np.median(converters.adc_lsb_a))) ** 2
        return cls(
            gain=1.0,
            compression_per_a=1.0 / full_scale_a,
            drift=0.03,
            drift_reference_s=1.0,
            amplifier_noise_a2=amplifier_a2,
            shot_noise_a=amplifier_a2 / (0.25 * full_scale_a),
            conductance_noise=1e-4,
            programming=(0.03, 0.0, 0.0),
            mismatch=0.1,
            wire_ohm=1.0,
            crosstalk=0.0,
            source="the board's data sheet and typical numbers of such chips",
        )

    @classmethod
    def from_parameters(cls, parameters: ArrayParameters, otherwise: AssumedChip, source: str) -> AssumedChip:
        """The typical column of a fitted array; what the fit does not hold is taken from `otherwise`.

        Args:
            parameters: An earlier fit.
            otherwise: What the fit does not hold, such as wires, and terms that it put at zero.
            source: The file it comes from.
        """

        def median(values: FloatArray, fallback: float) -> float:
            found = float(np.median(values))
            return found if found > 0 else fallback

        healthy = parameters.cell_slope[~parameters.stuck]
        spread = float(np.std(healthy)) if healthy.size else 0.0
        p0, p1, p2 = (float(value) for value in parameters.programming.value)
        found = parameters.estimates()
        lines = {
            name: float(np.maximum(found[name].value, 0.0).mean())
            for name in ("wire_ohm", "crosstalk")
            if name in found
        }
        return replace(
            otherwise,
            gain=median(parameters.gain.value, otherwise.gain),
            compression_per_a=median(parameters.compression.value, otherwise.compression_per_a),
            drift=float(np.median(parameters.drift.value)),
            drift_reference_s=parameters.drift_reference_s,
            amplifier_noise_a2=median(parameters.amplifier_noise.value, otherwise.amplifier_noise_a2),
            shot_noise_a=median(parameters.shot_noise.value, 0.0),
            conductance_noise=median(parameters.conductance_noise.value, 0.0),
            programming=(p0, p1, p2),
            mismatch=spread if spread > 0 else otherwise.mismatch,
            source=source,
            **lines,
        )

    def with_values(self, values: Mapping[str, float]) -> AssumedChip:
        """The same chip with some numbers replaced by name.

        Raises:
            AssumptionError: Unknown names or impossible values; every fault is listed.
        """
        unknown = [name for name in values if name not in ASSUMABLE]
        if unknown:
            raise AssumptionError(f"there is no {', '.join(unknown)} to assume; there are: {', '.join(ASSUMABLE)}")
        programming = tuple(values.get(name, old) for name, old in zip(_PROGRAMMING, self.programming, strict=True))
        given = {name: value for name, value in values.items() if name in _NUMBERS}
        return AssumedChip(**{**asdict(self), **given, "programming": programming})

    def as_options(self) -> dict[str, float]:
        """All numbers by the names that `with_values` takes."""
        numbers = {name: float(getattr(self, name)) for name in _NUMBERS}
        return numbers | dict(zip(_PROGRAMMING, self.programming, strict=True))

    def programming_sigma(self, relative_target: FloatArray) -> FloatArray:
        """Standard deviation of the programming error, in parts of the highest conductance."""
        p0, p1, p2 = self.programming
        return np.asarray(p0 + p1 * relative_target + p2 * relative_target**2)


_NUMBERS = tuple(field.name for field in fields(AssumedChip) if field.name not in {"programming", "source"})
_PROGRAMMING = ("programming_p0", "programming_p1", "programming_p2")
ASSUMABLE = (*_NUMBERS, *_PROGRAMMING)
"""Names of the numbers that make a chip."""
