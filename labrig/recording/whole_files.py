"""Files that are there whole or not at all: written under another name beside it, safe on disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from labrig_drivers.errors import StorageError

# File systems that have no hard links, such as FAT and some network shares.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def no_file(path: Path) -> str | None:
    """Why there is no file to read; None where there is one."""
    if path.is_dir():
        return f"{path}: is a folder, not a file"
    return None if path.is_file() else f"{path}: there is no such file"


def refusals(paths: Iterable[Path]) -> list[str]:
    """Why these files cannot be made, one text each; empty where nothing speaks against them."""
    faults = []
    for path in paths:
        if path.exists() or path.is_symlink():
            faults.append(f"{path}: exists already and is not overwritten; choose another name")
        else:
            faults += unwritable([path])
    return faults


def unwritable(paths: Iterable[Path]) -> list[str]:
    """Why these files cannot be written, one text each; empty where nothing speaks against them.

    To be asked before long work whose result they take; they may be there already.
    """
    faults = []
    for path in paths:
        if not path.parent.is_dir():
            faults.append(f"{path}: there is no folder {path.parent}")
        elif path.is_dir():
            faults.append(f"{path}: is a folder")
        elif not os.access(path if path.exists() else path.parent, os.W_OK):
            faults.append(f"{path}: cannot be written: permission denied")
    return faults


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is either complete, and on the disk, or not there; one that is there is replaced.

    Raises:
        StorageError: The folder cannot be made or written; nothing is left of the attempt.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error


class WholeFiles:
    """Files that appear together when the block ends well, and of which nothing is left when it does not.

    Use as `with WholeFiles() as files: write(files.part(path))`. Each is written beside its place, synced, and then
    given its name, which never replaces another file. A process that is killed while it writes leaves files that end
    in `.part`, and none of those that were asked for.
    """

    def __init__(self) -> None:
        self._parts: dict[Path, Path] = {}

    def __enter__(self) -> Self:
        return self

    def part(self, path: Path) -> Path:
        """Makes an empty file to write into; it becomes `path` in the end.

        Raises:
            StorageError: `path` exists already, or its folder cannot be written.
        """
        faults = refusals([path])
        if faults:
            raise StorageError("; ".join(faults))
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        # Known before it is there: an interrupt in between must not leave it.
        self._parts[path] = part
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            raise StorageError(f"{path}: cannot be created: {error.strerror}") from error
        return part

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                self._name_all()
        except OSError as error:
            raise _refused(self._parts, error) from error
        finally:
            for part in self._parts.values():
                part.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise _refused(self._parts, exc) from exc

    def _name_all(self) -> None:
        for part in self._parts.values():
            _sync(part)
        try:
            for path, part in self._parts.items():
                _name(part, path)
        except BaseException:
            for path, part in self._parts.items():
                if path.exists() and (not part.exists() or path.samefile(part)):
                    path.unlink()
            raise
        for folder in {path.parent for path in self._parts}:
            _sync(folder)


def _name(part: Path, path: Path) -> None:
    """Gives a file its name, unless another one has it."""
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise StorageError(f"{path}: came into being meanwhile and is not overwritten; choose another name") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise StorageError(f"{path}: came into being meanwhile and is not overwritten") from error
        part.rename(path)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder, and keeps names by itself
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder.
        if not path.is_dir() or error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _refused(paths: Iterable[Path], error: OSError) -> StorageError:
    names = ", ".join(map(str, paths))
    with contextlib.suppress(TypeError, ValueError):
        # HDF5 gives its whole stack of reasons; the number says it in a few words.
        if error.errno:
            return StorageError(f"{names}: cannot be written: {os.strerror(error.errno)}; nothing of it was left")
    return StorageError(f"{names}: cannot be written: {error}; nothing of it was left")
