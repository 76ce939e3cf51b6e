"""The committed rows of a recording, stream by stream, without naming any: for what carries all of them elsewhere.

A stream is a group that counts its rows in `committed`; its datasets are those whose first axis is the group's first
axis. Streams and columns that a later version adds are found as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from labrig.recording import layout
from labrig.recording.nodes import dataset_at, group_at, in_words
from labrig_drivers.errors import StorageError

TEXT_TYPE: np.dtype[np.generic] = h5py.string_dtype()
"""What HDF5 stores texts of any length as."""

Block = dict[str, NDArray[np.generic]]

_BLOCK_BYTES = 8 * 1024 * 1024
_ENTRY = "entry"


@dataclass(frozen=True)
class StoredColumn:
    """One dataset of a stream.

    Attributes:
        name: Its name in the group.
        dtype: Its stored type.
        shape: Shape of one row.
        dims: Names of the axes after the first.
        units: SI unit as text, empty for pure numbers and codes.
        meaning: What it is, in a few words.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    units: str
    meaning: str

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class FixedValues:
    """A dataset beside the rows of a stream, such as the step of each column's converter.

    Attributes:
        column: What it is; its shape is that of the whole dataset.
        values: The numbers.
    """

    column: StoredColumn
    values: NDArray[np.generic]


@dataclass(frozen=True)
class StreamGroup:
    """Where the rows of one stream are.

    Attributes:
        path: The group, such as `entry/array_0`.
        axis: Name of the first axis, and of the dataset that numbers the rows.
        rows: How many are committed.
        names: The datasets that have those rows, without `axis`.
    """

    path: str
    axis: str
    rows: int
    names: tuple[str, ...]


class Stream:
    """The committed rows of one stream, as many as there were when this was made.

    Attributes:
        name: Its path below the entry, such as `array_0` or `array_0/writes`.
        axis: Name of the first axis.
        rows: How many rows are committed.
        columns: The datasets, without the one that numbers the rows.
        fixed: Datasets beside them, by name; those that number an axis are left out.
    """

    def __init__(self, path: Path, file: h5py.File, group: StreamGroup) -> None:
        self.name = group.path.removeprefix(f"{_ENTRY}/")
        self.axis = group.axis
        self.rows = group.rows
        self._path = path
        self._group = group_at(file, group.path)
        self.columns = tuple(_column(dataset_at(self._group, name), name) for name in group.names)
        self.fixed: Mapping[str, FixedValues] = {
            name: FixedValues(_column(dataset, name, first=0), np.asarray(dataset[...]))
            for name, dataset in _datasets(self._group)
            if name not in {group.axis, layout.COMMITTED, *group.names} and dataset.shape and not dataset.is_scale
        }

    def read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Some rows of one column.

        Raises:
            StorageError: The file cannot be read.
        """
        with reading(self._path):
            return np.asarray(dataset_at(self._group, name)[start : min(stop, self.rows)])

    def blocks(self, names: Sequence[str] | None = None, block_bytes: int = _BLOCK_BYTES) -> Iterator[Block]:
        """The rows, some at a time, in order: an array for each column.

        Args:
            names: Which columns; all when None.
            block_bytes: About how much is read at once.

        Raises:
            StorageError: The file cannot be read.
        """
        chosen = [one for one in self.columns if names is None or one.name in names]
        step = max(1, block_bytes // max(1, sum(one.row_bytes for one in chosen)))
        with reading(self._path):
            for start in range(0, self.rows, step):
                stop = min(start + step, self.rows)
                yield {one.name: np.asarray(dataset_at(self._group, one.name)[start:stop]) for one in chosen}


class Contents:
    """A recording, open for all that is in it. Use as `with Contents.open(path) as contents:`.

    Attributes:
        path: The file.
        file: The same, for what copies it.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.file = file

    @classmethod
    def open(cls, path: Path) -> Contents:
        """Opens a file, one that another program is writing too.

        Raises:
            StorageError: It cannot be read.
        """
        with reading(path):
            try:
                # No lock: whoever looks at a recording keeps nobody from writing it. Rows below a counter are in the
                # file already when this opens it.
                return cls(path, h5py.File(path, "r", locking=False))
            except OSError as error:
                try:
                    # Open in this very process: HDF5 shares the open file, and insists on equal options.
                    return cls(path, h5py.File(path, "r"))
                except OSError:
                    raise error from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.file.close()

    def streams(self) -> tuple[Stream, ...]:
        """Every stream with the rows that count now, in the order of their paths.

        Raises:
            StorageError: The file cannot be read, or has fewer rows than are said to be committed.
        """
        with reading(self.path):
            return tuple(Stream(self.path, self.file, one) for one in stream_groups(self.file))

    def texts(self) -> dict[str, str]:
        """What the recording says about its run: every text among the attributes of the file."""
        with reading(self.path):
            values = {name: self.file.attrs[name] for name in self.file.attrs}
        texts = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        return {name: value for name, value in texts.items() if isinstance(value, str)}


def stream_groups(file: h5py.File) -> list[StreamGroup]:
    """Finds every stream of a file, in the order of their paths; a group before those inside it.

    Raises:
        ValueError: A dataset has fewer rows than are said to be committed.
        KeyError: A stream has no axis.
    """
    found: list[StreamGroup] = []
    for group in _groups(file):
        if layout.COMMITTED not in group:
            continue
        axes = group.attrs.get("axes", ())
        if not len(axes):
            raise KeyError(f"{group.name} counts rows and names no axis")
        axis = _text(axes if isinstance(axes, str) else axes[0])
        rows = int(dataset_at(group, layout.COMMITTED)[()])
        scale = dataset_at(group, axis)
        names = tuple(name for name, one in _datasets(group) if name != axis and _has_axis(one, scale))
        for name in (axis, *names):
            have = int(dataset_at(group, name).shape[0])
            if have < rows:
                raise ValueError(f"{group.name}/{name} has {have} rows, {rows} are said to be committed")
        found.append(StreamGroup(str(group.name).strip("/"), axis, rows, names))
    return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever HDF5 or the contents object to becomes one kind of error.

    Raises:
        StorageError: In their place.
    """
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise StorageError(f"{path}: cannot be read: {in_words(error)}") from error


def _groups(parent: h5py.Group) -> Iterator[h5py.Group]:
    for name in parent:
        if isinstance(parent.get(name, getlink=True), h5py.HardLink):
            child = parent[name]
            if isinstance(child, h5py.Group):
                yield child
                yield from _groups(child)


def _datasets(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    hard = [str(name) for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
    nodes = [(name, group[name]) for name in hard]
    return [(name, node) for name, node in nodes if isinstance(node, h5py.Dataset)]


def _has_axis(dataset: h5py.Dataset, scale: h5py.Dataset) -> bool:
    if not dataset.shape or dataset.is_scale:
        return False
    return any(one == scale for one in dataset.dims[0].values())


def _column(dataset: h5py.Dataset, name: str, first: int = 1) -> StoredColumn:
    return StoredColumn(
        name=name,
        dtype=dataset.dtype,
        shape=tuple(int(length) for length in dataset.shape[first:]),
        dims=tuple(_dim_name(dataset, axis) for axis in range(first, len(dataset.shape))),
        units=_text(dataset.attrs.get("units", "")),
        meaning=_text(dataset.attrs.get("long_name", "")),
    )


def _dim_name(dataset: h5py.Dataset, axis: int) -> str:
    scales = list(dataset.dims[axis].values())
    # An axis that nobody named is told from others by its place.
    return str(scales[0].name).rpartition("/")[2] if scales else f"{str(dataset.name).rpartition('/')[2]}_{axis}"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
