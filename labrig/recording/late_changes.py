"""Changes that HDF5 makes to the structure of a file, written in an order in which every moment leaves it readable.

HDF5 writes what it changed by address. Whoever is killed in between leaves a file that is shorter than its superblock
says, which HDF5 refuses; or an index that leads behind the end; or a dataset that is longer than its index. After a
power cut, of an index that lies in two sectors the second may have arrived, without its dropped entries, and not the
first, which still counts them.

So everything is kept back that changes what was there, and written in the end, with a sync between two steps. Where a
file shrinks a dataset gets shorter before its index does; where one grows its index gets longer before it does itself.
An index that has more chunks than the dataset has rows harms nobody.

An index that is full gets another level: HDF5 puts what its root led to into new nodes, and writes the new root over
the old one. No order of sectors makes that safe, so the new root goes behind the end instead, and the dataset is told.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h5py

from labrig.recording.file_bytes import StructureError
from labrig.recording.hdf5_messages import LAYOUT, TREE_PLACE, layout_of, messages_in

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

SECTOR_BYTES = 512
"""What a disk writes whole or not at all. The superblock lies in the first."""

ALIGNMENT_BYTES = 8
"""Where things in a file begin: an eight-byte counter across the border of two sectors could be torn in a power cut."""

# A node of the tree that leads to the chunks of a dataset: signature, kind, level, entries.
_INDEX, _INDEX_HEAD = b"TREE", struct.Struct("<4sBBH")
_ADDRESS_BYTES = 8
# Before the first message of the header of a dataset.
_HEADER_BYTES = 16
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
    return min(length, int.from_bytes(first[_END_BYTES], "little")) if _says_its_end(first) else length


def _says_its_end(first: bytearray) -> bool:
    """Whether the first sector of a file says how long that is at the known place, and has no checksum."""
    return first[_VERSION_BYTE] == 0


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
    def rises(self) -> bool:
        """Whether what it led to is in new nodes now, and it leads to those."""
        return int(_INDEX_HEAD.unpack_from(self.before)[2]) < self.level

    @property
    def grows(self) -> bool:
        """Whether it has no fewer entries than before."""
        before, after = (int(_INDEX_HEAD.unpack_from(one)[3]) for one in (self.before, self.data))
        return before <= after


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
        self._keep(start, content[:kept])
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
        grows = self._length > self._end
        moved = self._moved_roots() if grows and _says_its_end(self._latest(0, SECTOR_BYTES)) else []
        front, others, more, less = list[_Piece](), list[_Piece](), list[_Node](), list[_Node]()
        for start, count in self._counts.items():
            piece = self._piece(start, count)
            if isinstance(piece, _Node):
                (more if piece.grows else less).append(piece)
            else:
                (front if start == 0 else others).append(piece)
        # Nodes before those below them.
        less.sort(key=lambda node: -node.level)
        index = [_rests(more), _heads(more), moved, _heads(less), _rests(less)]
        if grows:
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

    def _moved_roots(self) -> list[_Piece]:
        """Puts roots that got another level behind the end; returns where their datasets name them, and how now.

        Where the old one was, all stays as it is: who was told of that finds what was there.
        """
        pieces = [self._piece(start, count) for start, count in self._counts.items()]
        places = {tree: place for piece in pieces for tree, place in _named_trees(piece)}
        told = list[_Piece]()
        roots = [one for one in pieces if isinstance(one, _Node) and one.rises and one.start in places]
        for root in roots:
            place = -(-self._length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            self._put(place, root.data)
            self._length = place + len(root.data)
            del self._counts[root.start]
            told.append(_Piece(places[root.start], place.to_bytes(_ADDRESS_BYTES, "little")))
        for piece in told:
            self._keep(piece.start, memoryview(piece.data))
        if told:
            self._keep(_END_BYTES.start, memoryview(self._length.to_bytes(_ADDRESS_BYTES, "little")))
            self._counts[0] = max(_END_BYTES.stop, self._counts.get(0, 0))
        return told

    def _piece(self, start: int, count: int) -> _Piece:
        """What HDF5 wrote at a place."""
        data = bytes(self._latest(start, count))
        if data.startswith(_INDEX) and count >= _INDEX_HEAD.size:
            return _Node(start, data, bytes(_stored(self._content, start, _INDEX_HEAD.size)))
        return _Piece(start, data)

    def _keep(self, start: int, content: memoryview) -> None:
        """Keeps bytes back that lie before the old end."""
        for sector, first, stop in _sectors_of(start, len(content)):
            base = sector * SECTOR_BYTES
            if sector not in self._sectors:
                self._sectors[sector] = _stored(self._content, base, SECTOR_BYTES)
            self._sectors[sector][first:stop] = content[base + first - start : base + stop - start]

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


def _named_trees(piece: _Piece) -> Iterator[tuple[int, int]]:
    """Addresses of the indexes of chunks that a header names, each with the place where it stands.

    That place is in one sector, up to the terabyte: headers begin at multiples of eight, and so do their messages.
    """
    for kind, place, data in messages_in(piece.data[_HEADER_BYTES:]):
        with suppress(StructureError, struct.error):
            if kind == LAYOUT and (tree := layout_of(data).tree) is not None:
                yield tree, piece.start + _HEADER_BYTES + place + TREE_PLACE


def _heads(nodes: Iterable[_Node]) -> list[_Piece]:
    """What has to be there at once."""
    return [one.head for one in nodes]


def _rests(nodes: Iterable[_Node]) -> list[_Piece]:
    return [one.rest for one in nodes if one.rest.data]


def _sectors_of(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Sectors that so many bytes from `start` on lie in, each with the first of them in it and the end of the last."""
    stop = start + count
    while start < stop:
        sector, first = divmod(start, SECTOR_BYTES)
        end = min(first + stop - start, SECTOR_BYTES)
        yield sector, first, end
        start += end - first
