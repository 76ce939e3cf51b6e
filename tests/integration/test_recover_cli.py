"""`labrig recover` and `labrig verify` as a person runs them, and a sweep that goes on from what was rescued."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from labrig.acquisition import RunSummary, run_sweep
from labrig.cli import app
from labrig.config import parse_rig
from labrig.events import BlockCommitted, Event, EventBus
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording, refusal
from labrig.recording.recovery import recover_recording
from labrig.recording.rows import read_rows
from labrig.recording.table import locate_table
from labrig.recording.verification import verify_recording
from labrig_drivers.errors import StorageError

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
PLAN = MvmCalibrationPlan(writes=2, seed=1, batch=64, max_voltage_v=0.3)


def sweep(path: Path, *, resume: bool = False, stop_after: int | None = None) -> tuple[RunSummary | None, list[Event]]:
    """A sweep, cancelled after so many blocks; with its events."""
    events = list[Event]()

    async def run() -> RunSummary:
        task = asyncio.current_task()
        assert task is not None

        def note(event: Event) -> None:
            events.append(event)
            if sum(isinstance(one, BlockCommitted) for one in events) == stop_after:
                task.cancel()

        bus = EventBus()
        bus.subscribe(note)
        return await run_sweep(parse_rig(RIG, Path("rig.toml")), PLAN, path, bus, resume=resume)

    try:
        return asyncio.run(run()), events
    except asyncio.CancelledError:
        return None, events


def places(path: Path, dataset: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Where rows of a dataset lie in the file."""
    with h5py.File(path) as file:
        table = locate_table(file, dataset)
        return [
            (offset, offset + (last - first) * table.row_bytes) for first, last, offset in table.pieces(start, stop)
        ]


def overwrite(path: Path, spans: list[tuple[int, int]]) -> None:
    content = bytearray(path.read_bytes())
    for start, stop in spans:
        content[start:stop] = bytes(255 - one for one in content[start:stop])
    path.write_bytes(content)


def points(path: Path) -> Counter[str]:
    with Recording.open(path) as recording:
        recording.verify()
        return Counter(point for array in recording.arrays for point in recording.point_hashes(array))


