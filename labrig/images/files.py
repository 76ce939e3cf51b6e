"""Reads the bytes of published files; a fault names the file, what is wrong with it, and what to do."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

from labrig_drivers.errors import StorageError


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in `.gz`.

    Raises:
        StorageError: It cannot be read or unpacked.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise StorageError(f"{path}: cannot be read ({error}); copy or unpack it again") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without empty ones.

    Raises:
        StorageError: It cannot be read, or is no text.
    """
    try:
        return [line.strip() for line in read_bytes(path).decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise StorageError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error


def demand_files(folder: Path, names: Iterable[str], what: str) -> None:
    """Refuses a folder that lacks some of its files.

    Args:
        folder: Where they should be.
        names: Their names, relative to the folder.
        what: The data set, for the message.

    Raises:
        StorageError: The message names every missing file.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise StorageError(f"{folder}: not a folder with {what}; missing: {', '.join(missing)}")
