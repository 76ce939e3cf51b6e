"""The standard error of every parameter that a design will give, before anything is measured. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.cell_information import (
    LAW,
    LINES,
    Cells,
    GainErrors,
    gain_errors,
    law_information,
    line_scales,
)
from labrig_calibration.dataset import Converters
from labrig_calibration.information import (
    VARIANCES,
    ColumnErrors,
    WriteInformation,
    column_errors,
    write_information,
)
from labrig_calibration.ladder import HELDOUT_FRACTION
from labrig_calibration.line_loads import transfer_s
from labrig_calibration.stimulus import MvmDesign

FloatArray = NDArray[np.float64]

GOALS = ("gain", "offset", "compression", "conductance", "noise", "programming")
"""What has to reach a precision where nobody says otherwise: what a surrogate's outputs depend on."""
PREDICTED = (
    *("gain", "offset", "compression", "drift", "conductance"),
    *VARIANCES[:3],
    "noise",
    "programming",
    *LAW,
    *LINES,
    "gain_with_lines",
)
"""All parameters whose errors are predicted, in the order of the model."""
# Columns that stand for all where every vector is looked at.
TYPICAL_COLUMNS = 4
_VAGUE = 1e3


@dataclass(frozen=True)
class Predicted:
    """The standard error that one parameter will have.

    `noise` is the standard deviation at half of the ADC's range, `programming` that at half of the highest conductance,
    `gain_with_lines` the gain where wires and crosstalk are fitted too.

    Attributes:
        name: The parameter.
        unit: SI unit of value and errors.
        value: What it is taken to be.
        error: Standard error, root mean square over columns or cells.
        worst_error: The largest one.
        scale: What `relative` is relative to.
        relative_to: The same in words.
        pooled_error: Standard error of the mean over all columns; None where that has no meaning.
    """

    name: str
    unit: str
    value: float
    error: float
    worst_error: float
    scale: float
    relative_to: str
    pooled_error: float | None = None

    @property
    def relative(self) -> float:
        """Standard error in parts of `scale`."""
        return self.error / self.scale if self.scale > 0 else math.inf


@dataclass(frozen=True)
class Analysis:
    """Everything that is known about a design before it is measured.

    Attributes:
        predicted: By name, in the order of the model.
        columns: Covariances of typical columns.
        kinds: What the vectors of each different kind of write say.
        times: How many writes of each kind there are.
        cells: The cells of these columns.
        gains: Errors of gains and lines.
        law: Information about `cell_information.LAW`, `[4, 4]`.
    """

    predicted: dict[str, Predicted]
    columns: ColumnErrors
    kinds: tuple[WriteInformation, ...]
    times: tuple[float, ...]
    cells: Cells
    gains: GainErrors
    law: FloatArray

    def worst(self, goals: Sequence[str]) -> Predicted:
        """The goal with the largest relative error."""
        return max((self.predicted[name] for name in goals), key=lambda one: one.relative)


def analyse(
    design: MvmDesign,
    converters: Converters,
    chip: AssumedChip,
    *,
    mvm_s: float,
    heldout_fraction: float = HELDOUT_FRACTION,
    columns: int = TYPICAL_COLUMNS,
) -> Analysis:
    """Predicts the standard errors that a fit of a design's recording will report.

    Args:
        design: What will be measured, vector by vector.
        converters: Ranges and resolutions of the board.
        chip: What the chip is taken to be.
        mvm_s: Time in s between two MVMs.
        heldout_fraction: Last part of every write that the fit holds back.
        columns: How many typical columns stand for all.
    """
    target_s = np.stack([write.target_conductance_s for write in design.writes])
    chosen = typical_columns(target_s.shape[2], columns)
    kinds = []
    for write in design.writes:
        voltage_v = np.concatenate([block.voltage_v for block in write.blocks])
        fitted = len(voltage_v) - max(1, int(heldout_fraction * len(voltage_v))) if heldout_fraction > 0 else None
        log_age = np.log1p(mvm_s * np.arange(1, len(voltage_v) + 1) / chip.drift_reference_s)
        conductance_s = transfer_s(write.target_conductance_s, chip.wire_ohm)[:, chosen]
        full_scale_a = converters.adc_full_scale_a[chosen]
        kinds.append(
            write_information(voltage_v[:fitted], log_age[:fitted], conductance_s, full_scale_a, converters, chip)
        )
    cells = Cells.of(target_s, chosen, tuple(range(len(kinds))), converters.conductance_max_s, chip)
    return analysed(kinds, [1.0] * len(kinds), cells, converters, chip)


