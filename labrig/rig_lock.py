"""One owner at a time: a lock for each instrument's address, on this machine, for all its users.

The locks are the kernel's (`flock`), on files that stay where they are: however a process ends, its locks end with
it, and a file that nobody has locked means nothing. A file's content only says who the holder is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from labrig import file_locks
from labrig.addresses import same_instrument
from labrig.user import user_name
from labrig_drivers.errors import StateError, StorageError

# Not the temporary folder that the environment names: it may be another one for each user, and then no two would meet.
LOCK_FOLDER = Path("/tmp") / "labrig-locks"

# Everybody may make a file there, nobody may remove another's.
_FOLDER_MODE = 0o1777
# Whoever holds the lock writes into the file, whoever made it.
_FILE_MODE = 0o666
_LONGEST_ENTRY = 4096


@dataclass(frozen=True)
class Holder:
    """Who holds an instrument.

    Attributes:
        user: Login name.
        host: Name of the machine.
        pid: Process id.
        command: Command line of the process.
        since: When it took the instrument, ISO 8601.
    """

    user: str
    host: str
    pid: int
    command: str
    since: str

    @classmethod
    def this_process(cls, command: str | None = None) -> Holder:
        """This process, as a holder from now on."""
        return cls(user_name(), socket.gethostname(), os.getpid(), command or _command(), _now())

    def __str__(self) -> str:
        text = f"{self.user} on {self.host}, process {self.pid} ({self.command}), since {self.since}"
        # Anybody can write into these files: what they say is shown, not obeyed.
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class RigLock:
    """The locks of a rig's instruments: all of them, or none.

    Args:
        addresses: Address of each instrument by its name; instruments at one address share a lock.
        what: What messages call all of them.
        folder: Where the files are.
    """

    def __init__(self, addresses: Mapping[str, str], what: str = "the rig", folder: Path = LOCK_FOLDER) -> None:
        self._what = what
        self._folder = folder
        self._names: dict[str, list[str]] = {}
        for name, address in addresses.items():
            self._names.setdefault(same_instrument(address), []).append(name)
        self._descriptors: dict[str, int] = {}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The locked files; a child process that inherits them holds the locks too until both have let go."""
        return tuple(self._descriptors.values())

    def acquire(self) -> None:
        """Takes every lock at once, without waiting.

        Raises:
            StateError: Instruments are held by somebody; the message names each with its holder.
            StorageError: The files cannot be made, or this system has no locks.
        """
        file_locks.demand_posix(f"{self._what}: nobody else can be kept from its instruments here, nothing was opened")
        if self._descriptors:
            raise StateError(f"{self._what}: is open already; close it first")
        try:
            busy = self._lock_all()
            write_holder(() if busy else self.descriptors, Holder.this_process())
        except BaseException:
            self.release()
            raise
        if busy:
            self.release()
            raise StateError(
                f"{self._what}: {len(busy)} of {len(self._names)} addresses are in use, nothing was opened; "
                "wait until they are free, or ask who holds them:\n" + "\n".join(busy)
            )

    def release(self) -> None:
        """Lets go of everything; harmless when nothing is held."""
        release_descriptors(self.descriptors)
        self._descriptors.clear()

    def _lock_all(self) -> list[str]:
        busy: list[str] = []
        # In one order for everybody, so that of two processes at the same time one gets all.
        for address in sorted(self._names):
            descriptor = self._open(address)
            self._descriptors[address] = descriptor
            try:
                file_locks.lock(descriptor, shared=False)
            except BlockingIOError:
                busy.append(f"  {', '.join(self._names[address])} ({address}): {_held_by(descriptor)}")
        return busy

    def _open(self, address: str) -> int:
        try:
            folder = _open_folder(self._folder)
            try:
                return _open_file(folder, lock_name(address))
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageError(
                f"{self._folder}: the lock of {address} cannot be made ({error.strerror}); "
                f"this folder must be writable for all users (mode {_FOLDER_MODE:o}), and no link"
            ) from error


def lock_name(address: str) -> str:
    """The name of the file that is locked for an address, as `same_instrument` spells it."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", address).strip("-")[:60]
    return f"{readable}-{hashlib.sha256(address.encode()).hexdigest()[:12]}.lock"


def write_holder(descriptors: Sequence[int], holder: Holder) -> None:
    """Writes into locked files who holds them; the locks do not depend on it."""
    entry = json.dumps(asdict(holder)).encode()[:_LONGEST_ENTRY]
    for descriptor in descriptors:
        # A full disk must not keep anybody from an instrument, and even less from switching it off.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, entry, 0)


def release_descriptors(descriptors: Sequence[int]) -> None:
    """Unlocks and closes locked files; unlocking ends the lock for every process that inherited it."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            file_locks.unlock(descriptor)
        os.close(descriptor)


def make_lock_folder(folder: Path = LOCK_FOLDER) -> None:
    """Makes the folder of the locks where it does not exist yet, for all users of this machine.

    Raises:
        OSError: It cannot be made, or something else is there.
    """
    os.close(_open_folder(folder))


def _open_folder(folder: Path) -> int:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=_FOLDER_MODE)
        # The umask took bits away.
        folder.chmod(_FOLDER_MODE)
    # A link could lead everybody's locks to a place where they do harm.
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _open_file(folder: int, name: str) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Without O_CREAT first: with it, Linux refuses another user's file in a folder like this one.
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        try:
            descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=folder)
            os.fchmod(descriptor, _FILE_MODE)
        except FileExistsError:  # another process made it in this moment
            descriptor = os.open(name, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def _held_by(descriptor: int) -> str:
    try:
        holder = Holder(**json.loads(os.pread(descriptor, _LONGEST_ENTRY, 0)))
    except (OSError, ValueError, TypeError, RecursionError):
        return "held by a process that has not written yet who it is"
    if holder.pid == os.getpid() and holder.host == socket.gethostname():
        return f"this program itself has opened it already, since {holder.since}"
    return f"held by {holder}"


def _command() -> str:
    return " ".join(" ".join(sys.orig_argv).split())[:200]


def _now() -> str:
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")
