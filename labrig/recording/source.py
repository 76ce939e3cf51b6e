"""Where the stored rows of a recording come from, and the source for files that only HDF5 can read."""

from __future__ import annotations

import math
from typing import Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from labrig.recording.nodes import dataset_at, group_at

# Deflate makes at most 1,032 bytes of one; what is more was never written, and HDF5 would make it up.
_MOST_DEFLATED = 1100
_LEAST_BYTES = 2**20


class RowSource(Protocol):
    """Reads datasets by rows, as stored. Each call sees what is in the file at that moment; nothing is remembered.

    Every method raises `KeyError` for a path that leads to nothing of the kind, and `OSError` or `RuntimeError` where
    the file cannot be read.
    """

    def names(self, group: str) -> frozenset[str]:
        """Names of the datasets in a group, and perhaps of other things there."""
        ...

    def length(self, path: str) -> int:
        """How many rows a dataset has room for."""
        ...

    def read(self, path: str, start: int, stop: int) -> NDArray[np.generic]:
        """Rows `start` to `stop` of a dataset, with the stored type.

        Raises:
            ValueError: The dataset has fewer rows.
        """
        ...

    def read_present(self, path: str, start: int, stop: int) -> NDArray[np.generic]:
        """As `read`, but only as many rows as there are: when a run ends, its unused rows are cut off."""
        ...

    def scalar(self, path: str) -> object:
        """The value of a dataset without axes."""
        ...

    def is_being_written(self) -> bool:
        """True while a living program writes the file."""
        ...

    def look(self) -> None:
        """Finds out anew how much room there is, as after an extension.

        Raises:
            StorageError: The structure of the file cannot be read.
        """
        ...

    def close(self) -> None:
        """Lets go of the file; harmless when done."""
        ...


class HdfRows:
    """Reads through HDF5: compressed files, files that another program rewrote, damaged ones.

    HDF5 remembers chunks of a dataset while the dataset is open, and structure while the file is; so this source is
    for files that nobody writes. Datasets are open during one call only, so that blocks of a file that is larger than
    memory leave nothing behind.

    Args:
        file: The file, open; `close` closes it.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def names(self, group: str) -> frozenset[str]:
        """Names of everything in a group."""
        return frozenset(str(name) for name in group_at(self._file, group))

    def length(self, path: str) -> int:
        """How many rows a dataset has room for."""
        return int(dataset_at(self._file, path).shape[0])

    def read(self, path: str, start: int, stop: int) -> NDArray[np.generic]:
        """Rows `start` to `stop` of a dataset, with the stored type.

        Raises:
            ValueError: The dataset has fewer rows.
        """
        values = self.read_present(path, start, stop)
        demand_rows(path, start + len(values), stop)
        return values

    def read_present(self, path: str, start: int, stop: int) -> NDArray[np.generic]:
        """As `read`, but only as many rows as there are."""
        dataset = dataset_at(self._file, path)
        rows = len(range(dataset.shape[0])[start:stop]) if dataset.shape else 0
        wanted = rows * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
        if wanted > _LEAST_BYTES + _MOST_DEFLATED * dataset.id.get_storage_size():
            raise ValueError(f"{path} is said to have {rows} rows, for which there are too few bytes in the file")
        return np.asarray(dataset[start:stop])

    def scalar(self, path: str) -> object:
        """The value of a dataset without axes."""
        value: object = dataset_at(self._file, path)[()]
        return value

    def is_being_written(self) -> bool:
        """False: HDF5's lock keeps writers away."""
        return False

    def look(self) -> None:
        """Does nothing: what nobody writes does not grow."""

    def close(self) -> None:
        """Closes the file; harmless when closed."""
        self._file.close()


def demand_rows(path: str, present: int, wanted: int) -> None:
    """Refuses to read rows that a dataset has not.

    Raises:
        ValueError: There are fewer than wanted.
    """
    if present < wanted:
        raise ValueError(f"{path} has {present} rows, {wanted} are said to be committed")
