"""Waits for another thread in such a way that no Ctrl-C is lost."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")

_LOOK_EVERY_S: Final = 0.2


def result_of(answer: Future[T]) -> T:
    """The result of a future, or its error.

    A thread that waits without end sleeps through a signal that came the moment before it fell asleep, or that another
    thread was given; Python hears of it only when the thread next wakes up. So this one wakes up again and again.

    Raises:
        KeyboardInterrupt: The user stopped the program while the future was waited for.
    """
    while True:
        try:
            return answer.result(_LOOK_EVERY_S)
        except TimeoutError:
            # The error may be the future's own.
            if answer.done():
                return answer.result()
