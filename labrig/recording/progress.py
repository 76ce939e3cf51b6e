"""What an interrupted run has done already: what its recording holds, as the run that goes on with it asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labrig.recording import layout
from labrig.recording.reader import Recording
from labrig_drivers.errors import StorageError

_NONE = -1


@dataclass(frozen=True)
class RecordedPoint:
    """One point of the plan that is done.

    Attributes:
        stream: Group of its rows, such as `entry/array_0`.
        array: Which array; -1 for a device at a source-meter.
        start: First row.
        rows: How many; 0 for a point that was missed.
        write: Which write of the recording was read; -1 for none.
        setting: Which setting of the axes was in force; -1 for none.
    """

    stream: str
    array: int
    start: int
    rows: int
    write: int
    setting: int


@dataclass(frozen=True)
class RecordedWrite:
    """The latest write of an array.

    Attributes:
        index: Which write of the recording.
        board_write: Programmings of the array before it, as the board counted; -1 where that is not recorded.
        conductance_s: Target in S, float32 `[rows, columns]`.
        programmed_at_s: Board clock in s.
        rms_error_s: What the board said of it, in S.
        requests: Measurements of this write that are recorded.
    """

    index: int
    board_write: int
    conductance_s: NDArray[np.float32]
    programmed_at_s: float
    rms_error_s: float
    requests: int


@dataclass(frozen=True)
class Progress:
    """What a recording holds already.

    Attributes:
        points: The points that are done, by their hash.
        last_writes: The latest write of each array that has one.
        last_setting: Index of the latest setting of the axes; -1 for none.
        now_s: Board clock in s at the end of the last thing that is recorded.
        finished: Whether the run came to its end.
    """

    points: Mapping[str, RecordedPoint] = field(default_factory=dict)
    last_writes: Mapping[int, RecordedWrite] = field(default_factory=dict)
    last_setting: int = _NONE
    now_s: float = 0.0
    finished: bool = False

    @property
    def mvms(self) -> int:
        """MVMs that are recorded."""
        return sum(one.rows for one in self.points.values() if one.stream != layout.CURVES)

    @property
    def writes(self) -> int:
        """Programmings that are recorded."""
        return sum(one.index + 1 for one in self.last_writes.values())

    @property
    def curves(self) -> int:
        """Curves that are recorded."""
        return sum(1 for one in self.points.values() if one.stream == layout.CURVES)


def read_progress(path: Path) -> Progress:
    """What a recording holds, after every committed row was checked.

    Raises:
        StorageError: It cannot be read or believed.
    """
    with Recording.open(path) as recording:
        if recording.status == "running":
            raise StorageError(f"{path}: is being written by another program; resume it when that has ended")
        recording.verify()
        points: dict[str, RecordedPoint] = {}
        for array in recording.arrays:
            points |= _points(recording, f"entry/array_{array}", array)
        if recording.has_stream(layout.CURVES):
            points |= _points(recording, layout.CURVES, _NONE)
        last_writes = {
            array: _last_write(recording, array, points.values())
            for array in recording.arrays
            if recording.writes(array)
        }
        times_s = [one.programmed_at_s for one in last_writes.values()]
        for array in recording.arrays:
            times_s += recording.column(f"entry/array_{array}", "time_s")[-1:].tolist()
        if recording.has_stream(layout.CURVES):
            of_cells = recording.column(layout.CURVES, "array") != _NONE
            times_s += recording.column(layout.CURVES, "time_s")[of_cells][-1:].tolist()
        settings = len(recording.column(layout.SETTINGS, "time_s"))
        finished = recording.status == "finished"
    return Progress(points, last_writes, settings - 1, max(times_s, default=0.0), finished)


def _points(recording: Recording, stream: str, array: int) -> dict[str, RecordedPoint]:
    """The points of one journal; `array` is that of all of them, or -1 where the rows say it."""
    columns = {name: recording.column(stream, name) for name in ("write", "setting", "array")}

    def of(name: str, entry: np.void) -> int:
        column = columns[name]
        return int(column[entry["start"]]) if entry["rows"] and len(column) else _NONE

    return {
        bytes(entry["point"]).hex(): RecordedPoint(
            stream=stream,
            array=array if array != _NONE else of("array", entry),
            start=int(entry["start"]),
            rows=int(entry["rows"]),
            write=of("write", entry),
            setting=of("setting", entry),
        )
        for entry in recording.journal(stream)
    }


def _last_write(recording: Recording, array: int, points: Iterable[RecordedPoint]) -> RecordedWrite:
    stream = f"entry/array_{array}/writes"
    index = recording.writes(array) - 1
    board_writes = recording.column(stream, "board_write")
    return RecordedWrite(
        index=index,
        board_write=int(board_writes[index]) if len(board_writes) else _NONE,
        conductance_s=recording.column(stream, "target_conductance_s")[index].astype(np.float32),
        programmed_at_s=float(recording.column(stream, "programmed_at_s")[index]),
        rms_error_s=float(recording.column(stream, "rms_error_s")[index]),
        requests=sum(1 for one in points if (one.array, one.write) == (array, index) and one.rows),
    )
