"""Runs a verb's coroutine so that Ctrl-C and SIGTERM end it with its clean-up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import typer

T = TypeVar("T")


def run_interruptible(work: Coroutine[object, object, T]) -> T:
    """Runs `work` in an event loop of its own.

    SIGINT and SIGTERM cancel it, as often as they come; its clean-up leaves outputs off and files closed.

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
            task.cancel()

        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            return await work
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    try:
        with asyncio.Runner() as runner:
            return runner.run(supervised())
    except asyncio.CancelledError:
        if not received:
            raise
        raise _stopped(received[0]) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """The same for a verb that blocks: the first SIGINT or SIGTERM raises KeyboardInterrupt inside.

    Later ones are ignored while context managers switch outputs off, close files and end child processes.

    Raises:
        typer.Exit: With code 130 or 143, after a signal ended the block.
    """
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        raise _stopped(received[0] if received else signal.SIGINT) from None
    finally:
        if not received:
            for number, handler in before.items():
                signal.signal(number, handler)


def _stopped(number: int) -> typer.Exit:
    # Nothing is left to be stopped, and a signal that comes while Python ends would only garble the exit code.
    for late in (signal.SIGINT, signal.SIGTERM):
        signal.signal(late, signal.SIG_IGN)
    typer.echo("labrig: stopped; outputs are off and files are closed", err=True)
    return typer.Exit(128 + number)
