"""`labrig verify`: whether a recording is what the layout says, row by row; every fault is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labrig.recording import layout
from labrig.recording.file_bytes import StructureError
from labrig.recording.found_streams import FoundStream
from labrig.recording.inspection import Inspection, Inspector, open_unwritten
from labrig.recording.judging import MOST_UNCOUNTED, JudgedBlock, JudgedStream
from labrig.recording.refusal import refusal_of
from labrig.recording.schema import SchemaCheck
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError

_PIECE_ROWS = 4096
_Values = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class VerifyReport:
    """What is wrong with a recording.

    Attributes:
        file: The file.
        faults: Every fault, one text each.
        notes: What is there beside the layout, and is no fault.
        status: How the run ended, as the file says.
        rows: Committed rows of each stream that were checked.
    """

    file: Path
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    status: str
    rows: dict[str, int]

    def as_json(self) -> dict[str, object]:
        """The same as JSON can hold it."""
        content: dict[str, object] = asdict(self)
        return content | {"file": str(self.file)}


def verify_recording(path: Path | str, *, refusal: Callable[[Path], str] = refusal_of) -> VerifyReport:
    """Checks a recording: structure, checksums, counters, and whether its rows can be true.

    It is read block by block, however large it is.

    Args:
        path: The recording.
        refusal: Says why HDF5 does not open a file; asked only where its structure is found right.
    """
    path = Path(path)
    try:
        with open_unwritten(path) as source:
            inspector = Inspector(source, str(path))
            inspection = inspector.inspect()
            schema = SchemaCheck(source, inspector.damaged, inspection)
            schema.run()
            faults = [*inspection.all_faults, *schema.faults]
            if not faults and (reason := refusal(path)):
                faults.append(f"HDF5: {reason}")
            for stream in inspection.streams.values():
                faults += _rows_faults(stream, inspection)
    except StorageError as error:
        return VerifyReport(path, (str(error).removeprefix(f"{path}: "),), (), "", {})
    rows = {name: stream.counted or 0 for name, stream in inspection.streams.items()}
    return VerifyReport(path, tuple(dict.fromkeys(faults)), tuple(schema.notes), inspection.status, rows)


def _rows_faults(stream: JudgedStream, inspection: Inspection) -> Iterator[str]:
    path, counted = stream.found.stream.path, stream.counted
    if counted is None or not stream.found.whole:
        return
    short = sorted(name for name, length in stream.found.lengths.items() if length < counted)
    if short:
        yield f"{path}: {counted} rows are committed, but there are fewer in {', '.join(short)}"
    if stream.blocks is not None:
        yield from _block_faults(stream, inspection)
    else:
        for row in range(min(counted, len(stream.right))) if stream.checked else ():
            if not stream.right[row]:
                yield f"{path}: row {row} is committed, but not what was written (checksum)"
        yield from _value_faults(stream, inspection)
    yield from _unused_faults(stream)


def _block_faults(stream: JudgedStream, inspection: Inspection) -> Iterator[str]:
    """The journal covers every committed row once, and what a block holds can be true."""
    found, counted = stream.found, stream.counted or 0
    path, end, points = found.stream.path, 0, set[str]()
    judge = _CurveJudge(stream, inspection) if path == layout.CURVES else _Clock(stream, inspection)
    for start, stop in _wrong_rows(stream.blocks or (), counted):
        yield f"{path}: rows {start} to {stop - 1} are committed, but not what was written (checksum)"
    for block in stream.blocks or ():
        where = f"{path}: rows {block.start} to {block.stop - 1}"
        if block.verdict == "uncounted" or (block.verdict != "entry" and block.start >= counted and block.rows):
            continue
        if block.verdict == "entry":
            if end < counted:
                yield f"{path}: entry {block.number} of its journal is damaged"
            continue
        if block.verdict == "reference":
            yield f"{where} are of a write that is not there, or not what was written"
        elif block.verdict == "twice":
            yield f"{where} are in more than one block"
        if block.point in points:
            yield f"{where}: their point {block.point} was recorded already"
        points.add(block.point)
        if block.rows and block.start != end and block.verdict != "twice":
            yield f"{path}: its journal has rows {end} to {block.start - 1} in no block"
        end = max(end, block.stop)
        if block.verdict == "right":
            yield from (f"{where}: {fault}" for fault in judge.faults(block))
    if end != counted:
        yield f"{path}: {counted} rows are committed, its journal covers {end}"


def _wrong_rows(blocks: Iterable[JudgedBlock], counted: int) -> list[tuple[int, int]]:
    """First row and end of committed blocks whose checksum is wrong; blocks behind one another are one."""
    wrong = sorted((one.start, one.stop) for one in blocks if one.verdict == "rows" and one.start < counted)
    joined = list[tuple[int, int]]()
    for start, stop in wrong:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


class _Clock:
    """Looks at blocks in their order: what their columns hold, and that the board's clock goes on."""

    def __init__(self, stream: JudgedStream, inspection: Inspection) -> None:
        self._found = stream.found
        self._info = inspection.info
        self._writes = inspection.streams[f"{stream.found.stream.path}/writes"]
        self._write = -1
        self._latest_s = -np.inf

    def faults(self, block: JudgedBlock) -> Iterator[str]:
        """What is wrong with a block whose checksum is right."""
        seen = set[str]()
        for start in range(block.start, block.stop, _PIECE_ROWS):
            values = _read(self._found, start, min(start + _PIECE_ROWS, block.stop))
            seen |= set(_mvm_faults(values, self._info))
            if (values["kind"] != block.entry["kind"]).any():
                seen.add("their kind is not that of the journal")
            seen |= set(self._time_faults(values))
        yield from sorted(seen)

    def _time_faults(self, values: _Values) -> Iterator[str]:
        write, time_s = values["write"].astype(np.int64), values["time_s"].astype(np.float64)
        if (write != write[0]).any():
            yield "they are of more than one write"
        if write[0] < self._write:
            yield f"they are of write {write[0]}, after rows of write {self._write}"
        if write[0] != self._write:
            self._write = int(write[0])
            rows = self._writes.found.rows["programmed_at_s"]
            self._latest_s = float(rows.read(self._write, self._write + 1, np.dtype("<f8"))[0])
            if time_s[0] < self._latest_s:
                yield f"they were measured before write {self._write} was programmed"
        if time_s[0] < self._latest_s or (np.diff(time_s) < 0.0).any():
            yield "the board's clock goes back"
        self._latest_s = float(time_s[-1])


