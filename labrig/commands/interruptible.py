"""Runs a verb's coroutine so that Ctrl-C and SIGTERM end it with its clean-up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
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
        typer.echo("labrig: stopped; outputs are off and files are closed", err=True)
        raise typer.Exit(128 + received[0]) from None
