"""Runs a plan on a rig: point, reading, committed block, event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from labrig.cleanup import finish
from labrig.config import RigConfig
from labrig.events import BlockCommitted, EventBus, RunFinished, RunStarted, RunStatus
from labrig.interlock import RunStoppedError, SupplyFeed, wait_until_clear
from labrig.plans.base import MvmPoint, Plan, ProgramPoint, least_seconds
from labrig.recording.file import Durability
from labrig.recording.header import RecordingHeader
from labrig.recording.reader import Recording
from labrig.recording.writer import RecordingWriter
from labrig.rig import Rig, open_rig
from labrig.run_control import RunControl
from labrig_drivers.crossbar import MvmResult, ProgramReport
from labrig_drivers.errors import StorageError

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
        measuring_s: Time in s during which a request to the board was under way.
        queueing_s: Time in s during which the next request waited because the recording's queue was full.
    """

    status: RunStatus
    mvms: int
    writes: int
    seconds: float
    joules: float | None
    measuring_s: float = 0.0
    queueing_s: float = 0.0

    @property
    def idle_share(self) -> float:
        """The part of the wall time, 0 to 1, in which the board had nothing to do."""
        return max(0.0, 1.0 - self.measuring_s / self.seconds) if self.seconds > 0.0 else 0.0


class _Commits:
    """Hands what was measured to the recording, never waiting for more than room in its queue."""

    def __init__(self, writer: RecordingWriter, bus: EventBus) -> None:
        self._writer = writer
        self._bus = bus
        self._open: set[asyncio.Future[int]] = set()
        self._failure: BaseException | None = None
        self._started_s = time.monotonic()
        self._mvms = 0
        self._writes = 0
        self._measuring_s = 0.0
        self._queueing_s = 0.0

    async def timed(self, request: Callable[[], Awaitable[T]]) -> T:
        """Makes a request to the board."""
        started_s = time.monotonic()
        try:
            return await request()
        finally:
            self._measuring_s += time.monotonic() - started_s

    async def write(self, point: ProgramPoint, report: ProgramReport) -> None:
        """Puts a programming into the queue."""
        await self._put(self._writer.put_write(point.array, point.conductance_s, report), self._count_write)

    async def block(self, point: MvmPoint, result: MvmResult) -> None:
        """Puts a block of MVMs into the queue; its event follows when it is committed."""
        await self._put(
            self._writer.put_mvms(point.array, point.kind, point.voltage_v, result, point.hash),
            partial(self._count_block, point),
        )

    async def ended(self) -> None:
        """Waits until everything in the queue is committed, or failed."""
        while self._open:
            await asyncio.wait(self._open)
            # What counts the answers was registered before the wait, and runs before it returns.

    def check(self) -> None:
        """Raises what a commit failed with: whatever is measured now could not be recorded."""
        if self._failure is not None:
            raise self._failure

    def summary(self, status: RunStatus, feed: SupplyFeed) -> RunSummary:
        """What is committed so far, also for a run that ends early."""
        seconds = time.monotonic() - self._started_s
        return RunSummary(status, self._mvms, self._writes, seconds, feed.joules(), self._measuring_s, self._queueing_s)

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

    def _count_write(self) -> None:
        self._writes += 1

    def _count_block(self, point: MvmPoint) -> None:
        rows = len(point.voltage_v)
        self._mvms += rows
        self._bus.publish(BlockCommitted(point.array, point.write, rows, self._mvms))


