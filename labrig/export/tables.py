"""What is exported of a recording: a table for each stream, with currents beside the codes, and what describes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labrig.recording import Recording
from labrig.recording.contents import Block, Contents, FixedValues, StoredColumn, Stream
from labrig.recording.header import utc_now, versions_now
from labrig_calibration.stimulus import StimulusKind

Progress = Callable[[int], None]
"""Told after each block how many bytes of the recording it had."""

# About the bytes in the recording, and therefore of no meaning elsewhere.
_CHECKSUM = "crc32"
_CODE, _STEP, _CURRENT = "current_code", "adc_lsb_a", "current_a"


class Table:
    """The committed rows of one stream, as they are exported.

    Attributes:
        name: Its path below the entry of the recording, such as `array_0/writes`.
        axis: Name of the first axis, and of the column that numbers the rows.
        rows: How many there are.
        columns: The others, with `current_a` where there are codes and their steps.
        fixed: What does not change from row to row, by name.
        derived: Names of columns that are computed from others.
    """

    def __init__(self, stream: Stream, progress: Progress) -> None:
        self.name = stream.name
        self.axis = stream.axis
        self.rows = stream.rows
        self.fixed: Mapping[str, FixedValues] = stream.fixed
        self._stream = stream
        self._progress = progress
        self.derived: frozenset[str] = frozenset()
        stored = {one.name: one for one in stream.columns if one.name != _CHECKSUM}
        if _CODE in stored and _STEP in stream.fixed and _CURRENT not in stored:
            meaning = f"measured current: {_CODE} times {_STEP}"
            code = stored[_CODE]
            stored[_CURRENT] = replace(code, name=_CURRENT, dtype=np.dtype("<f8"), units="A", meaning=meaning)
            self.derived = frozenset({_CURRENT})
        self.columns: tuple[StoredColumn, ...] = tuple(stored.values())

    @property
    def stored_bytes(self) -> int:
        """Size of the rows in the recording."""
        return self.rows * sum(one.row_bytes for one in self.columns if one.name not in self.derived)

    def column(self, name: str) -> StoredColumn:
        """The column of that name."""
        return next(one for one in self.columns if one.name == name)

    def blocks(self, names: Sequence[str] | None = None) -> Iterator[tuple[int, Block]]:
        """The rows, some at a time: the number of the first, and an array for each column.

        Args:
            names: Which columns; all when None.

        Raises:
            StorageError: The recording cannot be read.
        """
        wanted = [one for one in self.columns if names is None or one.name in names]
        needed = [_CODE if one.name in self.derived else one.name for one in wanted]
        start = 0
        for stored in self._stream.blocks(needed):
            block = {one.name: self._values(one.name, stored) for one in wanted}
            yield start, block
            start += len(next(iter(stored.values())))
            self._progress(sum(array.nbytes for array in stored.values()))

    def _values(self, name: str, stored: Block) -> NDArray[np.generic]:
        if name in self.derived:
            return stored[_CODE].astype(np.float64) * self.fixed[_STEP].values.astype(np.float64)
        return _plain(stored[name])


@dataclass(frozen=True)
class Content:
    """What goes into one file.

    Attributes:
        tables: The tables; one only, where a file of the format holds one.
        facts: What `about` says of them.
        bare_names: Whether the names of one array's data set stand alone, without that of their stream.
    """

    tables: tuple[Table, ...]
    facts: Mapping[str, object]
    bare_names: bool


def tables_of(
    recording: Recording, contents: Contents, array: int | None, names: Sequence[str], progress: Progress
) -> tuple[list[Table], list[str]]:
    """The tables that are asked for, and what is wrong with the request.

    Args:
        recording: The recording, open.
        contents: All that is in its file.
        array: Only the streams of this array, when not None.
        names: Only these streams, when there are any.
        progress: Told after each block.

    Returns:
        The tables in the order of their names, and the faults, one text each.
    """
    there = [Table(one, progress) for one in contents.streams()]
    faults = []
    if array is not None and array not in recording.arrays:
        listed = ", ".join(map(str, recording.arrays)) or "none"
        faults.append(f"{recording.path}: has no array {array}; it has: {listed}")
    known = [table.name for table in there]
    unknown = [name for name in names if name not in known]
    faults += [f"{recording.path}: has no stream {name}; it has: {', '.join(known)}" for name in unknown]
    chosen = [
        table
        for table in there
        if (array is None or table.name.split("/")[0] == f"array_{array}") and (not names or table.name in names)
    ]
    if not chosen and not faults:
        faults.append(f"{recording.path}: array {array} has none of these streams: {', '.join(names)}")
    faults += [
        f"{recording.path}: {table.name}/{one.name} is a table by itself and cannot be exported"
        for table in chosen
        for one in table.columns
        if one.dtype.names
    ]
    return chosen, faults


def about(recording: Recording, contents: Contents, tables: Sequence[Table]) -> dict[str, object]:
    """What a reader of an exported file has to know, as JSON can hold it: the run, and the meaning of each column."""
    texts = {name: _parsed(text) for name, text in contents.texts().items()}
    return {
        "recording": recording.path.name,
        "status": recording.status,
        "exported_utc": utc_now(),
        "exported_by": f"labrig {versions_now()['labrig']}",
        **texts,
        "stimulus_kinds": {str(kind.value): kind.name.lower() for kind in StimulusKind},
        "streams": {
            table.name: {
                "rows": table.rows,
                "columns": {one.name: {"units": one.units, "meaning": one.meaning} for one in table.columns},
                "fixed": {
                    name: {"units": one.column.units, "meaning": one.column.meaning, "values": one.values.tolist()}
                    for name, one in table.fixed.items()
                    if one.values.dtype.kind in "biuf"
                },
            }
            for table in tables
        },
    }


def is_text(column: StoredColumn) -> bool:
    """Whether a column holds texts."""
    return column.dtype.kind in "OSU"


def _plain(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Texts as Python texts, everything else as it is."""
    if values.dtype.kind not in "OS":
        return values
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values.reshape(-1).tolist()]
    return np.array(texts, dtype=object).reshape(values.shape)


def _parsed(text: str) -> object:
    if not text.startswith(("{", "[")):
        return text
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value
