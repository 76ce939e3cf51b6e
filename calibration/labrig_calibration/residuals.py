"""Standardised residuals and PIT of measured outputs, exact for outputs that an ADC rounds and clips.

A residual divided by its predicted standard deviation is normal only while the ADC's step is small. Where it is not,
the model says with which probability each code comes, and the residual is drawn inside its code (randomised quantile
residuals, Dunn and Smyth, J. Comput. Graph. Stat. 5, 1996): standard normal for a true model, whatever the step, and
for outputs at an end of the ADC's range too, which would otherwise have to be left out and so bias what stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from labrig_surrogates.faults import counted

FloatArray = NDArray[np.float64]


class JudgementError(ValueError):
    """The arrays cannot be judged; the message lists every fault."""


def refuse(what: str, faults: list[str]) -> None:
    """Raises one error that names every fault, where there is one."""
    if faults:
        raise JudgementError(f"{what}: " + "; ".join(faults))


@dataclass(frozen=True)
class AdcSteps:
    """How an ADC rounds and clips.

    Attributes:
        lsb_a: One step in A, `[columns]` or a number.
        low_a: Current in A of the lowest code, same shape; minus infinity where nothing clips.
        high_a: Current in A of the highest code, same shape; infinity where nothing clips.
    """

    lsb_a: FloatArray
    low_a: FloatArray
    high_a: FloatArray


def standardised(mean_a: FloatArray, sigma_a: FloatArray, current_a: FloatArray) -> FloatArray:
    """Measured minus predicted, divided by the predicted standard deviation, `[N, columns]`.

    Args:
        mean_a: Predicted outputs in A, `[N, columns]`.
        sigma_a: Their standard deviation in A, `[N, columns]`.
        current_a: Measured outputs in A, `[N, columns]`; NaN where there is none.

    Raises:
        JudgementError: Shapes differ, or a prediction is not finite or has no spread.
    """
    _check(mean_a, sigma_a, current_a)
    return np.asarray((current_a - mean_a) / sigma_a)


def quantile_residuals(
    mean_a: FloatArray, sigma_a: FloatArray, current_a: FloatArray, steps: AdcSteps, *, rng: np.random.Generator
) -> FloatArray:
    """Randomised quantile residuals of outputs that went through an ADC, standard normal for a true model.

    Args:
        mean_a: Predicted outputs before the ADC in A, `[N, columns]`.
        sigma_a: Their standard deviation before the ADC in A, `[N, columns]` (without the step's own variance).
        current_a: Measured outputs in A, `[N, columns]`, multiples of the step; NaN where there is none.
        steps: The ADC's steps and ends.
        rng: Places each residual inside its code.

    Returns:
        Residuals, `[N, columns]`, NaN where nothing was measured.

    Raises:
        JudgementError: Shapes differ, or a prediction is not finite or has no spread.
    """
    _check(mean_a, sigma_a, current_a)
    half_a = 0.5 * np.asarray(steps.lsb_a)
    low = np.where(current_a <= steps.low_a + half_a, -np.inf, (current_a - half_a - mean_a) / sigma_a)
    high = np.where(current_a >= steps.high_a - half_a, np.inf, (current_a + half_a - mean_a) / sigma_a)
    # In the upper tail 1 - u has the digits, so the interval is mirrored there; logarithms keep both tails.
    flip = low + high > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    share = rng.random(current_a.shape)
    log_high = special.log_ndtr(high)
    ratio = np.exp(special.log_ndtr(low) - log_high)
    z = special.ndtri_exp(log_high + np.log(share + (1.0 - share) * ratio))
    return np.asarray(np.where(np.isnan(current_a), np.nan, np.where(flip, -z, z)))


def pit(z: FloatArray) -> FloatArray:
    """Probability integral transform of standardised residuals: uniform between 0 and 1 for a true model."""
    return np.asarray(special.ndtr(z))


def pit_histogram(z: FloatArray, bins: int = 20) -> tuple[FloatArray, float]:
    """Share of the PIT values in each of `bins` equal bins, and the standard error of one share.

    A valley says that the predicted spread is too small, a hill too large, a slope that predictions are biased.
    """
    values = pit(z[np.isfinite(z)])
    count = max(values.size, 1)
    share = np.histogram(values, bins=bins, range=(0.0, 1.0))[0] / count
    return share, float(np.sqrt((1.0 - 1.0 / bins) / bins / count))


def chronological(time_s: FloatArray) -> NDArray[np.int64]:
    """The order in which MVMs were measured; equal times keep the order of the recording."""
    return np.asarray(np.argsort(time_s, kind="stable"), dtype=np.int64)


def _check(mean_a: FloatArray, sigma_a: FloatArray, current_a: FloatArray) -> None:
    faults = []
    if mean_a.ndim != 2 or not mean_a.shape == sigma_a.shape == current_a.shape:
        shapes = f"{list(mean_a.shape)}, {list(sigma_a.shape)} and {list(current_a.shape)}"
        faults.append(f"mean, sigma and current must be of one shape [N, columns], not {shapes}")
    bad = int((~np.isfinite(mean_a)).sum())
    if bad:
        faults.append(f"{counted(bad, 'predicted mean is', 'predicted means are')} not finite")
    bad = int((~(np.isfinite(sigma_a) & (sigma_a > 0))).sum())
    if bad:
        faults.append(
            counted(
                bad,
                "predicted standard deviation is not a positive number",
                "predicted standard deviations are not positive numbers",
            )
        )
    refuse("residuals cannot be standardised", faults)