async def acquire(
    rig: Rig,
    plan: Plan,
    writer: RecordingWriter,
    bus: EventBus,
    *,
    done: Collection[str] = frozenset(),
    control: RunControl | None = None,
) -> RunSummary:
    """Runs all points of a plan on a powered rig; blocks are measured while earlier ones are written.

    It waits for the disk only while the recording's queue is full.

    MVMs whose point hash is in `done` are left out. What remains of an interrupted write is measured on a new one,
    since the chip went on drifting; a write of which nothing remains is not made again.

    While an interlock of the rig is open the array supply is off and the run waits; it then goes on with the same
    point. A programming that was in hand when the interlock opened is made again, as a new write. The same happens
    while `control` holds the run; when it stops the run, all that was measured is committed, the status is `stopped`,
    and this returns.

    When cancelled, or when anything fails, blocks in hand are committed or left out as a whole, a
    `RunFinished` with the status `aborted` is published, and the error goes on. The caller closes the writer.

    Raises:
        LabrigError: The board, the supply or the recording failed.
    """
    capacity = plan.capacity(rig.board.info)
    mvms, writes = sum(one.rows for one in capacity.values()), sum(one.writes for one in capacity.values())
    least_s = least_seconds(capacity, rig.board.info)
    bus.publish(RunStarted(plan.name, mvms, writes, writer.path, least_s))
    commits = _Commits(writer, bus)
    feed = SupplyFeed(rig, bus, writer.append_supply, control)
    status: RunStatus = "aborted"
    try:
        async with feed:
            ended = await _run_points(rig, feed, plan, commits, done)
        status = ended
    finally:
        summary = commits.summary(status, feed)
        bus.publish(RunFinished(status, summary.mvms, summary.writes, summary.seconds, summary.joules))
    return summary


async def run_sweep(
    rig: RigConfig | Rig,
    plan: Plan,
    output: Path | str,
    bus: EventBus,
    durability: Durability = "process",
    *,
    resume: bool = False,
    control: RunControl | None = None,
) -> RunSummary:
    """Opens a rig, records a plan on it, and leaves all safe: supply off, file closed, instruments closed.

    Args:
        rig: A rig file that was read, or a rig that is not open yet.
        plan: What to measure.
        output: The recording; it must not exist. It is complete on disk before any output is switched on.
        bus: Gets every event.
        durability: What an acknowledged row survives, `process` or `power`.
        resume: Go on with the interrupted run in `output`: its committed points are not measured again.
        control: Stops, pauses and suspends the run.

    Raises:
        LabrigError: Opening, measuring, recording or closing failed, or the recording is of another rig, plan or chip.
    """
    done = await asyncio.to_thread(_committed_points, Path(output)) if resume else frozenset[str]()
    async with rig if isinstance(rig, Rig) else open_rig(rig) as opened:
        info = opened.board.info
        header = RecordingHeader.for_rig(opened, plan.describe())
        capacity = plan.capacity(info)
        writer = await RecordingWriter.create(output, header, info, capacity, durability=durability, resume=resume)
        # Leaving: first the supply, then the file, then the instruments.
        async with writer:
            control = control or RunControl()
            await wait_until_clear(opened, bus, control)
            async with opened.powered():
                summary = await acquire(opened, plan, writer, bus, done=done, control=control)
            await writer.close(summary.status)
            return summary


def _committed_points(path: Path) -> frozenset[str]:
    """Hashes of the points that a recording holds, after every committed row was checked."""
    with Recording.open(path) as recording:
        if recording.status == "running":
            raise StorageError(f"{path}: is being written by another program; resume it when that has ended")
        recording.verify()
        return frozenset(point for array in recording.arrays for point in recording.point_hashes(array))


async def _run_points(
    rig: Rig, feed: SupplyFeed, plan: Plan, commits: _Commits, done: Collection[str]
) -> Literal["finished", "stopped"]:
    status: Literal["finished", "stopped"] = "finished"
    # A write is made when the first MVM that needs it comes, so that a resumed run makes none for nothing.
    wanted: dict[int, ProgramPoint] = {}
    try:
        async for point in plan.points(rig.board.info):
            if isinstance(point, ProgramPoint):
                wanted[point.array] = point
                continue
            if done and point.hash in done:
                continue
            write = wanted.pop(point.array, None)
            if write is not None:
                program = partial(rig.board.program, write.array, write.conductance_s)
                # The recording counts writes by their order; the queue keeps it.
                await commits.write(write, await feed.make(partial(commits.timed, program)))
            mvm = partial(rig.board.mvm, point.array, point.voltage_v)
            await commits.block(point, await feed.make(partial(commits.timed, mvm)))
    except RunStoppedError:
        status = "stopped"
    finally:
        await finish(commits.ended())
    commits.check()
    return status
