"""The open file of a running recording. Blocking, and owned by the one thread of `RecordingWriter`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from labrig.plans.base import StreamCapacity
from labrig.recording import layout
from labrig.recording.header import RecordingHeader, utc_now
from labrig.recording.nodes import dataset_at, group_at
from labrig.recording.structure import create_file, reopen_file
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StateError, StorageError

Durability = Literal["process", "power"]


@dataclass
class _OpenStream:
    """The datasets of one stream, and how many of their rows count."""

    layout: layout.Stream
    index: h5py.Dataset
    columns: dict[str, h5py.Dataset]
    counter: h5py.Dataset
    committed: int = 0


@dataclass
class _OpenJournal:
    table: h5py.Dataset
    blocks: int = 0


class RecordingFile:
    """Appends rows to a recording. A row counts only from the moment when `committed` on disk says so.

    Args:
        path: The file; it must not exist, or, to resume, be a recording of the same rig, plan and chip.
        header: What is known before the run.
        info: The board.
        capacity: Room for each array.
        supply_capacity: Room for readings of the supply.
        durability: `process`: what was acknowledged survives the death of the process; `power`: of the machine.

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
    ) -> None:
        mvms = {array: layout.mvm_stream(array, info, one) for array, one in capacity.items()}
        writes = {array: layout.write_stream(array, info, one) for array, one in capacity.items()}
        supply = layout.supply_stream(supply_capacity)
        self._path = path
        self._durability = durability
        if resume:
            self._file = reopen_file(path, header, info)
        else:
            self._file = create_file(path, header, info, capacity, [*mvms.values(), *writes.values(), supply])
        self._mvms = {array: self._open_stream(one) for array, one in mvms.items()}
        self._writes = {array: self._open_stream(one) for array, one in writes.items()}
        self._supply = self._open_stream(supply)
        self._journals = {array: self._open_journal(array) for array in capacity}

    def append_mvms(self, array: int, columns: Mapping[str, NDArray[np.generic]], kind: int, point_hash: bytes) -> int:
        """Commits one block of MVMs of the latest write; returns how many MVMs of this array are committed.

        Args:
            array: Which array.
            columns: `voltage_v`, `current_code`, `saturated` and `time_s`, as stored.
            kind: What the vectors were for.
            point_hash: 16 bytes that name the point of the plan.
        """
        self._demand_array(array)
        stream, journal = self._mvms[array], self._journals[array]
        write = self._writes[array].committed - 1
        if write < 0:
            raise StateError(f"{self._path}: array {array} has MVMs before its first write; record the write first")
        count = columns["voltage_v"].shape[0]
        rows = {
            **columns,
            "write": np.full(count, write, np.int32),
            "kind": np.full(count, kind, np.int8),
        }
        entry = np.zeros((), layout.JOURNAL_DTYPE)
        entry["point"] = np.frombuffer(point_hash, np.uint8)
        entry["start"], entry["rows"], entry["kind"] = stream.committed, count, kind
        entry["crc32"] = layout.crc32_of(rows[column.name] for column in stream.layout.columns)
        if journal.blocks == journal.table.shape[0]:
            self._extend([journal.table], max(2 * journal.blocks, 64))
        journal.table[journal.blocks] = entry
        self._append(stream, rows)
        journal.blocks += 1
        return stream.committed

    def append_write(self, array: int, columns: Mapping[str, NDArray[np.generic]]) -> int:
        """Commits one programming; returns its index in this file."""
        self._demand_array(array)
        stream = self._writes[array]
        # The checksum is the last column: it covers all before it.
        crc = layout.crc32_of(columns[column.name] for column in stream.layout.columns[:-1])
        self._append(stream, {**columns, "crc32": np.array([crc], np.uint32)})
        return stream.committed - 1

    def append_supply(self, columns: Mapping[str, NDArray[np.generic]]) -> int:
        """Commits one reading of the supply; returns how many are committed."""
        self._append(self._supply, columns)
        return self._supply.committed

    def close(self, status: str) -> None:
        """Cuts off the rows that were reserved and not used, notes end and status, and closes."""
        dataset_at(self._file, "entry/end_time")[()] = np.bytes_(utc_now())
        dataset_at(self._file, "entry/status")[()] = np.bytes_(status)
        self._sync(force=True)
        for stream in (*self._mvms.values(), *self._writes.values(), self._supply):
            for dataset in (stream.index, *stream.columns.values()):
                dataset.resize(stream.committed, axis=0)
        for journal in self._journals.values():
            journal.table.resize(journal.blocks, axis=0)
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
        group = group_at(self._file, stream.path)
        columns = {column.name: dataset_at(group, column.name) for column in stream.columns}
        counter = dataset_at(group, layout.COMMITTED)
        return _OpenStream(stream, dataset_at(group, stream.axis), columns, counter, int(counter[()]))

    def _open_journal(self, array: int) -> _OpenJournal:
        table = dataset_at(self._file, layout.journal_path(array))
        # An entry beyond the committed rows is of a block that does not count; the next one takes its place.
        stops = table["start"] + table["rows"]
        blocks = int(((table["start"] >= 0) & (stops <= self._mvms[array].committed)).sum())
        return _OpenJournal(table, blocks)

    def _append(self, stream: _OpenStream, rows: Mapping[str, NDArray[np.generic]]) -> None:
        start = stream.committed
        stop = start + len(next(iter(rows.values())))
        reserved = stream.index.shape[0]
        if stop > reserved:
            wanted = max(stop, 2 * reserved)
            self._extend([stream.index, *stream.columns.values()], wanted)
            stream.index[reserved:wanted] = np.arange(reserved, wanted, dtype=np.int32)
        for name, dataset in stream.columns.items():
            dataset[start:stop] = rows[name]
        self._sync()
        # Last, by itself: a reader trusts nothing but this number.
        stream.counter[()] = stop
        self._sync()
        stream.committed = stop

    def _extend(self, datasets: list[h5py.Dataset], rows: int) -> None:
        """Large steps, and all on disk before the next row: the only structure that changes in a run."""
        for dataset in datasets:
            dataset.resize(rows, axis=0)
        self._sync(force=True)

    def _sync(self, *, force: bool = False) -> None:
        self._file.flush()
        if force or self._durability == "power":
            os.fsync(self._file.id.get_vfd_handle())
