"""The committed rows of one array of a recording, as stored, each checked before it is given out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from labrig.plans.base import StreamCapacity
from labrig.recording import layout, streams
from labrig.recording.journal import journal_path
from labrig.recording.opening import believed
from labrig.recording.source import RowSource, demand_rows
from labrig.recording.streams import Columns, Entries
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError

# The layout's columns are the same whatever the room: only names and order matter to a reader.
_ANY_CAPACITY = StreamCapacity(rows=0, writes=0, blocks=0)
# How much of the targets is checked at once.
_WRITES_BYTES = 4_000_000


class ArrayRows:
    """Reads one array.

    Every method raises `StorageError` where committed rows are not those that were written.

    Args:
        path: The file, for messages.
        source: Where rows come from.
        array: Which array.
        info: The board.

    Attributes:
        mvms: The stream of MVMs.
        writes: The stream of programmings.
        mvm_count: How many MVMs count; whoever reads the counters sets it.
        write_count: How many programmings count; likewise.
    """

    def __init__(self, path: Path, source: RowSource, array: int, info: BoardInfo) -> None:
        self.mvms = layout.mvm_stream(array, info, _ANY_CAPACITY)
        self.writes = layout.write_stream(array, info, _ANY_CAPACITY)
        self.mvm_count = 0
        self.write_count = 0
        self._path = path
        self._source = source
        self._array = array
        self._journal = streams.JournalReader(journal_path(self.mvms.path))

    def entries(self) -> Entries:
        """The journal's entries of the committed blocks."""
        found = self.chain()
        entries: Entries = found[found["rows"] > 0]
        return entries

    def chain(self) -> Entries:
        """The journal's entries of committed blocks and of points that were missed."""
        with believed(self._path):
            found = self._journal.entries(self._source, self.mvm_count)
            if streams.covered(found) < self.mvm_count:
                # Perhaps the journal alone was extended since the last look.
                self._source.look()
                found = self._journal.entries(self._source, self.mvm_count)
            demand_rows(self.mvms.path, streams.room(self._source, self.mvms), self.mvm_count)
        if streams.covered(found) < self.mvm_count:
            raise damaged(self._path, f"the journal of array {self._array}")
        return found

    def mvm_pieces(self, start: int, stop: int, most_rows: int = streams.MOST_ROWS) -> Iterator[tuple[int, Columns]]:
        """MVMs `start` to `stop`, piece by piece, as (number of the first, columns).

        Args:
            start: The first.
            stop: The one after the last.
            most_rows: How many a piece has, unless a single block has more.
        """
        entries = self.entries()
        begins = entries["start"]
        touched = entries[(begins < stop) & (begins + entries["rows"] > start)]
        groups = streams.blocks(self._source, self.mvms, touched, most_rows)
        while True:
            with believed(self._path):
                group = next(groups, None)
                if group is None:
                    return
                if wrong := group.wrong():
                    first, rows = (int(group.entries[wrong[0]][name]) for name in ("start", "rows"))
                    raise damaged(self._path, f"MVMs {first} to {first + rows - 1} of array {self._array}")
            cut = slice(max(start - group.start, 0), stop - group.start)
            yield group.start + cut.start, {name: column[cut] for name, column in group.columns.items()}

    def mvm_columns(self, start: int, stop: int) -> Columns:
        """MVMs `start` to `stop`."""
        with believed(self._path):
            # No rows, but names, types and shapes.
            empty = streams.columns(self._source, self.mvms, 0, 0)
        # Before there is room for them: a damaged counter can name any number.
        self.chain()
        whole = {name: np.empty((stop - start, *one.shape[1:]), one.dtype) for name, one in empty.items()}
        for first, columns in self.mvm_pieces(start, stop):
            for name, column in columns.items():
                whole[name][first - start : first - start + len(column)] = column
        return whole

    def write_columns(self, start: int, stop: int) -> Columns:
        """Programmings `start` to `stop`, without their checksums."""
        with believed(self._path):
            rows = streams.columns(self._source, self.writes, start, stop)
            if wrong := streams.wrong_rows(rows):
                raise damaged(self._path, f"write {start + wrong[0]} of array {self._array}")
            return {name: column for name, column in rows.items() if name != streams.ROW_CHECKSUM}

    def mvms_of_write(self, write: int) -> Columns:
        """The MVMs of one programming; perhaps none."""
        entries = self.entries()
        path = f"{self.mvms.path}/write"

        def write_of(block: int) -> int:
            start = int(entries["start"][block])
            return int(self._source.read(path, start, start + 1)[0])

        with believed(self._path):
            # A block belongs to one write, and writes follow one another.
            first, last = (bisect_left(range(len(entries)), one, key=write_of) for one in (write, write + 1))
        # What was searched was not checked. The blocks at both sides, checked, show that nothing was passed over.
        begin, end = max(first - 1, 0), min(last + 1, len(entries))
        if begin == end:
            return self.mvm_columns(0, 0)
        start = int(entries["start"][begin])
        found = self.mvm_columns(start, int(entries["start"][end - 1] + entries["rows"][end - 1]))
        inner = slice(
            int(entries["start"][first]) - start if first < len(entries) else len(found["write"]),
            int(entries["start"][last]) - start if last < len(entries) else len(found["write"]),
        )
        numbers = found["write"].astype(np.int64)
        before, here, behind = numbers[: inner.start], numbers[inner], numbers[inner.stop :]
        if (before >= write).any() or (here != write).any() or (behind <= write).any():
            raise damaged(self._path, f"the order of writes of array {self._array}")
        return {name: column[inner] for name, column in found.items()}

    def verify(self) -> None:
        """Checks every committed row, a few at a time."""
        for _ in self.mvm_pieces(0, self.mvm_count):
            pass
        step = max(1, _WRITES_BYTES // streams.row_bytes(self.writes))
        for start in range(0, self.write_count, step):
            self.write_columns(start, min(start + step, self.write_count))


def stacked(parts: Sequence[Columns]) -> Columns:
    """Columns of several parts as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def damaged(path: Path, what: str) -> StorageError:
    """The error for committed rows that are not what was written."""
    return StorageError(f"{path}: {what}: committed, but not what was written (checksum); the file is damaged")
