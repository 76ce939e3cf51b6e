"""Earlier calibrations of a chip: files beside the new one, and the short records that each file carries on.

`labrig calibrate` writes the same file again each morning. So that its past is not lost, a file carries a short record
of each calibration that went before: medians and errors of every family, and the quality of the fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.io import load_chip
from labrig_surrogates.parameters import ChipParameters, Estimate

# Older ones are dropped; a calibration each morning for three months.
_MOST = 100
_KEY = "history"


@dataclass(frozen=True)
class FamilyRecord:
    """One family of one array.

    Attributes:
        median: Median of the values, in the unit of the file.
        error: Standard error of that median's shift: of the mean weighted by the errors; infinite where unknown.
        unit: SI unit.
    """

    median: float
    error: float
    unit: str


@dataclass(frozen=True)
class ArrayRecord:
    """One array of one calibration.

    Attributes:
        families: By name.
        stuck: Cells that do not follow their targets.
        error_over_noise: Held-out error as a multiple of the noise floor, None where the file does not say.
    """

    families: Mapping[str, FamilyRecord]
    stuck: int
    error_over_noise: float | None


@dataclass(frozen=True)
class CalibrationRecord:
    """One calibration of a chip, in short.

    Attributes:
        when_utc: When it was made.
        source: The recordings, or the file, that it came from.
        arrays: By index.
    """

    when_utc: str
    source: str
    arrays: Mapping[int, ArrayRecord]


def record_of(chip: ChipParameters) -> CalibrationRecord:
    """A calibration in short."""
    provenance = chip.provenance
    arrays = {}
    for index, array in chip.arrays.items():
        error = provenance.get(f"array_{index}_error_over_noise")
        families = {name: _family(one) for name, one in array.estimates().items() if name != "programming"}
        for power in range(array.programming.value.size):
            one = Estimate(array.programming.value[power], array.programming.error[power], array.programming.unit)
            families[f"programming p{power}"] = _family(one)
        arrays[index] = ArrayRecord(families, int(array.stuck.sum()), None if error is None else float(error))
    return CalibrationRecord(str(provenance.get("calibrated_utc", "")), str(provenance.get("recordings", "")), arrays)


def carried(chip: ChipParameters) -> list[CalibrationRecord]:
    """The records that a chip's file carries, oldest first; none where they cannot be read."""
    try:
        return [_decoded(one) for one in json.loads(str(chip.provenance.get(_KEY, "[]")))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def with_history(chip: ChipParameters, history: Sequence[CalibrationRecord]) -> ChipParameters:
    """The chip with records of what went before, the oldest dropped where there are very many."""
    encoded = json.dumps([asdict(one) for one in history[-_MOST:]])
    return replace(chip, provenance={**chip.provenance, _KEY: encoded}) if history else chip


def history_of(chips: Iterable[ChipParameters], newest: ChipParameters) -> list[CalibrationRecord]:
    """Everything that earlier calibrations and what they carry say of a chip, oldest first, each once.

    Args:
        chips: Earlier calibrations; those of other chips do not count.
        newest: The calibration whose past is asked for; it does not count itself.
    """
    own = record_of(newest)
    found: dict[tuple[str, str], CalibrationRecord] = {}
    for chip in chips:
        if chip.chip_id == newest.chip_id:
            for one in (*carried(chip), record_of(chip)):
                found.setdefault((one.when_utc, one.source), one)
    for one in carried(newest):
        found.setdefault((one.when_utc, one.source), one)
    found.pop((own.when_utc, own.source), None)
    return sorted(found.values(), key=lambda one: one.when_utc)


def calibrations_beside(path: Path, chip_id: str) -> list[ChipParameters]:
    """Calibrations of a chip in the folder of `path`, that file included; files that are none are passed over."""
    found = []
    for one in sorted(path.parent.glob("*.safetensors")):
        try:
            with safe_open(one, framework="numpy") as file:
                of_chip = (file.metadata() or {}).get("chip_id") == chip_id
            if of_chip:
                found.append(load_chip(one))
        except (OSError, SafetensorError, SurrogateError):
            continue
    return found


def _family(estimate: Estimate) -> FamilyRecord:
    known = np.isfinite(estimate.error) & (estimate.error > 0)
    error = float(np.sqrt(1.0 / (1.0 / estimate.error[known] ** 2).sum())) if known.any() else float("inf")
    return FamilyRecord(float(np.median(estimate.value)), error, estimate.unit)


def _decoded(one: Mapping[str, object]) -> CalibrationRecord:
    arrays = one["arrays"]
    if not isinstance(arrays, dict):
        raise TypeError("arrays of a record")
    return CalibrationRecord(
        str(one["when_utc"]),
        str(one["source"]),
        {
            int(index): ArrayRecord(
                {str(name): FamilyRecord(**family) for name, family in array["families"].items()},
                int(array["stuck"]),
                array["error_over_noise"],
            )
            for index, array in arrays.items()
        },
    )
