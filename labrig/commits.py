"""Hands what a run measures to its recording, never waiting for more than room in the queue, and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from labrig.events import AxesArrived, BlockCommitted, CurveCommitted, EventBus, MeasuredBlock, PointMissed, RunStatus
from labrig.plans.base import CurvePoint, MvmPoint, ProgramPoint
from labrig.recording.progress import Progress
from labrig.recording.writer import RecordingWriter
from labrig_drivers.crossbar import FloatArray, MvmResult, ProgramReport
from labrig_drivers.source_meter import Reading

T = TypeVar("T")


@dataclass(frozen=True)
class RunSummary:
    """What a run cost.

    Attributes:
        status: How it ended.
        mvms: MVMs committed.
        writes: Programmings committed.
        seconds: Wall time in s.
        joules: Energy in J from the array supply; None without one.
        measuring_s: Time in s during which a request to a board or source-meter was under way.
        queueing_s: Time in s during which the next request waited because the recording's queue was full.
        resting_s: Time in s during which the plan wanted nothing to be measured, or axes moved.
        curves: I-V curves committed.
        missed: Points that could not be measured at the age that they were due at.
    """

    status: RunStatus
    mvms: int
    writes: int
    seconds: float
    joules: float | None
    measuring_s: float = 0.0
    queueing_s: float = 0.0
    resting_s: float = 0.0
    curves: int = 0
    missed: int = 0

    @property
    def idle_share(self) -> float:
        """The part of the time, 0 to 1, in which the board had nothing to do though the plan wanted it to measure."""
        wanted_s = self.seconds - self.resting_s
        return max(0.0, 1.0 - self.measuring_s / wanted_s) if wanted_s > 0.0 else 0.0


class Commits:
    """Hands what was measured to the recording.

    Args:
        writer: The recording.
        bus: Gets an event for everything that is committed.
        progress: What the recording holds already.
    """

    def __init__(self, writer: RecordingWriter, bus: EventBus, progress: Progress) -> None:
        self._writer = writer
        self._bus = bus
        self._latest_write = {array: one.index for array, one in progress.last_writes.items()}
        self._open: set[asyncio.Future[int]] = set()
        self._failure: BaseException | None = None
        self._started_s = time.monotonic()
        self._utc_offset_s = time.time() - self._started_s
        self._interval_s = (0.0, 0.0)
        self._mvms = self._writes = self._curves = self._missed = 0
        self._measuring_s = self._queueing_s = self._resting_s = 0.0

    def utc_s(self) -> float:
        """UTC in s: the host's monotonic clock, mapped once."""
        return self._utc_offset_s + time.monotonic()

    async def timed(self, request: Callable[[], Awaitable[T]]) -> T:
        """Makes a request to an instrument, and notes when; the next `block` or `curve` carries it."""
        began_s = self.utc_s()
        try:
            return await request()
        finally:
            self._interval_s = (began_s, self.utc_s())
            self._measuring_s += self._interval_s[1] - began_s

    async def rested(self, rest: Callable[[], Awaitable[T]]) -> T:
        """Waits on purpose, and counts it as that."""
        began_s = time.monotonic()
        try:
            return await rest()
        finally:
            self._resting_s += time.monotonic() - began_s

    async def write(self, point: ProgramPoint, report: ProgramReport, setting: int) -> None:
        """Puts a programming into the queue."""
        put = self._writer.put_write(point.array, point.conductance_s, report, setting=setting)
        await self._put(put, partial(self._count_write, point.array))

    async def block(self, point: MvmPoint, result: MvmResult, setting: int, target_s: FloatArray | None = None) -> None:
        """Puts a block of MVMs into the queue; its event follows when it is committed.

        Args:
            point: What was measured.
            result: What the board answered.
            setting: Index of the setting of the axes in the recording.
            target_s: What the array was programmed to in S, for those who draw the block.
        """
        put = self._writer.put_mvms(
            point.array,
            point.kind,
            point.voltage_v,
            result,
            point.hash,
            interval_s=self._interval_s,
            setting=setting,
        )
        await self._put(put, partial(self._count_block, point, result, target_s))

    async def curve(self, point: CurvePoint, readings: Sequence[Reading], setting: int) -> None:
        """Puts a curve into the queue; its event follows when it is committed."""
        put = self._writer.put_curve(point, readings, interval_s=self._interval_s, setting=setting)
        await self._put(put, partial(self._count_curve, point))

    async def missed(self, point: MvmPoint, due_s: float, age_s: float) -> None:
        """Puts the note into the queue that a point can no longer be measured."""
        put = self._writer.put_missed(point.array, point.hash, self.utc_s())
        await self._put(put, partial(self._count_missed, PointMissed(point.array, point.write, due_s, age_s)))

    async def setting(self, axes: Mapping[str, tuple[float, float]]) -> int:
        """Records where the axes are, set point and reading by name; returns the setting's index in the recording."""
        index = await self._writer.append_setting(self.utc_s(), axes)
        self._bus.publish(AxesArrived(index, {name: reading for name, (_, reading) in axes.items()}))
        return index

    async def ended(self) -> None:
        """Waits until everything in the queue is committed, or failed."""
        while self._open:
            await asyncio.wait(self._open)
            # What counts the answers was registered before the wait, and runs before it returns.

    async def settled(self) -> None:
        """Waits until everything in the queue is committed; raises what a commit failed with."""
        await self.ended()
        self.check()

    def check(self) -> None:
        """Raises what a commit failed with: whatever is measured now could not be recorded."""
        if self._failure is not None:
            raise self._failure

    def summary(self, status: RunStatus, joules: float | None) -> RunSummary:
        """What is committed so far, also for a run that ends early."""
        return RunSummary(
            status=status,
            mvms=self._mvms,
            writes=self._writes,
            seconds=time.monotonic() - self._started_s,
            joules=joules,
            measuring_s=self._measuring_s,
            queueing_s=self._queueing_s,
            resting_s=self._resting_s,
            curves=self._curves,
            missed=self._missed,
        )

    async def _put(self, entry: Coroutine[object, object, asyncio.Future[int]], count: Callable[[], None]) -> None:
        started_s = time.monotonic()
        answer = await entry
        self._queueing_s += time.monotonic() - started_s
        self._open.add(answer)
        answer.add_done_callback(partial(self._answered, count))
        # A board that answers at once would otherwise keep the event loop to itself until the queue is full.
        await asyncio.sleep(0)
        self.check()

    def _answered(self, count: Callable[[], None], answer: asyncio.Future[int]) -> None:
        self._open.discard(answer)
        error = answer.exception()
        if error is None:
            count()
        elif self._failure is None:
            self._failure = error

    def _count_write(self, array: int) -> None:
        self._writes += 1
        self._latest_write[array] = self._latest_write.get(array, -1) + 1

    def _count_block(self, point: MvmPoint, result: MvmResult, target_s: FloatArray | None) -> None:
        rows = len(point.voltage_v)
        self._mvms += rows
        # The plan's own number differs where a programming was made again.
        write = self._latest_write.get(point.array, point.write)
        self._bus.publish(BlockCommitted(point.array, write, rows, self._mvms))
        if self._bus.wants_blocks:
            self._bus.publish_block(MeasuredBlock(point.array, write, target_s, point.voltage_v, result))

    def _count_curve(self, point: CurvePoint) -> None:
        self._curves += 1
        self._bus.publish(CurveCommitted(point.curve, len(point.voltage_v), self._curves))

    def _count_missed(self, event: PointMissed) -> None:
        self._missed += 1
        self._bus.publish(event)
