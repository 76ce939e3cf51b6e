"""What counts of a stream: the chain of the journal, checksums, columns that older files lack."""

from __future__ import annotations

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from labrig.plans import StreamCapacity
from labrig.recording import streams
from labrig.recording.file import BlockLabel, RecordingFile
from labrig.recording.header import RecordingHeader
from labrig.recording.journal import JOURNAL_DTYPE
from labrig.recording.layout import Column, Stream, crc32_of, mvm_stream
from labrig.recording.placed import PlacedRows
from labrig.recording.source import HdfRows, RowSource
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError

# As a later minor version may have it: more fields, one of them a checksum of the entry itself.
# Those of format 1.0 have no checksum of their own.
FIRST_DTYPE = np.dtype([(name, JOURNAL_DTYPE[name]) for name in ("point", "start", "rows", "crc32", "kind")])
LATER_DTYPE = JOURNAL_DTYPE


class Memory:
    """Datasets in memory, as a source of rows."""

    def __init__(self, datasets: dict[str, NDArray[np.generic]]) -> None:
        self.datasets = datasets
        self.rows_read = 0

    def names(self, group: str) -> frozenset[str]:
        return frozenset(path.rpartition("/")[2] for path in self.datasets if path.rpartition("/")[0] == group)

    def length(self, path: str) -> int:
        return len(self.datasets[path])

    def read(self, path: str, start: int, stop: int) -> NDArray[np.generic]:
        return self.read_present(path, start, stop)

    def read_present(self, path: str, start: int, stop: int) -> NDArray[np.generic]:
        self.rows_read += stop - start
        return self.datasets[path][start:stop]

    def scalar(self, path: str) -> object:
        return self.datasets[path][()]

    def is_being_written(self) -> bool:
        return False

    def look(self) -> None:
        pass

    def close(self) -> None:
        pass


def entries(rows: list[int], dtype: np.dtype[np.void], unused: int = 0) -> NDArray[np.void]:
    """A journal of blocks of so many rows, and unused entries behind it."""
    table = np.zeros(len(rows) + unused, dtype)
    table["start"] = -1
    table["rows"][: len(rows)] = rows
    table["start"][: len(rows)] = np.cumsum([0, *rows])[:-1]
    table["crc32"] = np.arange(len(table))
    if "entry_crc32" in (dtype.names or ()):
        table["entry_crc32"] = [zlib.crc32(one.tobytes()[:-4]) for one in table]
    return table


def counted(table: NDArray[np.void], rows: int) -> NDArray[np.void]:
    return streams.journal(Memory({"journal": table}), "journal", rows)


@given(
    rows=st.lists(st.integers(1, 9), max_size=30),
    unused=st.integers(0, 5),
    reads=st.lists(st.integers(0, 30), max_size=6),
    later=st.booleans(),
)
def test_journal_that_grows_is_read_as_at_once(rows: list[int], unused: int, reads: list[int], *, later: bool) -> None:
    table = entries(rows, LATER_DTYPE if later else FIRST_DTYPE, unused)
    source, reader = Memory({"journal": table}), streams.JournalReader("journal")
    for count in sorted(min(read, len(rows)) for read in reads):
        committed = sum(rows[:count])
        found = reader.entries(source, committed)
        assert np.array_equal(found, table[:count])
        assert np.array_equal(found, counted(table, committed))
        assert streams.covered(found) == committed


def test_entries_of_committed_blocks_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_JOURNAL_STEP", 8)
    source, reader = Memory({"journal": entries([5] * 1000, FIRST_DTYPE)}), streams.JournalReader("journal")
    for blocks in range(1001):
        assert len(reader.entries(source, 5 * blocks)) == blocks
    assert source.rows_read < 10 * 1000


@pytest.mark.parametrize("dtype", [FIRST_DTYPE, LATER_DTYPE])
def test_entries_behind_the_committed_rows_do_not_count(dtype: np.dtype[np.void]) -> None:
    # Two blocks never counted; a run that went on overwrote the first of their entries with a longer block.
    table = entries([10, 10, 20, 20], dtype)
    went_on = entries([10, 10, 50], dtype)
    table[2] = went_on[2]
    assert np.array_equal(counted(table, 20), table[:2])
    assert np.array_equal(counted(table, 70), table[:3])


