"""TCP links on native asyncio, which see a peer's end at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

from labrig_drivers.errors import LinkLostError, LinkTimeoutError
from labrig_drivers.links.base import Framing, LinkState
from labrig_drivers.links.guard import LinkGuard
from labrig_drivers.links.stream import Inbox, ReadablePoll, exchange_bytes, exchange_many_bytes
from labrig_drivers.links.words import system_words


class TcpLink:
    """A link to `host:port`; keeps the `Link` contract.

    Args:
        host: Name or address of the instrument.
        port: TCP port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._guard = LinkGuard(f"tcp://{host}:{port}")
        self._connection: _Connection | None = None

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._guard.address

    @property
    def state(self) -> LinkState:
        """Where the link is in its life cycle."""
        return self._guard.state

    async def open(self, *, timeout_s: float = 5.0) -> None:
        """Connects.

        Raises:
            LinkLostError: The peer refused or cannot be reached.
            LinkTimeoutError: No connection within `timeout_s`.
            StateError: The link is open already.
        """
        self._guard.require_closed()
        async with self._guard.opening(failed=LinkState.CLOSED):
            await self._connect(timeout_s)

    async def exchange(self, request: bytes, framing: Framing | None, *, timeout_s: float = 5.0) -> bytes:
        """Sends `request` and waits for one message in `framing`; with None, sends only and returns `b""`.

        Raises:
            LinkTimeoutError: No complete message before the deadline; the link is desynchronised now.
            LinkLostError: The peer is gone; the link is broken now.
            LinkDesyncedError: An earlier exchange did not complete.
            ProtocolError: Bytes came that nobody asked for, or the answer cannot be framed; desynchronised now.
            StateError: The link is not open.
        """
        async with self._guard.exchanging():
            assert self._connection is not None  # ready implies connected
            return await exchange_bytes(self._connection, request, framing, timeout_s, self.address)

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
            assert self._connection is not None  # ready implies connected
            exchange = (requests, framing, timeout_s, window, is_last, self.address)
            async with aclosing(exchange_many_bytes(self._connection, *exchange)) as messages:
                async for message in messages:
                    yield message

    async def reopen(self, *, timeout_s: float = 5.0) -> None:
        """Drops the connection with everything in it and connects anew; the link is broken when that fails.

        Raises:
            LinkLostError: The peer refused or cannot be reached.
            LinkTimeoutError: No connection within `timeout_s`.
        """
        self._abort()
        async with self._guard.opening(failed=LinkState.BROKEN):
            await self._disconnect()
            await self._connect(timeout_s)

    async def close(self) -> None:
        """Disconnects; harmless when closed. An exchange in flight fails with `LinkLostError`."""
        self._abort()
        async with self._guard.closing():
            await self._disconnect()

    async def _connect(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, self._connection = await loop.create_connection(
                    lambda: _Connection(self._guard.lose, self.address), self._host, self._port
                )
        except TimeoutError:
            raise LinkTimeoutError(
                f"{self.address}: no connection within {timeout_s:g} s; is the instrument on, and the address right?"
            ) from None
        except OSError as error:
            raise LinkLostError(
                f"{self.address}: cannot connect ({system_words(error)}); is the instrument on, and the address right?"
            ) from error

    def _abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
            await connection.closed.wait()


class _Connection(asyncio.Protocol):
    """One TCP connection: collects what comes, and knows when the kernel took what was sent."""

    def __init__(self, on_lost: Callable[[], None], address: str) -> None:
        self.inbox = Inbox()
        self.closed = asyncio.Event()
        self._on_lost = on_lost
        self._address = address
        self._writable = True
        self._transport: asyncio.Transport | None = None
        self._poll: ReadablePoll | None = None

    def readable(self) -> bool:
        return self._poll is not None and self._poll.readable()

    async def send(self, data: bytes) -> None:
        if self._transport is None:
            raise LinkLostError(f"{self._address}: the connection is lost; reopen the link")
        self._transport.write(data)
        while not self._writable:
            await self.inbox.wait()

    def abort(self) -> None:
        if self._transport is not None:
            self.inbox.lose("was disconnected from this side")
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Pausing at any unsent byte makes "writable" mean "all of it is in the kernel's hands".
        transport.set_write_buffer_limits(high=0)
        tcp_socket: socket.socket = transport.get_extra_info("socket")
        self._poll = ReadablePoll(tcp_socket.fileno())
        tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tcp_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        self.inbox.feed(data)
        if self.inbox.lost:
            self.abort()

    def eof_received(self) -> bool:
        self.inbox.lose("closed the connection")
        self._on_lost()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._poll = None
        self._writable = True
        self.inbox.lose("closed the connection" if exc is None else f"was lost ({exc})")
        self._on_lost()
        self.closed.set()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self.inbox.wake()
