"""Carries out the points of a plan, in order.

Axes are set and arrays programmed when a measurement first needs it, so that a resumed run does neither for what is
measured already.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import numpy as np

from labrig.board_time import BoardTime
from labrig.commits import Commits
from labrig.events import EventBus, Message
from labrig.interlock import RunStoppedError, SupplyFeed
from labrig.plans.base import Answer, CurvePoint, MvmPoint, Plan, Point, ProgramPoint, SettingPoint
from labrig.plans.faults import plan_faults
from labrig.recorded_answers import recorded_answer
from labrig.recording.file import NO_SETTING
from labrig.recording.progress import Progress
from labrig.recording.writer import RecordingWriter
from labrig.rig import Rig
from labrig.write_check import restore_board, still_written
from labrig_drivers.capabilities import CELL_SWEEP, CellSweep, require_capability
from labrig_drivers.errors import ConfigError, StateError
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading

# A pause that is longer is announced.
_LONG_REST_S = 5.0


@dataclass(frozen=True, eq=False)
class _Setting:
    """Where all axes should be that the plan has moved so far."""

    values: Mapping[str, float]
    settle_s: float


@dataclass(frozen=True, eq=False)
class _Write:
    """What the plan wants on an array, and where the axes stood when it said so."""

    point: ProgramPoint
    setting: _Setting | None


class PlanWalk:
    """One run of one plan.

    Args:
        rig: The rig, open and powered.
        feed: Makes the requests.
        commits: Takes what was measured.
        writer: The recording, which answers for what it holds already.
        bus: Gets messages.
        progress: What the recording holds already.
    """

    def __init__(
        self,
        rig: Rig,
        feed: SupplyFeed,
        commits: Commits,
        writer: RecordingWriter,
        bus: EventBus,
        progress: Progress,
    ) -> None:
        self._rig = rig
        self._feed = feed
        self._commits = commits
        self._writer = writer
        self._bus = bus
        self._progress = progress
        self._time = BoardTime(rig.board, feed.rest)
        self._restored = False
        # What the plan wants, and what is.
        self._wanted_setting: _Setting | None = None
        self._setting: _Setting | None = None
        self._setting_index = NO_SETTING
        self._axes: dict[str, tuple[float, float]] = {}
        self._wanted: dict[int, _Write] = {}
        self._on_array: dict[int, ProgramPoint] = {}
        self._programmed_at_s: dict[int, float] = {}
        # Which recorded write the plan's present one was, where points of it are recorded.
        self._recorded_as: dict[int, int] = {}

    async def run(self, plan: Plan) -> Literal["finished", "stopped"]:
        """Carries out every point that is not recorded yet; ends with everything committed.

        Raises:
            LabrigError: An instrument or the recording failed.
        """
        status: Literal["finished", "stopped"] = "finished"
        try:
            self._restored = await restore_board(self._rig.board, self._progress)
            async with aclosing(plan.points(self._rig.board.info)) as points:
                answer: Answer = None
                while True:
                    try:
                        with plan_faults(plan.name, "its next point"):
                            point = await points.asend(answer)
                    except StopAsyncIteration:
                        break
                    answer = await self._visit(point)
        except RunStoppedError:
            status = "stopped"
        finally:
            await undivided(self._commits.ended())
        self._commits.check()
        return status

    async def _visit(self, point: Point) -> Answer:
        match point:
            case SettingPoint():
                earlier = {} if self._wanted_setting is None else self._wanted_setting.values
                self._wanted_setting = _Setting({**earlier, **point.values}, point.settle_s)
            case ProgramPoint():
                self._wanted[point.array] = _Write(point, self._wanted_setting)
                self._recorded_as.pop(point.array, None)
            case MvmPoint() | CurvePoint():
                recorded = self._progress.points.get(point.hash)
                if recorded is None:
                    return await self._measure(point)
                if recorded.write >= 0 and point.array is not None:
                    self._recorded_as[point.array] = recorded.write
                return await recorded_answer(self._writer, self._rig.board.info, recorded)
        return None

    async def _measure(self, point: MvmPoint | CurvePoint) -> Answer:
        await self._write_what_waits(point.array)
        if point.array in self._programmed_at_s:
            age_s = await self._time.now_s() - self._programmed_at_s[point.array]
            await self._rest(self._on_array[point.array].settle_s - age_s, f"array {point.array} settles")
        await self._move(self._wanted_setting)
        if isinstance(point, CurvePoint):
            readings = await self._feed.make(partial(self._commits.timed, partial(self._curve, point)))
            await self._commits.curve(point, readings, self._setting_index)
            return readings
        await self._rest(point.rest_s, "before the next block")
        if point.due_s is not None and await self._missed(point, point.due_s):
            return None
        mvm = partial(self._rig.board.mvm, point.array, point.voltage_v)
        result = await self._feed.make(partial(self._commits.timed, mvm))
        self._time.saw(float(result.time_s[-1]))
        on_array = self._on_array.get(point.array)
        target_s = None if on_array is None else on_array.conductance_s
        await self._commits.block(point, result, self._setting_index, target_s)
        return result

    async def _write_what_waits(self, needed: int | None) -> None:
        """Programs the array that is needed now, and those whose write came before and has nothing recorded yet.

        Arrays that are to age together are so written together; a write of which something is recorded waits until it
        turns out that something is left of it.
        """
        for array, wanted in tuple(self._wanted.items()):
            if array == needed or array not in self._recorded_as:
                await self._ready(array, wanted)

    async def _ready(self, array: int, wanted: _Write) -> None:
        """Programs an array to what the plan wants on it, unless that is on it."""
        if self._on_array.get(array) is wanted.point:
            return
        first = array not in self._on_array
        if not (first and await self._adopted(wanted.point)):
            await self._move(wanted.setting)
            program = partial(self._rig.board.program, array, wanted.point.conductance_s)
            report = await self._feed.make(partial(self._commits.timed, program))
            # The recording counts writes by their order; the queue keeps it.
            await self._commits.write(wanted.point, report, self._setting_index)
            self._time.saw(report.time_s)
            self._programmed_at_s[array] = report.time_s
        self._on_array[array] = wanted.point

    async def _adopted(self, wanted: ProgramPoint) -> bool:
        """Whether the write that was on the array when the recording was left is the wanted one, and still there."""
        last = self._progress.last_writes.get(wanted.array)
        if last is None:
            return False
        recorded_as = self._recorded_as.get(wanted.array)
        same_target = np.array_equal(last.conductance_s, wanted.conductance_s.astype(np.float32))
        if not (recorded_as == last.index or (recorded_as is None and last.requests == 0 and same_target)):
            return False
        if not self._restored:
            now_s = await still_written(self._rig.board, self._feed, wanted.array, last)
            if now_s is None:
                return False
            self._time.saw(now_s)
            self._bus.publish(
                Message(f"array {wanted.array}: goes on with its write {last.index}, which is still there")
            )
        self._programmed_at_s[wanted.array] = last.programmed_at_s
        return True

    async def _missed(self, point: MvmPoint, due_s: float) -> bool:
        """Waits until a point is due; True, and noted, where it is too late for it."""
        programmed_at_s = self._programmed_at_s.get(point.array)
        if programmed_at_s is None:
            raise ConfigError(
                f"a point of array {point.array} is due {due_s:g} s after its write, but the plan makes no write"
            )
        age_s = await self._time.now_s() - programmed_at_s
        if age_s > due_s + point.late_s:
            await self._commits.missed(point, due_s, age_s)
            return True
        await self._rest(due_s - age_s, f"array {point.array} is read at an age of {due_s:g} s")
        return False

    async def _move(self, wanted: _Setting | None) -> None:
        """Moves the axes that are elsewhere, and lets them settle."""
        if wanted is None or wanted is self._setting:
            return
        await self._commits.rested(partial(self._arrive, wanted))
        earlier = self._progress.last_setting
        measured = any(one.setting == earlier for one in self._progress.points.values()) if earlier >= 0 else False
        # A simulated board was put back to where it had settled already.
        again = self._restored and self._setting is None and measured
        self._setting = wanted
        self._setting_index = await self._commits.setting(self._axes)
        if not again:
            await self._rest(wanted.settle_s, "the axes settle")

    async def _arrive(self, wanted: _Setting) -> None:
        for name, value in wanted.values.items():
            if name not in self._axes or self._axes[name][0] != value:
                arrived = await self._rig.axes[name].move_to(value)
                self._axes[name] = (value, arrived.value)

    async def _rest(self, duration_s: float, why: str) -> None:
        if duration_s <= 0.0:
            return
        if duration_s > _LONG_REST_S:
            self._bus.publish(Message(f"resting for {duration_s:.3g} s: {why}"))
        await self._commits.rested(partial(self._time.rest, duration_s))

    async def _curve(self, point: CurvePoint) -> tuple[Reading, ...]:
        if point.meter is not None:
            return await self._meter_curve(point, point.meter)
        board = self._rig.board
        require_capability(board.info, CELL_SWEEP)
        assert point.array is not None
        cell = (point.array, point.row, point.column)
        try:
            return tuple(await cast(CellSweep, board).sweep_cell(*cell, point.voltage_v, point.limit_a))
        except StateError as error:
            # In the words of every driver of labrig.
            if "never programmed" not in str(error):
                raise
            raise StateError(f"{error}: the plan iv does so with its option program (--set program=true)") from error

    async def _meter_curve(self, point: CurvePoint, name: str) -> tuple[Reading, ...]:
        meter = self._rig.source_meters[name]
        settings = self._rig.config.source_meters[name]
        await meter.configure(source="voltage", nplc=settings.nplc)
        await meter.set_limit(current_a=point.limit_a if point.limit_a is not None else settings.limit_current_a)
        await meter.set_level(voltage_v=0.0)
        if point.curve == 0:
            await self._writer.note_settings(name, await self._rig.read_settings(name))
        try:
            await meter.output_on()
            return tuple(await meter.sweep(voltage_v=point.voltage_v))
        finally:
            await undivided(meter.output_off())
