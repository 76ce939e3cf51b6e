"""Recordings on a real disk: what is written is read, and what is wrong is told."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

import labrig
from labrig.plans import StreamCapacity
from labrig.recording import Recording, RecordingHeader, RecordingWriter, layout
from labrig.recording.file import Durability, RecordingFile
from labrig.recording.header import versions_now
from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
from labrig_drivers.errors import StateError, StorageError
from labrig_drivers.instrument import Identity
from labrig_drivers.source_meter import Reading

ROWS, COLUMNS = 6, 4
INFO = BoardInfo(
    chip_id="SIM-1",
    arrays=2,
    rows=ROWS,
    columns=COLUMNS,
    conductance_min_s=4e-6,
    conductance_max_s=5e-5,
    voltage_min_v=-0.3,
    voltage_max_v=0.3,
    dac_bits=8,
    adc_bits=10,
    adc_full_scale_a=(1e-4, 2e-4, 1e-4, 4e-4),
    mvm_latency_s=1e-5,
    program_latency_s=5e-3,
)
HEADER = RecordingHeader(
    rig_name="bench",
    rig_toml='[rig]\nname = "bench"\n',
    plan={"name": "mvm", "seed": 1},
    identities={"board": Identity("labrig", "LR-SIM1", "SIM-1", "1.0")},
    settings={"board": {"driver": "mock-board"}},
    started_utc="2026-01-01T00:00:00.000000+00:00",
    versions=versions_now(),
    git_commit="abc",
)
CAPACITY = {0: StreamCapacity(rows=100, writes=3, blocks=12), 1: StreamCapacity(rows=50, writes=1, blocks=5)}


def target(index: int) -> np.ndarray:
    return np.random.default_rng(index).uniform(4e-6, 5e-5, (ROWS, COLUMNS)).astype(np.float32).astype(np.float64)


def report(index: int) -> ProgramReport:
    return ProgramReport(write_index=40 + index, time_s=10.0 * index, pulses=7, rms_error_s=1e-7)


def block(index: int, batch: int = 8) -> tuple[np.ndarray, MvmResult]:
    rng = np.random.default_rng([index, 1])
    voltage_v = rng.uniform(-0.3, 0.3, (batch, ROWS)).astype(np.float32).astype(np.float64)
    code = rng.integers(-512, 512, (batch, COLUMNS)).astype(np.int16)
    time_s = 100.0 + index + np.arange(batch, dtype=np.float64) * 1e-5
    return voltage_v, MvmResult(code, code * INFO.adc_lsb_a, code == 511, time_s, write_index=40)


async def create(path: Path, durability: Durability = "process") -> RecordingWriter:
    return await RecordingWriter.create(path, HEADER, INFO, CAPACITY, supply_capacity=10, durability=durability)


async def append(writer: RecordingWriter, array: int, index: int, batch: int = 8) -> int:
    voltage_v, result = block(index, batch)
    return await writer.append_mvms(array, 3, voltage_v, result, f"{index:032x}")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
async def finished(tmp_path: Path) -> Path:
    """Two writes with two blocks each on array 0, and three readings of the supply."""
    path = tmp_path / "run.h5"
    async with await create(path) as writer:
        for write in range(2):
            assert await writer.append_write(0, target(write), report(write)) == write
            assert await append(writer, 0, 2 * write) == 16 * write + 8
            assert await append(writer, 0, 2 * write + 1) == 16 * write + 16
        for second in range(3):
            await writer.append_supply(Reading(2.0, 0.1 * second, in_compliance=second == 2, time_s=1e9 + second))
    return path


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_round_trip(tmp_path: Path, durability: Durability) -> None:
    path = tmp_path / "run.h5"
    async with await create(path, durability) as writer:
        await writer.append_write(0, target(0), report(0))
        await append(writer, 0, 0)
        await writer.append_write(0, target(1), report(1))
        await append(writer, 0, 1)
    data = labrig.read_mvms(path, array=0)
    (first_v, first), (second_v, second) = block(0), block(1)
    assert np.array_equal(data.voltage_v, np.concatenate([first_v, second_v]))
    assert np.array_equal(data.current_a, np.concatenate([first.current_a, second.current_a]))
    assert np.array_equal(data.saturated, np.concatenate([first.saturated, second.saturated]))
    assert np.array_equal(data.time_s, np.concatenate([first.time_s, second.time_s]))
    assert data.pattern.tolist() == [0] * 8 + [1] * 8
    assert np.array_equal(data.target_conductance_s, np.stack([target(0), target(1)]))
    assert data.programmed_at_s.tolist() == [0.0, 10.0]
    assert (data.chip_id, data.array) == ("SIM-1", 0)
    assert np.array_equal(data.converters.adc_lsb_a, INFO.adc_lsb_a)


async def test_everything_about_the_run_is_in_the_file(finished: Path) -> None:
    with Recording.open(finished) as recording:
        recording.verify()
        assert recording.format_version == layout.FORMAT_VERSION
        assert recording.header == HEADER
        assert recording.info == INFO
        assert recording.status == "finished"
        assert recording.arrays == (0, 1)
        assert (recording.committed(0), recording.writes(0), recording.committed(1)) == (32, 2, 0)
        assert recording.point_hashes(0) == [f"{index:032x}" for index in range(4)]
        supply = recording.supply()
        assert supply.in_compliance.tolist() == [False, False, True]
        assert recording.supply_energy_j() == pytest.approx(2.0 * (0.05 + 0.15))
        summary = recording.summary()
        assert summary.mvms == {0: 32, 1: 0}
        assert summary.ended_utc > summary.started_utc
        with pytest.raises(StorageError, match="no MVM of array 1 was committed"):
            recording.dataset(1)
        with pytest.raises(StorageError, match="has no array 7; it has: 0, 1"):
            recording.dataset(7)


async def test_before_the_first_row_everything_is_reserved_and_filled(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    writer = await create(path)
    size = path.stat().st_size
    # A copy: the writer holds the lock.
    snapshot = tmp_path / "snapshot.h5"
    snapshot.write_bytes(path.read_bytes())
    with h5py.File(snapshot, "r") as file:
        array = file["entry/array_0"]
        assert array["voltage_v"].shape == (100, ROWS)
        assert np.isnan(array["voltage_v"][...]).all()
        assert (array["current_code"][...] == -32768).all()
        assert (array["write"][...] == -1).all()
        assert (file["entry/journal/array_0"]["start"] == -1).all()
        assert array["committed"][()] == 0
    with Recording.open(snapshot) as recording:
        assert recording.status == "interrupted"
        assert recording.committed(0) == 0
    await writer.append_write(0, target(0), report(0))
    for index in range(12):
        await append(writer, 0, index)
    assert path.stat().st_size == size
    await writer.close("aborted")
    await writer.close("aborted")
    with Recording.open(path) as recording:
        assert recording.status == "aborted"
        assert recording.dataset(0).voltage_v.shape == (96, ROWS)
    with pytest.raises(StorageError, match="closed already"):
        await append(writer, 0, 12)


async def test_streams_that_outgrow_their_room_are_extended(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    async with await create(path) as writer:
        for write in range(5):
            await writer.append_write(1, target(write), report(write))
            for index in range(4):
                await append(writer, 1, 4 * write + index, batch=20)
        for second in range(25):
            await writer.append_supply(Reading(1.0, 0.1, in_compliance=False, time_s=float(second)))
    with Recording.open(path) as recording:
        data = recording.dataset(1)
        assert data.pattern.tolist() == sorted(list(range(5)) * 80)
        assert np.array_equal(data.voltage_v[-20:], block(19, 20)[0])
        assert recording.point_hashes(1) == [f"{index:032x}" for index in range(20)]
        assert recording.supply().time_s.tolist() == list(map(float, range(25)))
    with xarray.open_dataset(path, engine="h5netcdf", group="entry/array_1") as other:
        assert other["mvm"].values.tolist() == list(range(400))


async def test_many_appends_at_once_are_committed_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    async with await create(path) as writer:
        await writer.append_write(0, target(0), report(0))
        totals = await asyncio.gather(*(append(writer, 0, index, batch=2) for index in range(40)))
    assert totals == list(range(2, 82, 2))
    assert np.array_equal(labrig.read_mvms(path).voltage_v, np.concatenate([block(i, 2)[0] for i in range(40)]))


async def test_cancelled_append_is_carried_out_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    async with await create(path) as writer:
        await writer.append_write(0, target(0), report(0))
        task = asyncio.create_task(append(writer, 0, 0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await append(writer, 0, 1) == 16
    with Recording.open(path) as recording:
        recording.verify()
        assert recording.point_hashes(0) == [f"{0:032x}", f"{1:032x}"]


async def test_calls_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    async with await create(path) as writer:
        with pytest.raises(StateError, match="record the write first"):
            await append(writer, 0, 0)
        with pytest.raises(StateError, match="created for arrays: 0, 1"):
            await append(writer, 5, 0)
        await writer.append_write(0, target(0), report(0))
        with pytest.raises(ValueError, match="32 hex digits"):
            await writer.append_mvms(0, 3, *block(0), "abcd")
        assert await append(writer, 0, 0) == 8


async def test_name_that_exists_is_never_overwritten(finished: Path) -> None:
    with pytest.raises(StorageError, match="exists already"):
        await create(finished)
    with Recording.open(finished) as recording:
        assert recording.committed(0) == 32


async def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"run\.h5: cannot be created: "):
        await create(tmp_path / "file" / "run.h5")
    with pytest.raises(StorageError, match=r"cannot be created: there is no folder "):
        await create(tmp_path / "absent" / "run.h5")


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Lets no file of this process grow beyond a size: what a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_full_disk_shows_before_the_run_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    large = {0: StreamCapacity(rows=100_000, writes=1, blocks=1000)}
    with largest_file(2_000_000), pytest.raises(StorageError, match=r"MB are needed .* cannot be reserved"):
        await RecordingWriter.create(path, HEADER, INFO, large)
    assert names_in(tmp_path) == []


async def test_failure_while_the_structure_is_made_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", no_fsync)
    with pytest.raises(StorageError, match="Input/output error"):
        await create(tmp_path / "run.h5")
    assert names_in(tmp_path) == []


async def test_write_that_fails_ends_the_recording_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    writer = await create(path)
    await writer.append_write(0, target(0), report(0))
    await append(writer, 0, 0)

    def full(self: RecordingFile, **options: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(RecordingFile, "_sync", full)
        with pytest.raises(StorageError, match="No space left on device; the rows before are safe"):
            await append(writer, 0, 1)
    with pytest.raises(StorageError, match="an earlier write failed"):
        await append(writer, 0, 2)
    await writer.close("aborted")
    with Recording.open(path) as recording:
        assert recording.status == "interrupted"
        assert np.array_equal(recording.dataset(0).voltage_v, block(0)[0])


async def test_cancelled_creation_leaves_nothing(tmp_path: Path) -> None:
    task = asyncio.create_task(create(tmp_path / "run.h5"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names_in(tmp_path) == []


async def test_recording_that_is_being_written_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    async with await create(path) as writer:
        await writer.append_write(0, target(0), report(0))
        await append(writer, 0, 0)
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "labrig", "show", str(path)]
        reader = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        shown, errors = await reader.communicate()
        assert (reader.returncode, errors) == (0, b"")
        assert b"running" in shown
        assert b"not yet" in shown
        assert b"8 MVMs, 1 write" in shown
        assert await append(writer, 0, 1) == 16


@pytest.mark.parametrize("text", ["", "ü" * 20_000, "x" * 300_000])
async def test_rig_file_of_any_length_is_kept_verbatim(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.h5"
    async with await RecordingWriter.create(path, replace(HEADER, rig_toml=text), INFO, CAPACITY):
        pass
    with Recording.open(path) as recording:
        assert recording.header.rig_toml == text


async def test_capacity_of_nothing_is_possible(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    none = {0: StreamCapacity(rows=0, writes=0, blocks=0)}
    async with await RecordingWriter.create(path, replace(HEADER, plan={}), INFO, none, supply_capacity=0):
        pass
    with Recording.open(path) as recording:
        assert recording.committed(0) == 0
        assert recording.supply_energy_j() == 0.0
