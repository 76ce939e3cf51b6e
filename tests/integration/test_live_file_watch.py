"""A recording is watched while it is written, and one whose writer died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
from small_rig import RIG

from labrig.acquisition import run_sweep
from labrig.config import parse_rig
from labrig.events import BlockCommitted, Event, EventBus, MeasuredBlock, Message, RunFinished, RunStarted, SupplyRead
from labrig.live.file_watch import FileWatch
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording
from labrig.run_control import RunControl


class Seen:
    """What a watch says of a recording."""

    def __init__(self, recording: Recording) -> None:
        self.events: list[tuple[Event, float]] = []
        self.blocks: list[MeasuredBlock] = []
        self.watch = FileWatch(recording, lambda event, time_s: self.events.append((event, time_s)), self.blocks.append)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event, _ in self.events if isinstance(event, kind)]

    def mvms(self) -> int:
        return sum(event.mvms for event, _ in self.events if isinstance(event, BlockCommitted))


async def test_a_recording_is_watched_while_another_writes_it_and_to_its_end(tmp_path: Path) -> None:
    control, bus, held = RunControl(), EventBus(), asyncio.Event()
    blocks = 0

    def hold(event: Event) -> None:
        nonlocal blocks
        if isinstance(event, BlockCommitted):
            blocks += 1
            if blocks == 5:
                control.pause()
                held.set()

    bus.subscribe(hold)
    plan, rig = MvmCalibrationPlan(writes=2, seed=1, batch=64), parse_rig(RIG, Path("rig.toml"))
    sweep = asyncio.create_task(run_sweep(rig, plan, tmp_path / "run.h5", bus, control=control))
    await held.wait()
    await asyncio.sleep(0.1)
    with Recording.open(tmp_path / "run.h5") as recording:
        seen = Seen(recording)
        seen.watch.begin(1e9)
        part = seen.mvms()
        assert 0 < part < 2 * 2 * 8 * 64
        assert seen.watch.look(1e9) is True
        assert seen.mvms() == part
        assert seen.of(RunFinished) == []
        control.resume()
        summary = await sweep
        assert seen.watch.look(1e9) is False
        assert seen.watch.look(1e9) is False
    assert seen.mvms() == summary.mvms > part
    totals = [event.total_mvms for event in seen.of(BlockCommitted) if isinstance(event, BlockCommitted)]
    assert totals == sorted(totals)
    (finished,) = seen.of(RunFinished)
    assert isinstance(finished, RunFinished)
    assert (finished.status, finished.mvms) == ("finished", summary.mvms)
    assert {block.array for block in seen.blocks} == {0, 1}
    for block in seen.blocks:
        assert block.target_s is not None
        ideal_a = block.voltage_v @ block.target_s
        if float(np.ptp(ideal_a)) < 1e-6:
            continue  # vectors of zeros, or a constant
        assert np.corrcoef(ideal_a.ravel(), block.result.current_a.ravel())[0, 1] > 0.9


def test_a_recording_whose_writer_died_says_so(tmp_path: Path, record: Callable[..., Path]) -> None:
    path = record(tmp_path / "run.h5", blocks={0: [[8, 3], [5]], 1: [[4]]}, supply=4, finish=False)
    with Recording.open(path) as recording:
        seen = Seen(recording)
        seen.watch.begin(1e9)
        assert seen.watch.look(1e9) is False
    (start,) = seen.of(RunStarted)
    assert isinstance(start, RunStarted)
    assert (start.plan, start.planned_mvms, start.planned_writes) == ("mvm", 20, 3)
    assert any("died" in event.text for event in seen.of(Message) if isinstance(event, Message))
    (finished,) = seen.of(RunFinished)
    assert isinstance(finished, RunFinished)
    assert (finished.status, finished.mvms, finished.writes) == ("aborted", 20, 3)
    assert len(seen.of(SupplyRead)) == 4
    assert [(block.array, block.write, len(block.voltage_v)) for block in seen.blocks] == [
        (0, 0, 11),
        (0, 1, 5),
        (1, 0, 4),
    ]
    # When it happened, not when somebody looked.
    assert seen.events[0][1] == 1767225600.0
