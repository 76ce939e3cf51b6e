"""The calibration report: one HTML page, verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labrig.reports import figures
from labrig.reports.page import embedded, write_page
from labrig_calibration.diagnostics import Diagnostics, predict_nominal, predict_recorded, through_adc
from labrig_calibration.fit import HELDOUT_FRACTION, split_chronologically
from labrig_calibration.result import CalibrationResult, JudgedArray
from labrig_surrogates.parameters import ArrayParameters, Estimate

# A held-out error above this multiple of the noise floor means that the model leaves something out.
_ACCEPTED_ERROR = 1.10
_ACCEPTED_COVERAGE = (0.88, 0.92)
_TEMPLATE = Path(__file__).with_name("calibration.html.jinja")

_MEANING = {
    "gain": "column gain",
    "offset": "column offset",
    "compression": "reciprocal saturation current",
    "drift": "drift exponent",
    "amplifier_noise": "noise variance after the curve",
    "shot_noise": "noise variance per current",
    "conductance_noise": "relative variance of conductances",
    "programming": "programming error p0 + p1 r + p2 r², part of the highest conductance",
}


@dataclass(frozen=True)
class _Row:
    name: str
    meaning: str
    unit: str
    median: str
    low: str
    high: str
    error: str


def verdict(diagnostics: Diagnostics) -> tuple[bool, str]:
    """Whether the fit may be believed, and the sentence that says so."""
    low, high = _ACCEPTED_COVERAGE
    faults = []
    if diagnostics.error_over_noise > _ACCEPTED_ERROR:
        faults.append(f"the held-out error is {diagnostics.error_over_noise:.2f} times the noise floor")
    if not low <= diagnostics.coverage_90 <= high:
        faults.append(f"90 % intervals hold {100 * diagnostics.coverage_90:.1f} % of the held-out outputs")
    if faults:
        return False, "Do not trust this fit yet: " + "; ".join(faults) + "."
    return True, (
        f"The fit predicts unseen outputs to {diagnostics.error_over_noise:.2f} times the noise floor; "
        f"its 90 % intervals hold {100 * diagnostics.coverage_90:.1f} %."
    )


def write_report(
    path: Path, fits: Sequence[CalibrationResult | JudgedArray], conditions: Mapping[str, str], rng: np.random.Generator
) -> None:
    """Writes the page, with the plotting script once beside it (`plotly.min.js`).

    Args:
        path: Where the page goes.
        fits: Fitted arrays of one chip.
        conditions: What was measured, where and when; printed as they are.
        rng: Source of the noise in the predicted distribution.

    Raises:
        StorageError: The folder cannot be written.
    """
    write_page(
        path,
        _TEMPLATE,
        chip_id=fits[0].dataset.chip_id,
        conditions=dict(conditions),
        arrays=[_array_section(fitted, rng) for fitted in fits],
    )


def _array_section(fitted: CalibrationResult | JudgedArray, rng: np.random.Generator) -> dict[str, object]:
    parameters, diagnostics = fitted.array_parameters, fitted.diagnostics
    _, heldout = split_chronologically(fitted.dataset, HELDOUT_FRACTION)
    prediction = predict_recorded(parameters, heldout)
    drawn_a = prediction.mean_a + prediction.sigma_a * rng.standard_normal(prediction.mean_a.shape)
    nominal_a = through_adc(parameters, predict_nominal(heldout))
    good, sentence = verdict(diagnostics)
    # The most compressed column shows the curve best; the typical one shows what to expect.
    order = np.argsort(parameters.compression.value)
    plots = [
        figures.transfer_figure(parameters, fitted.dataset, int(order[-1])),
        figures.transfer_figure(parameters, fitted.dataset, int(order[order.size // 2])),
        figures.noise_figure(heldout, prediction),
        figures.residual_figure(heldout, prediction),
        figures.output_figure(heldout, through_adc(parameters, drawn_a), nominal_a),
        figures.cell_figure(parameters),
    ]
    return {
        "index": parameters.array,
        "good": good,
        "verdict": sentence,
        "mvms": len(fitted.dataset),
        "writes": fitted.dataset.writes,
        "rows": parameters.rows,
        "columns": parameters.columns,
        "stuck": int(parameters.stuck.sum()),
        "saturated": float(fitted.dataset.saturated.mean()),
        "diagnostics": diagnostics,
        "nominal_over_noise": float(diagnostics.nominal_rms_a.mean() / diagnostics.noise_rms_a.mean()),
        "summary_rows": _summary_rows(parameters),
        "column_rows": _column_rows(parameters),
        "plots": [embedded(plot) for plot in plots],
    }


def _summary_rows(parameters: ArrayParameters) -> list[_Row]:
    rows = []
    for name, estimate in parameters.estimates().items():
        if name == "programming":
            continue
        low, median, high = np.quantile(estimate.value, [0.05, 0.5, 0.95])
        texts = [f"{value:.4g}" for value in (median, low, high, float(np.median(estimate.error)))]
        rows.append(_Row(name, _MEANING[name], estimate.unit, *texts))
    for power, (value, error) in enumerate(
        zip(parameters.programming.value, parameters.programming.error, strict=True)
    ):
        text = f"{value:.4g}"
        rows.append(_Row(f"p{power}", _MEANING["programming"], "1", text, text, text, f"{error:.2g}"))
    return rows


def _column_rows(parameters: ArrayParameters) -> list[list[str]]:
    shown = [name for name in parameters.estimates() if name != "programming"]
    estimates: list[Estimate] = [parameters.estimates()[name] for name in shown]
    return [
        [str(column), *(f"{one.value[column]:.4g} ± {one.error[column]:.1g}" for one in estimates)]
        for column in range(parameters.columns)
    ]
