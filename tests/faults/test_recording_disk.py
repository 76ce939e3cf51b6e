"""Disks that are full, slow, closed to us or taken away, and clocks that jump, while a sweep is recorded."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.acquisition import RunSummary, run_sweep
from labrig.config import parse_rig
from labrig.events import BlockCommitted, Event, EventBus, RunFinished, RunPaused
from labrig.plans import MvmCalibrationPlan, StreamCapacity
from labrig.plans.base import Points
from labrig.recording import Recording, header, medium
from labrig.recording.disk import Disk, FileDisk
from labrig.recording.rows import RecordedArray, read_rows
from labrig.recording.verification import verify_recording
from labrig.rig import Rig
from labrig.run_control import RunControl
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import TcpLink
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.servers import InstrumentServer, SimulatedKeithley2400

RIG = """\
[rig]
name = "bench"
[board]
driver = "mock-board"
[source_meters.supply]
driver = "keithley2400"
link = "tcp://127.0.0.1:1"
role = "array-supply"
level_voltage_v = 1.2
limit_current_a = 0.1
nplc = 0.01
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 100.0
max_read_voltage_v = 0.25
"""
PLAN = MvmCalibrationPlan(writes=2, seed=1, max_voltage_v=0.2, batch=64)


@dataclass(frozen=True)
class StatedCapacity:
    """The plan `mvm`, which states another size than it has."""

    plan: MvmCalibrationPlan
    of_rows: float

    @property
    def name(self) -> str:
        return self.plan.name

    def describe(self) -> dict[str, object]:
        return self.plan.describe()

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        whole = self.plan.capacity(info)
        return {array: replace(one, rows=int(one.rows * self.of_rows)) for array, one in whole.items()}

    def points(self, info: BoardInfo) -> Points:
        return self.plan.points(info)


class FedBoard(MockBoard):
    """The mock behind the simulated source-meter; a `Load` of it."""

    def __init__(self) -> None:
        super().__init__(ChipSettings(arrays=2, rows=8, columns=4, seed=5), minimum_supply_v=1.0)

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:
        return 1e-3 * voltage_v

    def supply_changed(self, voltage_v: float, time_s: float) -> None:
        self.set_supply_voltage(voltage_v)


class Bench:
    """A bench with a supply, and what was heard of its run."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.at: dict[int, Callable[[], None]] = {}
        self.control = RunControl()
        self.at_pause: Callable[[], None] = lambda: None
        self.was_on = self.is_on = False

    async def sweep(self, path: Path, *, of_rows: float = 1.0, resume: bool = False) -> RunSummary:
        board = FedBoard()
        async with InstrumentServer(SimulatedKeithley2400(board)) as server:
            meter = Keithley2400(TcpLink("127.0.0.1", server.port), ramp_v_per_s=100.0, name="supply")
            rig = Rig(parse_rig(RIG, Path("rig.toml")), board, {"supply": meter})
            bus = EventBus()
            bus.subscribe(self.events.append)
            bus.subscribe(lambda event: self.hear(event, server.instrument))
            try:
                plan = StatedCapacity(PLAN, of_rows)
                return await run_sweep(rig, plan, path, bus, resume=resume, control=self.control)
            finally:
                self.is_on = server.instrument.output_on

    def hear(self, event: Event, instrument: SimulatedKeithley2400) -> None:
        self.was_on = self.was_on or instrument.output_on
        if isinstance(event, BlockCommitted):
            self.at.pop(self.blocks, lambda: None)()
        if isinstance(event, RunPaused):
            self.at_pause()

    @property
    def blocks(self) -> int:
        return sum(isinstance(event, BlockCommitted) for event in self.events)

    @property
    def statuses(self) -> list[str]:
        return [event.status for event in self.events if isinstance(event, RunFinished)]


