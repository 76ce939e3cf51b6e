"""A compact copy of a recording: the rows that count, compressed, in chunks that suit a reader."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from labrig.recording import layout
from labrig.recording.contents import Contents, reading
from labrig.recording.header import utc_now, versions_now
from labrig.recording.nodes import dataset_at
from labrig.recording.output_file import OutputFile, in_thread
from labrig.recording.trusted import held, trusted
from labrig.recording.walk import COPY_ATTRIBUTES, SCALE_ATTRIBUTES, ContentDigest, Item, Node, place_of, sha256, walk
from labrig.recording.whole_files import WholeFiles, no_file, refusals
from labrig_drivers.errors import StorageError

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are done, and how many there are."""

# Measured on recordings of the simulated chip: see docs/decisions. Every HDF5 has these filters.
_GZIP_LEVEL = 1
# The least cache of a chunk in any HDF5 is 1 MiB; a reader that takes one row unpacks one chunk of each dataset.
_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class Compaction:
    """What became of a recording.

    Attributes:
        path: The compact copy.
        before_bytes: Size of the recording.
        after_bytes: Size of the copy.
        sha256: Hash of the content, which both have; the copy holds it in its attribute `content_sha256`.
    """

    path: Path
    before_bytes: int
    after_bytes: int
    sha256: str


def compact(source: Path | str, target: Path | str, progress: Progress = lambda *_: None) -> Compaction:
    """Writes a compact copy of a recording: only committed rows, compressed and with a checksum of each chunk.

    Everything else is as it was: attributes, axes, journal, so that the copy is read like the recording. It is compared
    with the recording before it gets its name. The recording is not touched.

    Args:
        source: The recording; nobody may be writing to it.
        target: The copy; it must not exist.
        progress: Told about each block.

    Raises:
        StorageError: The recording cannot be read, is damaged, or is being written; the target exists or cannot be
            written; or the copy differs. No copy is left.
    """
    source, target = Path(source), Path(target)
    refused = refusals([target])
    if (absent := no_file(source)) is not None:
        refused.insert(0, absent)
    if refused:
        raise StorageError("; ".join(refused))
    with trusted(source) as (_, contents), WholeFiles() as files:
        part = files.part(target)
        original = contents.file
        with reading(source):
            if COPY_ATTRIBUTES & set(original.attrs):
                raise StorageError(f"{source}: is compact already; copy it as it is")
            items = list(walk(original))
        total = sum(item.content_bytes for item in items)

        def work(check: Callable[[], None]) -> str:
            digest = _copy(source, original, items, part, _Steps("compacting", total, progress, check))
            _compare(part, digest, _Steps("checking", total, progress, check), target)
            return digest

        digest = in_thread(work)
        return Compaction(target, source.stat().st_size, part.stat().st_size, digest)


def content_sha256(path: Path | str, progress: Progress = lambda *_: None) -> str:
    """SHA-256 of everything that counts in a recording: values, types, attributes, axes; the same for a compact copy.

    Args:
        path: The recording.
        progress: Called with a name, bytes done and bytes in all.

    Raises:
        StorageError: It cannot be read, or is being written.
    """
    path = Path(path)
    with held(path), Contents.open(path) as contents, reading(path):
        items = list(walk(contents.file))
        return sha256(items, _Steps("hashing", sum(item.content_bytes for item in items), progress))


class _Steps:
    """Adds up what was done, and ends it when it has to end."""

    def __init__(self, name: str, total: int, progress: Progress, check: Callable[[], None] = lambda: None) -> None:
        self._name, self._total, self._progress, self._check = name, total, progress, check
        self._done = 0

    def __call__(self, count: int) -> None:
        self._check()
        self._done += count
        self._progress(self._name, self._done, self._total)


def _copy(path: Path, source: h5py.File, items: Sequence[Item], part: Path, steps: _Steps) -> str:
    """Copies all that counts; returns its hash, of what was read."""
    digest = ContentDigest()
    places: dict[tuple[int, ...], str] = {}
    with contextlib.closing(OutputFile(part)) as output:
        with h5py.File(output, "w") as target:
            for item in items:
                with reading(path):
                    digest.begin(item)
                    _create(source, target, item)
                if item.dataset is not None:
                    places[place_of(item.dataset)] = item.path
                for count in _fill(path, target, item, digest):
                    output.check()
                    steps(count)
            with reading(path):
                for item in items:
                    _attach_scales(target, item, places)
            target.attrs["content_sha256"] = digest.hexdigest()
            target.attrs["compacted_utc"] = utc_now()
            target.attrs["compacted_by"] = f"labrig {versions_now()['labrig']}"
        output.check()
    return digest.hexdigest()


