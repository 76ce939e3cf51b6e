"""Committed rows of any stream, from any source: what reading, checking, rescuing and exporting are made of.

Three rules decide what counts. A row counts below the stream's counter. A stream with a journal is a chain of blocks,
each described by one entry, in order and without gaps. A block, or a row that carries its own checksum, is believed
only when the checksum of the columns that the file has agrees.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig.recording import layout
from labrig.recording.source import RowSource

Columns = Mapping[str, NDArray[np.generic]]
Entries = NDArray[np.void]

ROW_CHECKSUM = "crc32"
"""The column that holds the checksum of the other columns of its row, in streams that have no journal."""
_ENTRY_CHECKSUM = "entry_crc32"

# As stored, 15 MB of an array of 128 x 128.
MOST_ROWS = 16_384
"""How many rows are read at once where nothing else is said."""
_JOURNAL_STEP = 4096


def committed(source: RowSource, stream_path: str) -> int:
    """How many rows of a stream count; 0 where the file has no such stream.

    Raises:
        KeyError: The stream has no counter.
        ValueError: The counter is none.
    """
    if not names_in(source, stream_path):
        return 0
    count = source.scalar(f"{stream_path}/{layout.COMMITTED}")
    if not isinstance(count, (int, np.integer)) or count < 0:
        raise ValueError(f"{stream_path}/{layout.COMMITTED} is {count!r}, no number of rows")
    return int(count)


def columns_of(source: RowSource, stream: layout.Stream) -> tuple[layout.Column, ...]:
    """The columns of a stream that the file has, in the layout's order, in which checksums go over them.

    Older minor versions of the format lack some.
    """
    names = names_in(source, stream.path)
    return tuple(column for column in stream.columns if column.name in names)


def row_bytes(stream: layout.Stream) -> int:
    """Size of one row with every column of the layout."""
    return sum(int(np.dtype(one.dtype).itemsize * np.prod(one.shape, dtype=np.int64)) for one in stream.columns)


def room(source: RowSource, stream: layout.Stream) -> int:
    """Rows that every column of a stream has room for; 0 where the file has no such stream."""
    return min((source.length(f"{stream.path}/{one.name}") for one in columns_of(source, stream)), default=0)


def columns(source: RowSource, stream: layout.Stream, start: int, stop: int) -> dict[str, NDArray[np.generic]]:
    """Rows `start` to `stop` of a stream as stored, not checked.

    Raises:
        ValueError: There are fewer rows.
    """
    return {
        column.name: source.read(f"{stream.path}/{column.name}", start, stop) for column in columns_of(source, stream)
    }


@dataclass(frozen=True)
class Blocks:
    """Blocks that lie behind one another, read together.

    Attributes:
        start: Number of the first row in the stream.
        entries: The journal's entries of the blocks.
        columns: The rows of all of them, as stored.
    """

    start: int
    entries: Entries
    columns: Columns

    def wrong(self) -> list[int]:
        """Positions in `entries` of the blocks that are not what was written."""
        found = []
        for position, entry in enumerate(self.entries):
            first = int(entry["start"]) - self.start
            rows = (column[first : first + int(entry["rows"])] for column in self.columns.values())
            if layout.crc32_of(rows) != int(entry["crc32"]):
                found.append(position)
        return found


def blocks(source: RowSource, stream: layout.Stream, entries: Entries, most_rows: int = MOST_ROWS) -> Iterator[Blocks]:
    """Reads blocks, several small ones at once.

    Args:
        source: Where from.
        stream: Which stream.
        entries: Entries of the journal that follow one another; see `journal`.
        most_rows: How many rows are in memory at once, unless a single block has more.

    Raises:
        ValueError: There are fewer rows than the entries say.
    """
    starts = entries["start"].astype(np.int64)
    stops = starts + entries["rows"]
    first = 0
    while first < len(entries):
        last = max(first + 1, int(np.searchsorted(stops, starts[first] + most_rows, side="right")))
        start, stop = int(starts[first]), int(stops[last - 1])
        yield Blocks(start, entries[first:last], columns(source, stream, start, stop))
        first = last


def wrong_rows(rows: Columns) -> list[int]:
    """Positions of the rows that are not what was written, by the checksum that each row carries."""
    checksums = rows[ROW_CHECKSUM]
    count = len(checksums)
    # Column after column within each row, as `layout.crc32_of` goes over the columns of one.
    parts = [
        np.ascontiguousarray(column).reshape(-1).view(np.uint8) for name, column in rows.items() if name != ROW_CHECKSUM
    ]
    content = np.concatenate([part.reshape(count, -1) for part in parts], axis=1) if count else np.empty((0, 0))
    return [number for number in range(count) if zlib.crc32(content[number]) != checksums[number]]


def journal(source: RowSource, path: str, rows: int) -> Entries:
    """The entries of the blocks that count, in order; of points that were missed as well, whose blocks have no rows.

    Entries behind the committed rows may be about blocks that never counted; the chain ends before them.

    Args:
        source: Where from.
        path: The journal.
        rows: How many rows of the stream count. Where the entries are of fewer, the journal is damaged.
    """
    return JournalReader(path).entries(source, rows)


class JournalReader:
    """Reads a journal that grows, each entry of a committed block once.

    Args:
        path: The journal.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._kept: Entries | None = None
        self._count = 0
        self._rows = 0

    def entries(self, source: RowSource, rows: int) -> Entries:
        """The entries of the first `rows` rows, and of missed points behind them; see `journal`.

        Args:
            source: Where from; the same file at each call.
            rows: How many rows of the stream count; never fewer than before.
        """
        found = self._unread(source, rows)
        # What lies behind the last committed row may still be overwritten, by a run that goes on.
        settled = _behind_last_row(found)
        kept = self._keep(found[:settled])
        return kept if settled == len(found) else np.concatenate([kept, found[settled:]])

    def _unread(self, source: RowSource, rows: int) -> Entries:
        """The entries behind those that are kept; most of a journal is still unused while a run lasts."""
        position, start, length = self._count, self._rows, source.length(self._path)
        parts: list[Entries] = []
        while True:
            stop = min(position + _JOURNAL_STEP, length)
            # Unused entries may have been cut off since, or be something else by now; they break the chain.
            read: Entries = source.read_present(self._path, position, stop)  # type: ignore[assignment]
            chain = chained(read, start, rows)
            parts.append(chain)
            if len(chain) < stop - position or stop == length:
                return np.concatenate(parts)
            position, start = stop, start + covered(chain)

    def _keep(self, entries: Entries) -> Entries:
        count = self._count + len(entries)
        if self._kept is None or count > len(self._kept):
            larger = np.empty(2 * count, entries.dtype)
            if self._kept is not None:
                larger[: self._count] = self._kept[: self._count]
            self._kept = larger
        self._kept[self._count : count] = entries
        self._count = count
        self._rows += covered(entries)
        return self._kept[:count]


