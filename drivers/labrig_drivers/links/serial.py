"""Serial links on POSIX: pyserial sets the port up, the event loop moves the bytes. Works on pseudo-terminals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING

from labrig_drivers.errors import LinkLostError, LinkTimeoutError
from labrig_drivers.links.base import Framing, LinkState
from labrig_drivers.links.guard import LinkGuard
from labrig_drivers.links.stream import Inbox, ReadablePoll, exchange_bytes, exchange_many_bytes
from labrig_drivers.links.words import system_words

if TYPE_CHECKING:
    from serial import Serial

# A port has no connection to drop: a late answer still arrives after reopening. The line counts as quiet after this
# pause; what comes later still is found out by the driver, which checks the identity.
_QUIET_S = 0.1
_READ_BYTES = 1 << 16


class SerialLink:
    """A link to a serial port, opened for this process alone; keeps the `Link` contract.

    Args:
        device: Path of the port, such as `/dev/ttyUSB0`.
        baudrate: Bits per second; 8 data bits, no parity, 1 stop bit.
    """

    def __init__(self, device: str, baudrate: int = 115200) -> None:
        self._device = device
        self._baudrate = baudrate
        self._guard = LinkGuard(f"serial://{device}?baudrate={baudrate}")
        self._port: _Port | None = None

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._guard.address

    @property
    def state(self) -> LinkState:
        """Where the link is in its life cycle."""
        return self._guard.state

    async def open(self, *, timeout_s: float = 5.0) -> None:  # noqa: ARG002 - opening a port never waits
        """Opens the port.

        Raises:
            LinkLostError: There is no such port, it may not be opened, or another process has it.
            StateError: The link is open already.
        """
        self._guard.require_closed()
        async with self._guard.opening(failed=LinkState.CLOSED):
            self._connect()

    async def exchange(self, request: bytes, framing: Framing | None, *, timeout_s: float = 5.0) -> bytes:
        """Sends `request` and waits for one message in `framing`; with None, sends only and returns `b""`.

        Raises:
            LinkTimeoutError: No complete message before the deadline; the link is desynchronised now.
            LinkLostError: The port is gone; the link is broken now.
            LinkDesyncedError: An earlier exchange did not complete.
            ProtocolError: Bytes came that nobody asked for, or the answer cannot be framed; desynchronised now.
            StateError: The link is not open.
        """
        async with self._guard.exchanging():
            assert self._port is not None  # ready implies an open port
            return await exchange_bytes(self._port, request, framing, timeout_s, self.address)

    async def exchange_many(
        self,
        requests: Iterable[bytes],
        framing: Framing,
        *,
        timeout_s: float = 5.0,
        window: int = 1,
        is_last: Callable[[bytes], bool] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Sends up to `window` requests ahead and yields every message as it comes; see `Link.exchange_many`."""
        async with self._guard.exchanging():
            assert self._port is not None  # ready implies an open port
            exchange = (requests, framing, timeout_s, window, is_last, self.address)
            async with aclosing(exchange_many_bytes(self._port, *exchange)) as messages:
                async for message in messages:
                    yield message

    async def reopen(self, *, timeout_s: float = 5.0) -> None:
        """Opens the port anew and throws away what still arrives until the line is quiet.

        Raises:
            LinkLostError: The port cannot be opened any more.
            LinkTimeoutError: The line did not become quiet within `timeout_s`.
        """
        self._abort()
        async with self._guard.opening(failed=LinkState.BROKEN):
            self._disconnect()
            port = self._connect()
            try:
                async with asyncio.timeout(timeout_s):
                    await port.quiet(_QUIET_S)
            except TimeoutError:
                raise LinkTimeoutError(
                    f"{self.address}: bytes kept coming for {timeout_s:g} s; is another program talking to this port?"
                ) from None

    async def close(self) -> None:
        """Closes the port; harmless when closed. An exchange in flight fails with `LinkLostError`."""
        self._abort()
        async with self._guard.closing():
            self._disconnect()

    def _connect(self) -> _Port:
        from serial import Serial, SerialException

        if not hasattr(Serial, "fileno"):
            raise LinkLostError(
                f"{self.address}: serial ports are opened by themselves on Linux and macOS only; on Windows go through "
                "VISA, such as visa://ASRL3::INSTR"
            )
        try:
            serial = Serial(self._device, self._baudrate, timeout=0, write_timeout=0, exclusive=True)
        except (SerialException, OSError, ValueError) as error:
            words = system_words(error)
            raise LinkLostError(
                f"{self.address}: cannot open the port ({words}); is it plugged in, and free, and may you use it?"
            ) from error
        self._port = _Port(serial, self._guard.lose)
        return self._port

    def _abort(self) -> None:
        if self._port is not None:
            self._port.abort()

    def _disconnect(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.abort()


class _Port:
    """One open port: collects what comes, and writes without blocking the loop."""

    def __init__(self, serial: Serial, on_lost: Callable[[], None]) -> None:
        self.inbox = Inbox()
        self._serial = serial
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._blocked = False
        self._poll = ReadablePoll(self._fileno())
        self._loop.add_reader(self._fileno(), self._on_readable)

    def readable(self) -> bool:
        return self._serial.is_open and self._poll.readable()

    async def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and not self.inbox.lost:
            try:
                rest = rest[os.write(self._fileno(), rest) :]
            except BlockingIOError:
                await self._until_writable()
            except OSError as error:
                self._lose(f"was lost ({system_words(error)})")

    async def quiet(self, pause_s: float) -> None:
        """Waits until nothing has come for `pause_s`, and throws away what came."""
        while not self.inbox.lost:
            self.inbox.buffer.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self.inbox.wait()
            except TimeoutError:
                return

    def abort(self) -> None:
        self.inbox.lose("was disconnected from this side")
        self._close()

    def _lose(self, reason: str) -> None:
        self.inbox.lose(reason)
        self._on_lost()
        self._close()

    def _close(self) -> None:
        if not self._serial.is_open:
            return
        self._loop.remove_reader(self._fileno())
        self._loop.remove_writer(self._fileno())
        self._serial.close()

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"was lost ({system_words(error)})")
            return
        # A terminal that is readable and has nothing to read has hung up.
        if not data:
            self._lose("hung up")
            return
        self.inbox.feed(data)
        if self.inbox.lost:
            self._lose(self.inbox.lost)

    async def _until_writable(self) -> None:
        self._blocked = True
        self._loop.add_writer(self._fileno(), self._on_writable)
        try:
            while self._blocked and not self.inbox.lost:
                await self.inbox.wait()
        finally:
            if self._serial.is_open:
                self._loop.remove_writer(self._fileno())

    def _on_writable(self) -> None:
        self._blocked = False
        self.inbox.wake()

    def _fileno(self) -> int:
        return int(self._serial.fileno()) if self._serial.is_open else -1
