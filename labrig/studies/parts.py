"""The parts of a study that is made of many independent ones: on one process, on several, or as jobs of a cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

from labrig.studies.cache import Cache, Numbers
from labrig.studies.cluster import Cluster, computed_by_jobs

Configuration = Mapping[str, object]
Compute = Callable[[Configuration], Mapping[str, float]]
Workers = int | Cluster
"""What computes: so many processes, or a cluster."""


def computed(
    compute: Compute, parts: Sequence[Configuration], cache: Cache, workers: Workers, done: Callable[[int], None]
) -> list[Numbers]:
    """The numbers of all parts, in their order.

    Ctrl-C lets the parts that are being computed end, and keeps those that ended in the cache.

    Args:
        compute: Computes a part; a function of a module, so that another process can find it.
        parts: Their configurations.
        cache: Keeps what is done.
        workers: How many processes compute at a time, with one it is this process; or a cluster.
        done: Called with the number of finished parts.
    """
    if isinstance(workers, Cluster):
        return computed_by_jobs(compute, parts, cache, workers, done)
    if workers == 1:
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
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)
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
