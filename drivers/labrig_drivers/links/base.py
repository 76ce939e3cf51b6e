"""The contract of a link: bytes with deadlines, one exchange at a time, never a stale answer."""

from __future__ import annotations

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
        """Connects; `LinkLostError` or `LinkTimeoutError` say why not."""
        ...

    async def exchange(self, request: bytes, framing: Framing | None, *, timeout_s: float = 5.0) -> bytes:
        """Sends `request` and waits for one message in `framing`; with None, sends only and returns `b""`.

        Raises:
            LinkTimeoutError: No complete message before the deadline; the link is desynchronised now.
            LinkLostError: The peer is gone; the link is broken now.
            LinkDesyncedError: An earlier exchange did not complete.
            ProtocolError: The answer cannot be framed; the link is desynchronised now.
            StateError: The link is not open.
        """
        ...

    async def reopen(self, *, timeout_s: float = 5.0) -> None:
        """Throws the old connection and everything in it away and connects anew. The driver checks the identity."""
        ...

    async def close(self) -> None:
        """Disconnects; harmless when closed."""
        ...
