"""Whose turn it is at a board: one request after another, and streams, which keep their turn between their parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Final, Self

from labrig_drivers.board_messages import Welcome
from labrig_drivers.board_session import BoardSession
from labrig_drivers.crossbar import BoardInfo, MvmResult
from labrig_drivers.errors import StateError

# A stream that was left by `break` is closed by the event loop in its next turns; after this time it was not left.
_LEAVING_S: Final = 0.2


class MvmStream:
    """The results of one batch in order, part by part; made by `WireBoard.mvm_stream`.

    It is an async iterator. `aclose()` leaves it, so `contextlib.aclosing` and `break` do as well.

    Args:
        parts: The results.
        where: Name and address of the board, for messages.
    """

    def __init__(self, parts: AsyncGenerator[MvmResult], where: str) -> None:
        self._parts = parts
        self._where = where
        self._ended = False
        self._was_cut = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MvmResult:
        try:
            return await anext(self._parts)
        except StopAsyncIteration:
            if self._was_cut:
                # The reader must not take the parts that it has for the whole.
                raise StateError(f"{self._where} was closed while it streamed results") from None
            self._ended = True
            raise
        except BaseException:
            self._ended = True
            raise

    async def aclose(self) -> None:
        """Leaves the stream; harmless at its end."""
        self._ended = True
        await self._parts.aclose()

    async def cut(self) -> None:
        """Ends the stream for a reader that holds one of its parts; the reader finds out when it asks for the next."""
        self._was_cut = not self._ended
        # A reader that is just waiting for a part is told by whoever sends it.
        with contextlib.suppress(RuntimeError):
            await self._parts.aclose()


class Turn:
    """The board for one request, in step: `async with turn as (welcome, info)`.

    A class of its own, since a generator-based context manager would cost more than the driver's other bookkeeping.

    Args:
        session: The conversation with the board.
        lock: Held during a turn.
        timeout_s: Longest wait in s for a board that must be greeted again.

    Attributes:
        streaming: The task that reads a stream, whose turn lasts until it leaves the stream; None while there is none.
    """

    def __init__(self, session: BoardSession, lock: asyncio.Lock, timeout_s: float) -> None:
        self.streaming: asyncio.Task[object] | None = None
        self._session = session
        self._lock = lock
        self._timeout_s = timeout_s

    async def __aenter__(self) -> tuple[Welcome, BoardInfo]:
        if self.streaming is not None and self.streaming is asyncio.current_task():
            await self._wait_for_own_stream()
        else:
            await self._lock.acquire()
        try:
            return await self._session.ensure(self._timeout_s)
        except BaseException:
            self._lock.release()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._lock.release()

    async def _wait_for_own_stream(self) -> None:
        try:
            async with asyncio.timeout(_LEAVING_S):
                await self._lock.acquire()
        except TimeoutError:
            raise StateError(
                f"{self._session.where} streams results to the task that asks: read the stream to its end, or leave "
                "it (`async with contextlib.aclosing(board.mvm_stream(...))`), before the next request"
            ) from None
