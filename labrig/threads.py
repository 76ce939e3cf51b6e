"""How many threads the small matrices of labrig's trainings and fits are worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute on one thread inside the block.

    Layers and tiles of some ten thousand elements gain little from a second thread, and lose a lot where another
    process wants the core: every parallel region then waits for the scheduler. It also makes results independent of
    the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
