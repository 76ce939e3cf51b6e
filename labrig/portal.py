"""Calls from ordinary code into the event loop that owns the instruments.

Training is ordinary blocking code; instruments live in an event loop. A `LoopPortal` runs that loop in a thread of
its own and lets the main thread call coroutines. Ctrl-C in the main thread cancels the call that it waits for and
waits until the call has cleaned up behind itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from labrig.waiting import result_of

T = TypeVar("T")


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
        answer: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: _hand_over(task, answer))

        def cancel() -> None:
            if tasks:
                tasks[0].cancel()
            elif not answer.done():  # interrupted before it could start
                coroutine.close()
                answer.set_exception(asyncio.CancelledError())

        try:
            self._loop.call_soon_threadsafe(start)
            return result_of(answer)
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(cancel)
            error = _wait_stubbornly(answer)
            if error is not None and not isinstance(error, asyncio.CancelledError):
                raise error from None
            raise

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
