"""A run and its disk: measuring waits only while the queue is full, and every block is recorded in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from labrig.acquisition import RunSummary, acquire
from labrig.config import parse_rig
from labrig.events import BlockCommitted, Event, EventBus
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording, RecordingHeader, RecordingWriter
from labrig.recording.file import BlockLabel, Columns, RecordingFile
from labrig.rig import Rig
from labrig_drivers.crossbar import FloatArray, MvmResult
from labrig_drivers.errors import StorageError
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

RIG = """\
[rig]
name = "bench"
[board]
driver = "mock-board"
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 1000.0
max_read_voltage_v = 0.25
"""
PLAN = MvmCalibrationPlan(writes=2, batch=8, seed=1, max_voltage_v=0.2)


class CountingBoard(MockBoard):
    """The mock, with a count of its requests."""

    requests = 0

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        self.requests += 1
        return await super().mvm(array, voltage_v)


async def run(path: Path, board: MockBoard, events: list[Event]) -> RunSummary:
    bus = EventBus()
    bus.subscribe(events.append)
    async with Rig(parse_rig(RIG, Path("rig.toml"), drivers={"mock-board"}), board, {}) as rig:
        header = RecordingHeader.for_rig(rig, PLAN.describe())
        writer = await RecordingWriter.create(path, header, rig.board.info, PLAN.capacity(rig.board.info))
        async with writer:
            return await acquire(rig, PLAN, writer, bus)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110 - the board has no event for it
            await asyncio.sleep(0.01)


async def test_measuring_goes_on_beside_a_disk_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    commit = RecordingFile.commit

    def slow(self: RecordingFile) -> None:
        assert gate.wait(30.0)
        commit(self)

    monkeypatch.setattr(RecordingFile, "commit", slow)
    board, events = CountingBoard(ChipSettings(arrays=1, rows=8, columns=4, seed=5)), list[Event]()
    task = asyncio.create_task(run(tmp_path / "run.h5", board, events))
    # The queue has room for eight: the write and seven blocks. The eighth block was measured and waits for room.
    await until(lambda: board.requests == 8)
    await asyncio.sleep(0.1)
    assert board.requests == 8
    assert not any(isinstance(event, BlockCommitted) for event in events)
    gate.set()
    summary = await task
    committed = [event.total_mvms for event in events if isinstance(event, BlockCommitted)]
    assert committed == sorted(committed)
    assert committed[-1] == summary.mvms
    assert board.requests == len(committed)
    assert summary.queueing_s >= 0.1
    assert 0.0 < summary.measuring_s <= summary.seconds - summary.queueing_s
    assert 0.0 < summary.idle_share < 1.0
    with Recording.open(tmp_path / "run.h5") as recording:
        recording.verify()
        assert (recording.committed(0), recording.writes(0)) == (summary.mvms, 2)
        assert np.all(np.diff(recording.dataset(0).time_s) > 0.0)


async def test_disk_that_fails_while_blocks_wait_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = RecordingFile.stage_mvms
    staged = list[int]()

    def full(self: RecordingFile, array: int, columns: Columns, label: BlockLabel, setting: int) -> int:
        if len(staged) == 5:
            raise OSError(28, "No space left on device")
        staged.append(array)
        return stage(self, array, columns, label, setting)

    monkeypatch.setattr(RecordingFile, "stage_mvms", full)
    board, events = CountingBoard(ChipSettings(arrays=1, rows=8, columns=4, seed=5)), list[Event]()
    with pytest.raises(StorageError, match="No space left on device"):
        await run(tmp_path / "run.h5", board, events)
    # Those that waited, and not one measured after that.
    assert board.requests <= 5 + 9
    committed = [event for event in events if isinstance(event, BlockCommitted)]
    assert len(committed) == 5
    with Recording.open(tmp_path / "run.h5") as recording:
        recording.verify()
        assert recording.committed(0) == committed[-1].total_mvms
