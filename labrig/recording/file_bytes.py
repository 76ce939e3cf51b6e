"""The bytes of a file that may be damaged: read only, exactly as many as asked for, or an error."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


class StructureError(ValueError):
    """The bytes at some place are not what should be there, or there are none."""


class FileBytes:
    """The bytes of a file, read only. Use as a context manager.

    Args:
        path: The file.

    Attributes:
        size: How many there are.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; to be called once."""
        os.close(self._descriptor)

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes.

        Raises:
            StructureError: The file does not have them, or the disk does not give them out.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise StructureError(f"{count} bytes at {offset} lie beyond the end of the file, {self.size}")
        pieces = []
        while count:
            try:
                piece = os.pread(self._descriptor, count, offset)
            except OSError as error:
                raise StructureError(f"{count} bytes at {offset} cannot be read: {error.strerror}") from error
            if not piece:
                raise StructureError(f"{count} bytes at {offset} cannot be read: the file became shorter")
            pieces.append(piece)
            offset, count = offset + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def demand(right: bool, message: str) -> None:
    """Raises `StructureError` with a message unless something is right."""
    if not right:
        raise StructureError(message)


def decoded(what: str, decode: Callable[[], T]) -> T:
    """Runs `decode`; whatever it stumbles over becomes a `StructureError`."""
    try:
        return decode()
    except StructureError:
        raise
    except (struct.error, ValueError, IndexError, TypeError, OverflowError) as error:
        raise StructureError(f"{what}: {error}") from error
