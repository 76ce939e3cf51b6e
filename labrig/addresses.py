"""Addresses of instruments and brokers: which are equal, and what is wrong with one, without asking the network."""

from __future__ import annotations

import os
import os.path
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

_LOOPBACK = {"localhost", "::1", "127.0.0.1"}
_VISA_INTERFACE = re.compile(r"^(ASRL|GPIB|PXI|TCPIP|USB|VXI)(\d*)(.*)$", re.DOTALL)
_BROKER_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class BrokerAddress:
    """Where an MQTT broker listens.

    Attributes:
        host: Name or address of its machine.
        port: Its port.
        tls: Whether the connection is encrypted.
    """

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def broker_address(url: str) -> BrokerAddress:
    """Reads the address of an MQTT broker, `mqtt://HOST:PORT` or `mqtts://HOST:PORT`; the port may be left out.

    Raises:
        ValueError: It is none; the message says why, and repeats nothing of it that could be a password.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in _BROKER_PORTS or "://" not in url:
        raise ValueError("expected mqtt://HOST:PORT or mqtts://HOST:PORT")
    if "@" in url:
        raise ValueError(
            "user and password do not belong into the address, which recordings and process lists show; use username "
            "with password_file or password_env in the section [telemetry]"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"not an address ({error})") from None
    if not host or any(letter.isspace() for letter in url):
        raise ValueError("the host is missing")
    if port == 0:
        raise ValueError("port 0 is none to connect to")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError("nothing may follow host and port; topics begin with labrig/ at every broker")
    return BrokerAddress(host, port or _BROKER_PORTS[scheme], tls=scheme == "mqtts")


def bind_reason(error: OSError) -> str:
    """Why nothing can listen at an address, without the address, which asyncio repeats as Python writes it."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return f"{os.strerror(error.errno).lower()}; choose another port or address"


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
