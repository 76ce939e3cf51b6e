"""The numbers of a fitted chip that simulators ask for: pooled over columns and arrays, with errors and in SI units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.errors import StorageError
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, Estimate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Number:
    """A number with its standard error.

    Attributes:
        value: The number.
        error: Its standard error; infinite where it is not known.
    """

    value: float
    error: float


@dataclass(frozen=True)
class ChipNumbers:
    """What one typical column of a chip is like.

    Attributes:
        chip_id: Which chip.
        arrays: Which arrays were pooled.
        rows: Word lines.
        columns: Columns that were pooled.
        conductance_min_s: Lowest programmable conductance in S.
        conductance_max_s: Highest in S.
        voltage_max_v: Largest input in V, of either sign.
        dac_step_v: One DAC step in V, 0 without steps.
        adc_lsb_a: One ADC step in A, 0 without steps.
        code_min: Lowest ADC code.
        code_max: Highest.
        gain: Median column gain.
        amplifier_noise_a2: Variance in A^2 after the curve.
        line_noise_a2: Variance in A^2 before it.
        shot_noise_a: Variance per current in A.
        conductance_noise: Relative variance of a conductance, fresh at every MVM.
        programming: Coefficients of the programming error over the relative target, parts of the highest conductance.
        programming_error: Their standard errors.
        mismatch: Relative mismatch of the cells, device to device.
        drift: Mean drift exponent.
        drift_spread: Standard deviation of the exponents over cells.
        drift_reference_s: Time constant of the drift in s.
        wire_ohm: Resistance in ohm of a word-line and a bit-line segment; None where wires were not fitted.
        compression_per_a: Median reciprocal saturation current in 1/A.
        offset_a: Root mean square of the column offsets in A.
        stuck: Share of the cells that do not follow their targets.
        crosstalk: Share of a column's current on each neighbour; None where it was not fitted.
    """

    chip_id: str
    arrays: tuple[int, ...]
    rows: int
    columns: int
    conductance_min_s: float
    conductance_max_s: float
    voltage_max_v: float
    dac_step_v: float
    adc_lsb_a: float
    code_min: int
    code_max: int
    gain: Number
    amplifier_noise_a2: Number
    line_noise_a2: Number
    shot_noise_a: Number
    conductance_noise: Number
    programming: FloatArray
    programming_error: FloatArray
    mismatch: Number
    drift: Number
    drift_spread: Number
    drift_reference_s: float
    wire_ohm: tuple[Number, Number] | None
    compression_per_a: Number
    offset_a: float
    stuck: float
    crosstalk: Number | None

    @property
    def unit_current_a(self) -> float:
        """Output in A of a weight 1 at an input 1: the current that simulators call 1."""
        return self.gain.value * self.voltage_max_v * (self.conductance_max_s - self.conductance_min_s)

    def programming_sigma_s(self, target_s: FloatArray) -> FloatArray:
        """Standard deviation in S of a conductance around its target on a chip of this kind.

        Programming error (write to write) and mismatch (cell to cell) together: a simulator that draws a chip does
        not know which cells of this one are high and which are low.
        """
        relative = target_s / self.conductance_max_s
        write = np.maximum(self.programming @ np.stack([np.ones_like(relative), relative, relative**2]), 0.0)
        return np.asarray(self.conductance_max_s * np.hypot(write, self.mismatch.value * relative))


def chip_numbers(chip: ChipParameters, array: int | None = None) -> ChipNumbers:
    """Pools the arrays of a chip, or takes one.

    Raises:
        StorageError: No such array, or arrays whose ranges differ so that they cannot be pooled.
    """
    if array is not None and array not in chip.arrays:
        raise StorageError(f"chip {chip.chip_id} has no array {array}, only {', '.join(map(str, sorted(chip.arrays)))}")
    chosen = {index: one for index, one in chip.arrays.items() if array is None or index == array}
    parts = list(chosen.values())
    first = parts[0].converters
    ranges = {
        (one.rows, one.converters.conductance_min_s, one.converters.conductance_max_s, one.converters.voltage_max_v)
        for one in parts
    }
    if len(ranges) > 1:
        raise StorageError(f"the arrays of chip {chip.chip_id} differ in size or range; choose one with --array")
    wires = [one.wire_ohm for one in parts if one.wire_ohm is not None]
    crosstalk = [one.crosstalk for one in parts if one.crosstalk is not None]
    return ChipNumbers(
        chip_id=chip.chip_id,
        arrays=tuple(sorted(chosen)),
        rows=parts[0].rows,
        columns=sum(one.columns for one in parts),
        conductance_min_s=first.conductance_min_s,
        conductance_max_s=first.conductance_max_s,
        voltage_max_v=first.voltage_max_v,
        dac_step_v=first.dac_step_v,
        adc_lsb_a=float(np.median(np.concatenate([one.converters.adc_lsb_a for one in parts]))),
        code_min=first.code_min,
        code_max=first.code_max,
        gain=_median([one.gain for one in parts]),
        amplifier_noise_a2=_median([one.amplifier_noise for one in parts]),
        line_noise_a2=_median([one.line_noise for one in parts if one.line_noise is not None]),
        shot_noise_a=_median([one.shot_noise for one in parts]),
        conductance_noise=_median([one.conductance_noise for one in parts]),
        programming=np.mean([one.programming.value for one in parts], axis=0),
        programming_error=np.sqrt(np.mean([one.programming.error**2 for one in parts], axis=0) / len(parts)),
        mismatch=_mismatch(parts),
        drift=_mean([one.drift for one in parts]),
        drift_spread=_spread_of_drift(parts),
        drift_reference_s=parts[0].drift_reference_s,
        wire_ohm=None if not wires else (_mean(wires, 0), _mean(wires, 1)),
        compression_per_a=_median([one.compression for one in parts]),
        offset_a=float(np.sqrt(np.mean(np.concatenate([one.offset.value for one in parts]) ** 2))),
        stuck=float(np.mean(np.concatenate([one.stuck.ravel() for one in parts]))),
        crosstalk=None if not crosstalk else _mean(crosstalk),
    )


def _median(estimates: Sequence[Estimate]) -> Number:
    """Median of all columns; its error is that of their mean, times what a median loses against it (pi / 2)."""
    if not estimates:
        return Number(0.0, float("inf"))
    values, errors = (np.concatenate([np.ravel(part) for part in parts]) for parts in _split(estimates))
    known = np.isfinite(errors)
    error = np.sqrt(np.pi / 2.0 * (errors[known] ** 2).sum()) / known.sum() if known.any() else np.inf
    return Number(float(np.median(values)), float(error))


def _mean(estimates: Sequence[Estimate], index: int | None = None) -> Number:
    values, errors = (
        np.concatenate([np.ravel(part) if index is None else np.ravel(part)[index : index + 1] for part in parts])
        for parts in _split(estimates)
    )
    known = np.isfinite(errors)
    error = np.sqrt((errors[known] ** 2).sum()) / known.sum() if known.any() else np.inf
    return Number(float(values.mean()), float(error))


def _split(estimates: Sequence[Estimate]) -> tuple[list[FloatArray], list[FloatArray]]:
    return [one.value for one in estimates], [one.error for one in estimates]


def _mismatch(parts: Sequence[ArrayParameters]) -> Number:
    fitted = [one.mismatch for one in parts if one.mismatch is not None]
    if len(fitted) == len(parts):
        return _mean(fitted)
    # Files of schema 1 have no such number: the spread of their slopes, errors included.
    slopes = np.concatenate([one.cell_slope[~one.stuck] for one in parts])
    return Number(float(slopes.std()) if slopes.size else 0.0, float("inf"))


def _spread_of_drift(parts: Sequence[ArrayParameters]) -> Number:
    """Square root of the mean variance; zero where it was not fitted."""
    fitted = [one.drift_spread for one in parts if one.drift_spread is not None]
    if not fitted:
        return Number(0.0, float("inf"))
    variance = _mean(fitted)
    root = float(np.sqrt(max(variance.value, 0.0)))
    return Number(root, variance.error / (2.0 * root) if root > 0 else float("inf"))
