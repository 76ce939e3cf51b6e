"""When do two addresses mean one instrument? As far as that can be told without asking the network."""

from __future__ import annotations

import os.path
import re
from urllib.parse import urlsplit

_LOOPBACK = {"localhost", "::1", "127.0.0.1"}
_VISA_INTERFACE = re.compile(r"^(ASRL|GPIB|PXI|TCPIP|USB|VXI)(\d*)(.*)$", re.DOTALL)


def same_instrument(address: str) -> str:
    """A form of an address that is equal for its usual spellings: case, options left at their default, symbolic links.

    A VISA socket and a TCP link to the same port are the same, and so are the spellings of a serial port. Two names of
    one host are not recognised, apart from those of this machine's loopback. What is no address stays as it is.
    """
    scheme, separator, rest = address.partition("://")
    scheme = scheme.lower()
    if scheme == "visa":
        return _visa(rest)
    if scheme == "serial":
        return _serial(urlsplit(f"serial://{rest}").path)
    if scheme == "tcp":
        try:
            parts = urlsplit(f"tcp://{rest}")
            return _tcp(parts.hostname or "", str(parts.port))
        except ValueError:
            return address
    return f"{scheme}{separator}{rest}"


def _tcp(host: str, port: str) -> str:
    host = host.lower().rstrip(".")
    return f"tcp://{'127.0.0.1' if host in _LOOPBACK else host}:{port}"


def _serial(device: str) -> str:
    # Names in /dev/serial/by-id are symbolic links.
    return f"serial://{os.path.realpath(device)}"


def _visa(resource: str) -> str:
    fields = [part.strip() for part in resource.split("::")]
    interface = _VISA_INTERFACE.match(fields[0].upper())
    if interface is None:
        return f"visa://{resource.upper()}"
    kind, board = interface[1], interface[2] or "0"
    if kind == "ASRL" and fields[0][4:].startswith("/"):
        # The device of a serial port keeps its case.
        return _serial(fields[0][4:])
    ending = fields.pop().upper() if fields[-1].upper() in {"INSTR", "SOCKET", "RAW"} else "INSTR"
    if kind == "TCPIP" and ending == "SOCKET" and len(fields) == 3:
        return _tcp(fields[1], fields[2])
    if kind == "TCPIP" and ending == "INSTR" and len(fields) == 2:
        fields.append("INST0")
    if kind == "USB" and len(fields) == 4:
        fields.append("0")
    if kind in {"TCPIP", "GPIB", "ASRL", "USB"}:
        fields = [f"{kind}{board}", *fields[1:]]
    return f"visa://{'::'.join([*(part.upper() for part in fields), ending])}"