def labrig(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "run.h5"
    sweep(path)
    return path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    path.write_bytes(finished.read_bytes())
    return path


@pytest.mark.parametrize("stop_after", [None, 50])
def test_a_sweep_on_what_was_rescued_measures_exactly_what_was_lost(tmp_path: Path, stop_after: int | None) -> None:
    path, rescued = tmp_path / "run.h5", tmp_path / "rescued.h5"
    sweep(path, stop_after=stop_after)
    before = points(path)
    with h5py.File(path) as file:
        journal = file["entry/journal/array_1"][...]
    lost = [3, 4, 10]
    spans = [
        span
        for one in lost
        for span in places(
            path, "entry/array_1/current_code", int(journal[one]["start"]), int(journal[one]["start"]) + 1
        )
    ]
    # And one journal entry of the other array, so that nothing says any more what it was.
    overwrite(path, [*spans, *places(path, "entry/journal/array_0", 5, 6)])
    report = recover_recording(path, rescued, refusal=lambda _: "")
    assert report.exit_code == 1
    named = {point for one in report.streams for point in one.again}
    assert named == {bytes(journal[one]["point"]).hex() for one in lost}
    assert sum(one.unnamed for one in report.streams) == 1
    kept = points(rescued)
    missing = set(before) - set(kept)
    assert len(missing) == len(lost) + 1
    assert named < missing

    summary, events = sweep(rescued, resume=True)
    assert summary is not None
    everything, complete = sweep(tmp_path / "whole.h5")
    assert everything is not None
    # Nothing that was rescued is measured again, and at the end every point is there once.
    assert points(rescued) == points(tmp_path / "whole.h5")
    blocks = sum(isinstance(event, BlockCommitted) for event in events)
    assert blocks == sum(isinstance(event, BlockCommitted) for event in complete) - len(kept)
    if stop_after is None:
        assert blocks == len(missing)
    assert verify_recording(rescued, refusal=lambda _: "").faults == ()


def test_what_is_rescued_can_be_calibrated_and_says_where_it_comes_from(copy: Path, tmp_path: Path) -> None:
    overwrite(copy, places(copy, "entry/array_0/voltage_v", 100, 101))
    recover_recording(copy, refusal=lambda _: "")
    rescued = tmp_path / "run-recovered.h5"
    with Recording.open(copy) as old, Recording.open(rescued) as new:
        assert (new.header, new.info, new.status) == (old.header, old.info, "recovered")
        dataset = new.dataset(1)
        np.testing.assert_array_equal(dataset.current_a, old.dataset(1).current_a)
        assert len(new.dataset(0)) == old.committed(0) - 64
        assert new.ended_utc == old.ended_utc
    with h5py.File(rescued) as file:
        origin = json.loads(file.attrs["recovered_from"])
    assert origin["file"] == "run.h5"
    assert len(origin["sha256"]) == 64
    assert origin["left_out"]["entry/array_0"]["reasons"] == {"checksum differs": 64}


def test_the_commands_say_what_there_is_and_end_with_its_code(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fine = labrig("recover", "run.h5")
    assert (fine.exit_code, "needs nothing" in fine.stdout) == (0, True)
    overwrite(copy, places(copy, "entry/array_0/voltage_v", 100, 101))
    damaged = copy.read_bytes()
    dry = labrig("recover", "run.h5", "--dry-run", "--json")
    said = json.loads(dry.stdout)
    assert (dry.exit_code, said["exit_code"], said["output"]) == (1, 1, None)
    assert [len(one["again"]) for one in said["streams"] if one["path"] == "entry/array_0"] == [1]
    assert not (tmp_path / "run-recovered.h5").exists()
    done = labrig("recover", "run.h5")
    assert done.exit_code == 1
    assert "run-recovered.h5: go on with" in done.stdout
    assert copy.read_bytes() == damaged
    again = labrig("recover", "run.h5")
    assert isinstance(again.exception, StorageError)
    assert "exists already" in str(again.exception)
    judged = labrig("verify", "run.h5", "run-recovered.h5", "absent.h5", "--json")
    assert judged.exit_code == 1
    faults = {one["file"]: one["faults"] for one in json.loads(judged.stdout)}
    assert [len(one) for one in faults.values()] == [1, 0, 1]
    assert "no such file" in faults["absent.h5"][0]
    told = labrig("verify", "run.h5")
    assert "run.h5: 1 fault (" in told.stdout
    assert "rows 64 to 127 are committed, but not what was written (checksum)" in told.stdout


def test_where_nothing_can_be_done_the_command_ends_with_two(tmp_path: Path) -> None:
    (tmp_path / "zeros.h5").write_bytes(bytes(100_000))
    command = [sys.executable, "-m", "labrig", "recover", "zeros.h5"]
    gone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert (gone.returncode, "nothing can be known" in gone.stderr) == (2, True)


def test_rows_beyond_the_counter_are_rescued_when_asked_for(copy: Path, tmp_path: Path) -> None:
    rescued = tmp_path / "rescued.h5"
    with h5py.File(copy, "r+") as file:
        journal = file["entry/journal/array_0"]
        last = journal[len(journal) - 1]
        file["entry/array_0/committed"][()] = last["start"]
        file["entry/status"][()] = np.bytes_("running")
    kept = recover_recording(copy, rescued, refusal=lambda _: "")
    (array,) = [one for one in kept.streams if one.path == "entry/array_0"]
    assert (kept.needs_nothing, array.uncounted, array.lost) == (True, int(last["rows"]), 0)
    assert array.again == (bytes(last["point"]).hex(),)
    assert not rescued.exists()
    recover_recording(copy, rescued, beyond_committed=True, refusal=lambda _: "")
    assert points(rescued)[bytes(last["point"]).hex()] == 1
    with Recording.open(rescued) as recording:
        assert recording.committed(0) == int(last["start"] + last["rows"])


def test_a_file_that_is_being_written_is_left_alone(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(finished.read_bytes())
    with h5py.File(path, "r+"):
        with pytest.raises(StorageError, match="is being written"):
            recover_recording(path)
        assert "is being written" in verify_recording(path).faults[0]


def test_other_files_are_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(5)
    with pytest.raises(StorageError, match="no labrig recording"):
        recover_recording(tmp_path / "other.h5")
    with pytest.raises(StorageError, match="no such file"):
        recover_recording(tmp_path / "absent.h5")
    with pytest.raises(StorageError, match="is a folder, not a file"):
        recover_recording(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    overwrite(copy, places(copy, "entry/array_0/voltage_v", 100, 101))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(StorageError, match="cannot be created"):
        recover_recording(copy, closed / "rescued.h5", refusal=lambda _: "")


def test_whether_hdf5_opens_a_file_is_asked_of_another_process(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal.refusal_of(copy) == ""
    (tmp_path / "text.h5").write_text("hello")
    assert "is not an HDF5 file" in refusal.refusal_of(tmp_path / "text.h5")
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    assert refusal.refusal_of(copy) == "HDF5 crashes on it (signal 11)"
    # What HDF5 does not open is damaged, though every row is right: all of it is rescued.
    report = recover_recording(copy, tmp_path / "rescued.h5")
    assert (report.exit_code, report.faults) == (0, ("HDF5: HDF5 crashes on it (signal 11)",))
    with Recording.open(tmp_path / "rescued.h5") as new, Recording.open(copy) as old:
        np.testing.assert_array_equal(read_rows(new, 0).code, read_rows(old, 0).code)
    crashing.write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(refusal, "_PATIENCE_S", 0.05)
    assert "comes to no end" in refusal.refusal_of(copy)
