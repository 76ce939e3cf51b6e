"""The calibration report: one HTML page that stands alone, verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from labrig.calibration_history import CalibrationRecord, record_of
from labrig.reports import array_figures, figures
from labrig.reports.changes import change_rows, change_sentences
from labrig.reports.downloads import csv_of, csv_table, data_link, file_name
from labrig.reports.families import column_families, family, parameter_rows, prefixed
from labrig.reports.page import embedded, write_page
from labrig.reports.past import Past
from labrig.reports.reported import ReportedArray, reported
from labrig.reports.verdict import Level, worst
from labrig_calibration.battery import Judgement
from labrig_calibration.changes import ChipChange
from labrig_calibration.diagnostics import predict_nominal, through_adc
from labrig_calibration.ladder import RungVerdict
from labrig_calibration.result import CalibrationResult, JudgedArray
from labrig_drivers.wording import counted
from labrig_surrogates.parameters import ArrayParameters, ChipParameters

_TEMPLATE = Path(__file__).with_name("calibration.html.jinja")
# Arrays that are shown in full: a page of some hundred would take minutes to open.
_MOST_ARRAYS = 8
_WORST_COLUMNS = 8
_CHANGE_FIGURES = 6


@dataclass(frozen=True)
class _Plot:
    title: str
    html: str
    file: str
    data: str


@dataclass(frozen=True)
class _SummaryRow:
    index: int
    level: Level
    error: str
    coverage: str
    stuck: int
    flagged: int
    rung: str
    reason: str


def write_report(
    path: Path,
    fits: Sequence[CalibrationResult | JudgedArray],
    conditions: Mapping[str, str],
    rng: np.random.Generator,
    *,
    chip: ChipParameters | None = None,
    past: Past | None = None,
) -> list[ReportedArray]:
    """Writes the page: one file, which needs nothing beside it and no network.

    Args:
        path: Where the page goes.
        fits: Fitted arrays of one chip.
        conditions: What was measured, where and when; printed as they are.
        rng: Source of the noise in the predicted distribution, and of null distributions.
        chip: What the chip's file holds, with its provenance; made of the fits where None.
        past: Earlier calibrations.

    Returns:
        What was shown of each array.

    Raises:
        StorageError: The folder cannot be written.
    """
    past = past or Past()
    if chip is None:
        parameters = {one.array_parameters.array: one.array_parameters for one in fits}
        chip = ChipParameters(fits[0].dataset.chip_id, parameters, {})
    everything = reported(fits, rng, chip.provenance)
    full = sorted(everything, key=lambda one: (-one.verdict.level, -one.diagnostics.error_over_noise))[:_MOST_ARRAYS]
    full = sorted(full, key=lambda one: one.parameters.array)
    level = worst([one.verdict for one in everything])
    write_page(
        path,
        _TEMPLATE,
        one_file=True,
        chip_id=chip.chip_id,
        level=level,
        chip_sentence=_chip_sentence(everything),
        subtitle=_subtitle(everything, conditions),
        summary=[_summary_row(one) for one in everything],
        hidden=len(everything) - len(full),
        arrays=[_array_section(one, rng) for one in full],
        changes=None if past.change is None else _change_section(past.change, past),
        history=_history_section([*past.records, record_of(chip)]) if past.records else None,
        conditions={**conditions, **_fit_conditions(everything, chip)},
    )
    return everything


def _array_section(one: ReportedArray, rng: np.random.Generator) -> dict[str, object]:
    parameters, heldout, prediction = one.parameters, one.heldout, one.prediction
    drawn_a = prediction.mean_a + prediction.sigma_a * rng.standard_normal(prediction.mean_a.shape)
    nominal_a = through_adc(parameters, predict_nominal(heldout))
    # The most compressed column shows the curve best; the typical one shows what to expect.
    order = np.argsort(np.where(np.isfinite(parameters.gain.error), parameters.compression.value, -np.inf))
    maps = [
        array_figures.slope_figure(one),
        array_figures.conductance_error_figure(one),
        array_figures.state_figure(one),
        array_figures.column_figure(one),
        figures.transfer_figure(parameters, one.dataset, int(order[-1])),
        figures.noise_figure(heldout, prediction),
    ]
    plots = [
        figures.residual_figure(heldout, prediction),
        array_figures.pit_figure(one.z),
        array_figures.time_figure(one),
        figures.output_figure(heldout, through_adc(parameters, drawn_a), nominal_a),
        figures.transfer_figure(parameters, one.dataset, int(order[order.size // 2])),
    ]
    if one.ladder and np.isfinite([rung.heldout_nll for rung in one.ladder]).all():
        plots.append(array_figures.ladder_figure(one.ladder))
    index, judgement = parameters.array, one.judgement
    return {
        "index": index,
        "verdict": one.verdict,
        "columns": parameters.columns,
        "tiles": _tiles(one),
        "maps": [_plot(figure, f"array {index}") for figure in maps],
        "plots": [_plot(figure, f"array {index}") for figure in plots],
        "parameters": parameter_rows(parameters),
        "column_file": file_name(f"array {index}", "columns"),
        "column_data": data_link(_column_table(one)),
        "notes": [*one.notes, *_unknown(one.parameters)],
        "worst": _worst_columns(one),
        "ladder": one.ladder,
        "stopped": _stopped(one.ladder),
        "diagnostics": one.diagnostics,
        "nominal_over_noise": float(one.diagnostics.nominal_rms_a.mean() / one.diagnostics.noise_rms_a.mean()),
        "checks": [] if judgement is None else _checks(judgement.battery),
        "judgement": judgement,
    }


def _column_table(one: ReportedArray) -> str:
    """Every column with all its parameters and their errors, in SI units, as CSV."""
    families = column_families(one.parameters)
    header = [f"{name}{part} [{each.unit}]" for name, each in families.items() for part in ("", " error")]
    numbers = np.array([number for each in families.values() for number in (each.value, each.error)]).T
    return csv_table(["column", *header], ([column, *row] for column, row in enumerate(numbers.tolist())))


def _plot(figure: go.Figure, where: str) -> _Plot:
    """A figure whose title is text of the page, where it may take two lines."""
    title = str(figure.layout["title"]["text"])
    figure.update_layout(title=None, margin={"t": 34})
    if figure.layout["legend"]["x"] == 1.0:
        # The buttons are on the right.
        figure.update_layout(legend={"x": 0.0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"})
    return _Plot(title, embedded(figure), file_name(where, title), data_link(csv_of(figure)))


def _tiles(one: ReportedArray) -> list[tuple[str, str]]:
    cells, size = one.parameters.stuck.size, f"{one.parameters.rows} × {one.parameters.columns}"
    outliers = int((array_figures.cell_states(one) == 1).sum())
    return [
        (f"{one.diagnostics.error_over_noise:.3f}", "error / noise floor on unseen MVMs"),
        (f"{100.0 * one.diagnostics.coverage_90:.1f} %", "of them inside their 90 % interval"),
        (f"{int(one.parameters.stuck.sum())} of {cells}", f"cells stuck; {outliers} more far from the others"),
        (f"{100.0 * float(one.dataset.saturated.mean()):.2f} %", "of the outputs at an end of the ADC"),
        (f"{one.flagged} + {one.outliers}", "MVMs and single outputs left out as glitches"),
        (
            f"{len(one.dataset)}",
            f"MVMs of {counted(one.dataset.writes, 'write')} on {size}",
        ),
    ]


def _unknown(parameters: ArrayParameters) -> list[str]:
    """Families of which the data say nothing, in all columns or in some; dead columns are told elsewhere."""
    alive = np.isfinite(parameters.gain.error)
    found = []
    for name, estimate in parameters.estimates().items():
        error = estimate.error[alive] if estimate.error.shape == alive.shape else estimate.error
        unknown = int((~np.isfinite(error)).sum())
        if unknown:
            where = "" if unknown == error.size else f" of {unknown} of {error.size} columns"
            found.append(f"nothing is known of the {family(name).title}{where}")
    return found


def _worst_columns(one: ReportedArray) -> list[list[str]]:
    ratio = one.column_error
    order = np.argsort(-np.nan_to_num(ratio, nan=np.inf))[:_WORST_COLUMNS]
    parameters, saturated = one.parameters, np.asarray(one.dataset.saturated).mean(axis=0)
    noise, offset = one.diagnostics.noise_rms_a, parameters.offset.value
    (noise_factor, noise_unit), (offset_factor, offset_unit) = prefixed(noise, "A"), prefixed(offset, "A")
    return [
        [
            str(column),
            f"{ratio[column]:.3f}",
            f"{noise_factor * noise[column]:.3g} {noise_unit}",
            f"{parameters.gain.value[column]:.4f}",
            f"{offset_factor * offset[column]:.3g} {offset_unit}",
            str(int(parameters.stuck[:, column].sum())),
            f"{100.0 * saturated[column]:.2f} %",
        ]
        for column in order.tolist()
    ]


def _checks(judgement: Judgement) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {
            "name": check.name,
            "chance": "-" if check.adjusted >= 1.0 else f"{check.adjusted:.1g}",
            "text": check.sentence().partition(": ")[2] if check.adjusted < judgement.false_alarm_rate else "nothing",
            "found": check.adjusted < judgement.false_alarm_rate,
        }
        for check in sorted(judgement.checks.values(), key=lambda check: check.adjusted)
    ]
    skipped = [
        {"name": name, "chance": "", "text": f"not looked at: {reason}", "found": False}
        for name, reason in judgement.skipped.items()
    ]
    return [*rows, *skipped]


def _stopped(ladder: Sequence[RungVerdict]) -> str:
    left = [rung.rung for rung in ladder if not rung.kept]
    kept = [rung.rung for rung in ladder if rung.kept]
    if not kept:
        return ""
    if not left:
        return f"Every rung earned its place, up to {kept[-1]}."
    return f"The highest rung that earned its place is {kept[-1]}; left out: {', '.join(left)}."


def _summary_row(one: ReportedArray) -> _SummaryRow:
    kept = [rung.rung for rung in one.ladder if rung.kept]
    return _SummaryRow(
        index=one.parameters.array,
        level=one.verdict.level,
        error=f"{one.diagnostics.error_over_noise:.3f}",
        coverage=f"{100.0 * one.diagnostics.coverage_90:.1f} %",
        stuck=int(one.parameters.stuck.sum()),
        flagged=one.flagged,
        rung=kept[-1] if kept else "",
        reason=one.verdict.reasons[0] if one.verdict.reasons else "",
    )


def _chip_sentence(arrays: Sequence[ReportedArray]) -> str:
    counted = {level: [one.parameters.array for one in arrays if one.verdict.level is level] for level in Level}
    parts = [
        f"{len(found)} of {len(arrays)} arrays {level.words}" + (f" ({_listed(found)})" if level else "")
        for level, found in counted.items()
        if found
    ]
    return "; ".join(parts) + "."


def _listed(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:12]))
    return f"{shown} ..." if len(indices) > 12 else shown


def _subtitle(arrays: Sequence[ReportedArray], conditions: Mapping[str, str]) -> str:
    first = arrays[0].parameters
    number = counted(len(arrays), "array")
    known = [f"{key} {conditions[key]}" for key in ("measured", "rig") if key in conditions]
    return " · ".join([f"{number} of {first.rows} × {first.columns}", *known])


def _fit_conditions(arrays: Sequence[ReportedArray], chip: ChipParameters) -> dict[str, str]:
    """What a result needs beside it to be a result: data and split, noise, precision, seeds, hashes."""
    provenance = chip.provenance
    heldout = sum(one.diagnostics.heldout for one in arrays)
    total, writes = sum(len(one.dataset) for one in arrays), sum(one.dataset.writes for one in arrays)
    found = {
        "data": f"{total} MVMs, {counted(writes, 'write')}, {counted(len(arrays), 'array')} of one chip",
        "split": f"{heldout} MVMs held out: the last in time of every write, only used to judge",
        "noise": "drawn anew for every MVM; after the curve: amplifier and ADC; before it: line, current, cells; the "
        "programming error once for each write",
        "precision": "float64, ADC steps taken into account",
    }
    for key in ("calibrated_utc", "labrig", "seed"):
        if key in provenance:
            found[{"labrig": "fitted by labrig", "calibrated_utc": "calibrated"}.get(key, key)] = str(provenance[key])
    temperatures = [one.dataset.temperature_k for one in arrays if one.dataset.temperature_k is not None]
    if temperatures and np.isfinite(np.concatenate(temperatures)).any():
        kelvin = np.concatenate(temperatures)
        found["temperature"] = f"{np.nanmin(kelvin):.2f} K to {np.nanmax(kelvin):.2f} K"
    for one in arrays:
        name = f"array_{one.parameters.array}_data_sha256"
        if name in provenance:
            found[f"data of array {one.parameters.array} (sha256)"] = str(provenance[name])
    return found


def _change_section(change: ChipChange, past: Past) -> dict[str, object]:
    significant = [(one, array.array) for array in change.arrays for one in change.significant(array)]
    plots = [
        _plot(array_figures.change_figure(one), f"array {array} change")
        for one, array in sorted(significant, key=lambda pair: pair[0].surest)[:_CHANGE_FIGURES]
        if one.z.ndim and one.z.size > 1
    ]
    return {
        "since": past.since,
        "carried_over": past.carried_over,
        "sentences": change_sentences(change),
        "rows": change_rows(change),
        "rate": change.false_alarm_rate,
        "plots": plots,
    }


def _history_section(records: Sequence[CalibrationRecord]) -> dict[str, object]:
    newest = records[-1]
    # What may lie around zero, such as offsets, is no multiple of anything.
    names = ("gain", "compression", "drift", "amplifier_noise", "conductance_noise", "mismatch")
    plots = [
        _plot(array_figures.history_figure(records, array, names), f"array {array}")
        for array in list(newest.arrays)[:_MOST_ARRAYS]
    ]
    rows = []
    for one in reversed(records):
        errors = [array.error_over_noise for array in one.arrays.values() if array.error_over_noise is not None]
        stuck = sum(array.stuck for array in one.arrays.values())
        rows.append((one.when_utc, one.source, f"{max(errors):.3f}" if errors else "-", str(stuck)))
    return {"plots": plots, "rows": rows}
