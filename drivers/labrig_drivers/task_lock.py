"""A lock for a whole section of calls, which the task that holds it may enter again."""

from __future__ import annotations

import asyncio
from types import TracebackType


class TaskLock:
    """Keeps other tasks out; may be nested inside one task. Use as `async with lock:`.

    Tasks get it in the order in which they asked. A class of its own, since it is entered several times for every
    query and a generator-based context manager would cost more than the query's own bookkeeping.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._owner: asyncio.Task[object] | None = None
        self._depth = 0

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None or task is not self._owner:
            await self._lock.acquire()
            self._owner = task
        self._depth += 1

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()
