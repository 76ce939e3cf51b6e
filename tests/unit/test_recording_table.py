"""Where rows lie in the file: what is written there beside HDF5 is what HDF5 reads."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig.recording.disk import disk_of
from labrig.recording.table import Run, Table, growth_bytes, locate_scalar, locate_table
from labrig_drivers.errors import StorageError


def allocated(file: h5py.File, name: str, shape: tuple[int, ...], chunk_rows: int) -> h5py.Dataset:
    """A data set of int32 whose space is reserved, as recordings have them."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((chunk_rows, *shape[1:]))
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_value(np.array(-1, np.int32))
    space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED, *shape[1:]))
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_INT32, space, properties))


def write(file: h5py.File, table: Table, start: int, values: np.ndarray) -> None:
    disk = disk_of(file)
    for first, stop, offset in table.pieces(start, start + len(values)):
        disk.write_at(offset, values[first - start : stop - start])


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    chunk_rows=st.integers(1, 40),
    width=st.integers(1, 5),
    blocks=st.lists(st.integers(1, 9), max_size=8),
)
def test_rows_written_beside_hdf5_are_read_through_it(
    tmp_path_factory: pytest.TempPathFactory, rows: int, chunk_rows: int, width: int, blocks: list[int]
) -> None:
    path = tmp_path_factory.mktemp("table") / "file.h5"
    expected = np.full((rows, width), -1, np.int32)
    with h5py.File(path, "w") as file:
        # Two that grow in turn, so that the chunks of neither lie behind one another.
        for name in ("a", "b"):
            allocated(file, name, (rows, width), min(chunk_rows, rows))
        start = 0
        for number, count in enumerate(blocks):
            while start + count > len(expected):
                expected = np.concatenate([expected, np.full_like(expected, -1)])
                for name in ("a", "b"):
                    file[name].resize(len(expected), axis=0)
            block = np.arange(count * width, dtype=np.int32).reshape(count, width) + 1000 * number
            write(file, locate_table(file, "a"), start, block)
            expected[start : start + count] = block
            start += count
    with h5py.File(path, "r") as file:
        assert np.array_equal(file["a"][...], expected)
        assert (file["b"][...] == -1).all()


def test_chunks_that_lie_behind_one_another_are_one_run(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w", meta_block_size=100_000) as file:
        allocated(file, "a", (1000, 4), 100)
        table = locate_table(file, "a")
    assert (table.rows, table.row_bytes, len(table.runs)) == (1000, 16, 1)


def test_pieces_end_where_runs_end() -> None:
    table = Table(rows=10, row_bytes=2, runs=(Run(0, 4, 100), Run(4, 4, 50), Run(8, 4, 300)))
    assert list(table.pieces(3, 9)) == [(3, 4, 106), (4, 8, 50), (8, 9, 300)]
    assert list(table.pieces(4, 5)) == [(4, 5, 50)]
    assert list(table.pieces(4, 4)) == []


def test_rows_without_a_place_of_their_own_are_not_found(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file.create_dataset("packed", data=np.zeros((8, 2)), chunks=(4, 2), compression="gzip")
        file.create_dataset("whole", data=np.zeros((8, 2)))
        file.create_dataset("split", data=np.zeros((8, 2)), chunks=(4, 1))
        late = file.create_dataset("late", (8, 2), "f4", chunks=(4, 2))
        for name in ("packed", "whole", "split"):
            with pytest.raises(StorageError, match=f"{name} is not laid out as labrig records"):
                locate_table(file, name)
        assert locate_table(file, "late").rows == 0
        late[4:8] = 1.0
        # Behind rows without a place there are none.
        assert locate_table(file, "late").rows == 0
        late[0:2] = 1.0
        assert locate_table(file, "late").rows == 8
        file.create_dataset("nothing", (), "i8")
        with pytest.raises(StorageError, match="nothing has no place of its own"):
            locate_scalar(file, "nothing")


def test_structured_rows_and_scalars_are_written_as_they_are(tmp_path: Path) -> None:
    kind = np.dtype([("a", "u1", (3,)), ("b", "<i8")])
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file.create_dataset("table", data=np.zeros(4, kind), chunks=(2,), maxshape=(None,))
        file["count"] = np.int64(0)
        entry = np.array([([1, 2, 3], 4)], kind)
        write(file, locate_table(file, "table"), 2, entry)
        disk_of(file).write_at(locate_scalar(file, "count"), np.array(7, "<i8"))
    with h5py.File(tmp_path / "file.h5", "r") as file:
        assert file["table"][2] == entry[0]
        assert not file["table"][3]["b"]
        assert file["count"][()] == 7


@pytest.mark.parametrize(("chunk_rows", "rows"), [(1, 1), (1, 5000), (7, 20), (400, 3000), (20_000, 20_000)])
def test_a_data_set_takes_no_more_than_its_growth_was_said_to_need(tmp_path: Path, chunk_rows: int, rows: int) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as file:
        dataset = allocated(file, "rows", (rows, 3), chunk_rows)
        file.flush()
        for longer in (rows + 1, 2 * rows + 1, 5 * rows):
            before, said = file.id.get_filesize(), growth_bytes(dataset, longer)
            dataset.resize(longer, axis=0)
            file.flush()
            taken = file.id.get_filesize() - before
            # Metadata comes out of blocks of some size, of which one may be opened now.
            assert taken <= said + file.id.get_access_plist().get_meta_block_size()
            assert said < 4 * taken + 64 * 1024
