"""An interrupted sweep goes on where it stopped: the same points, each once, and nothing that was committed changes."""

import asyncio
import collections
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from labrig.acquisition import RunSummary, run_sweep
from labrig.config import RigConfig, parse_rig
from labrig.events import BlockCommitted, Event, EventBus, Message, RunStarted
from labrig.plans import MvmCalibrationPlan, MvmPoint
from labrig.recording import Recording
from labrig.recording.compaction import compact
from labrig.recording.rows import read_rows
from labrig.rig import Rig, open_rig
from labrig.run_control import RunControl
from labrig_drivers.errors import StorageError
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.clock import ChipClock, WallClock

PLAN = MvmCalibrationPlan(writes=2, seed=1, batch=64)

RIG = """\
[rig]
name = "small"
[board]
driver = "mock-board"
[board.settings]
seed = {seed}
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


def rig(seed: int = 1) -> RigConfig:
    return parse_rig(RIG.format(seed=seed), Path("rig.toml"))


async def planned_points(config: RigConfig) -> list[MvmPoint]:
    async with open_rig(config) as opened:
        return [point async for point in PLAN.points(opened.board.info) if isinstance(point, MvmPoint)]


async def sweep(
    path: Path, *, resume: bool = False, stop_after: int | None = None, events: list[Event] | None = None
) -> RunSummary:
    """A sweep; cancelled, as by Ctrl-C, after some committed blocks."""
    task = asyncio.current_task()
    assert task is not None
    blocks = 0

    def count(event: Event) -> None:
        nonlocal blocks
        if isinstance(event, BlockCommitted):
            blocks += 1
            if blocks == stop_after:
                task.cancel()

    bus = EventBus()
    bus.subscribe(count)
    if events is not None:
        bus.subscribe(events.append)
    return await run_sweep(rig(), PLAN, path, bus, resume=resume)


async def interrupted(path: Path, stop_after: int, *, resume: bool = False) -> None:
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(sweep(path, resume=resume, stop_after=stop_after))


def committed(path: Path) -> collections.Counter[str]:
    with Recording.open(path) as recording:
        recording.verify()
        return collections.Counter(point for array in recording.arrays for point in recording.point_hashes(array))


@pytest.mark.parametrize("stops", [[1], [7], [3, 1, 5], [20, 15]])
async def test_a_resumed_run_holds_the_points_of_the_plan_each_once(tmp_path: Path, stops: list[int]) -> None:
    path = tmp_path / "run.h5"
    for number, stop in enumerate(stops):
        await interrupted(path, stop, resume=number > 0)
    before = committed(path)
    with Recording.open(path) as recording:
        assert recording.status == "aborted"
        old = {array: recording.dataset(array) for array in recording.arrays if recording.committed(array)}
    events: list[Event] = []
    summary = await sweep(path, resume=True, events=events)
    # What is ahead of it is what is left, so that its progress comes to an end.
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    assert started.planned_mvms == summary.mvms

    points = await planned_points(rig())
    assert committed(path) == collections.Counter(point.hash for point in points)
    assert summary.mvms == sum(len(point.voltage_v) for point in points if point.hash not in before)
    with Recording.open(path) as recording:
        assert recording.status == "finished"
        for array in recording.arrays:
            dataset = recording.dataset(array)
            mine = [point for point in points if point.array == array]
            assert len(dataset) == sum(len(point.voltage_v) for point in mine)
            assert dataset.writes >= len({point.write for point in mine})
            if array in old:
                count = len(old[array])
                np.testing.assert_array_equal(dataset.current_a[:count], old[array].current_a)
                np.testing.assert_array_equal(dataset.pattern[:count], old[array].pattern)
            assert (dataset.age_s >= 0.0).all()


@pytest.mark.parametrize("stops", [[1], [4], [3, 1, 5], [20, 15]])
async def test_on_the_mock_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, stops: list[int]
) -> None:
    path, whole = tmp_path / "run.h5", tmp_path / "whole.h5"
    await sweep(whole)
    for number, stop in enumerate(stops):
        await interrupted(path, stop, resume=number > 0)
    await sweep(path, resume=True)
    with Recording.open(path) as resumed, Recording.open(whole) as uninterrupted:
        for array in uninterrupted.arrays:
            assert resumed.point_hashes(array) == uninterrupted.point_hashes(array)
            one, other = read_rows(resumed, array), read_rows(uninterrupted, array)
            for field in dataclasses.fields(one):
                np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@dataclass
class Bench:
    """A chip that lives on while the program does not, and whose clock follows the wall."""

    clock: ChipClock = dataclasses.field(default_factory=lambda: ChipClock(WallClock()))
    board: MockBoard = dataclasses.field(init=False)
    told: list[BlockCommitted] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.replace_chip()

    def replace_chip(self) -> None:
        self.board = MockBoard(ChipSettings(seed=1, arrays=2, rows=8, columns=4), clock=self.clock)

    async def sweep(
        self, path: Path, *, resume: bool = True, stop_after: int | None = None
    ) -> tuple[RunSummary, list[str]]:
        """A run, new or resumed; stopped at a checkpoint after some blocks. Returns its messages too."""
        control, said, blocks = RunControl(), list[str](), 0

        def listen(event: Event) -> None:
            nonlocal blocks
            if isinstance(event, Message):
                said.append(event.text)
            if isinstance(event, BlockCommitted):
                self.told.append(event)
                blocks += 1
                if blocks == stop_after:
                    control.stop()

        bus = EventBus()
        bus.subscribe(listen)
        summary = await run_sweep(Rig(rig(), self.board, {}), PLAN, path, bus, resume=resume, control=control)
        return summary, said


async def test_what_is_left_of_a_write_that_is_still_there_is_measured_on_it(tmp_path: Path) -> None:
    bench, path = Bench(), tmp_path / "run.h5"
    await bench.sweep(path, resume=False, stop_after=4)
    summary, said = await bench.sweep(path)
    assert summary.writes == 3  # two writes on each of two arrays, less the one that was there
    assert said == ["array 0: goes on with its write 0, which is still there"]
    with Recording.open(path) as recording:
        dataset = recording.dataset(0)
    assert dataset.writes == 2
    assert (np.diff(dataset.age_s[dataset.pattern == 0]) > 0.0).all()


async def reprogrammed(bench: Bench) -> None:
    async with bench.board:
        await bench.board.program(0, np.full((8, 4), 2e-5))


async def replaced(bench: Bench) -> None:
    bench.replace_chip()


async def replaced_and_programmed(bench: Bench) -> None:
    """The board counts as many writes as before, but they are not the recorded ones."""
    bench.replace_chip()
    await reprogrammed(bench)


@pytest.mark.parametrize("meanwhile", [reprogrammed, replaced, replaced_and_programmed])
async def test_what_is_left_of_a_write_that_is_gone_is_measured_on_a_new_one_of_the_same_target(
    tmp_path: Path, meanwhile: Callable[[Bench], Awaitable[None]]
) -> None:
    bench, path = Bench(), tmp_path / "run.h5"
    await bench.sweep(path, resume=False, stop_after=4)
    await meanwhile(bench)
    summary, said = await bench.sweep(path)
    assert (summary.writes, said) == (4, [])
    with Recording.open(path) as recording:
        dataset = recording.dataset(0)
    assert dataset.writes == 3
    np.testing.assert_array_equal(dataset.target_conductance_s[0], dataset.target_conductance_s[1])
    assert (dataset.target_conductance_s[1] != dataset.target_conductance_s[2]).any()
    # What is told numbers writes as the recording does, not as the plan.
    told = [one.write for one in bench.told if one.array == 0 for _ in range(one.mvms)]
    np.testing.assert_array_equal(told, dataset.pattern)
    assert committed(path) == collections.Counter(point.hash for point in await planned_points(rig()))


async def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    await sweep(path)
    before = committed(path)
    summary = await sweep(path, resume=True)
    assert (summary.mvms, summary.writes) == (0, 0)
    assert committed(path) == before


async def test_another_rig_plan_or_chip_is_refused_by_name_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    await interrupted(path, 5)
    before = path.read_bytes()
    with pytest.raises(
        StorageError,
        match=r"another rig file \('seed = 1' only there; .*\), chip \(.*\), board .*, identity .*; resume",
    ):
        await run_sweep(rig(seed=2), PLAN, path, EventBus(), resume=True)
    other = MvmCalibrationPlan(writes=2, seed=2, batch=64)
    with pytest.raises(StorageError, match=r"made with another plan \(seed: 1 there, 2 here\); resume"):
        await run_sweep(rig(), other, path, EventBus(), resume=True)
    with pytest.raises(StorageError, match=r"absent\.h5"):
        await run_sweep(rig(), PLAN, tmp_path / "absent.h5", EventBus(), resume=True)
    assert path.read_bytes() == before
    assert not (tmp_path / "absent.h5").exists()


async def test_who_is_told_about_a_run_may_change_while_it_rests(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    await interrupted(path, 5)
    text = RIG.format(seed=1)
    told = parse_rig(f'# now with a broker\n{text}\n[telemetry]\nbroker = "mqtt://127.0.0.1:1"\n', Path("rig.toml"))
    await run_sweep(told, PLAN, path, EventBus(), resume=True)
    assert committed(path) == collections.Counter(point.hash for point in await planned_points(rig()))


def measured(path: Path) -> bool:
    """True as soon as a sweep has committed something; it goes on."""
    if not path.exists():
        return False
    try:
        with Recording.open(path) as recording:
            return any(recording.committed(array) for array in recording.arrays)
    except StorageError:
        return False


def test_a_killed_sweep_is_resumed_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(RIG.format(seed=1).replace("rows = 8", "rows = 24"))
    base = [sys.executable, "-m", "labrig", "sweep", "rig.toml", "--plan", "mvm", "--writes", "3"]
    process = subprocess.Popen([*base, "-o", "run.h5"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60.0
    path = tmp_path / "run.h5"
    while not measured(path) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run(
        [*base, "--resume", "run.h5"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert max(committed(path).values()) == 1
    with Recording.open(path) as recording:
        assert recording.status == "finished"
        planned = MvmCalibrationPlan(writes=3, max_voltage_v=0.3).capacity(recording.info)
        assert {array: recording.committed(array) for array in recording.arrays} == {
            array: one.rows for array, one in planned.items()
        }
    conflicting = [*base, "--resume", "run.h5", "-o", "x.h5"]
    both = subprocess.run(conflicting, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert both.returncode == 2
    assert "give one of them" in both.stderr


async def test_a_recording_that_is_still_being_written_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    await interrupted(path, stop_after=2)
    with path.open("r+b") as file:
        # As HDF5 does in the program that writes it.
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"run\.h5: is open in another program; resume it when that has ended"):
            await sweep(path, resume=True)
        with h5py.File(path, "r+", locking=False) as recording:
            recording["entry/status"][()] = b"running"
        before = path.read_bytes()
        with pytest.raises(StorageError, match="is being written by another program; resume it when that has ended"):
            await sweep(path, resume=True)
    assert path.read_bytes() == before


async def test_a_compact_copy_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    await interrupted(path, 5)
    compact(path, tmp_path / "small.h5")
    before = (tmp_path / "small.h5").read_bytes()
    with pytest.raises(StorageError, match="go on with the recording that it was made from"):
        await sweep(tmp_path / "small.h5", resume=True)
    assert (tmp_path / "small.h5").read_bytes() == before


async def test_a_finished_run_is_not_switched_on_again(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    await sweep(path)
    before, events = path.read_bytes(), list[Event]()
    summary = await sweep(path, resume=True, events=events)
    assert (summary.status, summary.mvms, summary.writes) == ("finished", 0, 0)
    assert [event.text for event in events if isinstance(event, Message)] == [
        f"{path}: the run came to its end before; nothing is left to be measured"
    ]
    assert not any(isinstance(event, RunStarted) for event in events)
    with Recording.open(path) as recording:
        assert recording.status == "finished"
    assert len(path.read_bytes()) == len(before)
