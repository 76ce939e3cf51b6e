"""Files of device measurements: CSV with named columns, and the forms of public data sets. One reader for each kind.

| kind | columns of a CSV file |
| --- | --- |
| iv | voltage_v, current_a; curve, in_compliance where there are several curves or limits |
| programming | target_s, conductance_s; device |
| relaxation | cell, programmed_s, conductance_s, age_s; level |
| noise | conductance_s or current_a; trace, and time_s in place of a given rate |
| pulses | up, down; device |

A file may be gzipped. What else is read is told by its columns and described at each reader.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labrig_calibration.devices.iv import Curve
from labrig_calibration.devices.programming import ProgrammedCells
from labrig_calibration.devices.pulses import PulseTrains
from labrig_calibration.devices.read_noise import Traces
from labrig_calibration.devices.values import FloatArray
from labrig_drivers.errors import StorageError
from labrig_drivers.wording import counted
from labrig_surrogates.measured_device import Relaxation, read_relaxation

_MICRO = 1e-6
# A current so close to the limit was held there by the instrument.
_IN_COMPLIANCE = 0.98
_MOST_UNEVEN = 0.2


@dataclass(frozen=True)
class _Table:
    """Columns of numbers by name; none of the names where there was no header."""

    path: Path
    names: tuple[str, ...]
    values: FloatArray

    def column(self, name: str) -> FloatArray:
        return self.values[:, self.names.index(name)]

    def optional(self, name: str) -> FloatArray | None:
        return self.column(name) if name in self.names else None

    def demand(self, kind: str, *names: str) -> None:
        """Refuses a file without these columns."""
        absent = [name for name in names if name not in self.names]
        if absent:
            there = f"it has {', '.join(self.names)}" if self.names else "it has no header"
            raise StorageError(
                f"{self.path}: no file of the kind {kind}: there is no column {', '.join(absent)}; {there}"
            )


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StorageError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise StorageError(f"{path}: cannot be unpacked ({error}); copy it again") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _table(path: Path) -> _Table:
    """Reads a table; fields without a number are NaN.

    Raises:
        StorageError: It cannot be read, or holds no table of numbers; the lines that are wrong are named.
    """
    text = _text(path)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter)
    try:
        numbered = [(reader.line_num, line) for line in reader if line]
    except csv.Error as error:
        raise StorageError(f"{path}: line {reader.line_num} is no line of a table ({error})") from error
    lines = [line for _, line in numbered]
    if not lines:
        raise StorageError(f"{path}: is empty")
    header = not all(_is_number(field) for field in lines[0])
    names = tuple(field.strip() for field in lines[0]) if header else ()
    rows, width = lines[header:], len(lines[0])
    faults = [
        f"line {number} has {counted(len(row), 'field')}, not {width}"
        for number, row in numbered[header:]
        if len(row) != width
    ]
    faults += [
        f"line {number}: {field!r} is no number"
        for number, row in numbered[header:]
        for field in row
        if not _is_number(field)
    ]
    faults += [] if rows else ["there are no rows"]
    if faults:
        more = f"; and {counted(len(faults) - 5, 'more fault')}" if len(faults) > 5 else ""
        raise StorageError(f"{path}: is no table of numbers: " + "; ".join(faults[:5]) + more)
    values = np.array([[float(field) if field.strip() else np.nan for field in row] for row in rows])
    return _Table(path, names, values)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return not field.strip()
    return True


def read_curves(path: Path) -> list[Curve]:
    """Reads I-V curves.

    Beside the columns of the kind it takes those of the source data of Hong et al. (Nat. Commun. 2025): pairs
    `V_set_50uA`, `I_set_50uA`, `V_reset_50uA` ..., magnitudes of the current in microamperes, the set current limited.

    Raises:
        StorageError: The file cannot be read, or has other columns.
    """
    table = _table(path)
    pairs = [(name, found) for name in table.names if (found := re.fullmatch(r"V_(set|reset)_(\d+)uA", name))]
    if pairs:
        table.demand("iv", *(f"I{name[1:]}" for name, _ in pairs))
        return [_limited(table, name, found[1], float(found[2]) * _MICRO) for name, found in pairs]
    table.demand("iv", "voltage_v", "current_a")
    number, limited = table.optional("curve"), table.optional("in_compliance")
    voltage_v, current_a = table.column("voltage_v"), table.column("current_a")
    of = np.zeros(len(voltage_v)) if number is None else number
    flags = np.zeros(len(voltage_v), dtype=bool) if limited is None else limited != 0
    return [
        Curve(f"curve {one:g}", voltage_v[of == one], current_a[of == one], flags[of == one]) for one in np.unique(of)
    ]


def _limited(table: _Table, name: str, kind: str, limit_a: float) -> Curve:
    voltage_v, magnitude_a = table.column(name), table.column(f"I{name[1:]}") * _MICRO
    there = np.isfinite(voltage_v) & np.isfinite(magnitude_a)
    voltage_v, magnitude_a = voltage_v[there], magnitude_a[there]
    held = (magnitude_a > _IN_COMPLIANCE * limit_a) if kind == "set" else np.zeros(len(voltage_v), dtype=bool)
    sign = np.where(voltage_v < 0, -1.0, 1.0) if kind == "reset" else 1.0
    return Curve(f"{kind} {limit_a / _MICRO:g} uA", voltage_v, sign * magnitude_a, held)


def read_programmed(path: Path) -> ProgrammedCells:
    """Reads programmed conductances.

    Beside the columns of the kind it takes a table of devices over targets, `Target_100uS`, `Target_150uS` ..., all in
    microsiemens, a row for each device (Hong et al., Nat. Commun. 2025).

    Raises:
        StorageError: The file cannot be read, or has other columns.
        DeviceFitError: There is too little in it.
    """
    table = _table(path)
    found = [re.fullmatch(r"Target_([\d.]+)uS", name) for name in table.names]
    if found and all(found):
        targets_s = np.array([float(one[1]) * _MICRO for one in found if one])
        devices, levels = table.values.shape
        number = np.repeat(np.arange(devices), levels)
        return ProgrammedCells(np.tile(targets_s, devices), table.values.reshape(-1) * _MICRO, number)
    table.demand("programming", "target_s", "conductance_s")
    device = table.optional("device")
    number = np.arange(len(table.values)) if device is None else np.unique(device, return_inverse=True)[1]
    return ProgrammedCells(table.column("target_s"), table.column("conductance_s"), number)


def read_relaxed(path: Path, *, most_levels: int | None = None) -> Relaxation:
    """Reads relaxation after programming: a CSV file, or a table without a header as `read_relaxation` takes it.

    Args:
        path: The file.
        most_levels: Cells of levels with this number or higher are left out; all are taken when None.

    Raises:
        StorageError: The file cannot be read, or has other columns.
        SurrogateError: The same of a table without a header.
    """
    first = _text(path).partition("\n")[0]
    if "programmed_s" not in first:
        data = read_relaxation(path)
    else:
        table = _table(path)
        table.demand("relaxation", "cell", "programmed_s", "conductance_s", "age_s")
        cell, level = table.column("cell").astype(np.int64), table.optional("level")
        number = np.zeros_like(cell) if level is None else level.astype(np.int64)
        columns = (table.column(name) for name in ("programmed_s", "conductance_s", "age_s"))
        data = Relaxation(cell, number, *columns)
    return data if most_levels is None else data.rows(data.level < most_levels)


def read_traces(path: Path, rate_hz: float | None = None) -> Traces:
    """Reads traces of repeated readings, those of equal length; a longer one is cut at its end.

    Beside the columns of the kind it takes `Read_Cycle`, `Target_Value_uS`, `Measured_Conductance_uS` (Hong et al.,
    Nat. Commun. 2025), where the unit of time is a reading; and a table without a header, a trace in each row behind
    two numbers that say which (A. Levy's RRAM time series), whose rate is the `fs` of a `*_settings.json` beside it.

    Args:
        path: The file.
        rate_hz: Readings for each second, where the file does not say.

    Raises:
        StorageError: The file cannot be read, has other columns, or nothing says the rate.
        DeviceFitError: The traces cannot be used.
    """
    table = _table(path)
    if not table.names:
        return Traces(table.values[:, 2:], _rate(path, rate_hz if rate_hz is not None else _rate_beside(path)))
    if "Measured_Conductance_uS" in table.names:
        table.demand("noise", "Target_Value_uS")
        values = _by_trace(table.column("Measured_Conductance_uS") * _MICRO, table.column("Target_Value_uS"))
        return Traces(values, 1.0 if rate_hz is None else rate_hz)
    unit = "A" if "current_a" in table.names else "S"
    name = "current_a" if unit == "A" else "conductance_s"
    table.demand("noise", name)
    trace, time_s = table.optional("trace"), table.optional("time_s")
    number = np.zeros(len(table.values)) if trace is None else trace
    if time_s is not None and rate_hz is None:
        rate_hz = _even_rate(path, time_s[number == number[0]])
    return Traces(_by_trace(table.column(name), number), _rate(path, rate_hz), unit)


def _by_trace(values: FloatArray, number: FloatArray) -> FloatArray:
    traces = [values[number == one] for one in np.unique(number)]
    length = min(len(one) for one in traces)
    return np.stack([one[:length] for one in traces])


def _rate_beside(path: Path) -> float | None:
    """The rate in a file of settings whose name begins as this one's."""
    beside = path.with_name(path.name.partition("_")[0] + "_settings.json")
    if not beside.is_file():
        return None
    try:
        settings = json.loads(beside.read_text())
        return float(settings["fs"])
    except OSError as error:
        raise StorageError(f"{beside}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"{beside}: says no rate: it must be a number named fs; or give it (--rate)") from error


def _rate(path: Path, rate_hz: float | None) -> float:
    if rate_hz is None:
        raise StorageError(f"{path}: nothing says how many readings there are in a second; give it (--rate)")
    return rate_hz


def _even_rate(path: Path, time_s: FloatArray) -> float:
    steps: FloatArray = np.diff(time_s)
    if not len(steps) or not (steps > 0).all() or np.ptp(steps) > _MOST_UNEVEN * np.median(steps):
        raise StorageError(f"{path}: time_s does not go on in even steps, which a spectrum needs")
    return float(1.0 / steps.mean())


def read_pulses(path: Path) -> PulseTrains:
    """Reads trains of pulses: columns `up` and `down`, or two columns without a header (as aihwkit's example data).

    Raises:
        StorageError: The file cannot be read, has other columns, or devices have different numbers of pulses.
        DeviceFitError: The trains cannot be used.
    """
    table = _table(path)
    if not table.names and table.values.shape[1] == 2:
        return PulseTrains(table.values[:, 0][None], table.values[:, 1][None])
    table.demand("pulses", "up", "down")
    device = table.optional("device")
    number = np.zeros(len(table.values)) if device is None else device
    counts = {int(np.count_nonzero(number == one)) for one in np.unique(number)}
    if len(counts) > 1:
        raise StorageError(f"{path}: devices have different numbers of pulses: {', '.join(map(str, sorted(counts)))}")
    up, down = (_of_devices(table.column(name), number) for name in ("up", "down"))
    return PulseTrains(up, down)


def _of_devices(values: FloatArray, number: FloatArray) -> FloatArray:
    return np.stack([values[number == one] for one in np.unique(number)])
