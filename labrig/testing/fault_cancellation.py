"""Cancels a call at a chosen place: at one of its suspensions, or after some turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TypeVar

ResultT = TypeVar("ResultT")


class CancelAt:
    """Runs one call and cancels it at its `suspension`-th suspension, counted from 1; a shorter call just ends.

    Args:
        suspension: Where to cancel.

    Attributes:
        cancelled: Whether it came to that.
    """

    def __init__(self, suspension: int) -> None:
        self._left = suspension
        self.cancelled = False

    async def run(self, call: Coroutine[object, object, ResultT]) -> ResultT:
        """Runs the call in the current task, which itself goes on.

        Raises:
            asyncio.CancelledError: The call was cancelled, and let itself be.
        """
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        try:
            return await _Stepped(call, self._suspended)
        finally:
            if self.cancelled:
                task.uncancel()

    def _suspended(self) -> None:
        self._left -= 1
        if self._left == 0:
            task = asyncio.current_task()
            assert task is not None
            # Takes effect when the task gives itself up to what the call has just begun to wait for.
            self.cancelled = task.cancel()


class CancelAfter:
    """Runs one call and cancels it after `turns` turns of the event loop; a shorter call just ends.

    Between two suspensions the loop turns several times, while an answer arrives and is put together.

    Args:
        turns: When to cancel.

    Attributes:
        cancelled: Whether it came to that.
    """

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self.cancelled = False

    async def run(self, call: Coroutine[object, object, ResultT]) -> ResultT:
        """Runs the call in a task of its own.

        Raises:
            asyncio.CancelledError: The call was cancelled, and let itself be.
        """
        task = asyncio.get_running_loop().create_task(call)
        for _ in range(self._turns):
            if task.done():
                break
            await asyncio.sleep(0)
        self.cancelled = task.cancel()
        return await task


class _Stepped(Awaitable[ResultT]):
    """Awaits a coroutine and tells of each of its suspensions."""

    def __init__(self, coroutine: Coroutine[object, object, ResultT], suspended: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._suspended = suspended

    def __await__(self) -> Generator[object, object, ResultT]:
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = self._coroutine.send(None) if thrown is None else self._coroutine.throw(thrown)
            except StopIteration as end:
                result: ResultT = end.value
                return result
            self._suspended()
            thrown = None
            try:
                yield waited_for
            except BaseException as error:  # whatever is thrown in belongs to the coroutine
                thrown = error
