"""Runs a plan on a rig: point, reading, committed block, event."""

from __future__ import annotations

import asyncio
from pathlib import Path

from labrig.commits import Commits, RunSummary
from labrig.conditions import rig_conditions
from labrig.config import RigConfig
from labrig.energy_meter import SUPPLY_PERIOD_S
from labrig.events import EventBus, Message, RunFinished, RunStarted, RunStatus
from labrig.interlock import SupplyFeed, wait_until_clear
from labrig.plan_time import needs_on
from labrig.plan_walk import PlanWalk
from labrig.plans.base import BesideCapacity, Plan, PlanNeeds
from labrig.recording.contents import Contents
from labrig.recording.file import Durability
from labrig.recording.header import RecordingHeader
from labrig.recording.progress import Progress, read_progress
from labrig.recording.writer import RecordingWriter
from labrig.rig import Rig, open_rig
from labrig.run_control import RunControl
from labrig_drivers.errors import ConfigError, InstrumentError, LinkError, ProtocolError, StorageError

__all__ = ["RunSummary", "acquire", "run_sweep"]


async def acquire(
    rig: Rig,
    plan: Plan,
    writer: RecordingWriter,
    bus: EventBus,
    *,
    progress: Progress | None = None,
    control: RunControl | None = None,
) -> RunSummary:
    """Runs all points of a plan on a powered rig; blocks are measured while earlier ones are written.

    It waits for the disk only while the recording's queue is full.

    Points that `progress` has are left out. What remains of an interrupted write is measured on it where the board
    shows that it is still there, else on a new one; a write of which nothing remains is not made again. A point whose
    time has passed is noted as missed.

    While an interlock of the rig is open the array supply is off and the run waits; it then goes on with the same
    point. A programming that was in hand when the interlock opened is made again, as a new write. The same happens
    while `control` holds the run; when it stops the run, all that was measured is committed, the status is `stopped`,
    and this returns.

    When cancelled, or when anything fails, blocks in hand are committed or left out as a whole, a
    `RunFinished` with the status `aborted` is published, and the error goes on. The caller closes the writer.

    Args:
        rig: Open, and powered where it has an array supply.
        plan: What to measure.
        writer: The recording, created with the plan's capacity.
        bus: Gets the events of the run.
        progress: What an interrupted run has committed; None for a new one.
        control: Holds or stops the run from outside; None where nobody does.

    Raises:
        LabrigError: The board, the supply or the recording failed.
    """
    needs = needs_on(plan, rig)
    progress = progress or Progress()
    bus.publish(_started(plan, needs, writer, progress))
    commits = Commits(writer, bus, progress)
    period_s = SUPPLY_PERIOD_S if needs.beside.supply_period_s is None else needs.beside.supply_period_s
    feed = SupplyFeed(rig, bus, writer.append_supply, control, settle=commits.settled, period_s=period_s)
    status: RunStatus = "aborted"
    try:
        async with feed:
            ended = await PlanWalk(rig, feed, commits, writer, bus, progress).run(plan)
        status = ended
    finally:
        summary = commits.summary(status, feed.joules())
        bus.publish(RunFinished(status, summary.mvms, summary.writes, summary.seconds, summary.joules))
    return summary


def _started(plan: Plan, needs: PlanNeeds, writer: RecordingWriter, progress: Progress) -> RunStarted:
    """What is ahead of a run: what an interrupted one recorded already is not counted again."""
    return RunStarted(
        plan.name,
        max(needs.mvms - progress.mvms, 0),
        max(needs.writes - progress.writes, 0),
        writer.path,
        needs.least_s,
        max(needs.beside.curves - progress.curves, 0),
        writer.run_id or None,
    )


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
        output: The recording; it must not exist. It is complete on disk before any output is switched on; where a
            run fails before anything is recorded, it is removed.
        bus: Gets every event.
        durability: What an acknowledged row survives, `process` or `power`.
        resume: Go on with the interrupted run in `output`: its committed points are not measured again.
        control: Stops, pauses and suspends the run.

    Raises:
        LabrigError: Opening, measuring, recording or closing failed, or the recording is of another rig, plan or chip.
    """
    progress = await asyncio.to_thread(read_progress, Path(output)) if resume else Progress()
    async with rig if isinstance(rig, Rig) else open_rig(rig) as opened:
        info = opened.board.info
        header = RecordingHeader.for_rig(opened, plan.describe())
        needs = needs_on(plan, opened)
        writer = await RecordingWriter.create(
            output,
            header,
            info,
            needs.capacity,
            durability=durability,
            beside=needs.beside,
            axis_units=axis_units(opened, needs.beside),
            resume=resume,
        )
        # Leaving: first the supply, then the file, then the instruments.
        try:
            async with writer:
                if progress.finished:
                    bus.publish(Message(f"{output}: the run came to its end before; nothing is left to be measured"))
                    await writer.close("finished")
                    return RunSummary("finished", 0, 0, 0.0, None)
                control = control or RunControl()
                with control.watching(rig_conditions(opened)):
                    await wait_until_clear(opened, bus, control)
                    async with opened.powered():
                        await _note_settings(opened, writer, bus)
                        summary = await acquire(opened, plan, writer, bus, progress=progress, control=control)
                await writer.close(summary.status)
                return summary
        except BaseException:
            if _is_empty(writer.path):
                # It would only be in the way when the same command is given again.
                writer.path.unlink(missing_ok=True)
                bus.publish(Message(f"nothing was recorded: {output} is not kept"))
            raise


def axis_units(rig: Rig, beside: BesideCapacity) -> dict[str, str]:
    """The unit of each axis that a plan moves, by its name.

    Raises:
        ConfigError: The rig has not all axes and source-meters that the plan names, or an axis does not reach as far.
    """
    wanted = (("axis", beside.axes, rig.axes), ("source-meter", beside.meters, rig.source_meters))
    faults = [
        f"{what} {name!r} is not there (there are: {', '.join(present) or 'none'})"
        for what, names, present in wanted
        for name in names
        if name not in present
    ]
    for name, (lowest, highest) in beside.axes.items():
        axis = rig.axes.get(name)
        if axis is not None and not axis.low <= lowest <= highest <= axis.high:
            faults.append(
                f"axis {name!r} goes from {axis.low:g} to {axis.high:g} {axis.unit}, "
                f"the plan from {lowest:g} to {highest:g} {axis.unit}"
            )
    if faults:
        raise ConfigError(f"{rig.config.path}: the plan needs what the rig has not: {'; '.join(faults)}")
    return {name: rig.axes[name].unit for name in beside.axes}


def _is_empty(path: Path) -> bool:
    """Whether a recording has no row; one that cannot be read is left to whoever looks into it."""
    try:
        with Contents.open(path) as contents:
            return not any(stream.rows for stream in contents.streams())
    except StorageError:
        return False


async def _note_settings(rig: Rig, writer: RecordingWriter, bus: EventBus) -> None:
    """Records how each source-meter says that it is set, the supply as it feeds the board.

    What an instrument cannot say is no reason not to measure.
    """
    for name in rig.source_meters:
        try:
            await writer.note_settings(name, await rig.read_settings(name))
        except (LinkError, ProtocolError, InstrumentError, ValueError) as error:
            bus.publish(Message(f"the settings of {name} are not recorded: {error}"))
