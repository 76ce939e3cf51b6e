"""`Recording`: a recording that is running, finished, aborted or killed, read without trusting more than it proves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from labrig.recording import layout, streams
from labrig.recording.array_rows import ArrayRows, stacked
from labrig.recording.description import Description
from labrig.recording.mvms import MvmBlock, mvm_dataset, temperature_of
from labrig.recording.opening import believed, open_source
from labrig.recording.other_rows import OtherRows, other_streams
from labrig.recording.source import RowSource
from labrig.recording.summary import RecordingSummary, SupplyTrace
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.crossbar import FloatArray
from labrig_drivers.errors import StorageError
from labrig_drivers.settling import undivided
from labrig_drivers.wording import counted

_SUPPLY = layout.supply_stream(0).path


class Recording:
    """A recording, open for reading. Use as `with Recording.open(path) as recording:`.

    Counts stay as they were when it was opened, until `refresh`; so everything that is read in between fits together.
    One thread at a time.

    Attributes:
        path: The file.
        format_version: Version of the file's layout.
        header: What was known before the run.
        info: The board that was measured.
        status: `running` while a living program writes it; `finished`, `stopped` or `aborted`; or `interrupted` where
            the writer died; what is committed counts anyway.
        ended_utc: End of the run, ISO 8601; empty where it has not ended, or the writer died.
        arrays: The arrays that it was made for.
    """

    def __init__(self, path: Path, source: RowSource, description: Description) -> None:
        self.path = path
        self.format_version = description.format_version
        self.header = description.header
        self.info = description.info
        self.arrays = description.arrays
        self._source = source
        self._rows = {array: ArrayRows(path, source, array, self.info) for array in self.arrays}
        self._axis_units = description.axis_units
        others = other_streams(source, description.axis_units)
        self._others = {name: OtherRows(path, source, *one) for name, one in others.items()}
        self._counts: dict[str, int] = {}
        self._given_back = False
        self.status = ""
        self.ended_utc = ""
        self.refresh()

    @classmethod
    def open(cls, path: Path | str) -> Recording:
        """Opens a recording, one that another program is writing too; the writer is not disturbed.

        Args:
            path: The file.

        Raises:
            StorageError: There is no such file, it is no labrig recording, it was cut short, it comes from a
                newer labrig, or it is only just being made.
        """
        path = Path(path)
        source, description = open_source(path)
        try:
            with believed(path):
                return cls(path, source, description)
        except BaseException:
            source.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; harmless when closed."""
        self._source.close()

    def refresh(self) -> bool:
        """Looks again what is committed and how the run stands; True where anything changed.

        Raises:
            StorageError: The file cannot be read any more.
        """
        before = (self.status, self.ended_utc, self._counts)
        with believed(self.path):
            # The status before the counters: what is committed when a run has ended is all that there will be.
            self.status = self._status()
            self.ended_utc = self._text("entry/end_time")
            # MVMs before writes: a write is committed before the first MVM that reads it.
            every = [*(one.mvms for one in self._rows.values()), *(one.writes for one in self._rows.values())]
            every += [one.stream for one in self._others.values()]
            counts = {stream.path: streams.committed(self._source, stream.path) for stream in every}
            back = [f"{path} from {n} to {counts[path]}" for path, n in self._counts.items() if counts[path] < n]
            if back:
                raise StorageError(f"{self.path}: committed rows went back ({', '.join(back)}); the file was changed")
            self._look_if_needed(counts, ended_utc_before=before[1], every=every)
            self._counts = counts
            for one in self._rows.values():
                one.mvm_count, one.write_count = counts[one.mvms.path], counts[one.writes.path]
            for other in self._others.values():
                other.count = counts[other.stream.path]
        return before != (self.status, self.ended_utc, self._counts)

    def committed(self, array: int) -> int:
        """How many MVMs of an array count."""
        return self._array(array).mvm_count

    def writes(self, array: int) -> int:
        """How many programmings of an array count."""
        return self._array(array).write_count

    def point_hashes(self, array: int) -> list[str]:
        """The points of an array's committed blocks, in the order of measurement, 32 hex digits each."""
        return [bytes(one["point"]).hex() for one in self._array(array).entries()]

    def dataset(
        self, array: int = 0, start: int = 0, stop: int | None = None, *, writes: Sequence[int] | None = None
    ) -> MvmDataset:
        """Committed measurements of one array, every block that is read checked against its checksum.

        Args:
            array: Which array.
            start: The first MVM.
            stop: The MVM after the last; by default all that are committed.
            writes: Only the MVMs of these writes, by their numbers in the recording; in place of `start` and `stop`.

        Returns:
            All of it with every write; a part of it with the writes that it reads (in the order asked for), which
            `pattern` counts from 0.

        Raises:
            StorageError: There is no such array, write or MVM, nothing of it is committed, or committed rows are not
                those that were written.
        """
        count = self.committed(array)
        if not count:
            when = "so far" if self.status == "running" else "before the run ended"
            raise StorageError(f"{self.path}: no MVM of array {array} was committed {when}")
        if writes is not None:
            return self._dataset_of_writes(array, writes)
        mvms = self.mvm_columns(array, start, stop)
        if len(mvms["write"]) < count:
            return self._part(array, mvms, start).mvms
        pattern = mvms["write"].astype(np.int64)
        with believed(self.path):
            writes_of_array, temperature_k = self.write_columns(array), self._temperature_k(mvms)
            return mvm_dataset(self.info, array, mvms, writes_of_array, pattern, temperature_k)

    def iter_mvms(
        self, array: int = 0, start: int = 0, stop: int | None = None, *, rows: int = streams.MOST_ROWS
    ) -> Iterator[MvmBlock]:
        """Committed measurements piece by piece, each checked; for recordings that do not fit into memory.

        Args:
            array: Which array.
            start: The first MVM.
            stop: The MVM after the last; by default all that were committed at the last `refresh`.
            rows: How many MVMs a piece has at most. A block that was measured at once is read at once, too.

        Raises:
            StorageError: There is no such array or MVM, or committed rows are not those that were written.
        """
        start, stop = self._range(array, "MVMs", self.committed(array), start, stop)
        if rows < 1:
            raise StorageError(f"{self.path}: pieces of {rows} MVMs were asked for; at least 1 is needed")
        for first, columns in self._array(array).mvm_pieces(start, stop, rows):
            for begin in range(0, len(columns["write"]), rows):
                piece = {name: column[begin : begin + rows] for name, column in columns.items()}
                yield self._part(array, piece, first + begin)

    async def follow(
        self, array: int = 0, start: int = 0, *, poll_s: float = 0.2, rows: int = streams.MOST_ROWS
    ) -> AsyncIterator[MvmBlock]:
        """Measurements as they are committed, from `start` on until the run ends; then `status` says how.

        Args:
            array: Which array.
            start: The first MVM; it may lie ahead of what is committed.
            poll_s: How long to wait in s, where nothing new is committed, before looking again.
            rows: How many MVMs a piece has at most; see `iter_mvms`.

        Raises:
            StorageError: See `refresh` and `iter_mvms`.
        """
        while True:
            await undivided(asyncio.to_thread(self.refresh))
            running, stop = self.status == "running", self.committed(array)
            if start < stop:
                pieces = self.iter_mvms(array, start, stop, rows=rows)
                while (piece := await undivided(asyncio.to_thread(next, pieces, None))) is not None:
                    yield piece
                start = stop
            elif running:
                await asyncio.sleep(poll_s)
            if not running:
                return

    def mvm_columns(self, array: int = 0, start: int = 0, stop: int | None = None) -> streams.Columns:
        """Committed MVMs of one array as stored, checked: raw ADC codes, float32 voltages; by the names in the file.

        Raises:
            StorageError: There is no such array or MVM, or committed rows are not those that were written.
        """
        return self._array(array).mvm_columns(*self._range(array, "MVMs", self.committed(array), start, stop))

    def write_columns(self, array: int = 0, start: int = 0, stop: int | None = None) -> streams.Columns:
        """Committed programmings of one array as stored, checked; by the names in the file.

        Raises:
            StorageError: There is no such array or write, or committed rows are not those that were written.
        """
        return self._array(array).write_columns(*self._range(array, "writes", self.writes(array), start, stop))

    def supply(self) -> SupplyTrace:
        """The committed readings of the array supply."""
        columns = self._others[_SUPPLY].columns()
        # A damaged file may lack one.
        with believed(self.path):
            return SupplyTrace(
                columns["time_s"].astype(np.float64),
                columns["voltage_v"].astype(np.float64),
                columns["current_a"].astype(np.float64),
                columns["in_compliance"].astype(np.bool_),
            )

    def has_stream(self, stream: str) -> bool:
        """Whether there is such a group of rows, such as `entry/curves`."""
        return stream in self._counts

    def column(self, stream: str, name: str) -> NDArray[np.generic]:
        """The committed rows of one column as stored, not checked: that is what `verify` is for.

        Args:
            stream: The group of its rows, such as `entry/array_0/writes`.
            name: The column; there are no rows where the file has no such column or stream.
        """
        with believed(self.path):
            if not self.has_stream(stream) or name not in streams.names_in(self._source, stream):
                return np.empty(0)
            return self._source.read(f"{stream}/{name}", 0, self._counts[stream])

    def journal(self, stream: str) -> streams.Entries:
        """The entries of a journal that count, in order; those of points that were missed have no rows.

        Args:
            stream: The group of its rows, such as `entry/array_0` or `entry/curves`.

        Raises:
            StorageError: The journal is damaged, or there is no such stream.
        """
        of_arrays = {rows.mvms.path: rows.chain for rows in self._rows.values()}
        entries = of_arrays.get(stream) or (self._others[stream].entries if stream in self._others else None)
        if entries is None:
            raise StorageError(f"{self.path}: has no stream {stream}; it has: {', '.join([*of_arrays, *self._others])}")
        return entries()

    def supply_energy_j(self) -> float:
        """Energy in J that the array supply gave between its first and its last reading."""
        return self.supply().energy_j

    def verify(self) -> None:
        """Checks every committed row of every array against its checksum, a few at a time.

        Raises:
            StorageError: Committed rows are not those that were written.
        """
        for rows in self._rows.values():
            rows.verify()
        for other in self._others.values():
            other.verify()

    def summary(self) -> RecordingSummary:
        """What the recording holds."""
        supply = self.supply()
        return RecordingSummary(
            path=self.path,
            status=self.status,
            chip_id=self.info.chip_id,
            rig_name=self.header.rig_name,
            plan=str(self.header.plan.get("name", "")),
            run_id=self.header.run_id,
            started_utc=self.header.started_utc,
            ended_utc=self.ended_utc,
            mvms={array: self.committed(array) for array in self.arrays},
            writes={array: self.writes(array) for array in self.arrays},
            supply_readings=len(supply.time_s),
            energy_j=supply.energy_j,
        )

    def _dataset_of_writes(self, array: int, writes: Sequence[int]) -> MvmDataset:
        rows = self._array(array)
        if not writes or len(set(writes)) < len(writes) or not all(0 <= one < rows.write_count for one in writes):
            asked = f"{', '.join(map(str, writes)) or 'none'} {'was' if len(writes) < 2 else 'were'}"
            raise StorageError(
                f"{self.path}: array {array} has {counted(rows.write_count, 'write')}, counted from 0; {asked} asked "
                "for; name at least one, and each once"
            )
        mvms = [rows.mvms_of_write(write) for write in writes]
        pattern = np.repeat(np.arange(len(writes)), [len(one["write"]) for one in mvms]).astype(np.int64)
        if not len(pattern):
            raise StorageError(f"{self.path}: no MVM was committed of write {', '.join(map(str, writes))}")
        targets = stacked([rows.write_columns(write, write + 1) for write in writes])
        together = stacked(mvms)
        with believed(self.path):
            return mvm_dataset(self.info, array, together, targets, pattern, self._temperature_k(together))

    def _part(self, array: int, mvms: streams.Columns, start: int) -> MvmBlock:
        """Some MVMs with the writes that they read."""
        numbers = mvms["write"].astype(np.int64)
        first, last = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, -1)
        with believed(self.path):
            writes = self._array(array).write_columns(first, last + 1)
            temperature_k = self._temperature_k(mvms)
            return MvmBlock(start, first, mvm_dataset(self.info, array, mvms, writes, numbers - first, temperature_k))

    def _temperature_k(self, mvms: streams.Columns) -> FloatArray | None:
        settings = self._others.get(layout.SETTINGS)
        return None if settings is None else temperature_of(mvms, settings.columns(), self._axis_units)

    def _range(self, array: int, what: str, count: int, start: int, stop: int | None) -> tuple[int, int]:
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise StorageError(
                f"{self.path}: array {array} has {count} committed {what}, {start} to {stop} were asked for"
            )
        return start, stop

    def _look_if_needed(self, counts: dict[str, int], ended_utc_before: str, every: Sequence[layout.Stream]) -> None:
        """Looks where rows lie, if some are committed whose places are not known.

        A run that ends gives the places behind its last row back; one that goes on from there takes others.
        """
        self._given_back |= self.ended_utc != ended_utc_before
        short = any(streams.room(self._source, stream) < counts[stream.path] for stream in every)
        if short or (self._given_back and counts != self._counts and self._counts):
            self._source.look()
            self._given_back = False
        self._given_back |= self.status != "running"

    def _status(self) -> str:
        text = self._text("entry/status")
        if text == "running" and not self._source.is_being_written():
            # Asked again: a run may have ended, as it should, between the two.
            text = self._text("entry/status")
            return "interrupted" if text == "running" else text
        return text

    def _text(self, path: str) -> str:
        value = self._source.scalar(path)
        if not isinstance(value, bytes):
            raise TypeError(f"{path} is not a text")
        return value.decode()

    def _array(self, array: int) -> ArrayRows:
        if array not in self.arrays:
            arrays = ", ".join(str(one) for one in self.arrays) or "none"
            raise StorageError(f"{self.path}: has no array {array}; it has: {arrays}")
        return self._rows[array]
