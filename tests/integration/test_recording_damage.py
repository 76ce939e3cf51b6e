"""Recordings that were damaged: nothing wrong is ever read as a measurement, and the reason is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import h5py
import numpy as np
import pytest

import labrig
from labrig.plans import StreamCapacity
from labrig.recording import Recording, RecordingHeader, RecordingWriter
from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
from labrig_drivers.errors import StorageError

ROWS, COLUMNS = 6, 4
INFO = BoardInfo("SIM-1", 1, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader("bench", "[rig]\n", {"name": "mvm"}, {}, {}, "2026-01-01T00:00:00+00:00", {})
CAPACITY = {0: StreamCapacity(rows=100, writes=3, blocks=12)}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Two writes with two blocks of eight MVMs each."""
    path = tmp_path / "run.h5"
    rng = np.random.default_rng(0)

    async def record() -> None:
        async with await RecordingWriter.create(path, HEADER, INFO, CAPACITY, supply_capacity=10) as writer:
            for write in range(2):
                target_s = rng.uniform(4e-6, 5e-5, (ROWS, COLUMNS))
                await writer.append_write(0, target_s, ProgramReport(write, float(write), 1, 1e-7))
                for block in range(2):
                    voltage_v = rng.uniform(-0.3, 0.3, (8, ROWS))
                    code = rng.integers(-512, 512, (8, COLUMNS)).astype(np.int16)
                    time_s = 10.0 + write + np.linspace(0.0, 1e-4, 8)
                    result = MvmResult(code, code * INFO.adc_lsb_a, code == 511, time_s, write)
                    await writer.append_mvms(0, 3, voltage_v, result, f"{2 * write + block:032x}")

    asyncio.run(record())
    return path


@pytest.mark.parametrize(
    ("dataset", "row", "message"),
    [
        ("entry/array_0/voltage_v", 9, "MVMs 8 to 15 of array 0"),
        ("entry/array_0/current_code", 31, "MVMs 24 to 31 of array 0"),
        ("entry/array_0/write", 0, "MVMs 0 to 7 of array 0"),
        ("entry/array_0/writes/target_conductance_s", 1, "write 1 of array 0"),
    ],
)
def test_one_flipped_bit_is_found(finished: Path, dataset: str, row: int, message: str) -> None:
    with h5py.File(finished, "r+") as file:
        # Where the row lies on disk; a chunk holds the whole small dataset.
        node = file[dataset]
        place = node.id.get_chunk_info(0).byte_offset + row * node.dtype.itemsize * int(np.prod(node.shape[1:]))
    content = bytearray(finished.read_bytes())
    content[place] ^= 1
    finished.write_bytes(content)
    with Recording.open(finished) as recording:
        with pytest.raises(StorageError, match=message):
            recording.verify()
        with pytest.raises(StorageError, match="checksum"):
            recording.dataset(0)


def test_counter_that_claims_too_much_is_not_believed(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file["entry/array_0/committed"][()] = 33
    with pytest.raises(StorageError, match="33 are said to be committed"):
        labrig.read_mvms(finished)


def test_file_cut_short_at_any_place_is_told(finished: Path) -> None:
    whole = finished.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        finished.write_bytes(whole[:length])
        with pytest.raises(StorageError, match=r"run\.h5: "):
            labrig.read_mvms(finished)


def test_garbage_at_any_place_is_told_or_harmless(finished: Path) -> None:
    reference = labrig.read_mvms(finished).sha256()
    whole = finished.read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for place in rng.integers(0, len(whole) - 64, 60):
        finished.write_bytes(whole[:place] + rng.bytes(64) + whole[place + 64 :])
        try:
            # Garbage in the texts, or in room that no row uses, changes no measurement.
            assert labrig.read_mvms(finished).sha256() == reference
        except StorageError:
            told += 1
    assert told < 60


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("file_format", "photographs", "no labrig recording"),
        ("format_version", "2.0", "format version '2.0', this labrig reads 1.x"),
        ("board_info", "{}", "is damaged"),
        ("board_info", 7, "is damaged"),
    ],
)
def test_other_contents_are_told(finished: Path, attribute: str, value: object, message: str) -> None:
    with h5py.File(finished, "r+") as file:
        file.attrs[attribute] = value
    with pytest.raises(StorageError, match=message):
        Recording.open(finished)


def test_minor_versions_are_read(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file.attrs["format_version"] = "1.7"
    assert len(labrig.read_mvms(finished)) == 32


def test_what_is_no_recording_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        Recording.open(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("hello" * 1000)
    with pytest.raises(StorageError, match="is not an HDF5 file"):
        Recording.open(tmp_path / "text.h5")
