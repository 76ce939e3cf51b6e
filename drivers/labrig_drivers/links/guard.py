"""What every link shares: its state, its lock, and the rule that only a completed exchange leaves it ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from labrig_drivers.errors import LinkDesyncedError, LinkLostError, StateError
from labrig_drivers.links.base import LinkState


class LinkGuard:
    """Life cycle of one link; links hold one and let it decide what an outcome means.

    Args:
        address: Where the link goes, for messages.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._state = LinkState.CLOSED
        self._lock = asyncio.Lock()

    @property
    def state(self) -> LinkState:
        """Where the link is in its life cycle."""
        return self._state

    def lose(self) -> None:
        """Notes that the peer is gone; harmless unless the link was open."""
        if self._state in {LinkState.READY, LinkState.DESYNCHRONISED}:
            self._state = LinkState.BROKEN

    def exchanging(self) -> Exchanging:
        """One exchange: alone on the link, allowed only when ready, and desynchronised by every way of failing.

        Raises:
            StateError: The link is not open.
            LinkDesyncedError: An earlier exchange did not complete.
            LinkLostError: The peer is gone.
        """
        return Exchanging(self, self._lock)

    @asynccontextmanager
    async def opening(self, failed: LinkState) -> AsyncIterator[None]:
        """One attempt to connect; the link is ready after it, or `failed` when it raises."""
        async with self._lock:
            self._state = LinkState.OPENING
            try:
                yield
            except BaseException:
                self._state = failed
                raise
            self._state = LinkState.READY

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """The end: closed afterwards, whatever happens inside."""
        async with self._lock:
            try:
                yield
            finally:
                self._state = LinkState.CLOSED

    def require_closed(self) -> None:
        """Refuses to open twice.

        Raises:
            StateError: The link is open already.
        """
        if self._state is not LinkState.CLOSED:
            raise StateError(f"{self.address}: the link is {self._state.value}; close it before opening it")

    def require_ready(self) -> None:
        """Refuses an exchange unless the last one completed.

        Raises:
            StateError: The link is not open.
            LinkDesyncedError: An earlier exchange did not complete.
            LinkLostError: The peer is gone.
        """
        if self._state is LinkState.READY:
            return
        if self._state is LinkState.DESYNCHRONISED:
            raise LinkDesyncedError(
                f"{self.address}: an earlier exchange did not complete, so the next answer could belong to it; "
                "reopen the link and check the identity first"
            )
        if self._state is LinkState.BROKEN:
            raise LinkLostError(f"{self.address}: the connection is lost; reopen the link and check the identity first")
        raise StateError(f"{self.address}: the link is {self._state.value}; open it first")

    def judge(self, error: BaseException) -> None:
        """Notes what an exchange that failed means for the link."""
        # The peer may have gone at the same time, and broken is the stronger word.
        if isinstance(error, LinkLostError):
            self._state = LinkState.BROKEN
        elif self._state is LinkState.READY:
            self._state = LinkState.DESYNCHRONISED


class Exchanging:
    """The time of one exchange; a class, because a generator-based context manager costs more than the exchange.

    Args:
        guard: The link's life cycle.
        lock: The link's lock.
    """

    def __init__(self, guard: LinkGuard, lock: asyncio.Lock) -> None:
        self._guard = guard
        self._lock = lock

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        try:
            self._guard.require_ready()
        except BaseException:
            self._lock.release()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None:
            self._guard.judge(exc)
        self._lock.release()
