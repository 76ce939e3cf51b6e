"""A recording whose every committed row is proven right, and that nobody writes to meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from labrig import file_locks
from labrig.recording import layout
from labrig.recording.contents import Contents
from labrig.recording.hdf5_nodes import SIGNATURE
from labrig.recording.nodes import text_attribute
from labrig.recording.reader import Recording
from labrig_drivers.errors import StorageError

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def trusted(path: Path) -> Iterator[tuple[Recording, Contents]]:
    """Opens a recording after every committed row agreed with its checksum; nobody can write to it meanwhile.

    Yields:
        The recording, and all that is in its file.

    Raises:
        StorageError: It cannot be read, is being written, or is damaged; then it says how to rescue what is right.
    """
    with held(path), open_recording(path) as recording, Contents.open(path) as contents:
        verify(recording)
        yield recording, contents


def open_recording(path: Path) -> Recording:
    """Opens a recording as `Recording.open` does, and says what to do where it is damaged.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        return Recording.open(path)
    except StorageError as error:
        if _is_broken(path):
            raise _with_advice(path, error) from error
        raise


def verify(recording: Recording) -> None:
    """Checks a recording as `Recording.verify` does, and says what to do where it is damaged.

    Raises:
        StorageError: Committed rows are not those that were written.
    """
    try:
        recording.verify()
    except StorageError as error:
        raise _with_advice(recording.path, error) from error


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps writers away from a file: HDF5 locks a file that it writes to, and this shares that lock.

    A file system without locks gives no such protection.

    Raises:
        StorageError: There is no such file, or it is being written.
    """
    file_locks.demand_posix(f"{path}: cannot be read here")
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise StorageError(f"{path}: there is no such file") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        try:
            file_locks.lock(descriptor, shared=True)
        except BlockingIOError as error:
            raise StorageError(
                f"{path}: is still being written; wait until that has ended, or stop it with Ctrl-C there"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise StorageError(f"{path}: cannot be locked: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def _with_advice(path: Path, error: StorageError) -> StorageError:
    return StorageError(f"{error}; `labrig recover {path}` tells what can be rescued")


def _is_broken(path: Path) -> bool:
    """Whether a file that cannot be read was a recording of a format that this labrig knows."""
    try:
        with path.open("rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                return False
        with h5py.File(path, "r") as content:
            major = text_attribute(content, "format_version").partition(".")[0]
            return text_attribute(content, "file_format") == layout.FILE_FORMAT and major == str(layout.FORMAT_MAJOR)
    except (FileNotFoundError, IsADirectoryError, PermissionError, BlockingIOError, KeyError):
        # No file, one that may not be read or is being written, or another kind of HDF5 file.
        return False
    except (OSError, RuntimeError, TypeError, ValueError):
        # HDF5 cannot make sense of it at all.
        return True