class _CurveJudge:
    """Looks at curves: each is of one cell that the board has, or of a device at a source-meter."""

    def __init__(self, stream: JudgedStream, inspection: Inspection) -> None:
        self._found = stream.found
        self._info = inspection.info
        self._curves = set[int]()

    def faults(self, block: JudgedBlock) -> Iterator[str]:
        """What is wrong with a curve whose checksum is right."""
        values = _read(self._found, block.start, block.stop)
        places = {"array": self._info.arrays, "row": self._info.rows, "column": self._info.columns}
        for name in ("curve", *places):
            if (values[name] != values[name][0]).any():
                yield f"they are of more than one {name}"
        place = [int(values[name][0]) for name in places]
        inside = all(0 <= one < most for one, most in zip(place, places.values(), strict=True))
        if not inside and place != [-1, -1, -1]:
            yield f"they are of array, row and column {place}, which the board has not"
        curve = int(values["curve"][0])
        if curve in self._curves:
            yield f"curve {curve} was recorded already"
        self._curves.add(curve)
        for name in ("level_v", "voltage_v", "current_a", "time_s"):
            if not np.isfinite(values[name]).all():
                yield f"{name} is no number somewhere"
        if not np.isin(values["in_compliance"], (0, 1)).all():
            yield "in_compliance is neither 0 nor 1"
        if (np.diff(values["time_s"].astype(np.float64)) < 0.0).any():
            yield "their time goes back"


