"""A recording read at the places of its rows, so that another program may write it meanwhile.

The writer puts rows and counters straight to their places (see `table`), and only extends streams through HDF5. The
reader does the same in reverse: HDF5 is asked where everything lies, and is closed again; rows and counters are then
read from their places. HDF5 in the reader would be wrong: a dataset that stays open serves rows from its chunk cache
that are older than the counter, and a file that stays open serves the structure from before an extension.

The writer holds HDF5's lock as long as it lives. No lock is held here, so no reader keeps a run from starting or going
on.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]
from numpy.typing import NDArray

from labrig import file_locks
from labrig.recording.description import Description, ForeignFileError, describe
from labrig.recording.layout import COMMITTED
from labrig.recording.nodes import in_words
from labrig.recording.source import demand_rows
from labrig.recording.table import Run, Table, table_of
from labrig_drivers.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# While a stream is extended, or a file created, its structure is half written: for moments, or as long as it takes to
# fill the new room.
_PATIENCE_S = 30.0
_PAUSE_S = 0.01
# No file goes on behind this place.
_LAST_OFFSET = 2**63 - 1
# Whatever HDF5 and its contents object to while they are half written.
_TORN = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError, StorageError)


class NotPlacedError(StorageError):
    """The rows of a file that nobody writes cannot be found one by one."""


@dataclass(frozen=True)
class Place:
    """Where the rows of one dataset lie.

    Attributes:
        dtype: Stored type.
        row_shape: Shape of one row.
        table: The places; a dataset without axes is one row.
        grows: Whether it is of those that have as many rows as their group counts.
    """

    dtype: np.dtype[np.generic]
    row_shape: tuple[int, ...]
    table: Table
    grows: bool = False


def is_being_written(descriptor: int) -> bool:
    """True where a living program has a file open for writing: HDF5 locks what it writes.

    Args:
        descriptor: The file, open in this process.
    """
    try:
        file_locks.lock(descriptor, shared=True)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks: HDF5 writes there without one, and nobody can tell.
        return False
    file_locks.unlock(descriptor)
    return False


class PlacedRows:
    """Reads a file as labrig lays it out, finished or still being written.

    Args:
        path: The file.

    Attributes:
        description: What it says about itself.

    Raises:
        NotPlacedError: Nobody writes the file, and its rows have no places: it is compressed, damaged or no recording.
        StorageError: It says that it is no recording, or cannot be read beside its writer.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.description: Description
        self._path = path
        self._places: Mapping[str, Place] = {}
        self._names: Mapping[str, frozenset[str]] = {}
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.look()
        except BaseException:
            self.close()
            raise

    def look(self) -> None:
        """Finds every place anew, as after an extension.

        Raises:
            NotPlacedError: Nobody writes the file, and its rows have no places.
            StorageError: It says that it is no recording, or its structure could not be read for half a minute.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            content = _Bytes(self._descriptor)
            try:
                # Not by its name: within one process HDF5 shares a file that is open, with the structure from then.
                with h5py.File(content, "r") as file:
                    description, places = describe(self._path, file), _places(file)
                self._demand_counted(places)
                if content.held_still():
                    self.description, self._places, self._names = description, places, _by_group(places)
                    return
                reason = "its structure changed while it was read"
            except ForeignFileError:
                raise
            except _TORN as error:
                if not self.is_being_written() and content.held_still():
                    raise NotPlacedError(
                        f"{self._path}: is damaged, or was not finished when it was created: {in_words(error)}"
                    ) from error
                # Only its text: an error that is kept keeps HDF5's objects, until the garbage collector finds them.
                reason = str(error)
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self._path}: is open in another program and cannot be read beside it, perhaps it is only just "
                    f"being made; try again in a while: {reason}"
                )
            time.sleep(_PAUSE_S)

    def _demand_counted(self, places: Mapping[str, Place]) -> None:
        """Every row that counts has a place, or the index that leads there is damaged, or only just changed."""
        for path, place in places.items():
            counter = places.get(f"{path.rpartition('/')[0]}/{COMMITTED}")
            if not place.grows or counter is None:
                continue
            content = os.pread(self._descriptor, counter.table.row_bytes, counter.table.runs[0].offset)
            if place.table.rows < int(np.frombuffer(content, counter.dtype)[0]):
                raise StorageError(f"{path} has {place.table.rows} rows with places, more are said to be committed")

    def is_being_written(self) -> bool:
        """True while the writer lives."""
        return is_being_written(self._descriptor)

    def names(self, group: str) -> frozenset[str]:
        """Names of the datasets in a group."""
        return self._names.get(group, frozenset())

    def length(self, path: str) -> int:
        """How many rows a dataset had room for at the last look."""
        return self._places[path].table.rows

    def read(self, path: str, start: int, stop: int) -> NDArray[np.generic]:
        """Rows `start` to `stop` of a dataset, as they are in the file now, with the stored type.

        Raises:
            ValueError: The dataset had fewer rows at the last look.
        """
        demand_rows(path, self.length(path), stop)
        values = self.read_present(path, start, stop)
        if len(values) < stop - start:
            raise OSError(f"the file ends before row {stop} of {path}")
        return values

    def read_present(self, path: str, start: int, stop: int) -> NDArray[np.generic]:
        """As `read`, but only as many rows as the file still has: when a run ends, its unused rows are cut off."""
        place = self._places[path]
        table = place.table
        stop = min(stop, table.rows)
        values = np.empty((max(stop - start, 0), *place.row_shape), place.dtype)
        content = values.reshape(-1).view(np.uint8).data
        for first, end, offset in table.pieces(start, stop):
            wanted = (end - first) * table.row_bytes
            begin = (first - start) * table.row_bytes
            if (count := _fill(self._descriptor, content[begin : begin + wanted], offset)) < wanted:
                return values[: first - start + count // table.row_bytes]
        return values

    def scalar(self, path: str) -> object:
        """The value of a dataset without axes, as it is in the file now."""
        value = self.read(path, 0, 1)[0]
        # A read that met the write half way is not met twice.
        while (again := self.read(path, 0, 1)[0]) != value:
            value = again
        return value

    def close(self) -> None:
        """Closes the file; harmless when closed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class _Bytes(io.RawIOBase):
    """An open file as HDF5 takes one from Python; knows afterwards whether what was read held still."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._place = 0
        self._read: dict[int, bytes] = {}

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        content = memoryview(buffer)
        if _fill(self._descriptor, content, self._place) < len(content):
            raise OSError("the file ends where its structure should go on")
        self._read[self._place] = content.tobytes()
        self._place += len(content)
        return len(content)

    def held_still(self) -> bool:
        """True where everything that was read is still the same: of a structure half written, some is not."""
        return all(os.pread(self._descriptor, len(one), offset) == one for offset, one in self._read.items())

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END:
            offset += os.fstat(self._descriptor).st_size
        elif whence == os.SEEK_CUR:
            offset += self._place
        self._place = offset
        return offset

    def tell(self) -> int:
        return self._place


def _places(file: h5py.File) -> dict[str, Place]:
    """The places of every dataset whose rows lie in the file one by one. No row is read: HDF5 remembers none."""
    found: dict[str, Place] = {}
    _note_places(h5py.h5g.open(file.id, b"entry"), "entry", found)
    return found


def _note_places(group: h5py.h5g.GroupID, path: str, found: dict[str, Place]) -> None:
    # With HDF5's own calls: a look must be short, or extensions come in between.
    for name in group:
        below = f"{path}/{name.decode()}"
        node = h5o.open(group, name)
        if isinstance(node, h5py.h5g.GroupID):
            _note_places(node, below, found)
        elif isinstance(node, h5py.h5d.DatasetID) and (place := _place(node, below)) is not None:
            found[below] = place


def _place(dataset: h5py.h5d.DatasetID, path: str) -> Place | None:
    """The place of a dataset; None for one of texts of any length, which lie elsewhere."""
    dtype, shape = dataset.dtype, dataset.shape
    if dtype.hasobject:
        return None
    if dataset.get_create_plist().get_layout() == h5py.h5d.CHUNKED:
        return Place(dtype, shape[1:], table_of(dataset, path), grows=True)
    rows, row_shape = (shape[0], shape[1:]) if shape else (1, ())
    offset = dataset.get_offset()
    if offset is None and rows:
        raise StorageError(f"{path} has no place of its own in the file")
    runs = () if offset is None else (Run(0, rows, offset),)
    return Place(dtype, row_shape, Table(rows, dtype.itemsize * math.prod(row_shape), runs))


def _by_group(paths: Iterable[str]) -> Mapping[str, frozenset[str]]:
    names = defaultdict[str, set[str]](set)
    for path in paths:
        group, _, name = path.rpartition("/")
        names[group].add(name)
    return {group: frozenset(found) for group, found in names.items()}


def _fill(descriptor: int, content: memoryview, offset: int) -> int:
    """Reads bytes from `offset` on; returns how many there were before the file ended."""
    if offset > _LAST_OFFSET:
        # A damaged file may name any place; that of HDF5's "nowhere" is 2**64 - 1.
        return 0
    count = 0
    while count < len(content) and (more := os.preadv(descriptor, [content[count:]], offset + count)):
        count += more
    return count
