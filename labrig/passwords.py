"""Passwords that a rig file names without holding them: in the environment, or in a file."""

from __future__ import annotations

import os
from pathlib import Path


class NoPasswordError(Exception):
    """A password is not where it should be; the text says where, and why."""


def named_password(environment: str | None, file: str | None) -> str | None:
    """The password that a setting names; None where it names none.

    Args:
        environment: Name of an environment variable (`password_env`).
        file: Path of a file (`password_file`), whose last line end does not count; asked for where no variable is.

    Raises:
        NoPasswordError: There is none, or an empty one.
    """
    if environment is not None:
        if not (found := os.environ.get(environment)):
            raise NoPasswordError(f"password_env: {environment}: the environment variable is not set, or empty")
        return found
    if file is None:
        return None
    try:
        found = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise NoPasswordError(f"password_file: {file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise NoPasswordError(f"password_file: {file}: is not UTF-8 text") from error
    if not found:
        raise NoPasswordError(f"password_file: {file}: the file is empty")
    return found
