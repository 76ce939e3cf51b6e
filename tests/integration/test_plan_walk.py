"""What a run makes of due times, rests and answers, also when it is interrupted and gone on with."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labrig.acquisition import RunSummary, run_sweep
from labrig.config import RigConfig, parse_rig
from labrig.events import BlockCommitted, CurveCommitted, Event, EventBus, PointMissed
from labrig.plans import (
    AdaptivePlan,
    CanaryDesign,
    EnergyPlan,
    IvPlan,
    MvmCalibrationPlan,
    MvmPoint,
    Plan,
    Points,
    ProgramPoint,
    RetentionPlan,
    ScheduledPlan,
    StreamCapacity,
    TransferCurveDesign,
)
from labrig.recording import Recording, layout
from labrig.recording.journal import MISSED
from labrig.recording.rows import read_rows
from labrig.rig import Rig
from labrig.run_control import RunControl
from labrig_drivers.crossbar import BoardInfo, MvmResult
from labrig_drivers.errors import ConfigError
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

CHIP = ChipSettings(seed=1, arrays=2, rows=8, columns=4)
RIG = """\
[rig]
name = "small"
[board]
driver = "mock-board"
[board.settings]
seed = 1
arrays = 2
rows = 8
columns = 4
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""


def rig() -> RigConfig:
    return parse_rig(RIG, Path("rig.toml"))


@dataclass(frozen=True)
class Halving:
    """Halves an interval until a column is at half of its ADC; then reads it there a few times."""

    steps: int = 5
    repeats: int = 3
    name = "halving"

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        # Less than is needed: the recording has to grow.
        return {0: StreamCapacity(rows=2, writes=1, blocks=2)}

    async def points(self, info: BoardInfo) -> Points:
        yield ProgramPoint(0, 0, np.full((info.rows, info.columns), info.conductance_max_s))
        low_v, high_v = 0.0, info.voltage_max_v
        for step in range(self.steps):
            middle_v = 0.5 * (low_v + high_v)
            answer = yield MvmPoint(0, 0, step, 64, np.full((1, info.rows), middle_v))
            assert isinstance(answer, MvmResult)
            above = answer.current_a[0, 0] > 0.5 * info.adc_full_scale_a[0]
            low_v, high_v = (low_v, middle_v) if above else (middle_v, high_v)
        for repeat in range(self.repeats):
            yield MvmPoint(0, 0, self.steps + repeat, 65, np.full((1, info.rows), low_v))


@dataclass(frozen=True)
class Timed:
    """Points that settle, rest and are due; the third comes too late and is missed."""

    name = "timed"

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        return {0: StreamCapacity(rows=4, writes=1, blocks=4)}

    async def points(self, info: BoardInfo) -> Points:
        vector = np.full((1, info.rows), 0.1)
        yield ProgramPoint(0, 0, np.full((info.rows, info.columns), 2e-5), settle_s=3.0)
        yield MvmPoint(0, 0, 0, 64, vector)
        yield MvmPoint(0, 0, 1, 64, vector, rest_s=7.0)
        missed = yield MvmPoint(0, 0, 2, 64, vector, due_s=5.0, late_s=1.0)
        assert missed is None
        late = yield MvmPoint(0, 0, 3, 64, vector, due_s=9.0, late_s=2.0)
        assert isinstance(late, MvmResult)


PLANS: dict[str, Plan] = {
    "mvm": MvmCalibrationPlan(writes=2, seed=1, batch=200),
    "canary": ScheduledPlan(CanaryDesign(repeats=6)),
    "transfer": ScheduledPlan(TransferCurveDesign(levels=9, directions=2, repeats=2, batch=10)),
    "retention": RetentionPlan(last_s=64.0, writes=2, repeats=1),
    "energy": EnergyPlan(mvms=20, bursts=2, batch=8),
    "adaptive": AdaptivePlan(Halving()),
    "iv": IvPlan(cells=4, levels=3, repeats=2, program=True),
    "timed": AdaptivePlan(Timed()),
}


async def run(
    plan: Plan, path: Path, *, resume: bool = False, cancel_after: int | None = None, stop_after: int | None = None
) -> tuple[RunSummary | None, list[Event]]:
    """A run that is cancelled, or asked to stop, after some blocks; None where it was cancelled."""
    control, seen = RunControl(), list[Event]()
    bus = EventBus()
    bus.subscribe(seen.append)

    async def sweep() -> RunSummary:
        return await run_sweep(rig(), plan, path, bus, resume=resume, control=control)

    task = asyncio.create_task(sweep())

    def interrupt(event: Event) -> None:
        blocks = sum(isinstance(one, BlockCommitted | CurveCommitted) for one in seen)
        if isinstance(event, BlockCommitted | CurveCommitted) and blocks == cancel_after:
            task.cancel()
        if isinstance(event, BlockCommitted | CurveCommitted) and blocks == stop_after:
            control.stop()

    bus.subscribe(interrupt)
    try:
        return await task, seen
    except asyncio.CancelledError:
        return None, seen


