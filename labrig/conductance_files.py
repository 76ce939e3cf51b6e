"""Measured conductances of arrays: as laboratories and aihwkit write them, and as one file that a board answers from.

aihwkit's export for IBM's Fusion chip (`aihwkit.utils.export.fusion_export`, 1.2) is one CSV file for a model: five
lines with a value for each layer (number, class, count of weights, height, width), a line with the layers' names, then
a line of conductances in uS for each layer, `[height, width]` in row order, without signs: the device of the other
sign of each pair is not programmed. Height counts outputs (columns of an array), width inputs (rows).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from labrig.recording.whole_files import WholeFiles
from labrig_drivers.crossbar import FloatArray
from labrig_drivers.errors import ConfigError, StorageError
from labrig_drivers.wording import counted, objection

FORMAT: Final = 1
UNITS: Final[Mapping[str, float]] = {"S": 1.0, "mS": 1e-3, "uS": 1e-6, "nS": 1e-9}
"""Units of conductance by name, in S."""

# Lines of a table that are named; a file of something else has a fault in each.
_MOST_FAULTS: Final = 10
_HEADER: Final = "labrig-conductances"
_FUSION_HEAD: Final = 6


@dataclass(frozen=True)
class MeasuredArray:
    """One array: what it was to be, and what it was found to be each time it was written.

    Attributes:
        name: What its source calls it.
        target_s: Target in S, `[rows, columns]`; where none is known, the first measurement.
        measured_s: Measured conductances in S, `[writes, rows, columns]`.
    """

    name: str
    target_s: FloatArray
    measured_s: FloatArray


def read_matrix(path: Path, unit: str) -> FloatArray:
    """One array from a CSV file: a line for each word line, a number for each bit line, no header.

    Args:
        path: The file.
        unit: One of `UNITS`.

    Returns:
        Conductances in S, `[rows, columns]`.

    Raises:
        StorageError: The file cannot be read, or is no such table; every line that is wrong is named.
    """
    rows, faults = [], []
    for number, line in _lines(path):
        if wrong := [value for value in line if not _is_number(value)]:
            faults.append(f"line {number}: {wrong[0]!r} is no number")
        else:
            rows.append([float(value) for value in line])
    if rows and len({len(row) for row in rows}) > 1:
        faults.append(f"lines of {min(map(len, rows))} to {max(map(len, rows))} numbers are no table")
    if not rows and not faults:
        faults.append("there is no line")
    if faults:
        if len(faults) > _MOST_FAULTS:
            faults[_MOST_FAULTS:] = [f"and so on, {len(faults)} in all"]
        raise StorageError(f"{path}: no table of conductances: " + "; ".join(faults))
    return _checked(path, np.asarray(rows, dtype=np.float64) * _factor(unit))


def read_fusion(path: Path) -> dict[str, FloatArray]:
    """The layers of aihwkit's Fusion format by name, each in S as `[rows, columns]`: inputs by outputs.

    Raises:
        StorageError: The file cannot be read, or is none of that format; every fault is named.
    """
    lines = [line for _, line in _lines(path)]
    if len(lines) < _FUSION_HEAD:
        raise StorageError(
            f"{path}: has {counted(len(lines), 'line')}; aihwkit's Fusion format has six and one for each layer"
        )
    names, data = lines[5], lines[_FUSION_HEAD:]
    faults = [f"{len(names)} layers are named and {len(data)} have data"] if len(names) != len(data) else []
    found: dict[str, FloatArray] = {}
    for index, (name, values) in enumerate(zip(names, data, strict=False)):
        try:
            height, width = int(lines[3][index]), int(lines[4][index])
            flat = np.asarray([float(value) for value in values], dtype=np.float64)
        except (IndexError, ValueError):
            faults.append(f"layer {name}: height, width or a conductance is missing or no number")
            continue
        if height * width != flat.size:
            faults.append(f"layer {name}: {flat.size} conductances are not {height} x {width}")
            continue
        found[name] = flat.reshape(height, width).T * UNITS["uS"]
    if faults:
        raise StorageError(f"{path}: not aihwkit's Fusion format: " + "; ".join(faults))
    return {name: _checked(path, one) for name, one in found.items()}


def joined(
    measured: Sequence[Mapping[str, FloatArray]], targets: Mapping[str, FloatArray] | None
) -> list[MeasuredArray]:
    """Arrays from one or several measurements of each, and what they were to be.

    Args:
        measured: By name; each mapping is one write of all arrays.
        targets: By name; None takes the first measurement.

    Raises:
        ConfigError: Names or shapes differ; every difference is named.
    """
    known = measured[0] if targets is None else targets
    faults = []
    for number, one in enumerate(measured, start=1):
        faults += [f"measurement {number} has no {name}" for name in known if name not in one]
        faults += [f"measurement {number} has {name}, which nothing else has" for name in one if name not in known]
        faults += [
            f"measurement {number}: {name} is {one[name].shape[0]} x {one[name].shape[1]}, its target "
            f"{known[name].shape[0]} x {known[name].shape[1]}"
            for name in known
            if name in one and one[name].shape != known[name].shape
        ]
    if faults:
        raise ConfigError("these measurements do not go together: " + "; ".join(faults))
    return [MeasuredArray(name, known[name], np.stack([one[name] for one in measured])) for name in known]


def write_conductances(path: Path, arrays: Sequence[MeasuredArray], source: str) -> None:
    """Writes what a `conductance-board` answers from; a file that is there stays.

    Args:
        path: The new file.
        arrays: In the order of the board.
        source: Where the numbers are from, as reports say it.

    Raises:
        StorageError: It cannot be written, or is there already.
    """
    tensors: dict[str, FloatArray] = {}
    for index, one in enumerate(arrays):
        tensors[f"{index}/target_s"] = np.ascontiguousarray(one.target_s, dtype=np.float64)
        tensors[f"{index}/measured_s"] = np.ascontiguousarray(one.measured_s, dtype=np.float64)
    told = {"format": FORMAT, "names": [one.name for one in arrays], "source": source}
    with WholeFiles() as files:
        files.part(path).write_bytes(save(tensors, {_HEADER: json.dumps(told)}))


def read_conductances(path: Path) -> tuple[list[MeasuredArray], str, str]:
    """Arrays, source and a serial number (a digest of the file) of what `write_conductances` wrote.

    Raises:
        StorageError: It cannot be read, or is no such file.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        with safe_open(path, framework="numpy") as file:
            told = json.loads((file.metadata() or {})[_HEADER])
            # First of all: a later format may have other arrays.
            if told["format"] != FORMAT:
                raise StorageError(f"{path}: has format {told['format']}; this version reads {FORMAT}")
            arrays = [
                MeasuredArray(name, file.get_tensor(f"{index}/target_s"), file.get_tensor(f"{index}/measured_s"))
                for index, name in enumerate(told["names"])
            ]
        return arrays, str(told["source"]), digest
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"{path}: is no file of `labrig import conductances` ({objection(error)})") from error


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            return [(reader.line_num, line) for line in reader if line]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StorageError(f"{path}: is no text of comma-separated values ({error})") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _factor(unit: str) -> float:
    if unit not in UNITS:
        raise ConfigError(f"unit {unit!r} is not known; there are {', '.join(UNITS)}")
    return UNITS[unit]


def _checked(path: Path, conductance_s: FloatArray) -> FloatArray:
    """The conductances themselves, if they can be some."""
    faults = []
    if wrong := int((~np.isfinite(conductance_s)).sum()):
        faults.append(f"{wrong} are not finite")
    if below := int((conductance_s < 0.0).sum()):
        faults.append(f"{below} are negative, which no device's conductance is: give the two of a pair apart")
    if conductance_s.size and float(np.nanmax(conductance_s)) > 1.0:
        faults.append(f"the largest is {float(np.nanmax(conductance_s)):g} S: is the unit right?")
    if faults:
        raise StorageError(f"{path}: conductances cannot be taken: " + "; ".join(faults))
    return conductance_s
