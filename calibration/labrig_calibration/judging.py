"""Judges a fit's predictions of recorded MVMs: every check of residuals, distributions of outputs, whole vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.activation_divergence import LayerDivergence, compare_activations
from labrig_calibration.battery import FALSE_ALARM_RATE, FitSize, Judgement, judge
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.histogram_bins import HistogramBins
from labrig_calibration.nulls import Nulls
from labrig_calibration.residuals import AdcSteps, quantile_residuals, refuse
from labrig_calibration.two_sample import TwoSample, energy_test

FloatArray = NDArray[np.float64]

# The spread before the ADC is at least this part of a step: a model without noise has no residuals.
_LEAST_SPREAD = 0.01
# Fewer repeated inputs say nothing of the chip against itself.
_REPEATS = 200


@dataclass(frozen=True)
class RecordedJudgement:
    """What was found on recorded MVMs.

    Attributes:
        residuals: Standardised residuals, `[N, columns]`, in the order of the recording.
        battery: Every check of them.
        layer: Jensen-Shannon divergence of outputs, model against chip.
        against_itself: The same where inputs were repeated, with the chip's own divergence; None with fewer than 200.
        vectors: Energy distance of whole vectors of residuals from independent normal ones.
    """

    residuals: FloatArray
    battery: Judgement
    layer: LayerDivergence
    against_itself: LayerDivergence | None
    vectors: TwoSample


def judge_recorded(
    mean_a: FloatArray,
    sigma_a: FloatArray,
    recorded: MvmDataset,
    *,
    rng: np.random.Generator,
    fitted: FitSize | None = None,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    nulls: Nulls | None = None,
) -> RecordedJudgement:
    """Judges predictions of recorded MVMs; outputs at an end of the ADC's range count as what they are.

    Args:
        mean_a: Predicted outputs before the ADC in A, `[N, columns]`.
        sigma_a: Their standard deviation in A, the ADC's step included, `[N, columns]`, as
            `diagnostics.predict_recorded` gives it.
        recorded: The MVMs, best those that the fit never saw.
        rng: Source of null distributions, draws and exchanges.
        fitted: The fit behind the predictions, where it never saw these MVMs.
        false_alarm_rate: Chance that the battery faults a model without fault.
        nulls: Null distributions from an earlier call with as many MVMs.

    Raises:
        JudgementError: Shapes do not fit, predictions are no numbers, or there are fewer than 30 MVMs.
    """
    steps = adc_steps(recorded)
    spread_a = np.sqrt(np.maximum(sigma_a**2 - steps.lsb_a**2 / 12.0, (_LEAST_SPREAD * steps.lsb_a) ** 2))
    z = quantile_residuals(mean_a, spread_a, recorded.current_a, steps, rng=rng)
    battery = judge(
        z,
        mean_a,
        sigma_a,
        rng=rng,
        time_s=recorded.time_s,
        age_s=recorded.age_s,
        covariates=_covariates(recorded),
        fitted=fitted,
        false_alarm_rate=false_alarm_rate,
        nulls=nulls,
    )
    order = np.argsort(recorded.time_s, kind="stable")
    drawn_a = through_steps(mean_a + spread_a * rng.standard_normal(mean_a.shape), steps)
    bins = HistogramBins.codes(steps.lsb_a, recorded.current_a.min(axis=0), recorded.current_a.max(axis=0))
    layer = compare_activations(recorded.current_a[order], drawn_a[order], rng=rng, bins=bins)
    first, second = repeated_inputs(recorded)
    against_itself = None
    if first.size >= _REPEATS:
        again_a = recorded.current_a[second]
        against_itself = compare_activations(
            recorded.current_a[first], drawn_a[first], rng=rng, bins=bins, repeated=again_a
        )
    vectors = energy_test(z[order], rng.standard_normal(z.shape), rng=rng)
    return RecordedJudgement(z, battery, layer, against_itself, vectors)


def adc_steps(recorded: MvmDataset) -> AdcSteps:
    """The ADC's steps and ends, `[columns]` each.

    Raises:
        JudgementError: The data set does not say what its ADC is.
    """
    lsb_a = recorded.converters.adc_lsb_a
    if not (recorded.converters.adc_bits and np.all(lsb_a > 0.0)):
        refuse("nothing to compare with", ["the converters of the recording are not known: adc_bits and full scale"])
    half = 2.0 ** (recorded.converters.adc_bits - 1)
    return AdcSteps(lsb_a, -half * lsb_a, (half - 1.0) * lsb_a)


def through_steps(current_a: FloatArray, steps: AdcSteps) -> FloatArray:
    """Currents in A as the ADC would report them."""
    return np.asarray(np.clip(np.round(current_a / steps.lsb_a) * steps.lsb_a, steps.low_a, steps.high_a))


def repeated_inputs(recorded: MvmDataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """MVMs of one write with the same input, paired in the order of time: `(first, second)`, each `[pairs]`."""
    key = np.concatenate([recorded.pattern[:, None].astype(np.float64), recorded.voltage_v], axis=1)
    group = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.lexsort((recorded.time_s, group))
    ordered = group[order]
    start = np.flatnonzero(np.diff(ordered, prepend=-1))
    place = np.arange(ordered.size) - np.repeat(start, np.diff(np.append(start, ordered.size)))
    second = np.flatnonzero(place % 2 == 1)
    in_time = np.argsort(recorded.time_s[order[second - 1]], kind="stable")
    return order[second - 1][in_time], order[second][in_time]


def _covariates(recorded: MvmDataset) -> FloatArray:
    """What is the same for all columns: drive, its sign, temperature, `[N, k]`."""
    drive_v = np.sqrt((recorded.voltage_v**2).mean(axis=1))
    columns = [drive_v, recorded.voltage_v.mean(axis=1)]
    if recorded.temperature_k is not None:
        columns.append(recorded.temperature_k)
    return np.stack(columns, axis=1)