def _create(source: h5py.File, target: h5py.File, item: Item) -> None:
    """Makes an object without values and axes."""
    node, path = item.node, item.path
    if path == "":
        _copy_attributes(source, target)
        return
    if item.same_as is not None:
        target[path] = target[item.same_as]
        return
    if node is None:
        target[path] = item.link
        return
    if isinstance(node, h5py.Group):
        h5py.h5g.create(target.id, path.encode(), gcpl=node.id.get_create_plist())
    elif item.dataset is not None and item.rows is not None:
        _create_table(target, item, item.dataset, item.rows)
    elif item.dataset is not None and path.endswith(f"/{layout.COMMITTED}"):
        _create_counter(target, path, item.dataset)
    else:
        source.copy(node, target, path, without_attrs=True)
    _copy_attributes(node, target[path])


def _create_table(target: h5py.File, item: Item, dataset: h5py.Dataset, rows: int) -> None:
    """A dataset of rows, compressed; it can be extended as the recording's can."""
    row_shape = tuple(int(length) for length in dataset.shape[1:])
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((_chunk_rows(item), *row_shape))
    properties.set_fill_value(np.asarray(dataset.fillvalue, dtype=dataset.dtype))
    properties.set_shuffle()
    properties.set_deflate(_GZIP_LEVEL)
    properties.set_fletcher32()
    space = h5py.h5s.create_simple((rows, *row_shape), (h5py.h5s.UNLIMITED, *row_shape))
    h5py.h5d.create(target.id, item.path.encode(), dataset.id.get_type(), space, properties)


def _chunk_rows(item: Item) -> int:
    row_bytes = item.content_bytes // max(1, item.rows or 0)
    return max(1, min(item.rows or 0, _CHUNK_BYTES // max(1, row_bytes)))


def _create_counter(target: h5py.File, path: str, counter: h5py.Dataset) -> None:
    """The counter of a stream, inside its own header: it has no place in the file that a writer could count at."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(target.id, path.encode(), counter.id.get_type(), counter.id.get_space(), properties)
    dataset_at(target, path)[()] = counter[()]


def _copy_attributes(source: Node, target: Node) -> None:
    for name in source.attrs:
        if name in SCALE_ATTRIBUTES:
            continue
        attribute = source.attrs.get_id(name)
        kind = attribute.get_type()
        copy = h5py.h5a.create(target.id, name.encode(), kind, attribute.get_space())
        if attribute.get_space().get_simple_extent_type() != h5py.h5s.NULL:
            value = np.empty(attribute.shape, dtype=attribute.dtype)
            attribute.read(value, mtype=kind)
            copy.write(value, mtype=kind)


def _fill(path: Path, target: h5py.File, item: Item, digest: ContentDigest) -> Iterator[int]:
    """Copies the rows of an object, and adds what was read to the hash; yields the bytes of each block."""
    # Left open and filled chunk by chunk: a chunk that is closed half full would be unpacked again.
    table = None if item.rows is None else dataset_at(target, item.path)
    blocks = item.blocks(_chunk_rows(item))
    start = 0
    while True:
        with reading(path):
            block = next(blocks, None)
        if block is None:
            return
        digest.add(block)
        if table is not None:
            table[start : start + len(block)] = block
            start += len(block)
        yield block.nbytes


def _attach_scales(target: h5py.File, item: Item, places: Mapping[tuple[int, ...], str]) -> None:
    dataset = item.dataset
    if dataset is None or not dataset.shape:
        return
    copy = dataset_at(target, item.path)
    if dataset.is_scale:
        _make_scale(copy, dataset)
        return
    for axis in range(len(dataset.shape)):
        for scale in dataset.dims[axis].values():
            other = dataset_at(target, places[place_of(scale)])
            _make_scale(other, scale)
            copy.dims[axis].attach_scale(other)


def _make_scale(copy: h5py.Dataset, scale: h5py.Dataset) -> None:
    if not copy.is_scale:
        copy.make_scale(h5py.h5ds.get_scale_name(scale.id).decode())


def _compare(part: Path, digest: str, steps: _Steps, target: Path) -> None:
    """Reads the copy back, as any reader would.

    Raises:
        StorageError: It is not what was read from the recording.
    """
    with reading(target), h5py.File(part, "r") as copy:
        found = sha256(walk(copy), steps)
    if found != digest:
        raise StorageError(f"{target}: the copy is not what the recording holds; is the disk in order? None was left")
