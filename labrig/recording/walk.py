"""Every object of a recording in a fixed order, each with the rows that count: what is copied, and what is hashed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from labrig.recording import layout
from labrig.recording.contents import stream_groups
from labrig.recording.nodes import dataset_at, group_at

Rows = NDArray[np.generic]
Node: TypeAlias = h5py.Group | h5py.Dataset | h5py.Datatype
Link: TypeAlias = h5py.SoftLink | h5py.ExternalLink

_BLOCK_BYTES = 4 * 1024 * 1024
_JOURNAL = "entry/journal"
# What HDF5 keeps in attributes to connect axes; it refers to places in one file, and is made anew in another.
SCALE_ATTRIBUTES = frozenset({"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"})
# What a compact copy says of itself; everything else is the recording's.
COPY_ATTRIBUTES = frozenset({"content_sha256", "compacted_utc", "compacted_by"})


@dataclass(frozen=True)
class Item:
    """One object of the file.

    Attributes:
        path: Where it is; empty for the root.
        node: A group, a dataset or a type; None for a link.
        link: A link that leads elsewhere; else None.
        same_as: The path under which the same object came before, if it did.
        rows: How many rows count, for a dataset that grows; None for one that is copied as it is.
    """

    path: str
    node: Node | None
    link: Link | None = None
    same_as: str | None = None
    rows: int | None = None

    @property
    def dataset(self) -> h5py.Dataset | None:
        """The dataset, where this is one whose values did not come before."""
        return self.node if isinstance(self.node, h5py.Dataset) and self.same_as is None else None

    def blocks(self, multiple: int = 1) -> Iterator[Rows]:
        """The values that count, some rows at a time; the whole of a dataset that has no rows.

        Args:
            multiple: How many rows a block has, or a multiple of it.
        """
        dataset = self.dataset
        if dataset is None or dataset.shape is None:
            return
        if dataset.shape == ():
            yield np.asarray(dataset[()])
            return
        length = int(dataset.shape[0]) if self.rows is None else self.rows
        chunk = int(dataset.chunks[0]) if dataset.chunks else 1
        # Whole chunks, so that none is unpacked twice.
        step = _up(max(1, _BLOCK_BYTES // max(1, _row_bytes(dataset))), math.lcm(chunk, multiple))
        for start in range(0, length, step):
            yield np.asarray(dataset[start : min(start + step, length)])

    @property
    def content_bytes(self) -> int:
        """Size of the values that count."""
        dataset = self.dataset
        if dataset is None or not dataset.shape:
            return 0
        length = int(dataset.shape[0]) if self.rows is None else self.rows
        return length * _row_bytes(dataset)


def walk(file: h5py.File) -> Iterator[Item]:
    """Every object of a recording, by path, a group before what is in it.

    Raises:
        ValueError: A dataset has fewer rows than are said to be committed.
    """
    grows: dict[str, int] = {}
    for stream in stream_groups(file):
        grows |= {f"{stream.path}/{name}": stream.rows for name in (stream.axis, *stream.names)}
    seen: dict[tuple[int, ...], str] = {}
    yield Item("", group_at(file, "/"))
    yield from _walk(file, file, "", grows, seen)


def sha256(items: Iterable[Item], progress: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of everything that counts in a recording, however it is stored: values, types, attributes, axes.

    The recording and its compact copy have the same.

    Args:
        items: What `walk` finds in it.
        progress: Told after each block how many bytes it had.
    """
    digest = ContentDigest()
    for item in items:
        digest.begin(item)
        for block in item.blocks():
            digest.add(block)
            progress(block.nbytes)
    return digest.hexdigest()


def place_of(node: Node) -> tuple[int, ...]:
    """Where an object lies in its file: the same for all its names."""
    place: tuple[int, ...] = h5py.h5g.get_objinfo(node.id).objno
    return place


@dataclass
class ContentDigest:
    """A SHA-256 that grows with the objects of a recording and their rows."""

    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    def begin(self, item: Item) -> None:
        """Adds what an object is, without its values."""
        node = item.node
        self._say("object", item.path, type(item.link or node).__name__, item.same_as or "")
        if isinstance(item.link, h5py.ExternalLink):
            self._say("in", str(item.link.filename))
        if item.link is not None:
            self._say("to", str(item.link.path))
        if node is None or item.same_as is not None:
            return
        if isinstance(node, h5py.Dataset):
            shape = node.shape if item.rows is None or node.shape is None else (item.rows, *node.shape[1:])
            self._say("values", str(node.dtype), str(shape))
            for axis in range(len(shape or ())):
                self._say("axis", *sorted(str(scale.name) for scale in node.dims[axis].values()))
        for name in sorted(node.attrs):
            if name not in SCALE_ATTRIBUTES and not (item.path == "" and name in COPY_ATTRIBUTES):
                value = np.asarray(node.attrs[name])
                self._say("attribute", name, str(value.dtype), str(value.shape))
                self.add(value)

    def add(self, values: Rows) -> None:
        """Adds the bytes of some rows, or of each text."""
        if values.dtype.hasobject:
            for text in values.reshape(-1):
                self._say("text", text.decode() if isinstance(text, bytes) else str(text))
        else:
            self._hash.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """The hash, as 64 hex digits."""
        return self._hash.hexdigest()

    def _say(self, *texts: str) -> None:
        for text in texts:
            encoded = text.encode()
            self._hash.update(len(encoded).to_bytes(8, "little") + encoded)


def _walk(
    file: h5py.File, group: h5py.Group, path: str, grows: dict[str, int], seen: dict[tuple[int, ...], str]
) -> Iterator[Item]:
    for name in sorted(group):
        here = f"{path}/{name}".lstrip("/")
        link = group.get(name, getlink=True)
        if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)):
            yield Item(here, None, link)
            continue
        node = group[name]
        place = place_of(node)
        if place in seen:
            yield Item(here, node, same_as=seen[place])
            continue
        seen[place] = here
        yield _item(file, here, node, grows)
        if isinstance(node, h5py.Group):
            yield from _walk(file, node, here, grows, seen)


def _item(file: h5py.File, path: str, node: Node, grows: dict[str, int]) -> Item:
    if path in grows:
        return Item(path, node, rows=grows[path])
    counter = f"entry/{path.removeprefix(f'{_JOURNAL}/')}/{layout.COMMITTED}"
    if isinstance(node, h5py.Dataset) and path.startswith(f"{_JOURNAL}/") and counter in file:
        return Item(path, node, rows=_entries(node, Item(path, node), int(dataset_at(file, counter)[()])))
    return Item(path, node)


def _entries(journal: h5py.Dataset, item: Item, committed: int) -> int | None:
    """How many entries of a journal come before the first one of rows that do not count; None for another dataset."""
    if not {"start", "rows"} <= set(journal.dtype.names or ()):
        return None
    count = 0
    for block in item.blocks():
        entries = block.astype(journal.dtype, copy=False)
        starts, rows = np.asarray(entries["start"]), np.asarray(entries["rows"])
        ends = np.flatnonzero((starts < 0) | (starts + rows > committed))
        if len(ends):
            return count + int(ends[0])
        count += len(block)
    return count


def _row_bytes(dataset: h5py.Dataset) -> int:
    return int(dataset.dtype.itemsize * np.prod(dataset.shape[1:], dtype=np.int64))


def _up(count: int, multiple: int) -> int:
    """The least multiple that is not below `count`."""
    return -(-count // multiple) * multiple
