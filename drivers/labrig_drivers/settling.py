"""Work that must end even when its caller is cancelled: exchanges, switching outputs off, closing files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def settle(future: asyncio.Future[T]) -> asyncio.CancelledError | None:
    """Waits until `future` is done, even when the caller is cancelled meanwhile.

    Returns:
        The cancellation that came meanwhile, for the caller to raise once it has looked at the result, or None.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def undivided(work: Awaitable[T]) -> T:
    """Runs `work` to its end; a cancellation that comes meanwhile is raised after it.

    For exchanges too: cut in two, one would leave a link that cannot switch off at once.

    Raises:
        asyncio.CancelledError: The caller was cancelled while `work` ran, and `work` ended well.
        Exception: Whatever `work` raised; it outranks a cancellation: perhaps it says that an output is on.
    """
    task = asyncio.ensure_future(work)
    cancelled = await settle(task)
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
