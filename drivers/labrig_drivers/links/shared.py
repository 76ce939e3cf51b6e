"""`SharedLink`: one connection to an instrument that several drivers use, such as both channels of a source-meter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TypeVar

from labrig_drivers.links.base import Framing, Link, LinkState

CommonT = TypeVar("CommonT")


class SharedLink:
    """A link with several users; keeps the `Link` contract for each of them.

    The first `open()` connects, and the `close()` of the last user disconnects. `reopen()` is for whoever notices
    first that the link is out of step; each user has to bring itself back into step after it. One exchange at a time
    is the inner link's promise, whoever asks.

    Users of one kind may need to know the same things, such as what the instrument is doing right now:
    `common(kind, make)` makes that once for all of them, so that nothing has to be global.

    Args:
        link: The connection; the shared link owns it from now on.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._users = 0
        self._turn = asyncio.Lock()
        self._common: dict[type, object] = {}

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._link.address

    @property
    def state(self) -> LinkState:
        """Where the link is in its life cycle."""
        return self._link.state

    def common(self, kind: type[CommonT], make: Callable[[Link], CommonT]) -> CommonT:
        """What the users of this link have in common; made by the first who asks.

        Args:
            kind: Class of it; there is one of each kind.
            make: Makes it, given this link.
        """
        found = self._common.get(kind)
        if not isinstance(found, kind):
            found = self._common[kind] = make(self)
        return found

    async def open(self, *, timeout_s: float = 5.0) -> None:
        """Connects, for the first user; counts the others.

        Raises:
            LinkLostError: The peer refused or cannot be reached.
            LinkTimeoutError: No connection within `timeout_s`.
        """
        async with self._turn:
            if self._users == 0:
                await self._link.open(timeout_s=timeout_s)
            self._users += 1

    async def exchange(self, request: bytes, framing: Framing | None, *, timeout_s: float = 5.0) -> bytes:
        """Sends `request` and waits for one message in `framing`; see `Link.exchange`."""
        return await self._link.exchange(request, framing, timeout_s=timeout_s)

    def exchange_many(
        self,
        requests: Iterable[bytes],
        framing: Framing,
        *,
        timeout_s: float = 5.0,
        window: int = 1,
        is_last: Callable[[bytes], bool] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Sends several requests ahead and yields every message as it comes; see `Link.exchange_many`."""
        return self._link.exchange_many(requests, framing, timeout_s=timeout_s, window=window, is_last=is_last)

    async def reopen(self, *, timeout_s: float = 5.0) -> None:
        """Throws the connection away for all users and connects anew; see `Link.reopen`."""
        await self._link.reopen(timeout_s=timeout_s)

    async def close(self) -> None:
        """Disconnects, for the last user; harmless when nobody has it open. Each user closes once what it opened."""
        async with self._turn:
            self._users = max(0, self._users - 1)
            if self._users == 0:
                await self._link.close()
