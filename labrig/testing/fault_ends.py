"""The two ends of a `FaultProxy`: TCP connections and serial lines, which can also end badly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from typing import Protocol

from labrig_drivers.mock.ports import PtyPort

_PIECE_BYTES = 65536
# Close at once, with a reset instead of an end.
_NO_LINGER = struct.pack("ii", 1, 0)


class LineEnd(Protocol):
    """Bytes to and from one side of the proxy."""

    async def receive(self) -> bytes:
        """Waits for bytes; empty when that side has left."""
        ...

    async def send(self, data: bytes) -> None:
        """Sends all of `data`; `OSError` when that side is gone."""
        ...

    def shut(self) -> None:
        """Tells that side that no more bytes come; it can still send."""
        ...

    def close(self, *, reset: bool = False) -> None:
        """Ends the connection, with a reset if wanted; harmless when ended."""
        ...


class TcpEnd:
    """One TCP connection; keeps `LineEnd`.

    Args:
        connection: A connected socket that this object owns from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        # So that two pieces arrive as two pieces, and none waits for an acknowledgement.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection

    async def receive(self) -> bytes:
        """Waits for bytes; empty when that side has left."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, _PIECE_BYTES)
        except OSError:
            return b""

    async def send(self, data: bytes) -> None:
        """Sends all of `data`.

        Raises:
            OSError: That side is gone.
        """
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def shut(self) -> None:
        """Sends the end of the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        """Ends the connection."""
        if reset:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._socket.close()


async def connect_tcp(host: str, port: int) -> TcpEnd:
    """Connects to the instrument.

    Raises:
        OSError: It cannot be reached.
    """
    connection = socket.socket()
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
        return TcpEnd(connection)
    except BaseException:
        connection.close()
        raise


class HostLine:
    """The host's end of a serial line: a new pseudo-terminal that stays when hosts come and go; keeps `LineEnd`."""

    def __init__(self) -> None:
        self._port = PtyPort()
        self.device = self._port.device
        self._is_open = True

    async def receive(self) -> bytes:
        """Waits for bytes of whichever host has the line open."""
        while True:
            # Empty means that a host left, and a line outlives its host.
            if data := await self._port.receive():
                return data

    async def send(self, data: bytes) -> None:
        """Sends all of `data`, or drops it when nobody has the line open."""
        await self._port.send(data)

    def shut(self) -> None:
        """Does nothing: a serial line has no end of stream."""

    def close(self, *, reset: bool = False) -> None:  # noqa: ARG002 - the contract names it
        """Takes the line away; `reset` means nothing here."""
        if self._is_open:
            self._is_open = False
            self._port.close()


class InstrumentLine:
    """The instrument's end of a serial line, opened as a host opens it; keeps `LineEnd`.

    Args:
        device: Path of the line.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, device: str) -> None:
        self._fileno = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        import tty  # not on Windows

        tty.setraw(self._fileno)

    async def receive(self) -> bytes:
        """Waits for bytes; empty when the instrument hung up."""
        while True:
            try:
                return os.read(self._fileno, _PIECE_BYTES)
            except BlockingIOError:
                await self._ready(writing=False)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return b""

    async def send(self, data: bytes) -> None:
        """Sends all of `data`.

        Raises:
            OSError: The instrument hung up.
        """
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fileno, rest) :]
            except BlockingIOError:
                await self._ready(writing=True)

    def shut(self) -> None:
        """Does nothing: a serial line has no end of stream."""

    def close(self, *, reset: bool = False) -> None:  # noqa: ARG002 - the contract names it
        """Closes the line; `reset` means nothing here."""
        if self._fileno >= 0:
            os.close(self._fileno)
            self._fileno = -1

    async def _ready(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        add(self._fileno, ready.set)
        try:
            await ready.wait()
        finally:
            remove(self._fileno)
