"""`LinkUser`: what one of several users sees of a connection that they share, such as one channel of a dual instrument.

A link forgets a fault as soon as somebody reopened it. That is right for one user, who does it himself; of several,
the others would go on as if nothing had happened, on an instrument that may have been switched off and on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager

from labrig_drivers.errors import LinkDesyncedError, LinkLostError, StateError
from labrig_drivers.links.base import Framing, Link, LinkState
from labrig_drivers.links.shared import SharedLink


class LinkUser:
    """One user's side of a shared link; keeps the `Link` contract for this user alone.

    Exchanges take turns; waiting for one's turn is not part of a deadline, since another user's sweep may be under way.
    After a fault, whoever calls first connects anew. Every other user then finds its own side desynchronised (or
    broken, where the peer was gone) and has to confirm the identity for itself, which costs no second connection.

    Args:
        link: The connection that all users were given; each makes a `LinkUser` of its own.
    """

    def __init__(self, link: SharedLink) -> None:
        self._wire = link.common(_Wire, _Wire)
        self._is_open = False
        # The connection, counted from 1, on which this user knows where it stands.
        self._confirmed = 0

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._wire.link.address

    @property
    def state(self) -> LinkState:
        """Where the link is in its life cycle, as seen by this user."""
        if not self._is_open:
            return LinkState.CLOSED
        if self._wire.link.state is not LinkState.READY or self._confirmed == self._wire.connections:
            return self._wire.link.state
        return LinkState.BROKEN if self._confirmed < self._wire.after_loss else LinkState.DESYNCHRONISED

    async def open(self, *, timeout_s: float = 5.0) -> None:
        """Connects, or joins those who are connected already.

        Raises:
            StateError: This user has opened it already.
            LinkLostError: The peer cannot be reached.
            LinkTimeoutError: It did not answer in time.
        """
        if self._is_open:
            raise StateError(f"{self.address}: the link is {self.state.value}; close it before opening it")
        wire = self._wire
        async with wire.turn:
            if wire.users == 0:
                await wire.link.open(timeout_s=timeout_s)
                wire.connections += 1
            elif wire.link.state is not LinkState.READY:
                await wire.connect_anew(timeout_s)
            wire.users += 1
            self._confirmed = wire.connections
            self._is_open = True

    async def exchange(self, request: bytes, framing: Framing | None, *, timeout_s: float = 5.0) -> bytes:
        """Waits for its turn, then exchanges as `Link.exchange` does.

        Raises:
            LinkTimeoutError, LinkLostError, LinkDesyncedError, ProtocolError, StateError: As for `Link.exchange`.
        """
        async with self._turn():
            return await self._wire.link.exchange(request, framing, timeout_s=timeout_s)

    async def exchange_many(
        self,
        requests: Iterable[bytes],
        framing: Framing,
        *,
        timeout_s: float = 5.0,
        window: int = 1,
        is_last: Callable[[bytes], bool] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Waits for its turn, then exchanges as `Link.exchange_many` does; nobody else gets a turn meanwhile.

        Raises:
            LinkTimeoutError, LinkLostError, LinkDesyncedError, ProtocolError, StateError: As for `Link.exchange`.
        """
        async with self._turn():
            exchange = self._wire.link.exchange_many(
                requests, framing, timeout_s=timeout_s, window=window, is_last=is_last
            )
            async with aclosing(exchange) as messages:
                async for message in messages:
                    yield message

    async def reopen(self, *, timeout_s: float = 5.0) -> None:
        """Connects anew, unless another user did so since this one was last in step.

        Raises:
            LinkLostError: The peer cannot be reached.
            LinkTimeoutError: It did not answer in time.
        """
        wire = self._wire
        async with wire.turn:
            if wire.link.state is not LinkState.READY or self._confirmed == wire.connections:
                await wire.connect_anew(timeout_s)
            self._confirmed = wire.connections

    async def close(self) -> None:
        """Takes leave; the last user disconnects. Harmless when closed."""
        if not self._is_open:
            return
        self._is_open = False
        async with self._wire.turn:
            self._wire.users -= 1
            if self._wire.users == 0:
                await self._wire.link.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._wire.turn:
            # Judged only now: the exchange before this one may have failed.
            if not self._is_open:
                raise StateError(f"{self.address}: the link is closed; open it first")
            if self._confirmed != self._wire.connections:
                error = LinkLostError if self._confirmed < self._wire.after_loss else LinkDesyncedError
                raise error(
                    f"{self.address}: another user of this connection had to connect anew; "
                    "reopen the link and check the identity first"
                )
            yield


class _Wire:
    """What all users of one connection have in common."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.turn = asyncio.Lock()
        self.users = 0
        # How often it was connected, and the first of these connections since the peer was last lost.
        self.connections = 0
        self.after_loss = 0

    async def connect_anew(self, timeout_s: float) -> None:
        """Reopens the connection and remembers whether the peer had been gone: it may have been switched off."""
        was_lost = self.link.state is LinkState.BROKEN
        await self.link.reopen(timeout_s=timeout_s)
        self.connections += 1
        if was_lost:
            self.after_loss = self.connections
