"""Recordings read in part: piece by piece, from row to row, by writes; and larger than the memory that there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.plans import StreamCapacity
from labrig.recording import Recording, RecordingHeader
from labrig.recording.file import BlockLabel, RecordingFile
from labrig.recording.placed import PlacedRows
from labrig.recording.rows import read_rows
from labrig.recording.source import HdfRows
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError

ROWS, COLUMNS = 6, 4
INFO = BoardInfo("SIM-1", 2, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader("bench", "[rig]\n", {"name": "mvm"}, {}, {}, "2026-01-01T00:00:00+00:00", {})
# Rows of each block, by writes; the third write was interrupted before its first MVM.
BLOCKS: tuple[list[int], ...] = ([7, 8, 1], [30], [], [2, 2, 2, 40], [5])
WRITES = np.repeat(np.arange(len(BLOCKS)), [sum(one) for one in BLOCKS])


def write_columns(index: int) -> dict[str, NDArray[np.generic]]:
    return {
        "target_conductance_s": np.random.default_rng([index, 2]).uniform(4e-6, 5e-5, (1, ROWS, COLUMNS)),
        "programmed_at_s": np.array([10.0 * index]),
        "rms_error_s": np.array([1e-7]),
        "pulses": np.array([index]),
        "board_write": np.array([index]),
    }


def mvm_columns(start: int, rows: int) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng([start, 1])
    return {
        "voltage_v": rng.uniform(-0.3, 0.3, (rows, ROWS)).astype(np.float32),
        "current_code": rng.integers(-512, 512, (rows, COLUMNS)).astype(np.int16),
        "saturated": rng.integers(0, 2, (rows, COLUMNS)).astype(np.uint8),
        "time_s": 100.0 + np.arange(start, start + rows, dtype=np.float64),
    }


# What other programs make of a recording, and whether its rows then still have places of their own.
REWRITTEN: dict[str, tuple[dict[str, object], bool]] = {
    "compressed": ({"chunks": True, "compression": "gzip", "compression_opts": 1}, False),
    "other chunks": ({"chunks": True}, False),
    "contiguous": ({}, True),
}


def rewritten(path: Path, options: dict[str, object]) -> Path:
    """A copy with other storage."""
    copy = path.with_name("copy.h5")

    def carry(source: h5py.Group, target: h5py.Group) -> None:
        target.attrs.update(source.attrs)
        for name, node in source.items():
            if isinstance(node, h5py.Group):
                carry(node, target.create_group(name))
            else:
                stored = options if node.chunks else {}
                new = target.create_dataset(name, data=node[()], dtype=node.dtype, **stored)
                new.attrs.update({key: value for key, value in node.attrs.items() if "LIST" not in key})

    with h5py.File(path) as source, h5py.File(copy, "w") as target:
        carry(source, target)
    return copy


@pytest.fixture(params=["as written", *REWRITTEN])
def recorded(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "run.h5"
    file = RecordingFile(path, HEADER, INFO, {0: StreamCapacity(50, 2, 4), 1: StreamCapacity(1, 1, 1)}, 5, "process")
    for write, blocks in enumerate(BLOCKS):
        file.append_write(0, write_columns(write))
        for rows in blocks:
            file.append_mvms(0, mvm_columns(file._mvms[0].written, rows), BlockLabel(bytes([rows] * 16), 3))
    file.close("finished")
    return path if request.param == "as written" else rewritten(path, REWRITTEN[request.param][0])


def same(one: MvmDataset, other: MvmDataset) -> bool:
    names = ("voltage_v", "current_a", "pattern", "target_conductance_s", "time_s", "programmed_at_s", "saturated")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_what_has_no_places_is_read_through_hdf5(recorded: Path, request: pytest.FixtureRequest) -> None:
    how = request.node.callspec.params["recorded"]
    with Recording.open(recorded) as recording:
        placed = how == "as written" or REWRITTEN[how][1]
        assert isinstance(recording._source, PlacedRows if placed else HdfRows)
        recording.verify()
        assert not recording.refresh()
        assert read_rows(recording, 0).pulses.tolist() == [0, 1, 2, 3, 4]
        assert read_rows(recording, 1).code.shape == (0, COLUMNS)


@pytest.mark.parametrize("rows", [1, 16, 1000])
def test_pieces_are_the_whole(recorded: Path, rows: int) -> None:
    with Recording.open(recorded) as recording:
        whole = recording.dataset()
        assert np.array_equal(whole.pattern, WRITES)
        for start, stop in ((0, None), (0, 0), (5, 90), (33, 34), (16, 46), (len(whole), None)):
            pieces = list(recording.iter_mvms(0, start, stop, rows=rows))
            end = len(whole) if stop is None else stop
            assert sum(len(one.mvms) for one in pieces) == end - start
            assert all(0 < len(one.mvms) <= rows for one in pieces)
            place = start
            for one in pieces:
                assert one.start == place
                part = slice(place, place + len(one.mvms))
                place = part.stop
                assert np.array_equal(one.mvms.voltage_v, whole.voltage_v[part])
                assert np.array_equal(one.mvms.current_a, whole.current_a[part])
                assert np.array_equal(one.mvms.age_s, whole.age_s[part])
                assert np.array_equal(one.first_write + one.mvms.pattern, WRITES[part])
                targets = whole.target_conductance_s[one.first_write : one.first_write + one.mvms.writes]
                assert np.array_equal(one.mvms.target_conductance_s, targets)
            joined = recording.dataset(0, start, stop)
            assert np.array_equal(joined.time_s, whole.time_s[start:end])
            assert np.array_equal(recording.mvm_columns(0, start, stop)["time_s"], whole.time_s[start:end])
        assert same(recording.dataset(0, 0, len(whole)), whole)


@pytest.mark.parametrize("writes", [[0], [1], [4], [0, 1], [3, 1], [4, 2, 0], [0, 1, 2, 3, 4]])
def test_data_of_some_writes(recorded: Path, writes: list[int]) -> None:
    with Recording.open(recorded) as recording:
        whole, found = recording.dataset(), recording.dataset(writes=writes)
        rows = np.concatenate([np.flatnonzero(write == WRITES) for write in writes])
        assert np.array_equal(found.voltage_v, whole.voltage_v[rows])
        assert np.array_equal(np.array(writes)[found.pattern], WRITES[rows])
        assert np.array_equal(found.target_conductance_s, whole.target_conductance_s[writes])
        assert np.array_equal(found.age_s, whole.age_s[rows])


def test_what_is_not_there_is_told(recorded: Path) -> None:
    with Recording.open(recorded) as recording:
        with pytest.raises(StorageError, match="array 0 has 97 committed MVMs, 50 to 98 were asked for"):
            recording.dataset(0, 50, 98)
        with pytest.raises(StorageError, match="97 committed MVMs, -1 to 97 were"):
            list(recording.iter_mvms(0, -1))
        with pytest.raises(StorageError, match="pieces of 0 MVMs"):
            list(recording.iter_mvms(0, rows=0))
        with pytest.raises(StorageError, match="array 0 has 5 committed writes, 3 to 6 were asked for"):
            recording.write_columns(0, 3, 6)
        with pytest.raises(StorageError, match="has no array 2; it has: 0, 1"):
            list(recording.iter_mvms(2))
        for writes in ([], [5], [-1], [1, 1]):
            with pytest.raises(StorageError, match=r"array 0 has 5 writes, counted from 0; .* (was|were) asked for"):
                recording.dataset(writes=writes)
        with pytest.raises(StorageError, match="no MVM was committed of write 2"):
            recording.dataset(writes=[2])
        with pytest.raises(StorageError, match="no MVM of array 1 was committed"):
            recording.dataset(1)
        assert list(recording.iter_mvms(1)) == []


def test_damage_is_found_where_it_is_and_no_earlier(recorded: Path) -> None:
    with h5py.File(recorded, "r+") as file:
        # In the block of 30, which is all of write 1.
        file["entry/array_0/current_code"][20, 0] += 1
    with Recording.open(recorded) as recording:
        assert len(recording.dataset(0, 0, 16)) == 16
        pieces = recording.iter_mvms(rows=8)
        assert [next(pieces).start for _ in range(3)] == [0, 7, 15]
        with pytest.raises(StorageError, match="MVMs 16 to 45 of array 0"):
            next(pieces)
        with pytest.raises(StorageError, match="MVMs 16 to 45 of array 0"):
            recording.verify()
        assert len(recording.dataset(0, 46)) == 51
        assert len(recording.dataset(writes=[4])) == 5


@pytest.mark.parametrize(("row", "number"), [(0, 1), (16, 0), (16, 3), (46, 1), (52, 4), (94, 3)])
def test_number_of_a_write_that_is_wrong_never_hides_mvms(recorded: Path, row: int, number: int) -> None:
    with h5py.File(recorded, "r+") as file:
        # What is searched by halving: a wrong number at the begin of a block.
        file["entry/array_0/write"][row] = number
    with Recording.open(recorded) as recording:
        for write in (0, 1, 3, 4):
            try:
                found = recording.dataset(writes=[write])
            except StorageError:
                continue
            assert len(found) == np.count_nonzero(write == WRITES)
        with pytest.raises(StorageError, match="checksum"):
            recording.dataset(writes=[0, 1, 3, 4])


READER = """
import resource, sys
from labrig.recording import Recording

