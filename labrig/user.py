"""Who runs this program, as other people at the bench know them."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """The name of the user, or the number of one without a name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
