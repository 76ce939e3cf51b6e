"""The exchange over a stream of bytes, shared by TCP and serial links, which differ only in how bytes move."""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

from labrig_drivers.errors import LinkLostError, LinkTimeoutError, ProtocolError
from labrig_drivers.links.base import Framing

# More than any answer that an instrument gives; beyond it the peer is not talking to us but at us.
_INBOX_MAX_BYTES = 1 << 28


class Inbox:
    """Bytes that arrived, in order, and whether more can come. Fed by the event loop, read by one exchange."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self._lost = ""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def lost(self) -> str:
        """Why no more bytes can come; empty while they can."""
        return self._lost

    def feed(self, data: bytes) -> None:
        """Takes bytes that arrived."""
        self.buffer += data
        if len(self.buffer) > _INBOX_MAX_BYTES:
            self.lose(f"sent more than {_INBOX_MAX_BYTES} bytes that nobody asked for")
        self._wake()

    def lose(self, reason: str) -> None:
        """Notes that no more bytes will come; the first reason stays."""
        self._lost = self._lost or reason
        self._wake()

    async def wait(self) -> None:
        """Waits until something was fed, or the peer was lost."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ByteStream(Protocol):
    """A connection that moves bytes both ways."""

    @property
    def inbox(self) -> Inbox:
        """Where arriving bytes are collected."""
        ...

    def fileno(self) -> int:
        """File descriptor, to ask the kernel whether bytes wait there; -1 when closed."""
        ...

    async def send(self, data: bytes) -> None:
        """Hands all of `data` to the kernel.

        Raises:
            LinkLostError: The peer is gone.
        """
        ...


async def exchange_bytes(
    stream: ByteStream, request: bytes, framing: Framing | None, timeout_s: float, address: str
) -> bytes:
    """Sends `request` and waits for exactly one message in `framing`; with None, sends only and returns `b""`.

    Raises:
        LinkTimeoutError: No complete message within `timeout_s`.
        LinkLostError: The peer is gone.
        ProtocolError: Bytes were waiting before the request was sent, more than one message came, or the answer
            cannot be framed.
    """
    inbox = stream.inbox
    try:
        async with asyncio.timeout(timeout_s):
            await _require_silence(stream, address)
            await stream.send(request)
            if framing is None:
                if inbox.lost:
                    raise LinkLostError(f"{address}: the peer {inbox.lost} while {request[:60]!r} was sent")
                return b""
            message = await _next_message(inbox, framing, address)
    except TimeoutError:
        raise LinkTimeoutError(
            f"{address}: no complete answer to {request[:60]!r} within {timeout_s:g} s "
            f"({len(inbox.buffer)} bytes came); the link needs to be reopened"
        ) from None
    if inbox.buffer:
        raise ProtocolError(
            f"{address}: more than one message came after {request[:60]!r} (also {bytes(inbox.buffer[:60])!r}), "
            "so nothing tells which one is the answer"
        )
    return message


async def _next_message(inbox: Inbox, framing: Framing, address: str) -> bytes:
    while (message := framing.take(inbox.buffer)) is None:
        if inbox.lost:
            raise LinkLostError(
                f"{address}: the peer {inbox.lost} in the middle of an exchange "
                f"({len(inbox.buffer)} bytes of the answer came)"
            )
        await inbox.wait()
    return message


async def _require_silence(stream: ByteStream, address: str) -> None:
    """Refuses to send while bytes wait that could be taken for the answer."""
    inbox = stream.inbox
    # What the kernel holds already is older than our request too; the loop is about to collect it.
    while not inbox.buffer and not inbox.lost and _readable(stream.fileno()):
        await inbox.wait()
    if inbox.buffer:
        raise ProtocolError(
            f"{address}: {len(inbox.buffer)} bytes came that nobody asked for ({bytes(inbox.buffer[:60])!r}); "
            "nothing was sent"
        )
    if inbox.lost:
        raise LinkLostError(f"{address}: the peer {inbox.lost}; nothing was sent")


def _readable(fileno: int) -> bool:
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))