def covered(entries: Entries) -> int:
    """How many rows entries are about."""
    return int(entries["rows"].sum())


def chained(entries: Entries, start: int, stop: int) -> Entries:
    """The entries from the first on that follow one another from row `start` on, and do not pass row `stop`.

    Args:
        entries: A journal, of format 1.0 or 1.1, or what follows in one.
        start: First row of the first entry.
        stop: Rows of the stream that count.
    """
    starts, rows = entries["start"].astype(np.int64), entries["rows"].astype(np.int64)
    stops = starts + rows
    follows = starts == np.concatenate([[start], stops[:-1]])
    holds = follows & (rows >= 0) & (stops >= starts) & (stops <= stop)
    chain = entries[: len(entries) if holds.all() else int(np.argmin(holds))]
    if _ENTRY_CHECKSUM not in (entries.dtype.names or ()):
        # Format 1.0 notes no missed points: what has no rows was never written.
        return chain[: _behind_last_row(chain)]
    right = entry_checksums(chain) == chain[_ENTRY_CHECKSUM]
    return chain if right.all() else chain[: int(np.argmin(right))]


def _behind_last_row(entries: Entries) -> int:
    """How many entries there are up to the last that has rows."""
    with_rows = np.flatnonzero(entries["rows"])
    return int(with_rows[-1]) + 1 if len(with_rows) else 0


def entry_checksums(entries: Entries) -> NDArray[np.uint32]:
    """CRC-32 of each entry without the field `entry_crc32`, over its other bytes in their order."""
    assert entries.dtype.fields is not None
    dtype, place = entries.dtype.fields[_ENTRY_CHECKSUM][:2]
    content = np.ascontiguousarray(entries).view(np.uint8).reshape(len(entries), entries.dtype.itemsize)
    others = np.delete(content, np.s_[place : place + dtype.itemsize], axis=1)
    return np.array([zlib.crc32(one.tobytes()) for one in others], np.uint32)


def names_in(source: RowSource, group: str) -> frozenset[str]:
    """Names of the datasets in a group; none where there is no such group."""
    try:
        return source.names(group)
    except KeyError:
        return frozenset()
