"""When to measure again: at t = 2^k, until the error that drift will have made exceeds what is tolerated.

Log-time drift does as much between 1 h and 2 h as between 1 d and 2 d, so reads at doubling ages see equal steps of it.
One factor compensates what cells have in common (`drift.DriftModel.compensation`); each output keeps the scatter of its
cells' exponents. When that exceeds the tolerance the array has to be calibrated, or written, anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.drift import DriftModel
from labrig_calibration.residuals import refuse

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """Ages at which to read canaries, and when calibration runs out.

    Attributes:
        age_s: Ages at which to read, each twice the one before, the last one the first beyond `due_s`, `[K]`.
        error: Predicted relative error of an output at each, `[K]`.
        due_s: Age at which the predicted error reaches the tolerance, in s; infinity where it does not at any of them.
        tolerance: The tolerated relative error.
    """

    age_s: FloatArray
    error: FloatArray
    due_s: float
    tolerance: float


def predicted_error(
    model: DriftModel,
    age_s: FloatArray,
    calibrated_s: float,
    *,
    compensated: bool = True,
    cells_per_output: float = 1.0,
) -> FloatArray:
    """Root mean square relative error that drift has made since the calibration, any shape.

    Args:
        model: The fitted drift.
        age_s: Ages in s.
        calibrated_s: Age in s at the last calibration, when every conductance was known.
        compensated: The mean drift is taken out by a factor; its own error remains.
        cells_per_output: Cells over which an output averages (conductances of one size: the number of rows that are
            driven); their scatter goes down with its root, what is common stays.
    """
    log_time = np.abs(np.log(np.asarray(age_s) / calibrated_s))
    scatter2 = np.expm1(model.spread[1, 1] * log_time**2) / cells_per_output
    common2 = (model.exponent_error * log_time) ** 2
    if not compensated:
        common2 = common2 + np.expm1(-model.exponent * log_time) ** 2
    return np.asarray(np.sqrt(scatter2 + common2))


def measure_again(
    model: DriftModel,
    calibrated_s: float,
    tolerance: float,
    *,
    compensated: bool = True,
    cells_per_output: float = 1.0,
    longest_s: float = 10.0 * 365.25 * 86400.0,
) -> Schedule:
    """Plans reads at doubling ages until the predicted error exceeds the tolerance.

    Args:
        model: The fitted drift.
        calibrated_s: Age in s at the last calibration.
        tolerance: Tolerated relative error of an output.
        compensated: The mean drift is taken out by a factor.
        cells_per_output: Cells over which an output averages.
        longest_s: No reads are planned beyond this age, ten years by default.

    Raises:
        JudgementError: Age or tolerance is not positive.
    """
    faults = [
        f"{name} = {value} must be positive"
        for name, value in (("calibrated_s", calibrated_s), ("tolerance", tolerance))
        if not value > 0
    ]
    refuse("nothing to plan", faults)

    def error(age_s: FloatArray) -> FloatArray:
        return predicted_error(model, age_s, calibrated_s, compensated=compensated, cells_per_output=cells_per_output)

    doublings = max(0, math.floor(math.log2(max(longest_s / calibrated_s, 1.0))))
    ages_s = calibrated_s * np.exp2(np.arange(1, doublings + 1, dtype=np.float64))
    errors = error(ages_s)
    exceeded = np.flatnonzero(errors > tolerance)
    if exceeded.size == 0:
        return Schedule(ages_s, errors, math.inf, tolerance)
    last = int(exceeded[0])
    low, high = math.log(ages_s[last] / 2.0), math.log(ages_s[last])
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if float(error(np.array(math.exp(middle)))) > tolerance else (middle, high)
    return Schedule(ages_s[: last + 1], errors[: last + 1], math.exp(high), tolerance)