def peak_bytes():
    # Not ru_maxrss, which starts with the peak of the process that started this one.
    (line,) = [one for one in open("/proc/self/status") if one.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])

def mapped_bytes():
    return resource.getpagesize() * int(open("/proc/self/statm").read().split()[0])

path, rows = sys.argv[1], int(sys.argv[2])
with Recording.open(path) as recording:
    recording.dataset(0, 0, 100)
    before = peak_bytes()
    recording.verify()
    count = sum(len(one.mvms) for one in recording.iter_mvms(rows=rows))
    assert count == recording.committed(0)
    print(peak_bytes() - before)
    # The same where there is no more memory than that, and then what does not fit.
    limit = mapped_bytes() + int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    recording.verify()
    assert sum(len(one.mvms) for one in recording.iter_mvms(rows=rows)) == count
    try:
        recording.dataset()
    except MemoryError:
        print("does not fit")
"""


def large(path: Path, megabytes: int) -> None:
    """A recording of an array of 128 x 128."""
    info = BoardInfo("SIM-1", 1, 128, 128, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * 128, 1e-5, 5e-3)
    batch, rng = 1024, np.random.default_rng(0)
    blocks = megabytes * 1_000_000 // (batch * 909)
    file = RecordingFile(path, HEADER, info, {0: StreamCapacity(batch * blocks, 1, blocks)}, 5, "process")
    columns: dict[str, NDArray[np.generic]] = {
        "target_conductance_s": np.full((1, 128, 128), 1e-5),
        "programmed_at_s": np.zeros(1),
        "rms_error_s": np.zeros(1),
        "pulses": np.zeros(1),
        "board_write": np.zeros(1),
    }
    file.append_write(0, columns)
    for block in range(blocks):
        mvms: dict[str, NDArray[np.generic]] = {
            "voltage_v": rng.uniform(-0.3, 0.3, (batch, 128)).astype(np.float32),
            "current_code": rng.integers(-512, 512, (batch, 128)).astype(np.int16),
            "saturated": np.zeros((batch, 128), np.uint8),
            "time_s": block + np.arange(batch) * 1e-5,
        }
        file.append_mvms(0, mvms, BlockLabel(bytes(16), 3))
    file.close("finished")


def demand_flat(path: Path, most_bytes: int) -> None:
    command = [sys.executable, "-c", READER, str(path), "1024", str(most_bytes)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    peak, whole = run.stdout.splitlines()
    print(f"{path.stat().st_size / 1e6:.0f} MB on disk, {int(peak) / 1e6:.1f} MB more in memory")
    assert int(peak) < most_bytes < path.stat().st_size
    assert whole == "does not fit"


def test_reading_in_pieces_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    large(path, 60)
    demand_flat(path, 40_000_000)


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("how", "megabytes"), [("as written", 500), ("compressed", 150)])
def test_reading_much_more_needs_no_more(tmp_path: Path, how: str, megabytes: int) -> None:
    path = tmp_path / "run.h5"
    large(path, megabytes)
    demand_flat(path if how == "as written" else rewritten(path, REWRITTEN[how][0]), 50_000_000)
