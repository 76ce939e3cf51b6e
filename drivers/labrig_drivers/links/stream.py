"""Exchanges over a stream of bytes, shared by TCP and serial links, which differ only in how bytes move."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType
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
        self._late = False
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
        self.wake()

    def lose(self, reason: str) -> None:
        """Notes that no more bytes will come; the first reason stays."""
        self._lost = self._lost or reason
        self.wake()

    async def wait(self) -> None:
        """Waits until something was fed, the peer was lost, or `wake()` was called.

        Raises:
            TimeoutError: The time of a running `Clock` is over.
        """
        if not self._late:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._late:
            raise TimeoutError

    def wake(self) -> None:
        """Ends a `wait()`, so that whoever waits looks again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def set_late(self, late: bool) -> None:
        """Notes that the time is over, or no longer counts; called by `Clock`."""
        self._late = late
        self.wake()


class Clock:
    """A deadline for everything that waits on an inbox inside a `with` block.

    `asyncio.timeout` does the same for any code, by cancelling the task; this one is the smaller half of its cost, and
    every exchange has one.

    Args:
        inbox: What is waited on.
        timeout_s: Time in s from the beginning of the block.
    """

    def __init__(self, inbox: Inbox, timeout_s: float) -> None:
        self._inbox = inbox
        self._timer = asyncio.get_running_loop().call_later(timeout_s, inbox.set_late, True)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._inbox.set_late(False)


class ByteStream(Protocol):
    """A connection that moves bytes both ways."""

    @property
    def inbox(self) -> Inbox:
        """Where arriving bytes are collected."""
        ...

    def readable(self) -> bool:
        """Asks the kernel whether it holds bytes, or an end, that the event loop has not collected yet."""
        ...

    async def send(self, data: bytes) -> None:
        """Hands all of `data` to the kernel; waits on the inbox, so that a `Clock` counts.

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
        with Clock(inbox, timeout_s):
            await _require_silence(stream, address)
            await stream.send(request)
            if framing is None:
                if inbox.lost:
                    raise LinkLostError(f"{address}: the peer {inbox.lost} while {request[:60]!r} was sent")
                return b""
            message = await _next_message(inbox, framing, address)
    except TimeoutError:
        raise _late(inbox, request, timeout_s, address) from None
    _require_nothing_more(inbox, request, address)
    return message


async def exchange_many_bytes(
    stream: ByteStream,
    requests: Iterable[bytes],
    framing: Framing,
    timeout_s: float,
    window: int,
    is_last: Callable[[bytes], bool] | None,
    address: str,
) -> AsyncGenerator[bytes]:
    """Sends up to `window` requests ahead and yields every message as it comes; see `Link.exchange_many`.

    Raises:
        LinkTimeoutError: A request was not taken, or a message did not come, within `timeout_s`.
        LinkLostError: The peer is gone.
        ProtocolError: Bytes were waiting before the first request was sent, came after the last message, or cannot be
            framed.
    """
    inbox = stream.inbox
    waiting = iter(requests)
    under_way = 0
    request = b""
    message: bytes | None = None
    await _require_silence(stream, address)
    while True:
        # The next request goes out before the message is handed over: the peer works while the caller does.
        while under_way < window and (following := next(waiting, None)) is not None:
            request = following
            try:
                with Clock(inbox, timeout_s):
                    await stream.send(request)
            except TimeoutError:
                raise _late(inbox, request, timeout_s, address) from None
            under_way += 1
        if message is not None:
            yield message
        if under_way == 0:
            break
        message = framing.take(inbox.buffer)
        if message is None:
            try:
                with Clock(inbox, timeout_s):
                    message = await _next_message(inbox, framing, address)
            except TimeoutError:
                raise _late(inbox, request, timeout_s, address) from None
        if is_last is None or is_last(message):
            under_way -= 1
    _require_nothing_more(inbox, request, address)


def _late(inbox: Inbox, request: bytes, timeout_s: float, address: str) -> LinkTimeoutError:
    return LinkTimeoutError(
        f"{address}: no complete answer to {request[:60]!r} within {timeout_s:g} s "
        f"({len(inbox.buffer)} bytes came); the link needs to be reopened"
    )


def _require_nothing_more(inbox: Inbox, request: bytes, address: str) -> None:
    if inbox.buffer:
        raise ProtocolError(
            f"{address}: more than one message came after {request[:60]!r} (also {bytes(inbox.buffer[:60])!r}), "
            "so nothing tells which one is the answer"
        )


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
    while not inbox.buffer and not inbox.lost and stream.readable():
        await inbox.wait()
    if inbox.buffer:
        raise ProtocolError(
            f"{address}: {len(inbox.buffer)} bytes came that nobody asked for ({bytes(inbox.buffer[:60])!r}); "
            "nothing was sent"
        )
    if inbox.lost:
        raise LinkLostError(f"{address}: the peer {inbox.lost}; nothing was sent")


class ReadablePoll:
    """Asks the kernel about one descriptor, again and again.

    Args:
        fileno: The descriptor; it must stay open as long as this is asked.
    """

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        # Windows has only `select`, which POSIX systems limit to low numbers.
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(fileno, select.POLLIN)

    def readable(self) -> bool:
        """Whether bytes or an end wait there."""
        if self._poll is None:
            return bool(select.select([self._fileno], [], [], 0)[0])
        return bool(self._poll.poll(0))