def _mvm_faults(values: _Values, info: BoardInfo) -> Iterator[str]:
    lowest, highest = -(2 ** (info.adc_bits - 1)), 2 ** (info.adc_bits - 1) - 1
    code, saturated = values["current_code"].astype(np.int64), values["saturated"]
    if (code < lowest).any() or (code > highest).any():
        yield f"codes lie beyond {lowest} to {highest}, which the converter cannot say"
    if not np.isin(saturated, (0, 1)).all():
        yield "saturation is neither 0 nor 1"
    elif (saturated.astype(np.bool_) != ((code <= lowest) | (code >= highest))).any():
        yield "saturation is not that of the codes"
    for name in ("voltage_v", "time_s"):
        if not np.isfinite(values[name]).all():
            yield f"{name} is no number somewhere"


def _value_faults(stream: JudgedStream, inspection: Inspection) -> Iterator[str]:
    """Rows of a stream without journal that cannot be true."""
    found, path = stream.found, stream.found.stream.path
    info = inspection.info
    for start in range(0, min(stream.counted or 0, found.places), _PIECE_ROWS):
        stop = min(start + _PIECE_ROWS, stream.counted or 0)
        try:
            values = _read(found, start, stop)
        except StructureError as error:
            yield f"{path}: rows {start} to {stop - 1} cannot be read: {error}"
            continue
        for column in found.stream.columns:
            if np.dtype(column.dtype).kind == "f" and not _can_be_true(path, column.name, values):
                yield f"{path}/{column.name}: is no number in some of rows {start} to {stop - 1}"
        if "in_compliance" in values and not np.isin(values["in_compliance"], (0, 1)).all():
            yield f"{path}/in_compliance: is neither 0 nor 1 in some of rows {start} to {stop - 1}"
        if "pulses" in values and (values["pulses"].astype(np.int64) < 0).any():
            yield f"{path}/pulses: is negative in some of rows {start} to {stop - 1}"
        if "target_conductance_s" in values:
            target = values["target_conductance_s"].astype(np.float64)
            slack_s = 1e-6 * info.conductance_max_s
            if (target < info.conductance_min_s - slack_s).any() or (target > info.conductance_max_s + slack_s).any():
                yield f"{path}/target_conductance_s: lies beyond the board's range in rows {start} to {stop - 1}"


def _can_be_true(path: str, name: str, values: _Values) -> bool:
    """Whether all values are finite, but for axes that were not moved yet: NaN in both columns."""
    right = np.isfinite(values[name])
    if path == layout.SETTINGS and name != "time_s":
        axis = name.rpartition("_")[0]
        right |= np.isnan(values[f"{axis}_set"]) & np.isnan(values[f"{axis}_read"])
    return bool(right.all())


def _unused_faults(stream: JudgedStream) -> Iterator[str]:
    """Rows that were reserved and never written hold their fill value."""
    found = stream.found
    used = stream.counted or 0
    if stream.blocks is None:
        used += MOST_UNCOUNTED
    else:
        used = max([used, *(one.stop for one in stream.blocks if one.verdict != "entry")])
    for column in found.stream.columns:
        fill = np.full((), column.fill, column.dtype).tobytes()
        length = min(found.lengths.get(column.name, 0), found.places)
        try:
            for piece in found.rows[column.name].pieces(min(used, length), length):
                if piece != fill * (len(piece) // len(fill)):
                    yield f"{found.stream.path}/{column.name}: holds something behind its last row"
                    break
        except StructureError as error:
            yield f"{found.stream.path}/{column.name}: {error}"


def _read(found: FoundStream, start: int, stop: int) -> _Values:
    return {
        one.name: found.rows[one.name].read(start, stop, np.dtype(one.dtype), one.shape) for one in found.stream.columns
    }
