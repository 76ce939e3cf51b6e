"""A calibration as JSON, for programs: verdicts, parameters with errors, what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from labrig.json_numbers import finite_json
from labrig.reports.changes import change_json
from labrig.reports.past import Past
from labrig.reports.reported import ReportedArray
from labrig.reports.verdict import worst
from labrig_surrogates.parameters import ChipParameters, Estimate


def calibration_json(
    chip: ChipParameters, arrays: Sequence[ReportedArray], past: Past, ahead: Mapping[str, object] | None = None
) -> str:
    """One document; numbers in SI units, null where there is none. `ahead` is what to measure next."""
    document = {
        "chip_id": chip.chip_id,
        "verdict": worst([one.verdict for one in arrays]).words,
        "provenance": {key: value for key, value in chip.provenance.items() if key != "history"},
        "arrays": [_array(one) for one in arrays],
        "changes": None
        if past.change is None
        else {
            "since": past.since,
            **change_json(past.change),
            "error_of_the_earlier_over_this": {str(one.array): one.ratio for one in past.carried_over},
        },
        "next": None if ahead is None else dict(ahead),
    }
    return json.dumps(finite_json(document), indent=2)


def _array(one: ReportedArray) -> dict[str, object]:
    battery = None if one.judgement is None else one.judgement.battery
    return {
        "array": one.parameters.array,
        "verdict": one.verdict.level.words,
        "reasons": list(one.verdict.reasons),
        "remarks": list(one.verdict.remarks),
        "error_over_noise": one.diagnostics.error_over_noise,
        "coverage_90": one.diagnostics.coverage_90,
        "heldout_mvms": one.diagnostics.heldout,
        "stuck_cells": np.argwhere(one.parameters.stuck).tolist(),
        "mvms_left_out": one.flagged,
        "outputs_left_out": one.outliers,
        "rung": next((rung.rung for rung in reversed(one.ladder) if rung.kept), None),
        "notes": list(one.notes),
        "tests": None if battery is None else {name: check.adjusted for name, check in battery.checks.items()},
        "column_error_over_noise": one.column_error.tolist(),
        "parameters": {name: _estimate(each) for name, each in one.parameters.stated().items()},
    }


def _estimate(estimate: Estimate) -> dict[str, object]:
    return {"unit": estimate.unit, "value": estimate.value.tolist(), "error": estimate.error.tolist()}
