"""Links: bytes with deadlines, one exchange at a time, never a stale answer.

Names are imported on first use, so that a bench that talks TCP only never loads pyvisa or pyserial.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labrig_drivers.links.base import Framing, Link, LinkState
    from labrig_drivers.links.framing import BlockFraming, FixedBlockFraming, LineFraming
    from labrig_drivers.links.memory import MemoryLink
    from labrig_drivers.links.reconnect import Reconnect
    from labrig_drivers.links.serial import SerialLink
    from labrig_drivers.links.shared import SharedLink
    from labrig_drivers.links.tcp import TcpLink
    from labrig_drivers.links.url import link_from_url
    from labrig_drivers.links.visa import VisaLink

__all__ = [
    "BlockFraming",
    "FixedBlockFraming",
    "Framing",
    "LineFraming",
    "Link",
    "LinkState",
    "MemoryLink",
    "Reconnect",
    "SerialLink",
    "SharedLink",
    "TcpLink",
    "VisaLink",
    "link_from_url",
]

_HOME = {
    "BlockFraming": "framing",
    "FixedBlockFraming": "framing",
    "Framing": "base",
    "LineFraming": "framing",
    "Link": "base",
    "LinkState": "base",
    "MemoryLink": "memory",
    "Reconnect": "reconnect",
    "SerialLink": "serial",
    "SharedLink": "shared",
    "TcpLink": "tcp",
    "VisaLink": "visa",
    "link_from_url": "url",
}


def __getattr__(name: str) -> object:
    """Imports a public name from the module that holds it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
