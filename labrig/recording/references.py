"""Rows that name rows of other streams: a block its write, a write the setting of the axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from labrig.recording import layout
from labrig.recording.found_streams import FoundStream

_ROW_NUMBER = np.dtype("<i4")
NONE = -1
"""What stands where there is no such row."""


def reference_columns(stream: layout.Stream) -> list[str]:
    """The columns of a stream that name rows of other streams."""
    names = [column.name for column in stream.columns]
    # The programmings of an array are not of a write, they are the writes.
    return [name for name in ("write", "setting") if name in names]


def referenced(found: FoundStream, start: int, stop: int) -> dict[str, tuple[str, list[int]]]:
    """Which rows of other streams some rows name: by column, the path of that stream and the numbers there.

    Args:
        found: The stream.
        start: The first of its rows.
        stop: The row after the last.
    """
    named = dict[str, tuple[str, list[int]]]()
    for name in reference_columns(found.stream):
        values = np.unique(found.rows[name].read(start, stop, _ROW_NUMBER)).tolist()
        # An MVM has a write; all else may have none.
        if name != "write" or found.stream.path == layout.CURVES:
            values = [one for one in values if one != NONE]
        if values:
            named[name] = (_stream_of(found, name, start), values)
    return named


def _stream_of(found: FoundStream, column: str, row: int) -> str:
    if column == "setting":
        return layout.SETTINGS
    if "array" not in found.rows:
        return f"{found.stream.path}/writes"
    # A curve is of one cell.
    array = int(found.rows["array"].read(row, row + 1, _ROW_NUMBER)[0])
    return f"entry/array_{array}/writes"


def renumbered(piece: bytes, numbers: Mapping[int, int]) -> bytes:
    """Row numbers as stored, each replaced by its new one; what has none stays none."""
    values = np.frombuffer(piece, _ROW_NUMBER)
    return np.array([numbers.get(one, NONE) for one in values.tolist()], _ROW_NUMBER).tobytes()


def new_numbers(kept: Sequence[int]) -> dict[int, int]:
    """The new number of each row that is kept, by its old one."""
    return {row: number for number, row in enumerate(kept)}
