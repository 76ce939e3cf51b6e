"""Where the rows of a dataset lie in the file, so that they can be written without HDF5.

The datasets of a recording are allocated before the first row and hold their rows unfiltered, so each row has a place
in the file that never moves. Written straight to that place, a row is in the file when the call returns: HDF5 holds
nothing back that a flush would have to bring out, and no dying process can leave its structure half written. The one
condition is that HDF5 remembers no row either: a dataset is open only while it is located, resized or read.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import h5py

from labrig.recording.layout import CHUNK_METADATA_BYTES
from labrig.recording.nodes import dataset_at
from labrig_drivers.errors import StorageError

# Nodes of an index that are split when a dataset grows by one chunk.
_NODES_BYTES = 16 * 1024


@dataclass(frozen=True)
class Run:
    """Rows that lie behind one another.

    Attributes:
        first: Number of the first row.
        rows: How many.
        offset: Place of the first row in the file, in bytes.
    """

    first: int
    rows: int
    offset: int


@dataclass(frozen=True)
class Table:
    """The rows of one dataset.

    Attributes:
        rows: How many have a place.
        row_bytes: Size of one.
        runs: Their places, in the order of rows; together they hold every row.
    """

    rows: int
    row_bytes: int
    runs: tuple[Run, ...]

    @property
    def end(self) -> int:
        """The place behind all of them."""
        return max((run.offset + run.rows * self.row_bytes for run in self.runs), default=0)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The places of rows `start` to `stop`, as (first row, row after the last, offset in bytes)."""
        number = bisect_right(self.runs, start, key=lambda run: run.first) - 1
        while start < stop:
            run = self.runs[number]
            end = min(stop, run.first + run.rows)
            yield start, end, run.offset + (start - run.first) * self.row_bytes
            start, number = end, number + 1


def locate_table(file: h5py.File, path: str) -> Table:
    """Finds the rows of a chunked dataset whose space is allocated, up to the first that has none.

    While a dataset is made longer, or shorter, it may for a moment have more rows than its index leads to.

    Raises:
        StorageError: Its rows have no places of their own: they are compressed.
    """
    return table_of(dataset_at(file, path).id, f"{file.filename}: {path}")


def table_of(dataset: h5py.h5d.DatasetID, what: str) -> Table:
    """As `locate_table`, for a dataset that is open.

    Args:
        dataset: The dataset.
        what: How messages call it.
    """
    shape, properties = dataset.shape, dataset.get_create_plist()
    chunk = properties.get_chunk() if properties.get_layout() == h5py.h5d.CHUNKED else None
    if chunk is None or chunk[1:] != shape[1:] or properties.get_nfilters():
        raise StorageError(
            f"{what} is not laid out as labrig records (compressed, or rewritten by another program), "
            "so nothing can be added; go on with the recording that it was made from, or start a new one"
        )
    row_bytes = dataset.dtype.itemsize * math.prod(shape[1:])
    places: list[tuple[int, int]] = []

    def note(found: h5py.h5d.StoreInfo) -> None:
        places.append((int(found.chunk_offset[0]), int(found.byte_offset)))

    dataset.chunk_iter(note)
    # What moves to another node of the index is for a moment in both.
    chunks = sorted(set(places))
    behind = next((n for n, (first, _) in enumerate(chunks) if first != n * chunk[0]), len(chunks))
    return Table(min(int(shape[0]), behind * chunk[0]), row_bytes, tuple(_runs(chunks[:behind], chunk[0], row_bytes)))


def growth_bytes(dataset: h5py.Dataset, rows: int) -> int:
    """What a chunked dataset takes more of the disk when it has so many rows, with its index, from above."""
    chunk = dataset.chunks
    assert chunk is not None
    chunk_rows = int(chunk[0])
    more: int = -(-rows // chunk_rows) - -(-int(dataset.shape[0]) // chunk_rows)
    chunk_bytes = int(dataset.dtype.itemsize) * int(math.prod(chunk))
    return more * (chunk_bytes + CHUNK_METADATA_BYTES) + _NODES_BYTES


def locate_scalar(file: h5py.File, path: str) -> int:
    """The place of a scalar dataset in the file, in bytes.

    Raises:
        StorageError: It has none.
    """
    offset = dataset_at(file, path).id.get_offset()
    if offset is None:
        raise StorageError(f"{file.filename}: {path} has no place of its own in the file, so nothing can be added")
    return int(offset)


def _runs(places: list[tuple[int, int]], chunk_rows: int, row_bytes: int) -> Iterator[Run]:
    """Joins chunks, given as (first row, offset) in order, that lie behind one another."""
    current: Run | None = None
    for first, offset in places:
        if current is None:
            current = Run(first, chunk_rows, offset)
        elif (first, offset) == (current.first + current.rows, current.offset + current.rows * row_bytes):
            current = Run(current.first, current.rows + chunk_rows, current.offset)
        else:
            yield current
            current = Run(first, chunk_rows, offset)
    if current is not None:
        yield current
