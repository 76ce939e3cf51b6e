"""Steering a run: stopped at a checkpoint, paused, suspended on a condition; its points are the plan's, each once."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from pathlib import Path

import pytest
from small_rig import RIG

from labrig.acquisition import RunSummary, run_sweep
from labrig.config import RigConfig, parse_rig
from labrig.events import BlockCommitted, Event, EventBus, RunFinished, RunPaused, RunResumed, RunStarted
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording
from labrig.run_control import Condition, RunControl
from labrig_drivers.errors import InstrumentError

PLAN = MvmCalibrationPlan(writes=2, seed=1, batch=64)


def rig() -> RigConfig:
    return parse_rig(RIG, Path("rig.toml"))


class Run:
    """One sweep with a control; `at` is called when so many blocks are committed."""

    def __init__(self, path: Path, control: RunControl) -> None:
        self.path = path
        self.control = control
        self.events: list[Event] = []
        self.at: dict[int, Callable[[], None]] = {}
        self.on_pause: Callable[[], object] = lambda: None
        self.blocks = 0

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, BlockCommitted):
            self.blocks += 1
            self.at.pop(self.blocks, lambda: None)()
        if isinstance(event, RunPaused):
            self.on_pause()

    async def go(self, *, resume: bool = False) -> RunSummary:
        bus = EventBus()
        bus.subscribe(self.hear)
        return await run_sweep(rig(), PLAN, self.path, bus, resume=resume, control=self.control)

    def reasons(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, RunPaused)]


def recorded(path: Path) -> collections.Counter[str]:
    with Recording.open(path) as recording:
        recording.verify()
        return collections.Counter(point for array in recording.arrays for point in recording.point_hashes(array))


@pytest.fixture
async def whole(tmp_path: Path) -> collections.Counter[str]:
    """The points of a run that nobody steered."""
    await Run(tmp_path / "whole.h5", RunControl()).go()
    return recorded(tmp_path / "whole.h5")


async def test_a_stopped_run_keeps_what_it_measured_and_is_resumed(
    tmp_path: Path, whole: collections.Counter[str]
) -> None:
    run = Run(tmp_path / "run.h5", RunControl())
    run.at[5] = run.control.stop
    summary = await run.go()
    assert summary.status == "stopped"
    finished = run.events[-1]
    assert isinstance(finished, RunFinished)
    assert (finished.status, finished.mvms) == ("stopped", summary.mvms)
    before = recorded(run.path)
    # Everything that was measured is there: no block was thrown away.
    assert 5 <= before.total() == run.blocks < whole.total()
    with Recording.open(run.path) as recording:
        assert recording.status == "stopped"
        assert sum(recording.committed(array) for array in recording.arrays) == summary.mvms
    again = Run(run.path, RunControl())
    assert (await again.go(resume=True)).status == "finished"
    assert recorded(run.path) == whole
    assert again.blocks == whole.total() - before.total()
    # Both parts are one run, by the identity in the file, and number writes as the file does.
    events = [*run.events, *again.events]
    with Recording.open(run.path) as recording:
        assert recording.header.run_id
        assert {one.run_id for one in events if isinstance(one, RunStarted)} == {recording.header.run_id}
        for array in recording.arrays:
            told = [(one.write, one.mvms) for one in events if isinstance(one, BlockCommitted) and one.array == array]
            writes = recording.mvm_columns(array)["write"]
            journal = recording.journal(f"entry/array_{array}")
            assert told == [(int(writes[entry["start"]]), int(entry["rows"])) for entry in journal]


async def test_a_run_that_is_stopped_before_it_began_measures_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run.h5", RunControl())
    run.control.stop()
    summary = await run.go()
    assert (summary.status, summary.mvms, summary.writes) == ("stopped", 0, 0)
    assert recorded(run.path).total() == 0


async def test_a_paused_run_waits_and_goes_on(tmp_path: Path, whole: collections.Counter[str]) -> None:
    run = Run(tmp_path / "run.h5", RunControl())
    run.at[3] = lambda: run.control.pause("the probe is moved")
    blocks_at_pause: list[int] = []

    def resume() -> None:
        blocks_at_pause.append(run.blocks)
        run.control.resume()

    run.on_pause = lambda: asyncio.get_running_loop().call_later(0.2, resume)
    assert (await run.go()).status == "finished"
    (reason,) = run.reasons()
    assert reason == "paused: the probe is moved; the array supply is off, and the run waits"
    assert sum(isinstance(event, RunResumed) for event in run.events) == 1
    assert blocks_at_pause[0] < whole.total()
    assert recorded(run.path) == whole


async def test_a_paused_run_can_be_stopped(tmp_path: Path) -> None:
    run = Run(tmp_path / "run.h5", RunControl())
    run.at[3] = run.control.pause
    run.on_pause = lambda: asyncio.get_running_loop().call_later(0.05, run.control.stop)
    assert (await run.go()).status == "stopped"
    assert not any(isinstance(event, RunResumed) for event in run.events)


async def test_a_condition_suspends_the_run_until_it_holds_again(
    tmp_path: Path, whole: collections.Counter[str]
) -> None:
    temperatures_c = iter([*[25.0] * 10, 41.0, 40.0, 36.0, *[30.0] * 1000])

    async def in_band() -> str | None:
        now_c = next(temperatures_c)
        return None if now_c <= 35.0 else f"{now_c:g} °C is above 35 °C"

    run = Run(tmp_path / "run.h5", RunControl([Condition("temperature", in_band, poll_s=0.01)]))
    assert (await run.go()).status == "finished"
    (reason,) = run.reasons()
    assert reason.startswith("temperature: 41 °C is above 35 °C; the array supply is off")
    assert recorded(run.path) == whole


async def test_a_condition_that_cannot_be_read_ends_the_run_with_its_error(tmp_path: Path) -> None:
    looks = iter([None] * 6)

    async def broken() -> str | None:
        for look in looks:
            return look
        raise InstrumentError(-350, "sensor gone", "TEMP?", "thermometer")

    run = Run(tmp_path / "run.h5", RunControl([Condition("temperature", broken)]))
    with pytest.raises(InstrumentError, match="sensor gone"):
        await run.go()
    with Recording.open(run.path) as recording:
        assert recording.status == "aborted"
    assert recorded(run.path).total() == run.blocks > 0
