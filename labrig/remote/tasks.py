"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Final

_AGAIN_S: Final = 0.05


async def end_tasks(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks, as often as it takes, until all of them have ended; what they raise is left aside.

    Once is not enough: `asyncio.wait_for` of Python 3.11, which the MQTT client is full of, loses a cancellation that
    comes together with the answer.

    Args:
        tasks: The tasks.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            # Looked at, so that nobody complains that it was not.
            task.exception()
