"""Links by their address, as rig files and command lines name them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig_drivers.links.base import Link

_FORMS = (
    "tcp://HOST:PORT, serial:///dev/ttyUSB0?baudrate=115200, or visa://RESOURCE "
    "such as visa://TCPIP::192.168.0.5::5025::SOCKET"
)


def link_from_url(url: str) -> Link:
    """Makes the link, still closed, that an address names.

    Args:
        url: `tcp://host:port`, `serial:///dev/ttyUSB0?baudrate=115200` or `visa://` with a VISA resource after it.

    Raises:
        ConfigError: The address has none of these forms; the message says which exist.
    """
    if url.startswith("visa://") and url != "visa://":
        from labrig_drivers.links.visa import VisaLink

        # A VISA resource is not a URL ("::" is no port), so it is taken whole.
        return VisaLink(url.removeprefix("visa://"))
    try:
        return _stream_link(url)
    except ValueError as error:
        raise ConfigError(f"bad address {url!r}: {error}; the forms are {_FORMS}") from error


def _stream_link(url: str) -> Link:
    parts = urlsplit(url)
    if parts.scheme == "tcp":
        if not parts.hostname or not parts.port or parts.path or parts.query or parts.username:
            raise ValueError("a host and a port from 1 to 65535 are needed, and nothing else")
        from labrig_drivers.links.tcp import TcpLink

        return TcpLink(parts.hostname, parts.port)
    if parts.scheme == "serial":
        if parts.netloc or not parts.path.strip("/"):
            raise ValueError("a device is needed after three slashes")
        from labrig_drivers.links.serial import SerialLink

        return SerialLink(parts.path, _baudrate(parts.query))
    raise ValueError("no such kind of link")


def _baudrate(query: str) -> int:
    options = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query))
    unknown = sorted(options.keys() - {"baudrate"})
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}")
    text = options.get("baudrate", ["115200"])[-1]
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"baudrate {text!r} is not a positive number")
    return int(text)
