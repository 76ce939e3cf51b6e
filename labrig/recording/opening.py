"""Opens a recording for reading: beside HDF5 where it is laid out as labrig writes, through HDF5 where not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from labrig.file_locks import demand_posix
from labrig.recording.description import Description, describe
from labrig.recording.hdf5_nodes import SIGNATURE
from labrig.recording.nodes import HDF5_REFUSES, in_words
from labrig.recording.placed import NotPlacedError, PlacedRows
from labrig.recording.source import HdfRows, RowSource
from labrig.recording.whole_files import no_file
from labrig_drivers.errors import StorageError


def open_source(path: Path) -> tuple[RowSource, Description]:
    """Opens a recording.

    Returns:
        Where its rows come from, and what it says about itself.

    Raises:
        StorageError: There is no such file, it is no labrig recording, it was cut short, it comes from a newer labrig,
            or it is only just being made.
    """
    if (absent := no_file(path)) is not None:
        raise StorageError(absent)
    demand_posix(f"{path}: cannot be read here")
    try:
        with path.open("rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                # Not left to HDF5: its lock would be in the way of whoever is making the file.
                raise StorageError(f"{path}: is not an HDF5 file, or is only just being made")
        placed = PlacedRows(path)
    except NotPlacedError:
        # Compressed, rewritten by another program, or damaged; what is readable of it, HDF5 reads.
        return _through_hdf5(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return placed, placed.description


@contextmanager
def believed(path: Path) -> Iterator[None]:
    """Whatever HDF5 or the contents of a file object to becomes one kind of error.

    Raises:
        StorageError: What was done inside failed.
    """
    try:
        yield
    except StorageError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        raise StorageError(f"{path}: is damaged, or was not finished when it was created: {in_words(error)}") from error


def _through_hdf5(path: Path) -> tuple[RowSource, Description]:
    try:
        file = h5py.File(path, "r")
    except HDF5_REFUSES as error:
        raise StorageError(f"{path}: {_reason(error)}") from error
    try:
        with believed(path):
            return HdfRows(file), describe(path, file)
    except BaseException:
        file.close()
        raise


def _reason(error: Exception) -> str:
    text = str(error)
    if "truncated" in text:
        return "was cut short, its end is missing; if a copy was interrupted, copy it again"
    if "signature not found" in text or "superblock" in text:
        return "is not an HDF5 file"
    if "unable to lock file" in text:
        return "is open in another program; try again when that has ended"
    return f"cannot be read: {text}"
