"""The parts of a study that is made of many independent ones, on one process or several."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

from labrig.studies.cache import Cache, Numbers

Configuration = Mapping[str, object]
Compute = Callable[[Configuration], Mapping[str, float]]


def computed(
    compute: Compute, parts: Sequence[Configuration], cache: Cache, processes: int, done: Callable[[int], None]
) -> list[Numbers]:
    """The numbers of all parts, in their order.

    Ctrl-C lets the parts that are being computed end, and keeps those that ended in the cache.

    Args:
        compute: Computes a part; a function of a module, so that another process can find it.
        parts: Their configurations.
        cache: Keeps what is done.
        processes: How many compute at a time; with one it is this process.
        done: Called with the number of finished parts.
    """
    if processes == 1:
        found = []
        for number, part in enumerate(parts):
            found.append(cache.get(part, lambda part=part: compute(part)))  # type: ignore[misc]
            done(number + 1)
        return found
    results: dict[int, Numbers] = {}
    missing = []
    for number, part in enumerate(parts):
        kept = cache.kept(part)
        if kept is None:
            missing.append(number)
        else:
            results[number] = kept
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin)
    waiting: dict[Future[Mapping[str, float]], int] = {}
    try:
        waiting = {pool.submit(compute, parts[number]): number for number in missing}
        for future in as_completed(waiting):
            number = waiting[future]
            results[number] = cache.keep(parts[number], future.result())
            done(len(results))
    finally:
        pool.shutdown(cancel_futures=True)
        for future, number in waiting.items():
            if number not in results and not future.cancelled() and future.exception() is None:
                cache.keep(parts[number], future.result())
    return [results[number] for number in range(len(parts))]


def _begin() -> None:
    """Of each process: Ctrl-C is the business of the one that waits, and every core belongs to one process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