@pytest.mark.parametrize("field", ["start", "rows"])
@given(number=st.integers(0, 4), value=st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20))
def test_garbage_in_an_entry_ends_the_chain(field: str, number: int, value: int) -> None:
    table = entries([3, 1, 4, 1, 5], FIRST_DTYPE)
    right = int(table[field][number])
    # Of this first form, without check sums, a length that makes up the whole sum by itself looks like the last one.
    fits = value == right or (field == "rows" and int(table["start"][number]) + value == 14)
    table[field][number] = value
    found = counted(table, 14)
    assert np.array_equal(found, table[: len(found)])
    # A length decides where the next block begins, so a wrong one shows there, or in the sum.
    assert (streams.covered(found) == 14) == fits


def test_points_that_were_missed_are_blocks_without_rows() -> None:
    table = entries([4, 0, 0, 3, 0], LATER_DTYPE, unused=2)
    assert np.array_equal(counted(table, 0), table[:0])
    assert np.array_equal(counted(table, 4), table[:3])
    assert np.array_equal(counted(table, 7), table[:5])
    # One behind the committed rows may still be overwritten, so it is not kept.
    source, reader = Memory({"journal": table}), streams.JournalReader("journal")
    assert len(reader.entries(source, 4)) == 3
    source.datasets["journal"] = replaced = entries([4, 6], LATER_DTYPE, unused=5)
    assert np.array_equal(reader.entries(source, 10), replaced[:2])


@given(place=st.integers(0, LATER_DTYPE.itemsize - 1), bit=st.integers(0, 7))
def test_entry_with_a_wrong_bit_anywhere_ends_the_chain(place: int, bit: int) -> None:
    table = entries([4, 5, 6], LATER_DTYPE)
    content = bytearray(table.tobytes())
    content[LATER_DTYPE.itemsize + place] ^= 1 << bit
    assert len(counted(np.frombuffer(bytes(content), LATER_DTYPE), 15)) == 1


STREAM = Stream(
    path="entry/array_0",
    axis="mvm",
    columns=(
        Column("voltage_v", "<f4", (3,), "V", "", np.nan),
        Column("current_code", "<i2", (2,), "", "", -1),
        Column("temperature_k", "<f4", (), "K", "", np.nan),
        Column("write", "<i4", (), "", "", -1),
    ),
    rows=0,
    signal="current_code",
    axes=("mvm",),
)


@given(
    rows=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    most=st.integers(1, 30),
    wrong=st.sets(st.integers(0, 11)),
    older=st.booleans(),
)
def test_blocks_are_checked_whatever_is_read_at_once(
    rows: list[int], most: int, wrong: set[int], *, older: bool
) -> None:
    rng = np.random.default_rng(0)
    # An older file has no temperatures; its checksums go over the others.
    stored = {
        f"entry/array_0/{one.name}": rng.integers(0, 99, (sum(rows), *one.shape)).astype(one.dtype)
        for one in STREAM.columns
        if not (older and one.name == "temperature_k")
    }
    source, table = Memory(stored), entries(rows, FIRST_DTYPE)
    for entry in table:
        part = slice(entry["start"], entry["start"] + entry["rows"])
        entry["crc32"] = crc32_of(column[part] for column in stored.values())
    assert [one.name for one in streams.columns_of(source, STREAM)] == [path.rpartition("/")[2] for path in stored]
    broken = sorted(number for number in wrong if number < len(rows))
    for number in broken:
        stored["entry/array_0/write"][table["start"][number] + rows[number] - 1] += 1
    read: list[int] = []
    found: list[int] = []
    for group in streams.blocks(source, STREAM, table, most):
        assert len(group.columns["write"]) <= max(most, *rows)
        found += [len(read) + position for position in group.wrong()]
        read += group.entries["start"].tolist()
        assert group.start == group.entries["start"][0]
    assert read == table["start"].tolist()
    assert found == broken


def test_rows_with_their_own_checksum() -> None:
    rows: dict[str, NDArray[np.generic]] = {
        "pulses": np.arange(5, dtype=np.int64),
        "target_conductance_s": np.arange(20, dtype=np.float32).reshape(5, 2, 2),
    }
    checksums = [crc32_of(column[number : number + 1] for column in rows.values()) for number in range(5)]
    rows[streams.ROW_CHECKSUM] = np.array(checksums, np.uint32)
    assert streams.wrong_rows(rows) == []
    rows["pulses"][3] += 1
    rows[streams.ROW_CHECKSUM][1] += 1
    assert streams.wrong_rows(rows) == [1, 3]


