"""What is read of a recording's structure without HDF5 is what HDF5 reads; garbage is refused and read to an end."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig.plans import StreamCapacity
from labrig.recording import RecordingHeader
from labrig.recording.damaged_file import DamagedFile
from labrig.recording.file import BlockLabel, RecordingFile
from labrig.recording.file_bytes import FileBytes, StructureError
from labrig.recording.found_streams import StreamFinder
from labrig.recording.hdf5_messages import attribute_of, messages_in
from labrig.recording.hdf5_nodes import Chunk, StoredDataset, StoredGroup, chunks_of, node_at, superblock_of
from labrig.recording.journal_entries import entry_crc32, is_plausible
from labrig.recording.layout import mvm_stream
from labrig.recording.stored_rows import StoredRows, with_holes_filled
from labrig.recording.table import locate_table
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.instrument import Identity

ROWS, COLUMNS = 5, 3
INFO = BoardInfo("SIM-1", 2, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader(
    "bench", "ü" * 40_000, {"name": "mvm"}, {"board": Identity("a", "b", "c", "d")}, {}, "2026-01-01T00:00:00+00:00", {}
)


def record(path: Path, rows: int = 4000, *, close: bool = True) -> Path:
    """Two arrays of some blocks, one of them in streams that had to grow."""
    capacity = {0: StreamCapacity(rows, 2, 40), 1: StreamCapacity(3, 1, 1)}
    file = RecordingFile(path, HEADER, INFO, capacity, 10, "process")
    rng = np.random.default_rng(rows)
    for array in capacity:
        for write in range(2):
            target_s = rng.uniform(4e-6, 5e-5, (1, ROWS, COLUMNS)).astype(np.float32)
            numbers = {
                "programmed_at_s": np.array([1.0]),
                "rms_error_s": np.array([1e-7]),
                "pulses": np.array([write]),
                "board_write": np.array([write]),
            }
            file.append_write(array, {"target_conductance_s": target_s, **numbers})
            for _ in range(10):
                code = rng.integers(-512, 512, (50, COLUMNS)).astype(np.int16)
                block = {
                    "voltage_v": rng.uniform(-0.3, 0.3, (50, ROWS)).astype(np.float32),
                    "current_code": code,
                    "saturated": (np.abs(code + 0.5) > 511).astype(np.uint8),
                    "time_s": np.arange(50.0),
                }
                file.append_mvms(array, block, BlockLabel(rng.bytes(16), 3))
    if close:
        file.close("finished")
    else:
        file.abandon()
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("nodes") / "run.h5")


@pytest.mark.parametrize("close", [True, False])
def test_every_node_is_read_as_hdf5_reads_it(tmp_path: Path, *, close: bool) -> None:
    path = record(tmp_path / "run.h5", close=close)
    with FileBytes(path) as source, h5py.File(path) as file:
        root, end = superblock_of(source)
        assert end == source.size
        assert root == h5py.h5o.get_info(file.id).addr
        damaged = DamagedFile(source)
        assert damaged.faults == []
        names: list[str] = []
        file.visit(names.append)
        assert set(damaged.addresses) == set(names)
        for name in ("", *names):
            theirs = file[name] if name else file
            mine = node_at(source, damaged.addresses.get(name, root))
            for key, value in theirs.attrs.items():
                if key == "DIMENSION_LIST":
                    refs = [tuple(h5py.h5o.get_info(file[one].id).addr for one in axis) for axis in value]
                    assert mine.attributes[key] == tuple(refs)
                elif key != "REFERENCE_LIST":
                    found = mine.attributes[key]
                    expected = value.decode() if isinstance(value, bytes) else value
                    assert found == expected if isinstance(expected, str) else np.array_equal(found, expected)
            if isinstance(mine, StoredGroup):
                assert set(mine.children) == set(theirs)
            else:
                compare_datasets(source, mine, file, theirs)


def compare_datasets(source: FileBytes, mine: StoredDataset, file: h5py.File, theirs: h5py.Dataset) -> None:
    assert mine.shape == theirs.shape
    if mine.stored_type.dtype is not None:
        assert mine.stored_type.dtype == theirs.dtype
        assert mine.fill in (b"", np.asarray(theirs.fillvalue, theirs.dtype).tobytes())
    else:
        assert mine.stored_type.text == (h5py.check_string_dtype(theirs.dtype) is not None)
    if theirs.chunks is None:
        assert mine.layout.offset == theirs.id.get_offset()
        return
    assert mine.layout.chunk_shape == theirs.chunks
    assert mine.layout.tree is not None
    chunks, faults = chunks_of(source, mine.layout.tree, len(theirs.shape))
    assert faults == []
    places = [(theirs.id.get_chunk_info(one)) for one in range(theirs.id.get_num_chunks())]
    assert sorted((one.first, one.offset, one.size) for one in chunks) == sorted(
        (one.chunk_offset[0], one.byte_offset, one.size) for one in places
    )
    assert sum(run.rows for run in locate_table(file, theirs.name).runs) == len(chunks) * theirs.chunks[0]


@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip", "shuffle": True, "fletcher32": True}, {"shuffle": True}]
)
def test_rows_are_read_through_the_filters_of_a_compressed_copy(
    recording: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    path = tmp_path / "packed.h5"
    names = ("voltage_v", "current_code", "write")
    with h5py.File(recording) as old, h5py.File(path, "w") as new:
        for name in names:
            old_dataset = old[f"entry/array_0/{name}"]
            chunks = (64, *old_dataset.shape[1:])
            new.create_dataset(f"entry/array_0/{name}", data=old_dataset[...], chunks=chunks, **options)
        expected = {name: old[f"entry/array_0/{name}"][...] for name in names}
    stream = mvm_stream(0, INFO, StreamCapacity(0, 0, 0))
    with FileBytes(path) as source:
        found = StreamFinder(source, DamagedFile(source)).stream(stream, 0, 1, None)
        for column in stream.columns:
            if column.name in names:
                rows = found.rows[column.name]
                values = rows.read(30, 200, np.dtype(column.dtype), column.shape)
                assert np.array_equal(values, expected[column.name][30:200])
                assert rows.crc32(30, 200) == zlib.crc32(expected[column.name][30:200].tobytes())
                with pytest.raises(StructureError, match="no place"):
                    rows.crc32(900, 2000)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_garbage_is_no_attribute(data: bytes) -> None:
    list(messages_in(data))
    with contextlib.suppress(StructureError):
        attribute_of(data, lambda pointer, size: b"x" * size)


@settings(max_examples=25, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 200_000), st.binary(min_size=1, max_size=80)), min_size=1, max_size=6))
def test_garbage_in_the_structure_is_read_to_an_end(
    recording: Path, tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, bytes]]
) -> None:
    content = bytearray(recording.read_bytes())
    for place, garbage in places:
        content[place : place + len(garbage)] = garbage
    path = tmp_path_factory.mktemp("garbage") / "run.h5"
    path.write_bytes(content)
    with FileBytes(path) as source:
        damaged = DamagedFile(source)
        damaged.find_attributes(["plan", "board_info"])
        # Six places are few: what lies elsewhere is still found, named or not.
        assert len(damaged.all_datasets) > 20
        for dataset in damaged.datasets.values():
            if dataset.layout.tree is not None:
                chunks_of(source, dataset.layout.tree, len(dataset.shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:50], "beyond the end"),
        (lambda data: b"\0" + data[1:], "does not begin as an HDF5 file"),
        (lambda data: data[:8] + b"\2" + data[9:], "of another form"),
    ],
)
def test_what_has_no_superblock_is_told(
    recording: Path, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(change(recording.read_bytes()))
    with FileBytes(path) as source, pytest.raises(StructureError, match=message):
        superblock_of(source)


def test_a_tree_that_leads_back_to_itself_ends(recording: Path, tmp_path: Path) -> None:
    content = bytearray(recording.read_bytes())
    with FileBytes(recording) as source:
        damaged = DamagedFile(source)
        tree = damaged.datasets["entry/array_0/voltage_v"].layout.tree
    assert tree is not None
    # One level up, with itself below.
    content[tree + 5] = 1
    struct.pack_into("<Q", content, tree + 24 + 32, tree)
    path = tmp_path / "loop.h5"
    path.write_bytes(content)
    with FileBytes(path) as source:
        chunks, faults = chunks_of(source, tree, 2)
    assert chunks == []
    assert faults == []


def chunk(number: int, offset: int) -> Chunk:
    return Chunk(10 * number, offset, 100, 0)


def test_chunks_without_a_place_get_the_one_between_their_neighbours() -> None:
    known = {0: chunk(0, 1000), 1: chunk(1, 1100), 3: chunk(3, 777), 4: chunk(4, 1400), 2: chunk(2, 1200)}
    filled, guessed = with_holes_filled(known, 6, 10, 100)
    assert guessed == 2
    assert [filled[number].offset for number in range(6)] == [1000, 1100, 1200, 1300, 1400, 1500]
    # A stream that was extended lies in two pieces, which stay where they are.
    pieces = {0: chunk(0, 1000), 1: chunk(1, 1100), 2: chunk(2, 9000), 3: chunk(3, 9100)}
    assert with_holes_filled(pieces, 4, 10, 100) == (pieces, 0)
    assert with_holes_filled({}, 3, 10, 100) == ({}, 0)


def test_rows_that_cross_chunks_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(range(40)))
    with FileBytes(path) as source:
        rows = StoredRows(source, 2, 2, 3, {0: Chunk(0, 20, 6, 0), 1: Chunk(3, 0, 6, 0)})
        assert rows.read(1, 5, np.dtype("<u2")).tobytes() == bytes([22, 23, 24, 25, 0, 1, 2, 3])
        with pytest.raises(StructureError, match="row 6 has no place"):
            rows.crc32(4, 7)


def test_the_checksum_of_an_entry_is_that_of_its_other_bytes() -> None:
    dtype = np.dtype([("start", "<i8"), ("entry_crc32", "<u4"), ("rows", "<i8"), ("kind", "i1")])
    entry = np.array([(3, 0, 5, 7)], dtype)[0]
    expected = zlib.crc32(struct.pack("<qqb", 3, 5, 7))
    assert entry_crc32(entry) == expected
    assert not is_plausible(entry, 100)
    entry["entry_crc32"] = expected
    assert is_plausible(entry, 100)
    assert not is_plausible(entry, 7)
    missed = np.array([(-1, 0, 0, -2)], dtype)[0]
    missed["entry_crc32"] = entry_crc32(missed)
    assert is_plausible(missed, 0)
    assert not is_plausible(np.zeros(1, dtype)[0], 100)
    old = np.dtype([("start", "<i8"), ("rows", "<i8"), ("kind", "i1")])
    assert entry_crc32(np.zeros(1, old)[0]) is None
    assert not is_plausible(np.zeros(1, old)[0], 100)