def contents(path: Path) -> tuple[dict[int, RecordedArray], Counter[str]]:
    with Recording.open(path) as recording:
        recording.verify()
        rows = {array: read_rows(recording, array) for array in recording.arrays}
        return rows, Counter(point for array in recording.arrays for point in recording.point_hashes(array))


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@contextmanager
def small_file_system(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, in memory; skips where it may not be mounted."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    command = [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def file_size_limit() -> Iterator[Callable[[Path], None]]:
    """Gives a function that lets no file of this process grow beyond the size that a file has now.

    This is what anybody, not root only, can have of a full disk.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda path: resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_told_before_any_output_is_on(tmp_path: Path, bench: Bench) -> None:
    with small_file_system(tmp_path / "small", "size=1m") as folder:
        with pytest.raises(
            StorageError, match=r"MB are needed for the whole run and cannot be reserved: No space left"
        ):
            await bench.sweep(folder / "run.h5")
        assert [path.name for path in folder.iterdir()] == []
    assert not bench.was_on


def fill_up(folder: Path) -> Path:
    """Takes all the room that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return ballast


async def ended_by_a_full_disk(bench: Bench, path: Path) -> None:
    """A sweep that outgrows its room on a full disk ends with its outputs off."""
    with pytest.raises(
        StorageError, match=r"run\.h5: cannot be written: .*(No space left|File too large).*; the rows before are safe"
    ):
        await bench.sweep(path, of_rows=0.3)
    assert (bench.was_on, bench.is_on) == (True, False)
    assert bench.statuses == ["aborted"]


async def goes_on(bench: Bench, path: Path, tmp_path: Path) -> None:
    """Every block that was acknowledged is there, and the sweep is completed."""
    acknowledged = bench.blocks
    assert acknowledged > 10
    # There was no room for the next step, so none was made: the file is as any other whose writer was killed.
    before, points = contents(path)
    assert verify_recording(path, refusal=lambda _: "").faults == ()
    assert points.total() >= acknowledged
    resumed = Bench()
    await resumed.sweep(path, of_rows=0.3, resume=True)
    assert (resumed.is_on, resumed.statuses) == (False, ["finished"])
    whole = Bench()
    await whole.sweep(tmp_path / "whole.h5")
    after, all_points = contents(path)
    assert all_points == contents(tmp_path / "whole.h5")[1]
    for array, rows in before.items():
        np.testing.assert_array_equal(after[array].code[: len(rows.code)], rows.code)
    assert verify_recording(path, refusal=lambda _: "").faults == ()


async def test_a_disk_that_fills_up_while_a_stream_grows_ends_the_run_safely(tmp_path: Path, bench: Bench) -> None:
    with small_file_system(tmp_path / "small", "size=4m") as folder:
        path = folder / "run.h5"
        ballast: list[Path] = []
        bench.at[3] = lambda: ballast.append(fill_up(folder))
        await ended_by_a_full_disk(bench, path)
        ballast[0].unlink()
        await goes_on(bench, path, tmp_path)


async def test_a_quota_that_is_reached_while_a_stream_grows_ends_the_run_safely(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "run.h5"
    with file_size_limit() as limit_to:
        bench.at[3] = lambda: limit_to(path)
        await ended_by_a_full_disk(bench, path)
    await goes_on(bench, path, tmp_path)


async def test_a_file_system_that_cannot_be_written_is_told(tmp_path: Path, bench: Bench) -> None:
    with (
        small_file_system(tmp_path / "closed", "size=1m,ro") as folder,
        pytest.raises(StorageError, match=r"run\.h5: cannot be created: Read-only file system"),
    ):
        await bench.sweep(folder / "run.h5")
    assert not bench.was_on


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, bench: Bench) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(StorageError, match=r"run\.h5: cannot be created: Permission denied"):
        await bench.sweep(tmp_path / "closed" / "run.h5")
    assert not bench.was_on


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_recording_that_is_removed_meanwhile_is_missed(tmp_path: Path, bench: Bench, what: str) -> None:
    folder = tmp_path / "night"
    folder.mkdir()
    path = folder / "run.h5"
    bench.at[5] = path.unlink if what == "file" else lambda: shutil.rmtree(folder)
    with pytest.raises(StorageError, match=r"run\.h5: .*the file was removed while it was written"):
        await bench.sweep(path)
    assert (bench.was_on, bench.is_on) == (True, False)
    assert not path.exists()


async def test_a_recording_that_is_moved_meanwhile_is_whole_where_it_is_now(tmp_path: Path, bench: Bench) -> None:

    def move() -> None:
        shutil.move(tmp_path / "run.h5", tmp_path / "moved.h5")

    bench.at[5] = move
    await bench.sweep(tmp_path / "run.h5")
    assert contents(tmp_path / "moved.h5")[1].total() == bench.blocks


class SlowDisk:
    """A disk that takes its time, and another time for everything."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._random = random.Random(0)
        self.writes = 0

    def write_at(self, offset: int, values: NDArray[np.generic]) -> None:
        time.sleep(self._random.choice((0.0, 0.0005, 0.003)))
        self.writes += 1
        self._disk.write_at(offset, values)

    def reserve(self, length: int) -> None:
        self._disk.reserve(length)

    def sync(self) -> None:
        time.sleep(0.005)
        self._disk.sync()


async def test_a_slow_disk_is_waited_for_and_nothing_is_lost(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = await bench.sweep(tmp_path / "quick.h5")
    disks: list[SlowDisk] = []

    def slow(descriptor: int) -> Disk:
        disks.append(SlowDisk(FileDisk(descriptor)))
        return disks[-1]

    monkeypatch.setattr(medium, "FileDisk", slow)
    waiting = Bench()
    summary = await waiting.sweep(tmp_path / "slow.h5")
    assert sum(one.writes for one in disks) > 8 * waiting.blocks
    assert summary.queueing_s > 0.0
    assert (summary.mvms, summary.writes, waiting.blocks) == (quick.mvms, quick.writes, bench.blocks)
    totals = [event.total_mvms for event in waiting.events if isinstance(event, BlockCommitted)]
    assert totals == sorted(totals)
    rows, points = contents(tmp_path / "slow.h5")
    expected, expected_points = contents(tmp_path / "quick.h5")
    assert points == expected_points
    for array, one in rows.items():
        np.testing.assert_array_equal(one.code, expected[array].code)


async def test_a_run_counts_as_paused_when_all_that_was_measured_is_committed(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medium, "FileDisk", lambda descriptor: SlowDisk(FileDisk(descriptor)))
    counts: list[int] = []

    def count() -> None:
        counts.append(sum(len(one.code) for one in contents(tmp_path / "run.h5")[0].values()))

    def go_on() -> None:
        count()
        bench.control.resume()

    def at_pause() -> None:
        count()
        asyncio.get_running_loop().call_later(0.3, go_on)

    bench.at[5] = partial(bench.control.pause, "here")
    bench.at_pause = at_pause
    summary = await bench.sweep(tmp_path / "run.h5")
    at_pause_mvms, later_mvms = counts
    assert 0 < at_pause_mvms == later_mvms < summary.mvms


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
async def test_a_clock_that_is_set_meanwhile_makes_no_time_negative(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    true_time, shift_s = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true_time() + shift_s[0])

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz or UTC) + timedelta(seconds=shift_s[0])

    monkeypatch.setattr(header, "datetime", Clock)

    def set_clock() -> None:
        shift_s[0] += step_s

    bench.at |= {5: set_clock, 30: set_clock}
    started_s = time.monotonic()
    async with asyncio.timeout(60.0):
        summary = await bench.sweep(tmp_path / "run.h5")
    elapsed_s = time.monotonic() - started_s
    assert shift_s == [2 * step_s]
    for duration_s in (summary.seconds, summary.measuring_s, summary.queueing_s):
        assert 0.0 <= duration_s <= elapsed_s
    assert 0.0 <= summary.idle_share <= 1.0
    with Recording.open(tmp_path / "run.h5") as recording:
        supply = recording.supply()
        # What was set was the wall clock: readings keep the distance that they had.
        assert (np.diff(supply.time_s) >= 0.0).all()
        assert np.ptp(supply.time_s) <= elapsed_s
        assert recording.supply_energy_j() >= 0.0
        began, ended = (datetime.fromisoformat(one) for one in (recording.header.started_utc, recording.ended_utc))
        # The two texts are those of the wall clock.
        assert abs((ended - began).total_seconds() - 2 * step_s) < elapsed_s + 1.0
    assert verify_recording(tmp_path / "run.h5", refusal=lambda _: "").faults == ()
