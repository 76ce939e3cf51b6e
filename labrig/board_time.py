"""The time of a board, as a run follows it: it waits for an age of a write, or lets a simulated board's time pass."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable

from labrig_drivers.commanded import commanded
from labrig_drivers.crossbar import CrossbarBoard


class BoardTime:
    """Follows a board's clock from its answers, since a board is not asked for the time.

    A commanded board says its time and lets it pass at once.

    Args:
        board: The board, open.
        wait: Waits for so many seconds of the host's clock.
    """

    def __init__(self, board: CrossbarBoard, wait: Callable[[float], Awaitable[None]]) -> None:
        self._commanded = commanded(board, board.info)
        self._wait = wait
        self._ahead_s = math.nan

    def saw(self, time_s: float) -> None:
        """Notes the board's time in s, just answered."""
        self._ahead_s = time_s - time.monotonic()

    async def now_s(self) -> float:
        """The board's clock in s; NaN before it said anything."""
        if self._commanded is not None:
            return await self._commanded.now_s()
        return self._ahead_s + time.monotonic()

    async def rest(self, duration_s: float) -> None:
        """Leaves the board alone for so long."""
        if duration_s <= 0.0:
            return
        if self._commanded is not None:
            await self._commanded.let_pass(duration_s)
        else:
            await self._wait(duration_s)
