"""Entries of a journal as a damaged file has them: which are used, which can be, and what they vouch for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from labrig.recording import layout
from labrig.recording.file_bytes import StructureError
from labrig.recording.journal import MISSED
from labrig.recording.stored_rows import StoredRows

_PIECE = 1024


def entries_of(dtype: np.dtype[np.void], rows: StoredRows, length: int | None = None) -> Iterator[tuple[int, np.void]]:
    """Number and content of every entry of a journal; one that cannot be read is all zeros.

    Args:
        dtype: Type of an entry.
        rows: Where the entries lie.
        length: How many there are; all that have a place when None.
    """
    for chunk in sorted(rows.chunks):
        end = (chunk + 1) * rows.chunk_rows if length is None else min((chunk + 1) * rows.chunk_rows, length)
        for start in range(chunk * rows.chunk_rows, end, _PIECE):
            for offset, entry in enumerate(_table(dtype, rows, start, min(start + _PIECE, end))):
                yield start + offset, entry


def first_table(dtype: np.dtype[np.void], rows: StoredRows, most: int) -> np.ndarray:
    """The first entries of a journal, at most so many; those that cannot be read are all zeros."""
    return _table(dtype, rows, 0, min(most, rows.chunk_rows))


def _table(dtype: np.dtype[np.void], rows: StoredRows, start: int, stop: int) -> np.ndarray:
    try:
        return rows.read(start, stop, dtype)
    except StructureError:
        table = np.zeros(stop - start, dtype)
        for number in range(start, stop):
            try:
                table[number - start] = rows.read(number, number + 1, dtype)[0]
            except StructureError:
                continue
        return table


def entry_crc32(entry: np.void) -> int | None:
    """What the checksum of an entry should be, that of its other bytes; None where entries have none."""
    fields = entry.dtype.fields
    if fields is None or "entry_crc32" not in fields:
        return None
    kind, start = fields["entry_crc32"][:2]
    content = entry.tobytes()
    return zlib.crc32(content[start + kind.itemsize :], zlib.crc32(content[:start]))


def is_unused(entry: np.void) -> bool:
    """Whether the entry is as it was when the file was made."""
    return int(entry["start"]) == -1 and int(entry["rows"]) == 0


def is_plausible(entry: np.void, most_rows: int) -> bool:
    """Whether an entry can be one that was written.

    Args:
        entry: The entry.
        most_rows: More rows than this the file cannot have.
    """
    start, rows = int(entry["start"]), int(entry["rows"])
    crc = entry_crc32(entry)
    if crc is not None and crc != int(entry["entry_crc32"]):
        return False
    if rows == 0:
        # Without a checksum of its own an entry of zeros would be one.
        return crc is not None and int(entry["kind"]) == MISSED
    return start >= 0 and rows > 0 and start + rows <= most_rows


def vouches(entry: np.void, columns: Sequence[layout.Column], rows: Mapping[str, StoredRows]) -> bool:
    """Whether the rows of a block are those of its checksum.

    Args:
        entry: The block's entry.
        columns: The columns of the stream, in the order of the checksum.
        rows: Where each lies.
    """
    start, stop, crc = int(entry["start"]), int(entry["start"]) + int(entry["rows"]), 0
    try:
        for column in columns:
            crc = rows[column.name].crc32(start, stop, crc)
    except (StructureError, KeyError):
        return False
    return crc == int(entry["crc32"])
