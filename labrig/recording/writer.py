"""`RecordingWriter`: a recording that grows while a run lasts, from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from labrig.cleanup import finish
from labrig.events import RunStatus
from labrig.plans.base import StreamCapacity
from labrig.recording.file import Durability, RecordingFile
from labrig.recording.group_commit import GroupCommit
from labrig.recording.header import RecordingHeader
from labrig.recording.layout import POINT_HASH_BYTES
from labrig_drivers.crossbar import BoardInfo, FloatArray, MvmResult, ProgramReport
from labrig_drivers.errors import StorageError
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
            resume: Go on with the interrupted run of the same rig, plan and chip.

        Raises:
            StorageError: The file exists already, cannot be created, or does not fit on the disk, and none is left; or
                it cannot be resumed, and its rows are as they were.
        """
        path = Path(path)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="labrig-recording")
        created: list[RecordingFile] = []

        def make() -> None:
            created.append(RecordingFile(path, header, info, capacity, supply_capacity, durability, resume=resume))

        try:
            await finish(_run(thread, make))
        except BaseException:
            if created:
                # Cancelled while the file was made: nobody will ever write into it.
                await finish(_run(thread, created[0].abandon if resume else created[0].discard))
            thread.shutdown()
            raise
        return cls(path, created[0], thread, durability)

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

    async def put_write(self, array: int, conductance_s: FloatArray, report: ProgramReport) -> asyncio.Future[int]:
        """As `append_write`, but waits only for room in the queue; the future gets the rest of it."""
        columns = {
            "target_conductance_s": np.array(conductance_s, dtype=np.float32)[None],
            "programmed_at_s": np.array([report.time_s]),
            "rms_error_s": np.array([report.rms_error_s]),
            "pulses": np.array([report.pulses], dtype=np.int64),
        }
        return await self._queue.put(lambda: self._file.stage_write(array, columns), ends_group=True)

    async def put_mvms(
        self, array: int, kind: int, voltage_v: FloatArray, result: MvmResult, point_hash: str
    ) -> asyncio.Future[int]:
        """As `append_mvms`, but waits only for room in the queue; the future gets the rest of it.

        Blocks are written in the order in which they are put. Whoever awaits the future shields it, or a cancellation
        leaves unknown what became of the block.
        """
        point = bytes.fromhex(point_hash)
        if len(point) != POINT_HASH_BYTES:
            raise ValueError(f"point_hash must be {2 * POINT_HASH_BYTES} hex digits, got {point_hash!r}")
        # Copies: the caller may reuse its arrays while the block waits.
        columns: dict[str, NDArray[np.generic]] = {
            "voltage_v": np.array(voltage_v, dtype=np.float32),
            "current_code": np.array(result.code, dtype=np.int16),
            "saturated": np.array(result.saturated, dtype=np.uint8),
            "time_s": np.array(result.time_s, dtype=np.float64),
        }
        return await self._queue.put(lambda: self._file.stage_mvms(array, columns, kind, point))

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
            await finish(_run(self._thread, lambda: self._end(status)))
        finally:
            self._thread.shutdown()

    def _end(self, status: RunStatus) -> None:
        if self._queue.failure is not None:
            self._file.abandon()
            return
        try:
            self._file.close(status)
        except (OSError, RuntimeError) as error:
            raise StorageError(f"{self.path}: could not be closed: {error}") from error


async def _run(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)