def equal(path: Path, other: Path) -> None:
    """Two recordings hold the same rows, writes, points and missed points, bit for bit."""
    with Recording.open(path) as one, Recording.open(other) as two:
        assert one.status == two.status == "finished"
        for array in two.arrays:
            assert one.point_hashes(array) == two.point_hashes(array)
            stream = f"entry/array_{array}"
            np.testing.assert_array_equal(one.journal(stream)["kind"], two.journal(stream)["kind"])
            for curves in (layout.CURVES,) if two.has_stream(layout.CURVES) else ():
                for column in layout.curve_stream(0, moves_axes=False).columns:
                    np.testing.assert_array_equal(one.column(curves, column.name), two.column(curves, column.name))
            here, there = read_rows(one, array), read_rows(two, array)
            for field in dataclasses.fields(here):
                np.testing.assert_array_equal(getattr(here, field.name), getattr(there, field.name))


async def interrupted_and_resumed(plan: Plan, folder: Path, interruptions: Sequence[tuple[int, bool]]) -> None:
    await run(plan, folder / "whole.h5")
    for number, (blocks, hard) in enumerate(interruptions):
        cut = {"cancel_after" if hard else "stop_after": blocks}
        await run(plan, folder / "run.h5", resume=number > 0, **cut)
    await run(plan, folder / "run.h5", resume=bool(interruptions))
    equal(folder / "run.h5", folder / "whole.h5")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(PLANS)),
    interruptions=st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=3),
)
def test_any_plan_interrupted_anywhere_and_resumed_is_the_uninterrupted_one(
    name: str, interruptions: list[tuple[int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(interrupted_and_resumed(PLANS[name], Path(folder), interruptions))


@pytest.mark.nightly
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(PLANS)),
    interruptions=st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=6),
)
@pytest.mark.timeout(3000)
def test_any_plan_interrupted_anywhere_a_thousand_times(name: str, interruptions: list[tuple[int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(interrupted_and_resumed(PLANS[name], Path(folder), interruptions))


async def test_a_run_settles_rests_waits_and_says_what_it_missed(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    summary, seen = await run(AdaptivePlan(Timed()), path)
    assert summary is not None
    assert (summary.mvms, summary.missed) == (3, 1)
    with Recording.open(path) as recording:
        recording.verify()
        journal = recording.journal("entry/array_0")
        assert journal["kind"].tolist() == [64, 64, MISSED, 64]
        assert journal["rows"].tolist() == [1, 1, 0, 1]
        assert len(recording.point_hashes(0)) == 3
        age_s = recording.dataset(0).age_s
    # Settled for 3 s, rested for 7 s, missed what was due at 5 s, and late by 1 s for what was due at 9 s.
    assert age_s == pytest.approx([3.0, 10.0, 10.0], abs=1e-3)
    (missed,) = [event for event in seen if isinstance(event, PointMissed)]
    assert missed.due_s == 5.0
    assert missed.age_s == pytest.approx(10.0, abs=1e-3)


async def test_retention_is_measured_at_the_ages_that_it_names(tmp_path: Path) -> None:
    await run(RetentionPlan(last_s=1024.0, vectors=2, repeats=1), tmp_path / "run.h5")
    with Recording.open(tmp_path / "run.h5") as recording:
        for array in recording.arrays:
            age_s = recording.dataset(array).age_s[::2]
            # The other array was written meanwhile, and one vector is measured before the other.
            assert age_s == pytest.approx(2.0 ** np.arange(11), abs=1e-2)
            assert not (recording.journal(f"entry/array_{array}")["kind"] == MISSED).any()


class LeapingClock:
    """A chip's clock that follows nothing and leaps when told to, as the wall does while nobody measures."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def spend(self, duration_s: float) -> None:
        self.time_s += duration_s


async def test_after_an_interruption_what_is_due_no_longer_is_missed_and_the_rest_measured(tmp_path: Path) -> None:
    clock, path = LeapingClock(), tmp_path / "run.h5"
    board = MockBoard(CHIP, clock=clock)
    plan = RetentionPlan(first_s=0.02, last_s=0.64, vectors=2, repeats=1, arrays=[0])
    control, bus = RunControl(), EventBus()
    bus.subscribe(lambda event: control.stop() if isinstance(event, BlockCommitted) else None)
    await run_sweep(Rig(rig(), board, {}), plan, path, bus, control=control)
    clock.time_s += 0.1  # 0.12 s: what was due at 0.04 and 0.08 s is missed by more than a quarter, 0.16 s is to come
    summary = await run_sweep(Rig(rig(), board, {}), plan, path, EventBus(), resume=True)
    assert summary.writes == 0
    with Recording.open(path) as recording:
        assert (recording.journal("entry/array_0")["kind"] == MISSED).tolist() == [
            False,
            True,
            True,
            False,
            False,
            False,
        ]
        assert len(recording.journal("entry/array_0")) == 6
        assert recording.writes(0) == 1
    # Nothing is tried again.
    again = await run_sweep(Rig(rig(), board, {}), plan, path, EventBus(), resume=True)
    assert (again.mvms, again.missed, again.writes) == (0, 0, 0)


async def test_a_point_that_is_due_needs_a_write(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Unwritten:
        name = "unwritten"

        def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
            return {0: StreamCapacity(1, 1, 1)}

        async def points(self, info: BoardInfo) -> Points:
            yield MvmPoint(0, 0, 0, 64, np.zeros((1, info.rows)), due_s=1.0)

    with pytest.raises(ConfigError, match="makes no write"):
        await run(AdaptivePlan(Unwritten()), tmp_path / "run.h5")
