"""One fitted array with everything that a report says of it: from a fresh fit, or from the files of an earlier one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig.reports.verdict import Counts, Verdict, judge_fit
from labrig_calibration.battery import FitSize
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.diagnostics import Diagnostics, Prediction, predict_recorded
from labrig_calibration.fit import heldout_part
from labrig_calibration.judging import RecordedJudgement, judge_recorded
from labrig_calibration.ladder import RungVerdict
from labrig_calibration.nulls import Nulls
from labrig_calibration.residuals import JudgementError
from labrig_calibration.result import CalibrationResult, JudgedArray
from labrig_surrogates.parameters import ArrayParameters

FloatArray = NDArray[np.float64]

# Unseen MVMs below which no test of residuals says anything.
_FEWEST = 30


@dataclass(frozen=True)
class ReportedArray:
    """What a report shows of one array.

    Attributes:
        parameters: The fit.
        dataset: What it was fitted to.
        heldout: The MVMs that it never saw, glitches left out.
        prediction: What it says of them.
        diagnostics: How well.
        z: Their residuals, standard normal for a true model, NaN in columns that are dead, `[N, columns]`.
        judgement: What tests of the residuals found; None where there are too few.
        verdict: What it is worth.
        ladder: What each rung brought; empty where the file does not say.
        notes: What the data could not tell.
        flagged: MVMs left out as glitches.
        outliers: Single outputs that count as wrong.
    """

    parameters: ArrayParameters
    dataset: MvmDataset
    heldout: MvmDataset
    prediction: Prediction
    diagnostics: Diagnostics
    z: FloatArray
    judgement: RecordedJudgement | None
    verdict: Verdict
    ladder: tuple[RungVerdict, ...]
    notes: tuple[str, ...]
    flagged: int
    outliers: int

    @property
    def column_error(self) -> FloatArray:
        """Held-out error of each column as a multiple of its own noise floor, `[columns]`."""
        noise_a, unknown = self.diagnostics.noise_rms_a, np.full_like(self.diagnostics.noise_rms_a, np.nan)
        alive = np.isfinite(self.parameters.gain.error) & (noise_a > 0)
        return np.asarray(np.divide(self.diagnostics.residual_rms_a, noise_a, out=unknown, where=alive))


def reported(
    fits: Sequence[CalibrationResult | JudgedArray],
    rng: np.random.Generator,
    provenance: Mapping[str, str | float | int],
) -> list[ReportedArray]:
    """Gathers what a report says of each array.

    Args:
        fits: Fresh fits, or parameters judged on their recording again.
        rng: Places residuals inside their ADC codes, and draws null distributions.
        provenance: Of the chip's file: where a fit that is not fresh says how it came about.
    """
    # Null distributions take most of the time, and those of as many MVMs are the same.
    nulls: dict[int, Nulls] = {}
    return [_reported(one, rng, provenance, nulls) for one in fits]


def _ladder(text: str) -> tuple[RungVerdict, ...]:
    """What climbing found, as the chip's file tells it; nothing where it cannot be read."""
    try:
        return tuple(RungVerdict(**one) for one in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return ()


def _reported(
    fitted: CalibrationResult | JudgedArray,
    rng: np.random.Generator,
    provenance: Mapping[str, str | float | int],
    nulls: dict[int, Nulls],
) -> ReportedArray:
    parameters, dataset, diagnostics = fitted.array_parameters, fitted.dataset, fitted.diagnostics
    if isinstance(fitted, CalibrationResult):
        wrong, outliers = fitted.flagged, fitted.outliers
        flagged, ladder, notes = int(wrong.sum()), fitted.ladder, fitted.notes
    else:
        prefix = f"array_{parameters.array}_"
        wrong = np.zeros(len(dataset), dtype=np.bool_)
        flagged, outliers = (int(provenance.get(f"{prefix}{name}", 0)) for name in ("flagged", "outliers"))
        ladder = _ladder(str(provenance.get(f"{prefix}ladder", "[]")))
        notes = tuple(note for note in str(provenance.get(f"{prefix}notes", "")).split("; ") if note)
    heldout, fitted_mvms = heldout_part(dataset, wrong)
    prediction = predict_recorded(parameters, heldout)
    size = FitSize(fitted_mvms, _per_column(parameters))
    z, judgement = _judgement(heldout, prediction, size, rng, nulls)
    counts = Counts(
        saturated=float(dataset.saturated.mean()),
        flagged=flagged / max(len(dataset), 1),
        stuck=float(parameters.stuck.mean()),
        dead=int((parameters.gain.value == 0.0).sum()),
    )
    verdict = judge_fit(diagnostics, counts, None if judgement is None else judgement.battery)
    return ReportedArray(
        parameters, dataset, heldout, prediction, diagnostics, z, judgement, verdict, ladder, notes, flagged, outliers
    )


def _judgement(
    heldout: MvmDataset,
    prediction: Prediction,
    fitted: FitSize,
    rng: np.random.Generator,
    nulls: dict[int, Nulls],
) -> tuple[FloatArray, RecordedJudgement | None]:
    """Residuals of all columns, and what tests found in those that are alive."""
    alive = np.isfinite(prediction.mean_a).all(axis=0) & (prediction.sigma_a > 0).all(axis=0)
    alive &= heldout.converters.adc_lsb_a > 0
    z = np.full(prediction.mean_a.shape, np.nan)
    mean_a, sigma_a = prediction.mean_a[:, alive], prediction.sigma_a[:, alive]
    difference_a = np.where(heldout.saturated | ~alive, np.nan, heldout.current_a - prediction.mean_a)
    plain = difference_a / np.where(alive, prediction.sigma_a, np.nan)
    if len(heldout) < _FEWEST:
        return plain, None
    if len(heldout) not in nulls:
        nulls[len(heldout)] = Nulls.simulate(len(heldout), rng=rng)
    null = nulls[len(heldout)]
    try:
        found = judge_recorded(mean_a, sigma_a, heldout.of_columns(alive), rng=rng, fitted=fitted, nulls=null)
    except JudgementError:
        return plain, None
    z[:, alive] = found.residuals
    return z, found


def _per_column(parameters: ArrayParameters) -> float:
    """Parameters that each column spends on the mean of its outputs: cells of every write, and what it has itself."""
    return float(parameters.write_conductance_s.shape[0] * parameters.rows + 3)
