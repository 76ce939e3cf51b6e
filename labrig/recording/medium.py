"""Where a recording is kept: an ordinary file system, or whatever a test puts in its place."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypedDict

import h5py

from labrig.recording.disk import Disk, allocate, disk_of
from labrig.recording.late_cut import trimmed
from labrig.recording.layout import FileSize
from labrig_drivers.errors import StorageError

# An eight-byte counter that crossed the border of two sectors could be half new and half old after a power cut.
_ALIGNMENT_BYTES = 8


class Medium(Protocol):
    """Opens recordings, and knows how their bytes become safe."""

    def create(self, path: Path, size: FileSize) -> h5py.File:
        """Makes an empty file with room for a whole recording.

        Raises:
            StorageError: The file exists already, or there is no room; none was made.
            OSError: It cannot be opened.
        """
        ...

    def reopen(self, path: Path) -> h5py.File:
        """Opens a file that is there, to write on.

        Raises:
            OSError: It cannot be opened.
        """
        ...

    def disk(self, file: h5py.File) -> Disk:
        """The bytes under a file that this medium opened."""
        ...

    def trimming(self, file: h5py.File) -> AbstractContextManager[h5py.File]:
        """Closes a file and opens it anew to cut off what is not used; its end goes last of all.

        Raises:
            OSError: It cannot be written, or another program has it open; it is closed then.
        """
        ...

    def keep_name(self, path: Path) -> None:
        """Returns when the name of a new file is safe, as its content is after `Disk.sync`."""
        ...

    def remove(self, path: Path) -> None:
        """Removes a file; harmless when there is none."""
        ...


class FileSystem:
    """Ordinary files, opened with HDF5's ordinary driver."""

    def create(self, path: Path, size: FileSize) -> h5py.File:
        """Takes the name and proves that the space is there; HDF5 then writes every byte of it."""
        _reserve(path, size.metadata_bytes + size.data_bytes)
        try:
            return h5py.File(path, "w", **creation_options(size))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def reopen(self, path: Path) -> h5py.File:
        """Opens a file that is there, to write on."""
        return h5py.File(path, "r+")

    def disk(self, file: h5py.File) -> Disk:
        """The descriptor that HDF5 has open."""
        return disk_of(file)

    @contextmanager
    def trimming(self, file: h5py.File) -> Iterator[h5py.File]:
        """Goes through Python, since HDF5's own driver shortens a file before the structure says so."""
        # The same file, whatever its name is by now.
        with os.fdopen(os.dup(int(file.id.get_vfd_handle())), "r+b", buffering=0) as content:
            file.close()
            # HDF5's lock stays with the descriptor, unless a version of it gives the lock up.
            fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with trimmed(content, lambda: os.fsync(content.fileno())) as again:
                yield again

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


class CreationOptions(TypedDict):
    """Arguments of `h5py.File` that lay out a new file."""

    meta_block_size: int
    alignment_threshold: int
    alignment_interval: int


def creation_options(size: FileSize) -> CreationOptions:
    """What h5py is told when it makes a recording: metadata in one block at the front, and nothing across a border."""
    return {
        "meta_block_size": size.metadata_bytes,
        "alignment_threshold": _ALIGNMENT_BYTES,
        "alignment_interval": _ALIGNMENT_BYTES,
    }


def _reserve(path: Path, size_bytes: int) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError as error:
        raise StorageError(f"{path}: exists already and is not overwritten; choose another name") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be created: {error.strerror}") from error
    try:
        allocate(descriptor, 0, size_bytes)
    except OSError as error:
        path.unlink()
        raise StorageError(
            f"{path}: {size_bytes / 1e6:.1f} MB are needed for the whole run and cannot be reserved: {error.strerror}"
        ) from error
    finally:
        os.close(descriptor)
