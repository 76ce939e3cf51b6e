"""Opens a recording for reading: through HDF5 where nobody writes it, beside its writer where somebody does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from labrig.recording.description import Description, describe
from labrig.recording.live import LiveRows, is_being_written
from labrig.recording.source import HdfRows, RowSource
from labrig_drivers.errors import StorageError


def open_source(path: Path) -> tuple[RowSource, Description]:
    """Opens a recording.

    Returns:
        Where its rows come from, and what it says about itself.

    Raises:
        StorageError: There is no such file, it is no labrig recording, it was cut short, it comes from a newer labrig,
            or it is only just being made.
    """
    if not path.is_file():
        raise StorageError(f"{path}: there is no such file")
    try:
        if not _is_being_written(path):
            try:
                # HDF5 takes a lock that it shares with other readers.
                return _through_hdf5(path)
            except BlockingIOError:
                pass  # a writer has come in between
        live = LiveRows(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return live, live.description


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
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise StorageError(f"{path}: is damaged, or was not finished when it was created: {error}") from error


def _through_hdf5(path: Path) -> tuple[RowSource, Description]:
    try:
        file = h5py.File(path, "r")
    except BlockingIOError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: {_reason(error)}") from error
    try:
        with believed(path):
            return HdfRows(file), describe(path, file)
    except BaseException:
        file.close()
        raise


def _reason(error: OSError) -> str:
    text = str(error)
    if "truncated" in text:
        return "was cut short, its end is missing; if a copy was interrupted, copy it again"
    if "signature not found" in text or "superblock" in text:
        return "is not an HDF5 file"
    return f"cannot be read: {text}"


def _is_being_written(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return is_being_written(descriptor)
    finally:
        os.close(descriptor)
