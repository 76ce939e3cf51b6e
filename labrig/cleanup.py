"""Work that must end even when its caller is cancelled: switching outputs off, closing files."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


async def finish(work: Coroutine[object, object, T]) -> T:
    """Runs `work` to its end; cancellations that arrive meanwhile are raised afterwards.

    Raises:
        asyncio.CancelledError: The caller was cancelled while `work` ran, and `work` ended well.
        Exception: Whatever `work` raised; it outranks a cancellation: perhaps it says that an output is on.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