def test_counters() -> None:
    source = Memory({"entry/supply/committed": np.array(7), "entry/array_0/time_s": np.zeros(3)})
    assert streams.committed(source, "entry/supply") == 7
    # A stream that this version of the format has not.
    assert streams.committed(source, "entry/settings") == 0
    with pytest.raises(KeyError):
        streams.committed(source, "entry/array_0")
    source.datasets["entry/supply/committed"] = np.array(-1)
    with pytest.raises(ValueError, match="no number of rows"):
        streams.committed(source, "entry/supply")


INFO = BoardInfo("SIM-1", 1, 3, 2, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * 2, 1e-5, 5e-3)
HEADER = RecordingHeader("bench", "[rig]\n", {"name": "mvm"}, {}, {}, "2026-01-01T00:00:00+00:00", {})


@pytest.fixture(params=["placed", "hdf5"])
def recorded(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[RowSource, int]:
    """A finished recording of 200 blocks that outgrew its room, as a source, and how many MVMs it has."""
    path = tmp_path / "run.h5"
    file = RecordingFile(path, HEADER, INFO, {0: StreamCapacity(40, 1, 3)}, 2, "process")
    file.append_write(
        0,
        {
            "target_conductance_s": np.full((1, 3, 2), 1e-5),
            "programmed_at_s": np.array([0.5]),
            "rms_error_s": np.array([1e-7]),
            "pulses": np.array([3]),
            "board_write": np.array([0]),
        },
    )
    total = 0
    for index in range(200):
        rows = 1 + index % 7
        columns: dict[str, NDArray[np.generic]] = {
            "voltage_v": np.full((rows, 3), index, np.float32),
            "current_code": np.full((rows, 2), index, np.int16),
            "saturated": np.zeros((rows, 2), np.uint8),
            "time_s": np.arange(total, total + rows, dtype=np.float64),
        }
        total = file.append_mvms(0, columns, BlockLabel(bytes(16), 3))
    file.close("finished")
    return (PlacedRows(path) if request.param == "placed" else HdfRows(h5py.File(path, "r"))), total


def test_both_sources_read_the_same(recorded: tuple[RowSource, int]) -> None:
    source, total = recorded
    stream = mvm_stream(0, INFO, StreamCapacity(0, 0, 0))
    assert streams.committed(source, stream.path) == total
    assert streams.room(source, stream) == total
    assert source.scalar("entry/status") == b"finished"
    table = streams.journal(source, "entry/journal/array_0", total)
    assert table["rows"].tolist() == [1 + index % 7 for index in range(200)]
    for group in streams.blocks(source, stream, table, 50):
        assert group.wrong() == []
    every = streams.columns(source, stream, 0, total)
    assert np.array_equal(every["time_s"], np.arange(total, dtype=np.float64))
    assert np.array_equal(every["voltage_v"][:, 1], np.repeat(np.arange(200), table["rows"]))
    for start, stop in ((0, 0), (5, 6), (38, 45), (total - 3, total)):
        part = streams.columns(source, stream, start, stop)
        assert all(np.array_equal(part[name], column[start:stop]) for name, column in every.items())
    with pytest.raises(ValueError, match=f"{total + 1} are said to be committed"):
        source.read("entry/array_0/time_s", 0, total + 1)
    assert len(source.read_present("entry/array_0/time_s", 0, total + 1)) == total
    with pytest.raises(KeyError):
        source.read("entry/array_1/time_s", 0, 1)
    assert not source.is_being_written()
    source.look()
    source.close()
    source.close()
    with pytest.raises((OSError, KeyError)):
        source.read("entry/array_0/time_s", 0, 1)


def test_file_that_ends_before_its_rows_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    RecordingFile(path, HEADER, INFO, {0: StreamCapacity(40, 1, 3)}, 2, "process").close("finished")
    source = PlacedRows(path)
    path.write_bytes(b"")
    with pytest.raises(OSError, match="the file ends before row 1 of entry/array_0/committed"):
        source.scalar("entry/array_0/committed")
    with pytest.raises(StorageError, match="is damaged"):
        source.look()
    source.close()
