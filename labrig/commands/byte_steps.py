"""Progress of work that is counted in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MEGABYTE = 1_000_000


@contextmanager
def byte_steps() -> Iterator[Callable[[str, int, int], None]]:
    """Shows a bar, or lines where there is no terminal; told what is done, how many bytes of it, and of how many."""
    from labrig.events import EventBus, StepDone
    from labrig.progress import ProgressListener

    bus = EventBus()
    shown: list[tuple[str, int]] = []

    def show(name: str, done: int, total: int) -> None:
        now = (name, done // _MEGABYTE)
        if now not in shown[-1:] and (done == total or now[1] < total // _MEGABYTE):
            shown[:] = [now]
            bus.publish(StepDone(f"{name}, MB", now[1], total // _MEGABYTE, None))

    with ProgressListener() as progress:
        bus.subscribe(progress)
        yield show
