"""The rows of one dataset in a file that may be damaged, read by their places and never through HDF5."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from labrig.recording.file_bytes import FileBytes, StructureError
from labrig.recording.hdf5_nodes import Chunk

PIECE_BYTES = 1 << 20

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3


@dataclass
class StoredRows:
    """Where the rows of a dataset are.

    Attributes:
        source: The file.
        row_bytes: Size of a row.
        element_bytes: Size of an element.
        chunk_rows: Rows in a chunk.
        chunks: The chunks that have a place, by number.
        filters: What they went through.
    """

    source: FileBytes
    row_bytes: int
    element_bytes: int
    chunk_rows: int
    chunks: Mapping[int, Chunk]
    filters: tuple[int, ...] = ()
    _unpacked: tuple[int, bytes] = field(default=(-1, b""), repr=False)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of rows `start` to `stop`, at most about a megabyte at a time.

        Raises:
            StructureError: Some of them have no place, or cannot be read.
        """
        while start < stop:
            number, within = divmod(start, self.chunk_rows)
            chunk = self.chunks.get(number)
            if chunk is None or start < 0:
                raise StructureError(f"row {start} has no place in the file")
            count = min(stop - start, self.chunk_rows - within)
            if self.filters:
                content = self._content(number, chunk)
                yield content[within * self.row_bytes : (within + count) * self.row_bytes]
            else:
                count = min(count, max(1, PIECE_BYTES // self.row_bytes))
                yield self.source.read(chunk.offset + within * self.row_bytes, count * self.row_bytes)
            start += count

    def read(
        self, start: int, stop: int, dtype: np.dtype[np.generic], shape: Sequence[int] = ()
    ) -> NDArray[np.generic]:
        """Rows as an array; `StructureError` as `pieces`."""
        return np.frombuffer(b"".join(self.pieces(start, stop)), dtype).reshape(stop - start, *shape)

    def crc32(self, start: int, stop: int, crc: int = 0) -> int:
        """CRC-32 of rows, going on from `crc`; `StructureError` as `pieces`."""
        for piece in self.pieces(start, stop):
            crc = zlib.crc32(piece, crc)
        return crc

    def _content(self, number: int, chunk: Chunk) -> bytes:
        """A chunk as it was before the filters; the last one is kept, since blocks are read in order."""
        if self._unpacked[0] != number:
            whole = self.chunk_rows * self.row_bytes
            stored = self.source.read(chunk.offset, min(chunk.size, 2 * whole + PIECE_BYTES))
            self._unpacked = (number, _unfiltered(stored, self.filters, chunk.mask, self.element_bytes, whole))
        return self._unpacked[1]


def _unfiltered(data: bytes, filters: Sequence[int], mask: int, element_bytes: int, whole: int) -> bytes:
    for place in reversed(range(len(filters))):
        if mask >> place & 1:
            continue
        if filters[place] == _DEFLATE:
            inflater = zlib.decompressobj()
            try:
                data = inflater.decompress(data, whole + 4)
            except zlib.error as error:
                raise StructureError(f"compressed rows cannot be unpacked: {error}") from error
        elif filters[place] == _SHUFFLE:
            count, rest = divmod(len(data), element_bytes)
            body = np.frombuffer(data, np.uint8, count * element_bytes).reshape(element_bytes, count)
            data = body.T.tobytes() + data[len(data) - rest :]
        elif filters[place] == _FLETCHER32:
            # The recording's own checksums judge the rows.
            data = data[:-4]
        else:
            raise StructureError(f"rows went through filter {filters[place]}, which labrig does not use")
    if len(data) != whole:
        raise StructureError(f"a chunk has {len(data)} bytes, expected {whole}")
    return data


def with_holes_filled(
    chunks: Mapping[int, Chunk], count: int, chunk_rows: int, chunk_bytes: int
) -> tuple[dict[int, Chunk], int]:
    """Gives chunks whose place is not known, or stands out, the place that their neighbours leave for them.

    The chunks of a dataset that were allocated together lie behind one another. Whether a guess is right is for the
    checksums to say.

    Args:
        chunks: The chunks that have a place, by number.
        count: How many there should be.
        chunk_rows: Rows in each.
        chunk_bytes: Size of each.

    Returns:
        The chunks, and how many places were guessed.
    """
    filled, guessed = dict(chunks), 0
    for number in range(1, count - 1):
        before, here, after = chunks.get(number - 1), chunks.get(number), chunks.get(number + 1)
        if before and here and after and after.offset - before.offset == 2 * chunk_bytes:
            middle = before.offset + chunk_bytes
            if here.offset != middle:
                filled[number] = Chunk(here.first, middle, chunk_bytes, 0)
                guessed += 1
    for numbers, step in ((range(count), 1), (range(count - 1, -1, -1), -1)):
        for number in numbers:
            neighbour = filled.get(number - step)
            if number not in filled and neighbour is not None:
                filled[number] = Chunk(number * chunk_rows, neighbour.offset + step * chunk_bytes, chunk_bytes, 0)
                guessed += 1
    return filled, guessed
