"""What is written into a recording beside HDF5: rows and counters, at places that were reserved for them."""

from __future__ import annotations

import errno
import os
import time
from typing import Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

_LOOK_EVERY_S = 1.0
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class Disk(Protocol):
    """The bytes of one open file. What was written is seen by every other process, also after the death of this one."""

    def write_at(self, offset: int, values: NDArray[np.generic]) -> None:
        """Writes the bytes of a contiguous array from `offset` on.

        Raises:
            OSError: Not all of it was written.
        """
        ...

    def reserve(self, length: int) -> None:
        """Makes sure that the file can grow to so many bytes; it may be as long at once.

        Raises:
            OSError: There is no room; the file is as it was.
        """
        ...

    def sync(self) -> None:
        """Returns when everything that was written is on the medium.

        Raises:
            OSError: It is not known to be there.
        """
        ...


class FileDisk:
    """An ordinary file.

    A file that was removed goes on to take bytes, and gives them back to nobody: that is found out within a second.

    Args:
        descriptor: Its descriptor, open for writing; who opened it closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._looked_s = time.monotonic()

    def write_at(self, offset: int, values: NDArray[np.generic]) -> None:
        """Writes the bytes of a contiguous array from `offset` on.

        Raises:
            OSError: Not all of it was written, or the file was removed.
        """
        left = values.reshape(-1).view(np.uint8).data
        while left:
            written = os.pwrite(self._descriptor, left, offset)
            left, offset = left[written:], offset + written
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._demand_file()

    def reserve(self, length: int) -> None:
        """Makes sure that the file can grow to so many bytes, where the file system can promise that.

        Raises:
            OSError: There is no room; the file is as it was.
        """
        present = os.fstat(self._descriptor).st_size
        if length <= present:
            return
        try:
            allocate(self._descriptor, present, length - present)
        except OSError:
            # What it got before it was refused.
            os.ftruncate(self._descriptor, present)
            raise

    def sync(self) -> None:
        """Returns when everything that was written is on the medium.

        Raises:
            OSError: It is not known to be there, or the file was removed.
        """
        os.fsync(self._descriptor)
        self._demand_file()

    def _demand_file(self) -> None:
        self._looked_s = time.monotonic()
        if not os.fstat(self._descriptor).st_nlink:
            raise OSError(errno.ENOENT, "the file was removed while it was written; what it held is lost")


def allocate(descriptor: int, start: int, count: int) -> None:
    """Takes room on the disk for so many bytes of a file, where the file system can do that.

    Raises:
        OSError: There is not as much.
    """
    if not hasattr(os, "posix_fallocate"):
        # macOS: it can be asked what is free, and others may take it before it is written.
        free = os.fstatvfs(descriptor)
        if count > free.f_bavail * free.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return
    try:
        os.posix_fallocate(descriptor, start, count)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise


def disk_of(file: h5py.File) -> FileDisk:
    """The disk under a file that HDF5 has open with its ordinary driver."""
    return FileDisk(int(file.id.get_vfd_handle()))