def typical_columns(columns: int, count: int) -> NDArray[np.int64]:
    """Columns spread evenly over the array."""
    count = min(columns, count)
    return np.asarray((np.arange(count) * columns + columns // 2) // count, dtype=np.int64)


def analysed(
    kinds: Sequence[WriteInformation],
    times: Sequence[float],
    cells: Cells,
    converters: Converters,
    chip: AssumedChip,
) -> Analysis:
    """The predictions, from what the vectors of each kind of write say.

    Args:
        kinds: Information of each different kind of write.
        times: How many writes of each kind there are.
        cells: The cells of the same columns; `cells.kind` names the kinds.
        converters: Ranges and resolutions.
        chip: What the chip is taken to be.
    """
    errors = column_errors(kinds, times, converters, chip)
    gains = gain_errors(cells, errors, chip)
    law = law_information(cells, errors, chip)
    found = [
        *_of_columns(errors, gains, cells, converters, chip),
        *_of_noise(kinds, times, cells, converters, chip),
        *_of_cells(law, gains, cells, chip),
    ]
    return Analysis({one.name: one for one in found}, errors, tuple(kinds), tuple(times), cells, gains, law)


def _of_columns(
    errors: ColumnErrors, gains: GainErrors, cells: Cells, converters: Converters, chip: AssumedChip
) -> list[Predicted]:
    offset, compression, drift = np.sqrt(np.diagonal(errors.border, axis1=1, axis2=2)).T
    read_s = cells.read_error_s(errors, chip)
    full_scale_a = float(np.median(converters.adc_full_scale_a))
    usual_drift = max(abs(chip.drift), 0.01)
    highest_s = converters.conductance_max_s
    return [
        _predicted("gain", "1", chip.gain, chip.gain * gains.gain, chip.gain, "itself"),
        _predicted("offset", "A", 0.0, offset, full_scale_a, "full scale"),
        _predicted("compression", "1/A", chip.compression_per_a, compression, chip.compression_per_a, "itself"),
        _predicted("drift", "1", chip.drift, drift, usual_drift, f"{usual_drift:g}"),
        _predicted("conductance", "S", 0.5 * highest_s, read_s, highest_s, "the highest"),
    ]


def _of_noise(
    kinds: Sequence[WriteInformation],
    times: Sequence[float],
    cells: Cells,
    converters: Converters,
    chip: AssumedChip,
) -> list[Predicted]:
    values = np.array([chip.amplifier_noise_a2, chip.shot_noise_a, chip.conductance_noise])
    covariance = noise_covariance(variance_information(kinds, times)[:, :3, :3], converters, chip)
    error = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    found = []
    for index, unit in enumerate(("A^2", "A", "1")):
        value = float(values[index])
        pooled = float(np.sqrt(np.mean(error[:, index] ** 2) / cells.all_columns))
        name = VARIANCES[index]
        found.append(_predicted(name, unit, value, error[:, index], value, "itself", pooled_error=pooled))
    features = _features_at_half_scale(cells, converters, chip)
    variance_a2 = float(features @ values)
    sigma_a = math.sqrt(variance_a2)
    sigma_error_a = np.sqrt(np.einsum("a,cab,b->c", features, covariance, features)) / (2.0 * sigma_a)
    pooled_a = float(np.sqrt(np.mean(sigma_error_a**2) / cells.all_columns))
    found.append(_predicted("noise", "A", sigma_a, sigma_error_a, sigma_a, "itself", pooled_error=pooled_a))
    return found


def variance_information(kinds: Sequence[WriteInformation], times: Sequence[float]) -> FloatArray:
    """Information of all residuals about `VARIANCES`, `[columns, 5, 5]`, less what the means cost."""
    writes = sum(times)
    summed = np.zeros_like(kinds[0].variance)
    for info, count in zip(kinds, times, strict=True):
        left = max(info.mvms - info.rows - 3.0 / writes, 0.0) / max(info.mvms, 1.0)
        summed += count * left * info.variance
    return summed


def noise_scales(converters: Converters, chip: AssumedChip) -> FloatArray:
    """What is a large value of each of `VARIANCES` but the misfit: that of all noise at half of the ADC's range."""
    full_scale_a = float(np.median(converters.adc_full_scale_a))
    step_a2 = float(np.median(converters.adc_lsb_a)) ** 2 / 12.0
    total_a2 = chip.amplifier_noise_a2 + chip.shot_noise_a * 0.5 * full_scale_a + step_a2
    largest_a = converters.voltage_max_v * converters.conductance_max_s * chip.gain
    cells = max((0.5 * full_scale_a / largest_a), 1.0)
    return np.array([total_a2, total_a2 / (0.5 * full_scale_a), total_a2 / (cells * largest_a**2), total_a2])


def noise_covariance(information: FloatArray, converters: Converters, chip: AssumedChip) -> FloatArray:
    """Covariance of the coefficients of the noise law, `[columns, k, k]`; what is unknown has a large one."""
    scale = noise_scales(converters, chip)[: information.shape[1]]
    values, vectors = np.linalg.eigh(information * scale[:, None] * scale[None, :])
    inverse = np.einsum("cak,ck,cbk->cab", vectors, 1.0 / np.maximum(values, 1.0 / _VAGUE**2), vectors)
    return np.asarray(inverse * scale[:, None] * scale[None, :])


def _features_at_half_scale(cells: Cells, converters: Converters, chip: AssumedChip) -> FloatArray:
    """Derivatives of the variance by its three coefficients where equal inputs drive half of the ADC's range."""
    line_s = chip.gain * cells.target_s
    full_scale_a = float(np.median(converters.adc_full_scale_a))
    voltage_v = min(converters.voltage_max_v, 0.5 * full_scale_a / float(line_s.sum(axis=1).mean()))
    current_a = voltage_v * float(line_s.sum(axis=1).mean())
    slope = 1.0 - math.tanh(chip.compression_per_a * current_a) ** 2
    squares_a2 = voltage_v**2 * float((line_s**2).sum(axis=1).mean())
    return np.array([1.0, slope**2 * current_a, slope**2 * squares_a2])


def _of_cells(law: FloatArray, gains: GainErrors, cells: Cells, chip: AssumedChip) -> list[Predicted]:
    scale = law_scales(chip)
    values, vectors = np.linalg.eigh(law * np.outer(scale, scale))
    inverse = (vectors / np.maximum(values, 1.0 / _VAGUE**2)) @ vectors.T
    covariance = inverse * np.outer(scale, scale)
    middle = np.array([1.0, 0.5, 0.25, 0.0])
    sigma = float(chip.programming_sigma(np.array(0.5)))
    errors = np.sqrt(np.diagonal(covariance))
    found = [_predicted("programming", "1", sigma, math.sqrt(float(middle @ covariance @ middle)), sigma, "itself")]
    for index, name in enumerate(LAW[:3]):
        found.append(_predicted(name, "1", chip.programming[index], float(errors[index]), sigma, "programming"))
    spread = chip.mismatch
    found.append(_predicted(LAW[3], "1", spread, float(errors[3]), spread, "itself"))
    lines = np.sqrt(np.diagonal(gains.lines))
    large = line_scales(cells, chip)
    for index, name in enumerate(LINES):
        error = float(lines[index])
        if name == "crosstalk":
            found.append(_predicted(name, "1", chip.crosstalk, error, 1.0, "a neighbour"))
            continue
        scale_ohm = chip.wire_ohm if chip.wire_ohm > 0 else float(large[index])
        words = "itself" if chip.wire_ohm > 0 else f"{scale_ohm:.2g} ohm"
        found.append(_predicted(name, "ohm", chip.wire_ohm, error, scale_ohm, words))
    gain = chip.gain * gains.gain_with_lines
    found.append(_predicted("gain_with_lines", "1", chip.gain, gain, chip.gain, "itself"))
    return found


def law_scales(chip: AssumedChip) -> FloatArray:
    """What is a large change of each of `cell_information.LAW`: the programming error, and the spread itself."""
    return np.array([float(chip.programming_sigma(np.array(0.5)))] * 3 + [chip.mismatch])


def _predicted(
    name: str,
    unit: str,
    value: float,
    errors: FloatArray | float,
    scale: float,
    relative_to: str,
    *,
    pooled_error: float | None = None,
) -> Predicted:
    found = np.asarray(errors)
    typical = float(np.sqrt(np.mean(found**2)))
    return Predicted(name, unit, value, typical, float(found.max()), scale, relative_to, pooled_error)
