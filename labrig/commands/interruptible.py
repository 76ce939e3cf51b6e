"""Runs a verb's coroutine so that Ctrl-C and SIGTERM end it with its clean-up."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import typer

T = TypeVar("T")

# Pause until an interrupt that was swallowed is raised again.
_AGAIN_S = 0.25
OFF = "outputs are off and files are closed"
NOTHING_WRITTEN = "nothing was written"


def run_interruptible(
    work: Coroutine[object, object, T],
    first_interrupt: Callable[[], None] | None = None,
    suspend: Callable[[], None] | None = None,
    after: str = OFF,
) -> T:
    """Runs `work` in an event loop of its own.

    SIGINT and SIGTERM cancel it, as often as they come; its clean-up leaves outputs off and files closed.

    Args:
        work: What to run.
        first_interrupt: Called at the first SIGINT in place of the cancellation, to bring `work` to an end gently.
        suspend: Called at each SIGTSTP (Ctrl-Z), in place of putting the process to sleep with its outputs on.
        after: How things stand after a signal, as the user is told.

    Raises:
        typer.Exit: With code 130 or 143, after a signal ended `work`.
    """
    received: list[int] = []

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            received.append(number)
            if received == [signal.SIGINT] and first_interrupt is not None:
                first_interrupt()
            else:
                task.cancel()

        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        if suspend is not None:
            loop.add_signal_handler(signal.SIGTSTP, suspend)
        try:
            return await work
        finally:
            for number in (*numbers, signal.SIGTSTP):
                loop.remove_signal_handler(number)

    try:
        with asyncio.Runner() as runner:
            result = runner.run(supervised())
    except asyncio.CancelledError:
        if not received:
            raise
        raise _stopped(received[0], after) from None
    if received and first_interrupt is not None:
        raise _stopped(received[0], after)
    return result


@contextmanager
def interruptible(after: str | Callable[[], str] = OFF) -> Iterator[None]:
    """The same for a verb that blocks: SIGINT or SIGTERM raises KeyboardInterrupt inside.

    While context managers then switch outputs off, close files and end child processes, further signals are ignored.
    An interrupt that Python swallowed, because it hit a finaliser, is raised again a moment later.

    Args:
        after: How things stand then, as the user is told.

    Raises:
        typer.Exit: With code 130 or 143, after a signal ended the block.
    """
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if not received:
            received.append(number)
            signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        if not _unwinding(sys.exception()):
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        raise _stopped(
            received[0] if received else signal.SIGINT, after if isinstance(after, str) else after()
        ) from None
    finally:
        if received:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        else:
            for number, handler in before.items():
                signal.signal(number, handler)


def _unwinding(error: BaseException | None) -> bool:
    """Whether an interrupt is on its way out already, to judge by the exception that is being handled."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _stopped(number: int, after: str) -> typer.Exit:
    # Nothing is left to be stopped, and a signal that comes while Python ends would only garble the exit code.
    for late in (signal.SIGINT, signal.SIGTERM):
        signal.signal(late, signal.SIG_IGN)
    typer.echo(f"labrig: stopped; {after}", err=True)
    return typer.Exit(128 + number)
