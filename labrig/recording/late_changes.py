"""Changes that HDF5 makes to the structure of a file, written in an order in which every moment leaves it readable.

HDF5 writes what it changed by address. Whoever is killed in between leaves a file that is shorter than its superblock
says, which HDF5 refuses; or an index that leads behind the end; or a dataset that is longer than its index. After a
power cut, of an index that lies in two sectors the second may have arrived, without its dropped entries, and not the
first, which still counts them.

So everything is kept back that changes what was there, and written in the end, with a sync between two steps. Where a
file shrinks a dataset gets shorter before its index does; where one grows its index gets longer before it does itself.
An index that has more chunks than the dataset has rows harms nobody.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h5py

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

SECTOR_BYTES = 512
"""What a disk writes whole or not at all. The superblock lies in the first."""

ALIGNMENT_BYTES = 8
"""Where things in a file begin: an eight-byte counter across the border of two sectors could be torn in a power cut."""

# A node of the tree that leads to the chunks of a dataset: signature, kind, level, entries.
_INDEX, _INDEX_HEAD = b"TREE", struct.Struct("<4sBBH")
# Where the oldest superblock says its version, and how long the file is.
_VERSION_BYTE, _END_BYTES = 8, slice(40, 48)


@contextmanager
def changing(content: io.RawIOBase, sync: Callable[[], None]) -> Iterator[h5py.File]:
    """Opens a file to change its structure; on leaving, all of it is written in its order.

    Where the block does not come to its end the file is as it was.

    Args:
        content: The file, unbuffered; who opened it closes it.
        sync: Returns when everything that was written is on the medium.
    """
    late = LateChanges(content, sync)
    with h5py.File(late, "r+", alignment_threshold=ALIGNMENT_BYTES, alignment_interval=ALIGNMENT_BYTES) as file:
        yield file
    late.finish()


def end_of(content: io.RawIOBase) -> int:
    """How long HDF5 takes a file to be; it may be longer, where room was reserved for what is to come."""
    length = content.seek(0, io.SEEK_END)
    first = _stored(content, 0, SECTOR_BYTES)
    return length if first[_VERSION_BYTE] else min(length, int.from_bytes(first[_END_BYTES], "little"))


@dataclass(frozen=True)
class _Piece:
    """Bytes of the file as HDF5 wrote them."""

    start: int
    data: bytes

    @property
    def head(self) -> _Piece:
        """What of it lies in its first sector."""
        return _Piece(self.start, self.data[: SECTOR_BYTES - self.start % SECTOR_BYTES])

    @property
    def rest(self) -> _Piece:
        """All but the head."""
        count = len(self.head.data)
        return _Piece(self.start + count, self.data[count:])


@dataclass(frozen=True)
class _Node(_Piece):
    """A node of an index, with the first bytes that were there before."""

    before: bytes

    @property
    def level(self) -> int:
        """How far it is from the chunks."""
        return int(_INDEX_HEAD.unpack_from(self.data)[2])

    @property
    def moves(self) -> bool:
        """Whether what was in it is in a new node now, and its level another."""
        return int(_INDEX_HEAD.unpack_from(self.before)[2]) != self.level

    @property
    def grows(self) -> bool:
        """Whether it has no fewer entries than before."""
        before, after = (int(_INDEX_HEAD.unpack_from(one)[3]) for one in (self.before, self.data))
        return not self.moves and before <= after


class LateChanges(io.RawIOBase):
    """A file object for h5py that keeps back what is written over what was there, until `finish`.

    That is kept in memory. What HDF5 writes behind its old end, where nothing leads yet, is written at once.

    Args:
        content: The file, unbuffered, with a superblock at its beginning; who opened it closes it.
        sync: Returns when everything that was written is on the medium.
    """

    def __init__(self, content: io.RawIOBase, sync: Callable[[], None]) -> None:
        super().__init__()
        self._content = content
        self._sync = sync
        self._place = 0
        self._length = content.seek(0, io.SEEK_END)
        self._end = end_of(content)
        self._sectors: dict[int, bytearray] = {}
        self._counts: dict[int, int] = {}

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a place in the file; returns it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Reads from the present place on what was written last; returns how many bytes there were."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._place))
        view[:count] = self._latest(self._place, count)
        self._place += count
        return count

    def write(self, data: ReadableBuffer, /) -> int:
        """Takes all of it, at the present place."""
        content = memoryview(data).cast("B")
        start, count = self._place, len(content)
        kept = min(count, max(0, self._end - start))
        for sector, first, stop in _sectors_of(start, kept):
            base = sector * SECTOR_BYTES
            if sector not in self._sectors:
                self._sectors[sector] = _stored(self._content, base, SECTOR_BYTES)
            self._sectors[sector][first:stop] = content[base + first - start : base + stop - start]
        if kept:
            self._counts[start] = max(kept, self._counts.get(start, 0))
        if kept < count:
            self._put(start + kept, content[kept:])
        self._place = start + count
        self._length = max(self._length, self._place)
        return count

    def truncate(self, size: int | None = None, /) -> int:
        """Sets the length, which the file gets in the end."""
        self._length = self._place if size is None else size
        return self._length

    def finish(self) -> None:
        """Brings everything to the medium in its order."""
        front, others, more, less = list[_Piece](), list[_Piece](), list[_Node](), list[_Node]()
        for start, count in self._counts.items():
            data = bytes(self._latest(start, count))
            if data.startswith(_INDEX) and count >= _INDEX_HEAD.size:
                node = _Node(start, data, bytes(_stored(self._content, start, _INDEX_HEAD.size)))
                (more if node.grows else less).append(node)
            else:
                (front if start == 0 else others).append(_Piece(start, data))
        # Nodes before those below them: what is in a new node now is found there before it is gone from the old one.
        less.sort(key=lambda node: -node.level)
        index = [_rests(more), _heads(more), _heads(less), _rests(less)]
        if self._length > self._end:
            # HDF5 may not be told of more than there is.
            self._content.truncate(max(self._length, self._content.seek(0, io.SEEK_END)))
            self._sync()
            steps = [front, *index, others]
        else:
            steps = [others, *index, front]
        for step in filter(None, steps):
            for piece in step:
                self._put(piece.start, piece.data)
            self._sync()
        self._content.truncate(self._length)
        self._sync()

    def _latest(self, start: int, count: int) -> bytearray:
        """Bytes as they were written last."""
        found = _stored(self._content, start, count)
        for sector, first, stop in _sectors_of(start, max(0, min(count, self._end - start))):
            if sector in self._sectors:
                base = sector * SECTOR_BYTES
                found[base + first - start : base + stop - start] = self._sectors[sector][first:stop]
        return found

    def _put(self, start: int, data: bytes | memoryview) -> None:
        self._content.seek(start)
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += self._content.write(view[done:]) or 0


def _stored(content: io.RawIOBase, start: int, count: int) -> bytearray:
    """Bytes as they are in a file, with zeros behind its end."""
    found = bytearray(count)
    content.seek(start)
    have = 0
    with memoryview(found) as view:
        while have < count and (more := content.readinto(view[have:])):
            have += more
    return found


def _heads(nodes: Iterable[_Node]) -> list[_Piece]:
    """What has to be there at once; of a node that moved that is all of it."""
    return [one if one.moves else one.head for one in nodes]


def _rests(nodes: Iterable[_Node]) -> list[_Piece]:
    return [one.rest for one in nodes if one.rest.data and not one.moves]


def _sectors_of(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Sectors that so many bytes from `start` on lie in, each with the first of them in it and the end of the last."""
    stop = start + count
    while start < stop:
        sector, first = divmod(start, SECTOR_BYTES)
        end = min(first + stop - start, SECTOR_BYTES)
        yield sector, first, end
        start += end - first
