"""Where a recording is kept: an ordinary file system, or whatever a test puts in its place."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypedDict

import h5py

from labrig import file_locks
from labrig.recording.disk import Disk, FileDisk, allocate, disk_of
from labrig.recording.late_changes import ALIGNMENT_BYTES, changing, end_of
from labrig.recording.layout import FileSize
from labrig_drivers.errors import StorageError

# Readers look for an instant whether a file is locked; who holds it longer means it.
_PATIENCE_S, _PAUSE_S = 1.0, 0.01
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Held(Protocol):
    """The one file of a recording, held for writing: nobody else writes it.

    Attributes:
        disk: Its bytes.
    """

    disk: Disk

    def looking(self) -> AbstractContextManager[h5py.File]:
        """Opens the structure to look at, for the moment: HDF5 must remember no row."""
        ...

    def end(self) -> int:
        """How long HDF5 takes the file to be."""
        ...

    def changing(self) -> AbstractContextManager[h5py.File]:
        """Opens the structure to change it; all of it is written in the end, and on the medium then.

        Raises:
            OSError: It cannot be written.
        """
        ...

    def close(self) -> None:
        """Lets go of it; harmless when done."""
        ...


class Medium(Protocol):
    """Opens recordings, and knows how their bytes become safe."""

    def create(self, path: Path, size: FileSize) -> h5py.File:
        """Makes an empty file with room for a whole recording.

        Raises:
            StorageError: The file exists already, or there is no room; none was made.
            OSError: It cannot be opened.
        """
        ...

    def hold(self, file: h5py.File) -> Held:
        """Takes over a file that `create` made, when its structure is built; closes it in HDF5.

        Raises:
            OSError: Another program has it.
        """
        ...

    def reopen(self, path: Path) -> Held:
        """Opens a file that is there, to write on.

        Raises:
            OSError: It cannot be opened, or another program has it.
        """
        ...

    def disk(self, file: h5py.File) -> Disk:
        """The bytes under a file that `create` made."""
        ...

    def keep_name(self, path: Path) -> None:
        """Returns when the name of a new file is safe, as its content is after `Disk.sync`."""
        ...

    def remove(self, path: Path) -> None:
        """Removes a file; harmless when there is none."""
        ...


class FileSystem:
    """Ordinary files. HDF5's ordinary driver makes them; it then sees them through a descriptor of ours."""

    def create(self, path: Path, size: FileSize) -> h5py.File:
        """Takes the name and proves that the space is there; HDF5 then writes every byte of it."""
        _reserve(path, size.metadata_bytes + size.data_bytes)
        try:
            return h5py.File(path, "w", **creation_options(size))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def hold(self, file: h5py.File) -> Held:
        """The same file, whatever its name is by now."""
        descriptor = os.dup(int(file.id.get_vfd_handle()))
        try:
            file.close()
            return _held(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def reopen(self, path: Path) -> Held:
        """Opens a file that is there, to write on."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _held(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def disk(self, file: h5py.File) -> Disk:
        """The descriptor that HDF5 has open."""
        return disk_of(file)

    def keep_name(self, path: Path) -> None:
        """Brings the folder's entry to the disk."""
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Removes a file; harmless when there is none."""
        path.unlink(missing_ok=True)


class HeldBytes:
    """A `Held` over a file object.

    Args:
        content: The file, unbuffered; closed by `close`.
        disk: Its bytes.
    """

    def __init__(self, content: io.RawIOBase, disk: Disk) -> None:
        self._content = content
        self.disk = disk

    @contextmanager
    def looking(self) -> Iterator[h5py.File]:
        """Opens the structure to look at."""
        with h5py.File(self._content, "r") as file:
            yield file

    def end(self) -> int:
        """How long HDF5 takes the file to be."""
        return end_of(self._content)

    @contextmanager
    def changing(self) -> Iterator[h5py.File]:
        """Opens the structure to change it."""
        with changing(self._content, self.disk.sync) as file:
            yield file

    def close(self) -> None:
        """Closes the file; harmless when closed."""
        self._content.close()


class CreationOptions(TypedDict):
    """Arguments of `h5py.File` that lay out a new file."""

    meta_block_size: int
    alignment_threshold: int
    alignment_interval: int


def creation_options(size: FileSize) -> CreationOptions:
    """What h5py is told when it makes a recording: metadata in one block at the front, and nothing across a border."""
    return {
        "meta_block_size": size.metadata_bytes,
        "alignment_threshold": ALIGNMENT_BYTES,
        "alignment_interval": ALIGNMENT_BYTES,
    }


def _held(descriptor: int) -> Held:
    """A file that is open for writing, with the lock that HDF5 would take on it."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            file_locks.lock(descriptor, shared=False)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)
        except OSError as error:
            # A file system without locks: HDF5 writes there without one.
            if error.errno not in _NO_LOCKS:
                raise
            break
    return HeldBytes(os.fdopen(descriptor, "r+b", buffering=0), FileDisk(descriptor))


def _reserve(path: Path, size_bytes: int) -> None:
    file_locks.demand_posix(f"{path}: cannot be recorded here")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError as error:
        raise StorageError(f"{path}: exists already and is not overwritten; choose another name") from error
    except OSError as error:
        reason = error.strerror if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise StorageError(f"{path}: cannot be created: {reason}") from error
    try:
        allocate(descriptor, 0, size_bytes)
    except OSError as error:
        path.unlink()
        raise StorageError(
            f"{path}: {size_bytes / 1e6:.1f} MB are needed for the whole run and cannot be reserved: {error.strerror}"
        ) from error
    finally:
        os.close(descriptor)
