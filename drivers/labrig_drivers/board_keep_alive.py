"""`KeepAlive`: a sign of life from a host that has nothing to ask, so that only a host that is gone looks gone."""

from __future__ import annotations

import asyncio
from typing import Final

from labrig_drivers.board_session import BoardSession

# Signs of life in the time after which a board takes its host for gone: one may be late, one may be lost.
_PINGS_PER_SILENCE: Final = 3.0
# A board that answers no ping for so long is left to the next request, which must not wait for the ping.
_PING_TIMEOUT_S: Final = 1.0


class KeepAlive:
    """Pings a board when nothing was sent to it for a third of its `silence_s`.

    It never reopens a link and never raises: a board that is gone is found by the next request. An event loop that is
    blocked sends nothing, so work that takes as long as `silence_s` belongs into a thread.

    Args:
        session: The conversation with the board, open.
        lock: Held by whoever makes a request.
        timeout_s: Longest wait for the answer to a ping in s; never more than one second.
    """

    def __init__(self, session: BoardSession, lock: asyncio.Lock, timeout_s: float) -> None:
        self._session = session
        self._lock = lock
        self._timeout_s = min(timeout_s, _PING_TIMEOUT_S)
        self._task: asyncio.Task[None] | None = None

    def start(self, silence_s: float) -> None:
        """Begins, unless the board never takes its host for gone (`silence_s` is 0)."""
        if silence_s > 0.0:
            self._task = asyncio.create_task(self._run(silence_s / _PINGS_PER_SILENCE), name="labrig keep-alive")

    async def stop(self) -> None:
        """Ends; harmless when it never began. The caller holds the lock, so that no ping is under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, period_s: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._lock:
                idle_s = loop.time() - self._session.last_sent_s
                if idle_s >= period_s:
                    await self._session.give_sign_of_life(self._timeout_s)
                    idle_s = 0.0
            await asyncio.sleep(period_s - idle_s)
