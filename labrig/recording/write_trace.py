"""What a power cut leaves of a file: every write is kept in order, and every state that a crash allows is made of them.

The model is that of a disk below a page cache. What was written before the last sync is on the medium. Of what was
written since, each sector holds its content from any moment between that sync and the crash, independently of all other
sectors: so writes are lost, land out of order, or are torn. A sector itself is never half old and half new.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from labrig.recording.disk import Disk
from labrig.recording.late_changes import SECTOR_BYTES
from labrig.recording.layout import FileSize
from labrig.recording.medium import Held, HeldBytes, creation_options


@dataclass(frozen=True)
class Write:
    """Bytes that were written.

    Attributes:
        offset: Place of the first, in bytes.
        data: The bytes.
    """

    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    """The file was cut or lengthened to `size` bytes."""

    size: int


@dataclass(frozen=True)
class Sync:
    """Everything before is on the medium from here on."""


Operation = Write | Truncate | Sync


@dataclass(frozen=True)
class CrashImage:
    """The content of a file after a crash.

    Attributes:
        after: How many operations were begun before the crash.
        how: `prefix` where exactly those arrived, `reordered` where only some of their sectors did, `torn` where one
            sector did not arrive, or none but one.
        data: The content.
    """

    after: int
    how: str
    data: bytes


class WriteTrace(io.RawIOBase):
    """A file in memory that remembers all that was done to it. A file object for h5py, and a `Disk` for rows.

    Attributes:
        operations: All of them, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._content = bytearray()
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a place in the file; returns it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._content)}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Reads from the present place on; returns how many bytes there were."""
        view = memoryview(buffer).cast("B")
        found = self._content[self._position : self._position + len(view)]
        view[: len(found)] = found
        self._position += len(found)
        return len(found)

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        """Writes at the present place."""
        self._note(Write(self._position, bytes(data)))
        self._position += len(data)
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        """Cuts or lengthens the file."""
        self._note(Truncate(self._position if size is None else size))
        return len(self._content)

    def write_at(self, offset: int, values: NDArray[np.generic]) -> None:
        """Writes the bytes of a contiguous array from `offset` on."""
        self._note(Write(offset, values.tobytes()))

    def reserve(self, length: int) -> None:
        """Lengthens the file where it is shorter."""
        if length > len(self._content):
            self._note(Truncate(length))

    def sync(self) -> None:
        """Notes that everything before is on the medium."""
        self._note(Sync())

    def content(self) -> bytes:
        """What every process sees in the file now."""
        return bytes(self._content)

    def _note(self, operation: Operation) -> None:
        self.operations.append(operation)
        _apply(self._content, operation)


class _HeldTrace(HeldBytes):
    """What is traced is looked at after it was closed."""

    def close(self) -> None:
        """Leaves the trace open."""


class TracedMedium:
    """A `Medium` with one file, kept in memory.

    Attributes:
        trace: The file.
    """

    def __init__(self, trace: WriteTrace | None = None) -> None:
        self.trace = WriteTrace() if trace is None else trace

    def create(self, path: Path, size: FileSize) -> h5py.File:  # noqa: ARG002 - the trace is the one file
        """Makes an empty file."""
        return h5py.File(self.trace, "w", **creation_options(size))

    def hold(self, file: h5py.File) -> Held:
        """The trace goes on."""
        file.close()
        return _HeldTrace(self.trace, self.trace)

    def reopen(self, path: Path) -> Held:  # noqa: ARG002
        """Opens the file to write on."""
        return _HeldTrace(self.trace, self.trace)

    def disk(self, file: h5py.File) -> Disk:  # noqa: ARG002
        """The trace itself."""
        return self.trace

    def keep_name(self, path: Path) -> None:
        """The one file needs no name."""

    def remove(self, path: Path) -> None:  # noqa: ARG002
        """Leaves an empty file."""
        self.trace.truncate(0)


def prefixes(operations: Sequence[Operation], *, first: int = 0) -> Iterator[CrashImage]:
    """What the death of the process can leave: every write until then, and none after.

    Args:
        operations: What was done to the file.
        first: The least number of operations before the death.
    """
    content = bytearray()
    for count, operation in enumerate((*operations, Sync())):
        if count >= first:
            yield CrashImage(count, "prefix", bytes(content))
        _apply(content, operation)


def crash_images(
    operations: Sequence[Operation], rng: np.random.Generator, *, each: int, first: int = 0
) -> Iterator[CrashImage]:
    """What a power cut can leave, some of the states for each moment.

    Args:
        operations: What was done to the file.
        rng: Decides which sectors arrived.
        each: How many states of each moment.
        first: The least number of operations before the crash.
    """
    durable, pending = bytearray(), list[Operation]()
    for count, operation in enumerate((*operations, Sync())):
        if count >= first and pending:
            for _ in range(each):
                yield CrashImage(count, "reordered", _survivors(durable, pending, rng))
        if isinstance(operation, Sync):
            for one in pending:
                _apply(durable, one)
            pending = []
        else:
            pending.append(operation)


def torn_images(operations: Sequence[Operation], *, first: int = 0) -> Iterator[CrashImage]:
    """Between every two syncs each sector once as the only one that arrived, and once as the only one that did not.

    Each in every content that it had in between, and with every length that the file had.

    Args:
        operations: What was done to the file.
        first: The least number of operations before the crash.
    """
    durable, content = b"", bytearray()
    lengths, versions = set[int](), dict[int, list[bytes]]()
    for count, operation in enumerate((*operations, Sync())):
        if isinstance(operation, Sync):
            if count >= first:
                for length in sorted({len(durable), *lengths}):
                    for data in _torn(durable, bytes(content), versions):
                        yield CrashImage(count, "torn", data[:length].ljust(length, b"\0"))
            durable, lengths, versions = bytes(content), set(), {}
            continue
        _apply(content, operation)
        lengths.add(len(content))
        if isinstance(operation, Write):
            last = (operation.offset + len(operation.data) - 1) // SECTOR_BYTES
            for sector in range(operation.offset // SECTOR_BYTES, last + 1):
                place = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
                known = versions.setdefault(sector, [durable[place]])
                if bytes(content[place]) != known[-1]:
                    known.append(bytes(content[place]))


def _torn(old: bytes, new: bytes, versions: Mapping[int, Sequence[bytes]]) -> Iterator[bytes]:
    """Contents in which one sector is another than in all the rest, which is old or new."""
    for sector, known in versions.items():
        for version in known:
            for rest in (old, new):
                data = bytearray(rest)
                _apply(data, Write(sector * SECTOR_BYTES, version))
                if data != rest:
                    yield bytes(data)


def _survivors(durable: bytearray, pending: Sequence[Operation], rng: np.random.Generator) -> bytes:
    """The medium after a crash: of the writes since the last sync some arrived, some did not, some in part."""
    cached, medium = bytearray(durable), bytearray(durable)
    lost, torn = rng.choice([0.1, 0.5, 0.9]), rng.choice([0.0, 0.3, 1.0])
    for operation in pending:
        _apply(cached, operation)
        if rng.random() < lost:
            continue
        if not isinstance(operation, Write):
            _apply(medium, operation)
            continue
        begin = operation.offset // SECTOR_BYTES
        end = -(-(operation.offset + len(operation.data)) // SECTOR_BYTES)
        arrived = rng.random(end - begin) < (0.5 if rng.random() < torn else 1.0)
        for sector in np.flatnonzero(arrived) + begin:
            start = int(sector) * SECTOR_BYTES
            # The whole sector as the page cache holds it, with earlier writes to it too.
            _apply(medium, Write(start, bytes(cached[start : start + SECTOR_BYTES])))
    return bytes(medium)


def _apply(content: bytearray, operation: Operation) -> None:
    match operation:
        case Write(offset, data):
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
        case Truncate(size):
            del content[size:]
            content.extend(bytes(size - len(content)))
        case Sync():
            pass
