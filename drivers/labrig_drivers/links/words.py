"""What the system said of a connection, as messages repeat it."""

from __future__ import annotations

import os
import re
import socket


def system_words(error: Exception) -> str:
    """The words of the system, without the brackets, numbers and addresses that libraries put around them."""
    text = str(error)
    if isinstance(error, socket.gaierror):
        return error.strerror or text
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    # Of a host with several addresses there are several errors in one text; pyserial has numbers in tuples, too.
    numbers = [int(one or other) for one, other in re.findall(r"\[Errno (\d+)\]|\((\d+), '", text)]
    return ", ".join(dict.fromkeys(map(os.strerror, numbers))) or re.sub(r".*\[Errno -\d+\] ", "", text)
