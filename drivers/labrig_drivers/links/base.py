"""The contract of a link: bytes with deadlines, one exchange at a time, never a stale answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from enum import Enum
from typing import Protocol


class LinkState(Enum):
    """Life cycle of a link."""

    CLOSED = "closed"
    OPENING = "opening"
    READY = "ready"
    DESYNCHRONISED = "desynchronised"
    BROKEN = "broken"


class Framing(Protocol):
    """Tells where one message ends in a stream of bytes."""

    def take(self, buffer: bytearray) -> bytes | None:
        """Removes the first complete message from `buffer` and returns its payload.

        Args:
            buffer: What has arrived and was not taken yet; changed in place.

        Returns:
            The payload without its framing, or None while the message is incomplete (the buffer is then unchanged).

        Raises:
            ProtocolError: The bytes can never become a valid message.
        """
        ...


class Link(Protocol):
    """A byte link to one instrument, owned by one driver.

    After a timeout, a cancellation or a framing error inside an exchange the link is `DESYNCHRONISED`: every further
    exchange raises `LinkDesyncedError` until `reopen()` succeeded, so an old answer can never be taken for a new one.
    After the peer closed it is `BROKEN`. Nothing is ever sent twice by a link.
    """

    @property
    def address(self) -> str:
        """Where the link goes, for messages, such as `tcp://127.0.0.1:5025`."""
        ...

    @property
    def state(self) -> LinkState:
        """Where the link is in its life cycle."""
        ...

    async def open(self, *, timeout_s: float = 5.0) -> None:
        """Connects; `LinkLostError` or `LinkTimeoutError` say why not.

        Args:
            timeout_s: Longest wait in s.
        """
        ...

    async def exchange(self, request: bytes, framing: Framing | None, *, timeout_s: float = 5.0) -> bytes:
        """Sends `request` and waits for one message in `framing`; with None, sends only and returns `b""`.

        Args:
            request: The bytes to send.
            framing: Where the answer ends; None where there is no answer.
            timeout_s: Longest wait in s for the whole answer.

        Raises:
            LinkTimeoutError: No complete message before the deadline; the link is desynchronised now.
            LinkLostError: The peer is gone; the link is broken now.
            LinkDesyncedError: An earlier exchange did not complete.
            ProtocolError: The answer cannot be framed; the link is desynchronised now.
            StateError: The link is not open.
        """
        ...

    def exchange_many(
        self,
        requests: Iterable[bytes],
        framing: Framing,
        *,
        timeout_s: float = 5.0,
        window: int = 1,
        is_last: Callable[[bytes], bool] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Sends several requests, up to `window` of them ahead of their answers, and yields every message as it comes.

        The latency of the link is paid once for a window, and an answer may have several messages. Only a generator
        that was exhausted is a completed exchange: left early, cancelled or failed, it desynchronises the link as
        `exchange` does. The link belongs to the generator meanwhile, so leave it with `contextlib.aclosing`.

        Args:
            requests: Taken one by one, each when its turn comes.
            framing: Where one message ends.
            timeout_s: Longest time in s for each request to be taken and for each message to come.
            window: How many requests may be under way at most; at least 1. A link that blocks while it writes
                (VISA) sends one at a time, and hands the messages of a window over together.
            is_last: Tells whether a message ends the answer to the oldest request under way; None: every one does.

        Raises:
            LinkTimeoutError, LinkLostError, LinkDesyncedError, ProtocolError, StateError: As for `exchange`.
        """
        ...

    async def reopen(self, *, timeout_s: float = 5.0) -> None:
        """Throws the old connection and everything in it away and connects anew. The driver checks the identity.

        Args:
            timeout_s: Longest wait in s.
        """
        ...

    async def close(self) -> None:
        """Disconnects; harmless when closed."""
        ...
