"""A recording that another program may be writing, read without disturbing it.

The writer puts rows and counters straight to their places (see `table`), and only extends streams through HDF5. The
reader does the same in reverse: HDF5 is asked once where everything lies, and is closed again; rows and counters are
then read from their places. HDF5 in the reader would be wrong: a dataset that stays open serves rows from its chunk
cache that are older than the counter, and a file that stays open serves the structure from before an extension.

The writer holds HDF5's lock as long as it lives. Nothing here takes a lock that could keep it from writing.
"""

from __future__ import annotations

import fcntl
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
from numpy.typing import NDArray

from labrig.recording.description import Description, ForeignFileError, describe
from labrig.recording.source import demand_rows
from labrig.recording.table import Run, Table, locate_table
from labrig_drivers.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# While a stream is extended, or a file created, its structure is half written: for moments, or as long as it takes to
# fill the new room.
_PATIENCE_S = 30.0
_PAUSE_S = 0.01
_MOST_DISAGREEMENTS = 20
# Whatever HDF5 and its contents object to while they are half written.
_TORN = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, StorageError)


@dataclass(frozen=True)
class Place:
    """Where the rows of one dataset lie.

    Attributes:
        dtype: Stored type.
        row_shape: Shape of one row.
        table: The places; a dataset without axes is one row.
    """

    dtype: np.dtype[np.generic]
    row_shape: tuple[int, ...]
    table: Table


def is_being_written(descriptor: int) -> bool:
    """True where a living program has a file open for writing: HDF5 locks what it writes.

    Args:
        descriptor: The file, open in this process.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks: HDF5 writes there without one, and nobody can tell.
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


class LiveRows:
    """Reads a file that is being written, from the places of its rows.

    Args:
        path: The file.

    Attributes:
        description: What it says about itself.

    Raises:
        StorageError: It cannot be read beside its writer, or is no recording.
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

        A place is believed when two looks saw it, so that none is taken from half an extension.

        Raises:
            StorageError: It is no recording, or its structure could not be read for half a minute.
        """
        deadline = time.monotonic() + _PATIENCE_S
        seen: list[Mapping[str, Place]] = []
        while len(seen) < _MOST_DISAGREEMENTS:
            written = is_being_written(self._descriptor)
            try:
                self.description, places = self._seen()
            except ForeignFileError:
                raise
            except _TORN as error:
                if not written or time.monotonic() > deadline:
                    raise StorageError(self._unreadable(error, written=written)) from error
                time.sleep(_PAUSE_S)
                continue
            if seen and (agreed := _agreed(seen[-1], places)) is not None:
                self._places, self._names = agreed, _by_group(agreed)
                return
            seen.append(places)
        raise StorageError(f"{self._path}: its rows move about while they are read; no labrig writes like that")

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

    def _seen(self) -> tuple[Description, Mapping[str, Place]]:
        # Not by its name: within one process HDF5 shares a file that is open already, with the structure from then.
        with h5py.File(_Bytes(self._descriptor), "r") as file:
            return describe(self._path, file), _places(file)

    def _unreadable(self, error: BaseException, *, written: bool) -> str:
        if written:
            return (
                f"{self._path}: is open in another program and cannot be read beside it, perhaps it is only just being "
                f"made; try again in a while: {error}"
            )
        return f"{self._path}: is damaged, or was not finished when it was created: {error}"


class _Bytes(io.RawIOBase):
    """An open file as HDF5 takes one from Python; nothing is kept, and nothing is made up where the file ends."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._place = 0

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        content = memoryview(buffer)
        if _fill(self._descriptor, content, self._place) < len(content):
            raise OSError("the file ends where its structure should go on")
        self._place += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        size = os.fstat(self._descriptor).st_size
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place


def _places(file: h5py.File) -> Mapping[str, Place]:
    """The places of every dataset whose rows lie in the file one by one. No row is read: HDF5 remembers none."""
    found: dict[str, Place] = {}

    def note(path: str, node: object) -> None:
        if not isinstance(node, h5py.Dataset) or node.dtype.hasobject:
            return
        if node.chunks is not None:
            table = locate_table(file, path)
        elif (offset := node.id.get_offset()) is not None:
            rows, row_shape = (node.shape[0], node.shape[1:]) if node.shape else (1, ())
            table = Table(rows, node.dtype.itemsize * math.prod(row_shape), (Run(0, rows, offset),))
        else:
            return
        found[path] = Place(node.dtype, node.shape[1:], table)

    file.visititems(note)
    return found


def _by_group(paths: Iterable[str]) -> Mapping[str, frozenset[str]]:
    names = defaultdict[str, set[str]](set)
    for path in paths:
        group, _, name = path.rpartition("/")
        names[group].add(name)
    return {group: frozenset(found) for group, found in names.items()}


def _agreed(one: Mapping[str, Place], other: Mapping[str, Place]) -> Mapping[str, Place] | None:
    """The rows that have the same places in both; None where some have others."""
    if one.keys() != other.keys():
        return None
    # Streams grow from look to look, and lose unused rows at the end; the rows that both have do not move.
    shorter = {path: min(one[path], other[path], key=lambda place: place.table.rows) for path in one}
    for path, place in shorter.items():
        rows = place.table.rows
        if any(list(each[path].table.pieces(0, rows)) != list(place.table.pieces(0, rows)) for each in (one, other)):
            return None
    return shorter


def _fill(descriptor: int, content: memoryview, offset: int) -> int:
    """Reads bytes from `offset` on; returns how many there were before the file ended."""
    count = 0
    while count < len(content) and (more := os.preadv(descriptor, [content[count:]], offset + count)):
        count += more
    return count
