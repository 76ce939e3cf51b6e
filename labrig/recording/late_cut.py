"""A file that HDF5 shortens, written in an order in which every moment leaves it readable.

HDF5 cuts a file to its new length and then writes into the superblock how long it is. Whoever is killed in between
leaves a file that is shorter than it says, which HDF5 refuses to open. After a power cut the superblock may also have
arrived without the structure that goes with it, which still points behind the end; and of a node of a tree that lies in
two sectors the second may have arrived, without its dropped entries, and not the first, which still counts them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING

import h5py

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

SECTOR_BYTES = 512
"""What a disk writes whole or not at all. The superblock lies in the first."""


@contextmanager
def trimmed(content: io.RawIOBase, sync: Callable[[], None]) -> Iterator[h5py.File]:
    """Opens a file to cut off what is not used; on leaving, all of it is written in its order.

    Args:
        content: The file, unbuffered; who opened it closes it.
        sync: Returns when everything that was written is on the medium.
    """
    late = LateCut(content, sync)
    with h5py.File(late, "r+") as file:
        yield file
    late.finish()


class LateCut(io.RawIOBase):
    """A file object for h5py that keeps back everything that is written until `finish`.

    For changes of the structure and of a few rows: they are kept in memory. Where a file is shortened and lengthened
    again, the bytes in between are what they were.

    Args:
        content: The file, unbuffered; who opened it closes it.
        sync: Returns when everything that was written is on the medium.
    """

    def __init__(self, content: io.RawIOBase, sync: Callable[[], None]) -> None:
        super().__init__()
        self._content = content
        self._sync = sync
        self._place = 0
        self._length = content.seek(0, io.SEEK_END)
        self._sectors: dict[int, bytearray] = {}
        self._starts: dict[int, int] = {}

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a place in the file; returns it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Reads from the present place on what was written last; returns how many bytes there were."""
        view = memoryview(buffer).cast("B")
        start, count = self._place, max(0, min(len(view), self._length - self._place))
        found = self._stored(start, count)
        for sector, first, stop in _pieces(start, count):
            if sector in self._sectors:
                base = sector * SECTOR_BYTES
                found[base + first - start : base + stop - start] = self._sectors[sector][first:stop]
        view[:count] = found
        self._place += count
        return count

    def write(self, data: ReadableBuffer, /) -> int:
        """Takes all of it, at the present place."""
        content = memoryview(data).cast("B")
        start, count = self._place, len(content)
        for sector, first, stop in _pieces(start, count):
            base = sector * SECTOR_BYTES
            if sector not in self._sectors:
                self._sectors[sector] = self._stored(base, SECTOR_BYTES)
            self._sectors[sector][first:stop] = content[base + first - start : base + stop - start]
        self._starts[start] = max(count, self._starts.get(start, 0))
        self._place = start + count
        self._length = max(self._length, self._place)
        return count

    def truncate(self, size: int | None = None, /) -> int:
        """Sets the length, which the file gets in the end."""
        self._length = self._place if size is None else size
        return self._length

    def finish(self) -> None:
        """Brings everything to the medium in its order: where each thing begins, the rest, the superblock, the end."""
        for start, count in self._starts.items():
            sector, first, stop = next(_pieces(start, count), (0, 0, 0))
            if sector:
                self._put(start, self._sectors[sector][first:stop])
        self._sync()
        for first, stop in _runs(self._sectors.keys() - {0}):
            self._put(first * SECTOR_BYTES, b"".join(self._sectors[sector] for sector in range(first, stop)))
        self._sync()
        if 0 in self._sectors:
            self._put(0, self._sectors[0])
            self._sync()
        self._content.truncate(self._length)
        self._sync()

    def _stored(self, start: int, count: int) -> bytearray:
        """Bytes as they are in the file, with zeros behind its end."""
        found = bytearray(count)
        self._content.seek(start)
        have = 0
        with memoryview(found) as view:
            while have < count and (more := self._content.readinto(view[have:])):
                have += more
        return found

    def _put(self, start: int, data: bytes | bytearray) -> None:
        self._content.seek(start)
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += self._content.write(view[done:]) or 0


def _pieces(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Sectors that so many bytes from `start` on lie in, each with the first of them in it and the end of the last."""
    stop = start + count
    while start < stop:
        sector, first = divmod(start, SECTOR_BYTES)
        end = min(first + stop - start, SECTOR_BYTES)
        yield sector, first, end
        start += end - first


def _runs(sectors: Set[int]) -> Iterator[tuple[int, int]]:
    """Sectors that follow one another, as the first and the one behind the last."""
    for sector in sorted(sectors):
        if sector - 1 not in sectors:
            stop = sector + 1
            while stop in sectors:
                stop += 1
            yield sector, stop
