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

T = TypeVar("T")


class LoopPortal:
    """An event loop in a thread of its own. Use as `with LoopPortal() as portal: portal.call(coroutine)`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="labrig-instruments")

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

        A KeyboardInterrupt cancels the coroutine, waits for its clean-up, and is raised again.
        """
        task_done: Future[T] = Future()
        task_holder: list[asyncio.Task[T]] = []

        def start() -> None:
            task = self._loop.create_task(coroutine)
            task_holder.append(task)
            task.add_done_callback(finish)

        def finish(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                task_done.set_exception(asyncio.CancelledError())
            elif (error := task.exception()) is not None:
                task_done.set_exception(error)
            else:
                task_done.set_result(task.result())

        self._loop.call_soon_threadsafe(start)
        try:
            return task_done.result()
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in task_holder])
            _wait_stubbornly(task_done)
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


def _wait_stubbornly(done: Future[T]) -> None:
    """Waits for a cancelled call to clean up; further Ctrl-C must not cut that short, outputs may still be on."""
    while not done.done():
        try:
            done.exception()
        except KeyboardInterrupt:
            continue
