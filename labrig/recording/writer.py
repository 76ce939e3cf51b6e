"""`RecordingWriter`: a recording that grows while a run lasts, from an event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from labrig.events import RunStatus
from labrig.plans.base import BesideCapacity, CurvePoint, StreamCapacity
from labrig.recording.file import NO_SETTING, BlockLabel, Durability, RecordingFile
from labrig.recording.group_commit import GroupCommit
from labrig.recording.header import RecordingHeader
from labrig.recording.journal import POINT_HASH_BYTES
from labrig.recording.nodes import HDF5_REFUSES, in_words
from labrig_drivers.crossbar import BoardInfo, FloatArray, MvmResult, ProgramReport
from labrig_drivers.errors import StorageError
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading

T = TypeVar("T")

# Blocks that may wait for the disk before whoever measures has to wait too.
_QUEUE_LENGTH = 8
# Blocks that share two fsyncs: half of the queue, so that the other half fills meanwhile.
_POWER_GROUP = _QUEUE_LENGTH // 2


class RecordingWriter:
    """Writes one recording. Made by `create`; all methods belong to one event loop.

    One thread owns the file. What an `append_...` acknowledged by returning, or the future of a `put_...` by its
    result, is in the file, and stays there when the process (or, with `durability="power"`, the machine) dies. A call
    that is cancelled is carried out anyway, unless it still waited for room.
    """

    def __init__(self, path: Path, file: RecordingFile, thread: ThreadPoolExecutor, durability: Durability) -> None:
        self.path = path
        self._file = file
        self._thread = thread
        # A commit that survives only the process costs next to nothing, so each block is answered at once.
        group = _POWER_GROUP if durability == "power" else 1
        self._queue = GroupCommit(path, thread, file.commit, queue=_QUEUE_LENGTH, group=group)
        self._closed = False

    @classmethod
    async def create(
        cls,
        path: Path | str,
        header: RecordingHeader,
        info: BoardInfo,
        capacity: Mapping[int, StreamCapacity],
        *,
        supply_capacity: int = 20_000,
        durability: Durability = "process",
        beside: BesideCapacity | None = None,
        axis_units: Mapping[str, str] | None = None,
        resume: bool = False,
    ) -> RecordingWriter:
        """Creates the file with all its structure and space, safely on disk; or opens one to go on with it.

        Args:
            path: The file; it must not exist, unless `resume`.
            header: What is known before the run.
            info: The board.
            capacity: Room for each array that will be recorded; a stream that outgrows it is extended.
            supply_capacity: Room for readings of the supply.
            durability: `process` or `power`: what an acknowledged row survives.
            beside: Room for settings of axes and for curves.
            axis_units: Unit of each axis that the run moves, by its name.
            resume: Go on with the interrupted run of the same rig, plan and chip.

        Raises:
            StorageError: The file exists already, cannot be created, or does not fit on the disk, and none is left; or
                it cannot be resumed, and its rows are as they were.
        """
        path = Path(path)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="labrig-recording")
        created: list[RecordingFile] = []

        def make() -> None:
            created.append(
                RecordingFile(
                    path,
                    header,
                    info,
                    capacity,
                    supply_capacity,
                    durability,
                    beside=beside,
                    axis_units=axis_units,
                    resume=resume,
                )
            )

        try:
            await undivided(_run(thread, make))
        except BaseException:
            if created:
                # Cancelled while the file was made: nobody will ever write into it.
                await undivided(_run(thread, created[0].abandon if resume else created[0].discard))
            thread.shutdown()
            raise
        return cls(path, created[0], thread, durability)

    @property
    def run_id(self) -> str:
        """Identity of the run, of its first start where it was resumed; empty where the file has none."""
        return self._file.run_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close("finished" if exc is None else "aborted")

    async def append_write(self, array: int, conductance_s: FloatArray, report: ProgramReport) -> int:
        """Records one programming of an array; returns its index in this file, from 0 for each array.

        Args:
            array: Which array.
            conductance_s: Target in S, `[rows, columns]`.
            report: What the board said of it.

        Raises:
            StorageError: The write failed, or one before it did.
        """
        return await asyncio.shield(await self.put_write(array, conductance_s, report))

    async def append_mvms(
        self, array: int, kind: int, voltage_v: FloatArray, result: MvmResult, point_hash: str
    ) -> int:
        """Records one block of MVMs of the latest recorded write of its array.

        Args:
            array: Which array.
            kind: What the vectors were for, such as a `StimulusKind`.
            voltage_v: Inputs in V, `[batch, rows]`.
            result: What the board answered.
            point_hash: 32 hex digits that name the point.

        Returns:
            How many MVMs of this array are committed now.

        Raises:
            StorageError: The write failed, or one before it did.
            StateError: No write of this array was recorded before, or the recording has no such array.
            ValueError: `point_hash` is not 32 hex digits, or arrays have the wrong shape.
        """
        return await asyncio.shield(await self.put_mvms(array, kind, voltage_v, result, point_hash))

    async def append_supply(self, reading: Reading) -> int:
        """Records one reading of the array supply; returns how many are committed.

        Raises:
            StorageError: The write failed, or one before it did.
        """
        columns = {
            "time_s": np.array([reading.time_s]),
            "voltage_v": np.array([reading.voltage_v]),
            "current_a": np.array([reading.current_a]),
            "in_compliance": np.array([reading.in_compliance], dtype=np.uint8),
        }
        return await asyncio.shield(await self._queue.put(lambda: self._file.stage_supply(columns)))

    async def append_setting(self, time_s: float, axes: Mapping[str, tuple[float, float]]) -> int:
        """Records that axes of the rig arrived; returns the index of the setting in this file.

        Args:
            time_s: UTC in s of the arrival.
            axes: Set point and reading of every axis that the run moves, by name; NaN for one that was not moved yet.

        Raises:
            StorageError: The write failed, or one before it did.
            StateError: The recording was made for a run that moves no axes.
        """
        columns = {"time_s": np.array([time_s])}
        for name, (set_point, reading) in axes.items():
            columns |= {f"{name}_set": np.array([set_point]), f"{name}_read": np.array([reading])}
        return await asyncio.shield(await self._queue.put(lambda: self._file.stage_setting(columns), ends_group=True))

    async def note_settings(self, name: str, settings: Mapping[str, str]) -> None:
        """Records how an instrument says that it is set, in the place of what it said before.

        Args:
            name: The instrument's name in the rig file.
            settings: What it said, see `ReportsSettings`.

        Raises:
            StorageError: The write failed, or one before it did.
            StateError: There is no such instrument.
            ValueError: The text is too long.
        """

        def stage() -> int:
            self._file.note_settings(name, settings)
            return 0

        await asyncio.shield(await self._queue.put(stage))

    async def put_write(
        self, array: int, conductance_s: FloatArray, report: ProgramReport, *, setting: int = NO_SETTING
    ) -> asyncio.Future[int]:
        """As `append_write`, but waits only for room in the queue; the future gets the rest of it."""
        columns = {
            "target_conductance_s": np.array(conductance_s, dtype=np.float32)[None],
            "programmed_at_s": np.array([report.time_s]),
            "rms_error_s": np.array([report.rms_error_s]),
            "pulses": np.array([report.pulses], dtype=np.int64),
            "board_write": np.array([report.write_index], dtype=np.int64),
        }
        return await self._queue.put(lambda: self._file.stage_write(array, columns, setting), ends_group=True)

    async def put_mvms(
        self,
        array: int,
        kind: int,
        voltage_v: FloatArray,
        result: MvmResult,
        point_hash: str,
        *,
        interval_s: tuple[float, float] = (math.nan, math.nan),
        setting: int = NO_SETTING,
    ) -> asyncio.Future[int]:
        """As `append_mvms`, but waits only for room in the queue; the future gets the rest of it.

        Blocks are written in the order in which they are put. Whoever awaits the future shields it, or a cancellation
        leaves unknown what became of the block.

        Args:
            array: Which array.
            kind: What the vectors were for.
            voltage_v: Inputs in V, `[batch, rows]`.
            result: What the board answered.
            point_hash: 32 hex digits that name the point.
            interval_s: UTC in s, by the host, when the request was made and when it was answered.
            setting: Index of the setting of the axes that was in force.
        """
        label = BlockLabel(_point(point_hash), int(kind), *interval_s)
        # Copies: the caller may reuse its arrays while the block waits.
        columns: dict[str, NDArray[np.generic]] = {
            "voltage_v": np.array(voltage_v, dtype=np.float32),
            "current_code": np.array(result.code, dtype=np.int16),
            "saturated": np.array(result.saturated, dtype=np.uint8),
            "time_s": np.array(result.time_s, dtype=np.float64),
        }
        return await self._queue.put(lambda: self._file.stage_mvms(array, columns, label, setting))

    async def put_curve(
        self,
        point: CurvePoint,
        readings: Sequence[Reading],
        *,
        interval_s: tuple[float, float] = (math.nan, math.nan),
        setting: int = NO_SETTING,
    ) -> asyncio.Future[int]:
        """Records one curve, a reading for each of its levels; the future gets how many readings are committed then.

        Args:
            point: The curve.
            readings: What was measured.
            interval_s: UTC in s, by the host, when the request was made and when it was answered.
            setting: Index of the setting of the axes that was in force.
        """
        count = len(readings)
        cell = (-1, -1, -1) if point.array is None else (point.array, point.row, point.column)
        columns: dict[str, NDArray[np.generic]] = {
            "curve": np.full(count, point.curve, np.int32),
            **{
                name: np.full(count, value, np.int32)
                for name, value in zip(("array", "row", "column"), cell, strict=True)
            },
            "level_v": np.array(point.voltage_v),
            "voltage_v": np.array([one.voltage_v for one in readings]),
            "current_a": np.array([one.current_a for one in readings]),
            "in_compliance": np.array([one.in_compliance for one in readings], dtype=np.uint8),
            "time_s": np.array([one.time_s for one in readings]),
        }
        label = BlockLabel(_point(point.hash), 0, *interval_s)
        return await self._queue.put(lambda: self._file.stage_curve(columns, label, setting))

    async def put_missed(self, array: int, point_hash: str, time_s: float) -> asyncio.Future[int]:
        """Records that a point of an array was missed at `time_s` (UTC in s), so that it is never tried again."""
        label = BlockLabel(_point(point_hash), 0, time_s, time_s)
        return await self._queue.put(lambda: self._file.stage_missed(array, label))

    async def recorded_rows(self, stream_path: str, start: int, stop: int) -> dict[str, NDArray[np.generic]]:
        """Committed rows of a stream, by column, such as those that a resumed run does not measure again.

        Args:
            stream_path: Group of the stream, such as `entry/array_0`.
            start: First row.
            stop: Row after the last.

        Raises:
            StorageError: They cannot be read.
        """
        try:
            return await undivided(_run(self._thread, lambda: self._file.recorded_rows(stream_path, start, stop)))
        except (*HDF5_REFUSES, KeyError) as error:
            raise StorageError(
                f"{self.path}: {stream_path}: rows {start} to {stop - 1} cannot be read: {in_words(error)}"
            ) from error

    async def close(self, status: RunStatus = "finished") -> None:
        """Ends the recording: unused room is cut off, end and status are noted. Harmless when closed.

        A cancellation waits until this is done.

        Raises:
            StorageError: The file could not be brought to an end; what was acknowledged is in it.
        """
        if self._closed:
            return
        self._closed = True
        self._queue.close()
        try:
            await undivided(_run(self._thread, lambda: self._end(status)))
        finally:
            self._thread.shutdown()

    def _end(self, status: RunStatus) -> None:
        if self._queue.failure is not None:
            self._file.abandon()
            return
        try:
            self._file.close(status)
        except HDF5_REFUSES as error:
            raise StorageError(f"{self.path}: could not be closed: {in_words(error)}") from error


def _point(point_hash: str) -> bytes:
    point = bytes.fromhex(point_hash)
    if len(point) != POINT_HASH_BYTES:
        raise ValueError(f"point_hash must be {2 * POINT_HASH_BYTES} hex digits, got {point_hash!r}")
    return point


async def _run(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)
