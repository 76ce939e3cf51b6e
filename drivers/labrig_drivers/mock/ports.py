"""Two ways to a host, one contract: a TCP connection, and a pseudo-terminal in place of a serial line."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import Final, Protocol

from labrig_drivers.errors import LinkError

_PIECE_BYTES: Final = 65536
# How often a pseudo-terminal that nobody has open is looked at; the kernel offers nothing to wait for.
_ABSENT_POLL_S: Final = 0.02
_STUCK_S: Final = 10.0


class Port(Protocol):
    """Bytes to and from one host."""

    @property
    def address(self) -> str:
        """Where the host comes from, for the log."""
        ...

    @property
    def outlives_host(self) -> bool:
        """True for a line that stays when its host leaves, such as a serial one."""
        ...

    async def receive(self) -> bytes:
        """Waits for bytes; empty when the host left."""
        ...

    async def send(self, data: bytes) -> bool:
        """Sends all of `data`; False when the host left, or took nothing for too long, and the rest was dropped."""
        ...


class TcpPort:
    """One TCP connection of a server; keeps `Port`.

    Args:
        reader: What the host sends.
        writer: What goes to the host.
        stuck_s: A host that takes no byte of an answer for so long, in s, is taken for gone.
    """

    outlives_host = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stuck_s: float = _STUCK_S) -> None:
        self._reader = reader
        self._writer = writer
        self._stuck_s = stuck_s
        # None when the host left before it was served.
        host, port = (writer.get_extra_info("peername") or ("gone", 0))[:2]
        self.address = f"tcp://{host}:{port}"
        connection: socket.socket = writer.get_extra_info("socket")
        # Without it a short answer waits for the acknowledgement of the one before.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # So that a host whose machine died does not keep the board for ever.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def receive(self) -> bytes:
        """Waits for bytes; empty when the host left."""
        try:
            return await self._reader.read(_PIECE_BYTES)
        except OSError:
            return b""

    async def send(self, data: bytes) -> bool:
        """Sends all of `data`; False when the host left, or took nothing for too long and was cut off."""
        self._writer.write(data)
        transport = self._writer.transport
        while True:
            waiting = transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(self._stuck_s):
                    await self._writer.drain()
            except TimeoutError:
                # Slow is not stuck.
                if transport.get_write_buffer_size() < waiting:
                    continue
                transport.abort()
                return False
            except OSError:
                return False
            return not transport.is_closing()

    async def close(self) -> None:
        """Closes the connection."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class PtyPort:
    """The device's end of a new pseudo-terminal in raw mode; keeps `Port`.

    Args:
        stuck_s: A host that takes no byte of an answer for so long, in s, is taken for gone.

    Attributes:
        device: Path that a host opens like a serial port.
        address: Where the host comes from, for the log.
    """

    outlives_host = True

    def __init__(self, stuck_s: float = _STUCK_S) -> None:
        try:
            import tty
        except ModuleNotFoundError:
            raise LinkError("this system has no pseudo-terminals; use Linux or macOS, on Windows WSL 2") from None

        self._stuck_s = stuck_s
        self._master, host_end = os.openpty()
        try:
            # No echo and no translation even before the host has set its own end up.
            tty.setraw(host_end)
            self.device = os.ttyname(host_end)
        finally:
            os.close(host_end)
        os.set_blocking(self._master, False)
        self.address = f"serial://{self.device}"
        self._host_was_there = False

    async def receive(self) -> bytes:
        """Waits for bytes; empty once when the host left, and then waits for the next host."""
        while True:
            try:
                data = os.read(self._master, _PIECE_BYTES)
            except BlockingIOError:
                self._host_was_there = True
                await self._ready(writing=False)
                continue
            except OSError as error:
                # EIO: nobody has the other end open.
                if error.errno != errno.EIO:
                    raise
                data = b""
            if data:
                self._host_was_there = True
                return data
            if self._host_was_there:
                self._host_was_there = False
                # The next host must not find what was meant for this one.
                self._flush()
                return b""
            await asyncio.sleep(_ABSENT_POLL_S)

    async def send(self, data: bytes) -> bool:
        """Sends all of `data`; False when the host left or took nothing for too long, and the rest was dropped."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._master, rest) :]
            except BlockingIOError:
                try:
                    async with asyncio.timeout(self._stuck_s):
                        await self._ready(writing=True)
                except TimeoutError:
                    self._flush()
                    return False
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return False
        return True

    def _flush(self) -> None:
        """Throws away what the host has not read."""
        import termios  # not on Windows

        termios.tcflush(self._master, termios.TCOFLUSH)

    def close(self) -> None:
        """Takes the pseudo-terminal away."""
        os.close(self._master)

    async def _ready(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        add(self._master, _resolve, ready)
        try:
            await ready
        finally:
            remove(self._master)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
