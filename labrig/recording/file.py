"""The open file of a running recording. Blocking, and owned by the one thread of `RecordingWriter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labrig.plans.base import StreamCapacity
from labrig.recording import layout
from labrig.recording.header import RecordingHeader, utc_now
from labrig.recording.medium import FileSystem, Medium
from labrig.recording.nodes import dataset_at
from labrig.recording.structure import create_file, reopen_file
from labrig.recording.table import Table, locate_scalar, locate_table
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StateError, StorageError

Durability = Literal["process", "power"]
Columns = Mapping[str, NDArray[np.generic]]


@dataclass
class _OpenStream:
    """Where the rows of one stream go, how many are written, and how many of those count.

    `tables` are found with the first row, and again after the stream was extended.
    """

    layout: layout.Stream
    counter: int
    committed: int
    written: int
    reserved: int
    tables: Mapping[str, Table] | None = None


@dataclass
class _OpenJournal:
    path: str
    blocks: int
    reserved: int
    table: Table | None = None


class RecordingFile:
    """Appends rows to a recording. A row counts only from the moment when `committed` on disk says so.

    Rows and counters are written straight to their places; HDF5 makes the structure, extends it and trims it.

    Args:
        path: The file; it must not exist, or, to resume, be a recording of the same rig, plan and chip.
        header: What is known before the run.
        info: The board.
        capacity: Room for each array.
        supply_capacity: Room for readings of the supply.
        durability: `process`: what was acknowledged survives the death of the process; `power`: of the machine.
        resume: Go on with a recording that is there.
        medium: Where the file is kept; by default the file system.

    Raises:
        StorageError: The file cannot be created; none is left.
    """

    def __init__(
        self,
        path: Path,
        header: RecordingHeader,
        info: BoardInfo,
        capacity: Mapping[int, StreamCapacity],
        supply_capacity: int,
        durability: Durability,
        *,
        resume: bool = False,
        medium: Medium | None = None,
    ) -> None:
        mvms = {array: layout.mvm_stream(array, info, one) for array, one in capacity.items()}
        writes = {array: layout.write_stream(array, info, one) for array, one in capacity.items()}
        supply = layout.supply_stream(supply_capacity)
        medium = FileSystem() if medium is None else medium
        self._path = path
        self._durability = durability
        if resume:
            self._file = reopen_file(path, header, info, medium)
        else:
            self._file = create_file(path, header, info, capacity, [*mvms.values(), *writes.values(), supply], medium)
        self._disk = medium.disk(self._file)
        self._mvms = {array: self._open_stream(one) for array, one in mvms.items()}
        self._writes = {array: self._open_stream(one) for array, one in writes.items()}
        self._supply = self._open_stream(supply)
        self._journals = {array: self._open_journal(array) for array in capacity}

    def append_mvms(self, array: int, columns: Columns, kind: int, point_hash: bytes) -> int:
        """Commits one block of MVMs of the latest write; see `stage_mvms`."""
        committed = self.stage_mvms(array, columns, kind, point_hash)
        self.commit()
        return committed

    def append_write(self, array: int, columns: Columns) -> int:
        """Commits one programming; see `stage_write`."""
        index = self.stage_write(array, columns)
        self.commit()
        return index

    def append_supply(self, columns: Columns) -> int:
        """Commits one reading of the supply; returns how many are committed."""
        committed = self.stage_supply(columns)
        self.commit()
        return committed

    def stage_write(self, array: int, columns: Columns) -> int:
        """Writes one programming, to count from the next `commit` on; returns its index in this file.

        MVMs of it can be staged only after that commit: of two counters that are synced together either may be lost
        alone.
        """
        self._demand_array(array)
        stream = self._writes[array]
        # The checksum is the last column: it covers all before it.
        crc = layout.crc32_of(layout.as_stored(stream.layout.columns[:-1], columns).values())
        self._stage(stream, {**columns, "crc32": np.array([crc], np.uint32)})
        return stream.written - 1

    def stage_supply(self, columns: Columns) -> int:
        """Writes one reading of the supply, to count from the next `commit` on; returns how many there are then."""
        self._stage(self._supply, columns)
        return self._supply.written

    def stage_mvms(self, array: int, columns: Columns, kind: int, point_hash: bytes) -> int:
        """Writes one block of MVMs of the latest write, to count from the next `commit` on.

        Args:
            array: Which array.
            columns: `voltage_v`, `current_code`, `saturated` and `time_s`, as stored.
            kind: What the vectors were for.
            point_hash: 16 bytes that name the point of the plan.

        Returns:
            How many MVMs of this array will be committed then.

        Raises:
            StateError: There is no such array, or no write of it; nothing was written.
            ValueError: Columns have the wrong shape, each is named; nothing was written.
        """
        self._demand_array(array)
        stream, journal = self._mvms[array], self._journals[array]
        write = self._writes[array].committed - 1
        if write < 0:
            raise StateError(f"{self._path}: array {array} has MVMs before its first write; record the write first")
        count = columns["voltage_v"].shape[0]
        rows = layout.as_stored(
            stream.layout.columns,
            {**columns, "write": np.full(count, write, np.int32), "kind": np.full(count, kind, np.int8)},
        )
        entry = np.zeros(1, layout.JOURNAL_DTYPE)
        entry["point"] = np.frombuffer(point_hash, np.uint8)
        entry["start"], entry["rows"], entry["kind"] = stream.written, count, kind
        entry["crc32"] = layout.crc32_of(rows.values())
        self._write_rows(self._room_for_block(journal), journal.blocks, entry)
        self._stage(stream, rows)
        journal.blocks += 1
        return stream.written

    def commit(self) -> None:
        """Makes every row count that was written."""
        streams = [
            one for one in (*self._mvms.values(), *self._writes.values(), self._supply) if one.written > one.committed
        ]
        self._sync()
        # Last, by itself: a reader trusts nothing but this number.
        for stream in streams:
            self._disk.write_at(stream.counter, np.array(stream.written, dtype="<i8"))
        self._sync()
        for stream in streams:
            stream.committed = stream.written

    def close(self, status: str) -> None:
        """Cuts off the rows that were reserved and not used, notes end and status, and closes."""
        dataset_at(self._file, "entry/end_time")[()] = np.bytes_(utc_now())
        dataset_at(self._file, "entry/status")[()] = np.bytes_(status)
        self._sync(force=True)
        for stream in (*self._mvms.values(), *self._writes.values(), self._supply):
            self._resize(stream.layout.dataset_paths, stream.committed)
        for journal in self._journals.values():
            self._resize([journal.path], journal.blocks)
        self._sync(force=True)
        self._file.close()

    def abandon(self) -> None:
        """Closes the file after a failed write, with nothing more written than HDF5 itself insists on."""
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            raise StorageError(f"{self._path}: could not be closed: {error}") from error

    def discard(self) -> None:
        """Closes and removes a file that nothing was recorded in."""
        self.abandon()
        self._path.unlink(missing_ok=True)

    def _demand_array(self, array: int) -> None:
        if array not in self._mvms:
            arrays = ", ".join(str(one) for one in self._mvms) or "none"
            raise StateError(f"{self._path}: has no room for array {array}, it was created for arrays: {arrays}")

    def _open_stream(self, stream: layout.Stream) -> _OpenStream:
        counter = f"{stream.path}/{layout.COMMITTED}"
        committed = int(dataset_at(self._file, counter)[()])
        # The least of all: a run that died while it closed may have cut off some datasets and not others.
        reserved = min(int(dataset_at(self._file, path).shape[0]) for path in stream.dataset_paths)
        return _OpenStream(stream, locate_scalar(self._file, counter), committed, committed, reserved)

    def _open_journal(self, array: int) -> _OpenJournal:
        path = layout.journal_path(array)
        table = dataset_at(self._file, path)[...]
        # An entry beyond the committed rows is of a block that does not count; the next one takes its place.
        stops = table["start"] + table["rows"]
        blocks = int(((table["start"] >= 0) & (stops <= self._mvms[array].committed)).sum())
        return _OpenJournal(path, blocks, len(table))

    def _stage(self, stream: _OpenStream, values: Columns) -> None:
        rows = layout.as_stored(stream.layout.columns, values)
        start = stream.written
        stop = start + len(next(iter(rows.values())))
        if stop > stream.reserved:
            self._extend(stream, max(stop, 2 * stream.reserved))
        if stream.tables is None:
            stream.tables = {
                column.name: locate_table(self._file, f"{stream.layout.path}/{column.name}")
                for column in stream.layout.columns
            }
        for name, column in rows.items():
            self._write_rows(stream.tables[name], start, column)
        stream.written = stop

    def _room_for_block(self, journal: _OpenJournal) -> Table:
        if journal.blocks == journal.reserved:
            journal.reserved = max(2 * journal.blocks, 64)
            journal.table = None
            self._resize([journal.path], journal.reserved)
            self._sync(force=True)
        if journal.table is None:
            journal.table = locate_table(self._file, journal.path)
        return journal.table

    def _write_rows(self, table: Table, start: int, values: NDArray[np.generic]) -> None:
        for first, stop, offset in table.pieces(start, start + len(values)):
            self._disk.write_at(offset, values[first - start : stop - start])

    def _extend(self, stream: _OpenStream, rows: int) -> None:
        """Large steps, and all on disk before the next row: the only structure that changes in a run."""
        before, stream.reserved, stream.tables = stream.reserved, rows, None
        self._resize(stream.layout.dataset_paths, rows)
        index = dataset_at(self._file, f"{stream.layout.path}/{stream.layout.axis}")
        index[before:rows] = np.arange(before, rows, dtype=np.int32)
        self._sync(force=True)

    def _resize(self, paths: Iterable[str], rows: int) -> None:
        # Opened for this alone: HDF5 fills up the last chunk, and must take its rows from the file, not from memory.
        for path in paths:
            dataset_at(self._file, path).resize(rows, axis=0)

    def _sync(self, *, force: bool = False) -> None:
        """Brings everything to the disk; between two rows only where that is promised, since HDF5 holds nothing."""
        if force:
            self._file.flush()
        if force or self._durability == "power":
            self._disk.sync()
