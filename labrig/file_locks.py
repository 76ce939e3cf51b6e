"""Locks of whole files between processes, and the one place that knows where labrig finds none.

`flock` is there on Linux and macOS. Windows has neither that nor `pread` and `pwrite`, which recordings are read and
written with, so what needs them says so there before it touches anything.
"""

from __future__ import annotations

from labrig_drivers.errors import StorageError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


def demand_posix(what: str) -> None:
    """Refuses what needs a POSIX system.

    Args:
        what: What was asked for, as the beginning of the message.

    Raises:
        StorageError: This system has no locks of files.
    """
    if fcntl is None:
        raise StorageError(f"{what}: this needs Linux or macOS; on Windows run labrig in WSL 2")


def lock(descriptor: int, *, shared: bool) -> None:
    """Locks an open file, without waiting.

    Args:
        descriptor: The file.
        shared: Others may hold it shared too; else nobody may.

    Raises:
        BlockingIOError: Somebody holds it.
        OSError: The file system has no locks.
    """
    assert fcntl is not None  # demanded before
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def unlock(descriptor: int) -> None:
    """Lets go of a locked file, for every process that inherited it.

    Raises:
        OSError: The file system has no locks.
    """
    assert fcntl is not None  # demanded before
    fcntl.flock(descriptor, fcntl.LOCK_UN)
