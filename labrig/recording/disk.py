"""What is written into a recording beside HDF5: rows and counters, at places that were reserved for them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

import h5py
import numpy as np
from numpy.typing import NDArray


class Disk(Protocol):
    """The bytes of one open file. What was written is seen by every other process, also after the death of this one."""

    def write_at(self, offset: int, values: NDArray[np.generic]) -> None:
        """Writes the bytes of a contiguous array from `offset` on.

        Raises:
            OSError: Not all of it was written.
        """
        ...

    def sync(self) -> None:
        """Returns when everything that was written is on the medium.

        Raises:
            OSError: It is not known to be there.
        """
        ...


@dataclass(frozen=True)
class FileDisk:
    """An ordinary file.

    Attributes:
        descriptor: Its descriptor, open for writing; who opened it closes it.
    """

    descriptor: int

    def write_at(self, offset: int, values: NDArray[np.generic]) -> None:
        """Writes the bytes of a contiguous array from `offset` on.

        Raises:
            OSError: Not all of it was written.
        """
        left = values.reshape(-1).view(np.uint8).data
        while left:
            written = os.pwrite(self.descriptor, left, offset)
            left, offset = left[written:], offset + written

    def sync(self) -> None:
        """Returns when everything that was written is on the medium.

        Raises:
            OSError: It is not known to be there.
        """
        os.fsync(self.descriptor)


def disk_of(file: h5py.File) -> FileDisk:
    """The disk under a file that HDF5 has open with its ordinary driver."""
    return FileDisk(int(file.id.get_vfd_handle()))
