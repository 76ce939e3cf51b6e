"""Runs a plan on a rig: point, reading, committed block, event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from labrig.cleanup import finish
from labrig.config import RigConfig
from labrig.events import BlockCommitted, EventBus, RunFinished, RunStarted, RunStatus
from labrig.interlock import SupplyFeed, wait_until_closed
from labrig.plans.base import MvmPoint, Plan, ProgramPoint, least_seconds
from labrig.recording.file import Durability
from labrig.recording.header import RecordingHeader
from labrig.recording.reader import Recording
from labrig.recording.writer import RecordingWriter
from labrig.rig import Rig, open_rig
from labrig_drivers.crossbar import MvmResult


@dataclass(frozen=True)
class RunSummary:
    """What a run cost.

    Attributes:
        mvms: MVMs committed.
        writes: Programmings committed.
        seconds: Wall time in s.
        joules: Energy in J from the array supply; None without one.
    """

    mvms: int
    writes: int
    seconds: float
    joules: float | None


class _Progress:
    """What is committed so far, also for a run that ends early."""

    def __init__(self) -> None:
        self.mvms = 0
        self.writes = 0
        self._started_s = time.monotonic()

    def summary(self, feed: SupplyFeed) -> RunSummary:
        return RunSummary(self.mvms, self.writes, time.monotonic() - self._started_s, feed.joules())


async def acquire(
    rig: Rig, plan: Plan, writer: RecordingWriter, bus: EventBus, *, done: Collection[str] = frozenset()
) -> RunSummary:
    """Runs all points of a plan on a powered rig; the next block is measured while the last one is written.

    MVMs whose point hash is in `done` are left out. What remains of an interrupted write is measured on a new one,
    since the chip went on drifting; a write of which nothing remains is not made again.

    While an interlock of the rig is open the array supply is off and the run waits; it then goes on with the same
    point. A programming that was in hand when the interlock opened is made again, as a new write.

    When cancelled, or when anything fails, the block in hand is committed or left out as a whole, a
    `RunFinished` with the status `aborted` is published, and the error goes on. The caller closes the writer.

    Raises:
        LabrigError: The board, the supply or the recording failed.
    """
    capacity = plan.capacity(rig.board.info)
    mvms, writes = sum(one.rows for one in capacity.values()), sum(one.writes for one in capacity.values())
    least_s = least_seconds(capacity, rig.board.info)
    bus.publish(RunStarted(plan.name, mvms, writes, writer.path, least_s))
    progress = _Progress()
    feed = SupplyFeed(rig, bus, writer.append_supply)
    status: RunStatus = "aborted"
    try:
        async with feed:
            await _run_points(rig, feed, plan, writer, bus, progress, done)
        status = "finished"
    finally:
        summary = progress.summary(feed)
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
) -> RunSummary:
    """Opens a rig, records a plan on it, and leaves all safe: supply off, file closed, instruments closed.

    Args:
        rig: A rig file that was read, or a rig that is not open yet.
        plan: What to measure.
        output: The recording; it must not exist. It is complete on disk before any output is switched on.
        bus: Gets every event.
        durability: What an acknowledged row survives, `process` or `power`.
        resume: Go on with the interrupted run in `output`: its committed points are not measured again.

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
            await wait_until_closed(opened, bus)
            async with opened.powered():
                return await acquire(opened, plan, writer, bus, done=done)


def _committed_points(path: Path) -> frozenset[str]:
    """Hashes of the points that a recording holds, after every committed row was checked."""
    with Recording.open(path) as recording:
        recording.verify()
        return frozenset(point for array in recording.arrays for point in recording.point_hashes(array))


async def _run_points(
    rig: Rig,
    feed: SupplyFeed,
    plan: Plan,
    writer: RecordingWriter,
    bus: EventBus,
    progress: _Progress,
    done: Collection[str],
) -> None:
    pending: asyncio.Task[None] | None = None
    # A write is made when the first MVM that needs it comes, so that a resumed run makes none for nothing.
    wanted: dict[int, ProgramPoint] = {}
    try:
        async for point in plan.points(rig.board.info):
            if isinstance(point, ProgramPoint):
                wanted[point.array] = point
                continue
            if point.hash in done:
                continue
            write = wanted.pop(point.array, None)
            if write is not None:
                # The recording counts writes by their order, so the last block of the old one comes first.
                if pending is not None:
                    await asyncio.shield(pending)
                report = await feed.make(partial(rig.board.program, write.array, write.conductance_s))
                await writer.append_write(write.array, write.conductance_s, report)
                progress.writes += 1
            result = await feed.make(partial(rig.board.mvm, point.array, point.voltage_v))
            if pending is not None:
                await asyncio.shield(pending)
            pending = asyncio.create_task(_commit(point, result, writer, bus, progress))
    finally:
        if pending is not None:
            await finish(_ended(pending))
    if pending is not None:
        pending.result()


async def _commit(
    point: MvmPoint, result: MvmResult, writer: RecordingWriter, bus: EventBus, progress: _Progress
) -> None:
    await writer.append_mvms(point.array, point.kind, point.voltage_v, result, point.hash)
    progress.mvms += len(point.voltage_v)
    bus.publish(BlockCommitted(point.array, point.write, len(point.voltage_v), progress.mvms))


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.gather(task, return_exceptions=True)
