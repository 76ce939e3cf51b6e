"""Calls from ordinary code into the event loop that owns the instruments.

Training is ordinary blocking code; instruments live in an event loop. A `LoopPortal` runs that loop in a thread of
its own and lets the main thread call coroutines. Ctrl-C in the main thread cancels the call that it waits for and
waits until the call has cleaned up behind itself. A call can also be begun and asked for later, so that the main
thread computes while the instruments are busy.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, Self, TypeVar

from labrig.waiting import result_of

T = TypeVar("T")


class PendingCall(Generic[T]):
    """A coroutine that runs in the loop of a portal.

    Args:
        loop: The loop.
        coroutine: What runs in it after `start`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[object, object, T]) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._answer: Future[T] = Future()
        self._task: asyncio.Task[T] | None = None

    def start(self) -> None:
        """Hands it to the loop."""
        self._loop.call_soon_threadsafe(self._start)

    def result(self) -> T:
        """Its result, or its error; waits for it. A KeyboardInterrupt abandons it and is raised again."""
        try:
            return result_of(self._answer)
        except KeyboardInterrupt:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Cancels it and waits until it has cleaned up behind itself; one that has ended stays as it is.

        Raises:
            Exception: What the clean-up raises, or what the call raised that nobody asked for.
        """
        self._loop.call_soon_threadsafe(self._cancel)
        error = _wait_stubbornly(self._answer)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            raise error from None

    def _start(self) -> None:
        if not self._answer.done():
            self._task = self._loop.create_task(self._coroutine)
            self._task.add_done_callback(lambda task: _hand_over(task, self._answer))

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif not self._answer.done():  # interrupted before it could start
            self._coroutine.close()
            self._answer.set_exception(asyncio.CancelledError())


class LoopPortal:
    """An event loop in a thread of its own. Use as `with LoopPortal() as portal: portal.call(coroutine)`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a Ctrl-C in the middle of `start()` cannot keep the process alive; `__exit__` joins it.
        self._thread = threading.Thread(target=self._run, name="labrig-instruments", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def call(self, coroutine: Coroutine[object, object, T]) -> T:
        """Runs a coroutine in the loop and returns its result or raises its error.

        A KeyboardInterrupt cancels the coroutine, waits for its clean-up, and is raised again; what the clean-up
        itself raises (an output that could not be switched off) takes its place.
        """
        pending = PendingCall(self._loop, coroutine)
        try:
            pending.start()
            return pending.result()
        except KeyboardInterrupt:
            # Also where it came between the two; a call that was abandoned already stays as it is.
            pending.abandon()
            raise

    def begin(self, coroutine: Coroutine[object, object, T]) -> PendingCall[T]:
        """Has a coroutine run in the loop while the caller does something else.

        Returns:
            The call. Whoever began it asks for its result, or abandons it.
        """
        pending = PendingCall(self._loop, coroutine)
        pending.start()
        return pending

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


def _hand_over(task: asyncio.Task[T], answer: Future[T]) -> None:
    if task.cancelled():
        answer.set_exception(asyncio.CancelledError())
        return
    error = task.exception()
    if error is None:
        answer.set_result(task.result())
    else:
        answer.set_exception(error)


def _wait_stubbornly(answer: Future[T]) -> BaseException | None:
    """Waits for a cancelled call to clean up; further Ctrl-C must not cut that short, outputs may still be on."""
    while True:
        try:
            return answer.exception()
        except KeyboardInterrupt:
            continue
