"""The open file of a running recording. Blocking, and owned by the one thread of `RecordingWriter`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from labrig.plans.base import BesideCapacity, StreamCapacity
from labrig.recording import layout
from labrig.recording.description import run_id_of
from labrig.recording.header import RecordingHeader, utc_now
from labrig.recording.journal import MISSED, journal_path, make_entry
from labrig.recording.medium import FileSystem, Medium
from labrig.recording.nodes import dataset_at, group_at
from labrig.recording.run_streams import run_streams
from labrig.recording.streams import chained
from labrig.recording.structure import held_file, number_rows, reopen_file, text_field
from labrig.recording.table import Table, growth_bytes, locate_scalar, locate_table
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StateError

Durability = Literal["process", "power"]
Columns = Mapping[str, NDArray[np.generic]]

NO_SETTING = -1
"""What stands for the setting of the axes where none was made."""


@dataclass(frozen=True)
class BlockLabel:
    """What the journal says of a block.

    Attributes:
        point: 16 bytes that name the point of the plan.
        kind: What the vectors were for.
        began_s: UTC in s, by the host, when the request was made; NaN where it is not known.
        ended_s: The same when it was answered.
    """

    point: bytes
    kind: int = 0
    began_s: float = math.nan
    ended_s: float = math.nan


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
        beside: Room for what is not of an array.
        axis_units: Unit of each axis that the run moves, by its name.
        resume: Go on with a recording that is there.
        medium: Where the file is kept; by default the file system.

    Attributes:
        run_id: Identity of the run, of its first start where it was resumed; empty where the file has none.

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
        beside: BesideCapacity | None = None,
        axis_units: Mapping[str, str] | None = None,
        resume: bool = False,
        medium: Medium | None = None,
    ) -> None:
        streams = run_streams(info, capacity, supply_capacity, beside or BesideCapacity(), axis_units or {})
        medium = FileSystem() if medium is None else medium
        self._path = path
        self._durability = durability
        if resume:
            self._held = reopen_file(path, header, info, streams, medium)
        else:
            self._held = held_file(path, header, info, streams, medium)
        self._disk = self._held.disk
        with self._held.looking() as file:
            self.run_id = run_id_of(file)
            self._texts = {name: locate_scalar(file, f"entry/{name}") for name in ("end_time", "status")}
            self._mvms = {array: _open_stream(file, one) for array, one in streams.mvms.items()}
            self._writes = {array: _open_stream(file, one) for array, one in streams.writes.items()}
            self._supply = _open_stream(file, streams.supply)
            self._settings = None if streams.settings is None else _open_stream(file, streams.settings)
            self._curves = None if streams.curves is None else _open_stream(file, streams.curves)
            self._journals = {one.layout.path: _open_journal(file, one) for one in self._journaled()}

    def append_mvms(self, array: int, columns: Columns, label: BlockLabel) -> int:
        """Commits one block of MVMs of the latest write; see `stage_mvms`."""
        committed = self.stage_mvms(array, columns, label)
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

    def stage_write(self, array: int, columns: Columns, setting: int = NO_SETTING) -> int:
        """Writes one programming, to count from the next `commit` on; returns its index in this file.

        MVMs of it can be staged only after that commit: of two counters that are synced together either may be lost
        alone.
        """
        self._demand_array(array)
        return self._stage_checked(self._writes[array], {**columns, "setting": np.array([setting], np.int32)})

    def stage_setting(self, columns: Columns) -> int:
        """Writes where the axes were moved to, to count from the next `commit` on; returns its index in this file.

        Raises:
            StateError: The recording was made for a run that moves no axes; nothing was written.
        """
        if self._settings is None:
            raise StateError(f"{self._path}: has no room for settings of axes, its plan moves none")
        return self._stage_checked(self._settings, {**layout.unmoved(self._settings.layout), **columns})

    def stage_supply(self, columns: Columns) -> int:
        """Writes one reading of the supply, to count from the next `commit` on; returns how many there are then."""
        return self._stage_checked(self._supply, columns) + 1

    def stage_mvms(self, array: int, columns: Columns, label: BlockLabel, setting: int = NO_SETTING) -> int:
        """Writes one block of MVMs of the latest write, to count from the next `commit` on.

        Args:
            array: Which array.
            columns: `voltage_v`, `current_code`, `saturated` and `time_s`, as stored.
            label: What the journal says of it.
            setting: Which setting of the axes was in force.

        Returns:
            How many MVMs of this array will be committed then.

        Raises:
            StateError: There is no such array, or no write of it; nothing was written.
            ValueError: Columns have the wrong shape, each is named; nothing was written.
        """
        self._demand_array(array)
        write = self._writes[array].committed - 1
        if write < 0:
            raise StateError(f"{self._path}: array {array} has MVMs before its first write; record the write first")
        count = columns["voltage_v"].shape[0]
        same: dict[str, NDArray[np.generic]] = {
            "write": np.full(count, write, np.int32),
            "kind": np.full(count, label.kind, np.int8),
            "setting": np.full(count, setting, np.int32),
        }
        return self._stage_block(self._mvms[array], {**columns, **same}, label)

    def stage_curve(self, columns: Columns, label: BlockLabel, setting: int = NO_SETTING) -> int:
        """Writes the readings of one curve, to count from the next `commit` on; returns how many there are then.

        Args:
            columns: Those of `layout.curve_stream` without `write` and `setting`.
            label: What the journal says of it.
            setting: Which setting of the axes was in force.

        Raises:
            StateError: The recording was made for a run that takes no curves; nothing was written.
            ValueError: Columns have the wrong shape, each is named; nothing was written.
        """
        if self._curves is None:
            raise StateError(f"{self._path}: has no room for curves, its plan takes none")
        count = columns["level_v"].shape[0]
        array = int(columns["array"][0]) if count else NO_SETTING
        write = self._writes[array].committed - 1 if array in self._writes else NO_SETTING
        same = {"write": np.full(count, write, np.int32), "setting": np.full(count, setting, np.int32)}
        return self._stage_block(self._curves, {**columns, **same}, label)

    def stage_missed(self, array: int, label: BlockLabel) -> int:
        """Notes that a point of an array was missed, from the next `commit` on; returns the array's MVMs then."""
        self._demand_array(array)
        stream = self._mvms[array]
        self._write_entry(self._journals[stream.layout.path], stream, 0, MISSED, 0, label)
        return stream.written

    def note_settings(self, name: str, settings: Mapping[str, str]) -> None:
        """Writes how an instrument says that it is set, in the place of what it said before.

        Raises:
            StateError: There is no such instrument.
            ValueError: The text is longer than the room that was kept for it.
        """
        path = f"entry/instruments/{name}/{layout.REPORTED_SETTINGS}"
        with self._held.looking() as file:
            if path not in file:
                raise StateError(f"{self._path}: has no instrument {name!r}")
            place = locate_scalar(file, path)
        text = json.dumps(dict(settings)).encode()
        if len(text) > layout.SETTINGS_TEXT_BYTES:
            raise ValueError(f"{name}: its settings take {len(text)} bytes, {layout.SETTINGS_TEXT_BYTES} were kept")
        padded = np.frombuffer(text.ljust(layout.SETTINGS_TEXT_BYTES, b"\0"), np.uint8)
        self._disk.write_at(place, padded)
        self._sync()

    def recorded_rows(self, stream_path: str, start: int, stop: int) -> dict[str, NDArray[np.generic]]:
        """Committed rows of a stream, by column."""
        names = [
            column.name for one in self._streams() if one.layout.path == stream_path for column in one.layout.columns
        ]
        with self._held.looking() as file:
            group = group_at(file, stream_path)
            return {name: np.asarray(dataset_at(group, name)[start:stop]) for name in names}

    def commit(self) -> None:
        """Makes every row count that was written."""
        streams = [one for one in self._streams() if one.written > one.committed]
        self._sync()
        # Last, by itself: a reader trusts nothing but this number.
        for stream in streams:
            self._disk.write_at(stream.counter, np.array(stream.written, dtype="<i8"))
        self._sync()
        for stream in streams:
            stream.committed = stream.written

    def close(self, status: str) -> None:
        """Notes end and status, cuts off what was reserved and not used, and closes, also where that fails."""
        try:
            for name, text in (("end_time", utc_now()), ("status", status)):
                self._disk.write_at(self._texts[name], text_field(text))
            self._disk.sync()
            with self._held.changing() as file:
                for stream in self._streams():
                    _resize(file, stream.layout.dataset_paths, stream.committed)
                for journal in self._journals.values():
                    _resize(file, [journal.path], journal.blocks)
        finally:
            self._held.close()

    def abandon(self) -> None:
        """Closes the file after a failed write, with nothing more written."""
        self._held.close()

    def discard(self) -> None:
        """Closes and removes a file that nothing was recorded in."""
        self.abandon()
        self._path.unlink(missing_ok=True)

    def _journaled(self) -> list[_OpenStream]:
        return [*self._mvms.values(), *([] if self._curves is None else [self._curves])]

    def _streams(self) -> list[_OpenStream]:
        others = [one for one in (self._settings, self._supply) if one is not None]
        return [*self._journaled(), *self._writes.values(), *others]

    def _demand_array(self, array: int) -> None:
        if array not in self._mvms:
            arrays = ", ".join(str(one) for one in self._mvms) or "none"
            raise StateError(f"{self._path}: has no room for array {array}, it was created for arrays: {arrays}")

    def _stage_checked(self, stream: _OpenStream, values: Columns) -> int:
        """Writes one row with a checksum of its own; returns its index."""
        # The checksum is the last column: it covers all before it.
        crc = layout.crc32_of(layout.as_stored(stream.layout.columns[:-1], values).values())
        self._stage(stream, {**values, "crc32": np.array([crc], np.uint32)})
        return stream.written - 1

    def _stage_block(self, stream: _OpenStream, values: Columns, label: BlockLabel) -> int:
        """Writes rows that one entry of the journal vouches for; returns how many the stream has then."""
        rows = layout.as_stored(stream.layout.columns, values)
        count = len(next(iter(rows.values())))
        crc = layout.crc32_of(rows.values())
        self._write_entry(self._journals[stream.layout.path], stream, count, label.kind, crc, label)
        self._stage(stream, rows)
        return stream.written

    def _write_entry(
        self, journal: _OpenJournal, stream: _OpenStream, rows: int, kind: int, crc: int, label: BlockLabel
    ) -> None:
        entry = make_entry(label.point, stream.written, rows, kind, crc, (label.began_s, label.ended_s))
        self._write_rows(self._room_for_block(journal), journal.blocks, entry)
        journal.blocks += 1

    def _stage(self, stream: _OpenStream, values: Columns) -> None:
        rows = layout.as_stored(stream.layout.columns, values)
        start = stream.written
        stop = start + len(next(iter(rows.values())))
        if stop > stream.reserved:
            self._extend(stream, max(stop, 2 * stream.reserved))
        if stream.tables is None:
            with self._held.looking() as file:
                stream.tables = {
                    column.name: locate_table(file, f"{stream.layout.path}/{column.name}")
                    for column in stream.layout.columns
                }
        for name, column in rows.items():
            self._write_rows(stream.tables[name], start, column)
        stream.written = stop

    def _room_for_block(self, journal: _OpenJournal) -> Table:
        if journal.blocks == journal.reserved:
            longer = max(2 * journal.blocks, 64)
            with self._lengthened([journal.path], longer):
                pass
            journal.reserved, journal.table = longer, None
        if journal.table is None:
            with self._held.looking() as file:
                journal.table = locate_table(file, journal.path)
        return journal.table

    def _write_rows(self, table: Table, start: int, values: NDArray[np.generic]) -> None:
        for first, stop, offset in table.pieces(start, start + len(values)):
            self._disk.write_at(offset, values[first - start : stop - start])

    def _extend(self, stream: _OpenStream, rows: int) -> None:
        """Large steps, and all on disk before the next row: the only structure that changes in a run."""
        with self._lengthened(stream.layout.dataset_paths, rows) as file:
            number_rows(dataset_at(file, f"{stream.layout.path}/{stream.layout.axis}"), stream.reserved, rows)
        stream.reserved, stream.tables = rows, None

    @contextmanager
    def _lengthened(self, paths: Sequence[str], rows: int) -> Iterator[h5py.File]:
        """Makes datasets longer, after the room for it was reserved: a full disk leaves the structure as it was."""
        with self._held.looking() as file:
            more = sum(growth_bytes(dataset_at(file, path), rows) for path in paths)
        self._disk.reserve(self._held.end() + more)
        with self._held.changing() as file:
            _resize(file, paths, rows)
            yield file

    def _sync(self) -> None:
        """Brings everything to the disk, where that is promised: what was written is safe from the process anyway."""
        if self._durability == "power":
            self._disk.sync()


def _open_stream(file: h5py.File, stream: layout.Stream) -> _OpenStream:
    counter = f"{stream.path}/{layout.COMMITTED}"
    committed = int(dataset_at(file, counter)[()])
    # The least of all: a run that died while it closed may have cut off some datasets and not others.
    reserved = min(int(dataset_at(file, path).shape[0]) for path in stream.dataset_paths)
    return _OpenStream(stream, locate_scalar(file, counter), committed, committed, reserved)


def _open_journal(file: h5py.File, stream: _OpenStream) -> _OpenJournal:
    path = journal_path(stream.layout.path)
    table = dataset_at(file, path)[...]
    # An entry beyond the committed rows is of a block that does not count; the next one takes its place.
    return _OpenJournal(path, len(chained(table, 0, stream.committed)), len(table))


def _resize(file: h5py.File, paths: Iterable[str], rows: int) -> None:
    # Opened for this alone: HDF5 fills up the last chunk, and must take its rows from the file, not from memory.
    for path in paths:
        dataset_at(file, path).resize(rows, axis=0)
