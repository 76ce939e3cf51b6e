"""The parts of a study that is made of many independent ones: on one process, on several, or as jobs of a cluster."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from multiprocessing import active_children, get_context, parent_process
from typing import Final

import torch

from labrig.studies.cache import Cache, Numbers
from labrig.studies.cluster import Cluster, computed_by_jobs

Configuration = Mapping[str, object]
Compute = Callable[[Configuration], Mapping[str, float]]
Workers = int | Cluster
"""What computes: so many processes, or a cluster."""

GRACE_S: Final = 10.0
"""How long in s parts that are under way may take to end after Ctrl-C; a training goes on from its last epoch."""


def computed(
    compute: Compute, parts: Sequence[Configuration], cache: Cache, workers: Workers, done: Callable[[int], None]
) -> list[Numbers]:
    """The numbers of all parts, in their order.

    After Ctrl-C, parts that end within `GRACE_S` are kept in the cache, and the processes of the others are ended.

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
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)
    waiting: dict[Future[Mapping[str, float]], int] = {}
    try:
        waiting = {pool.submit(compute, parts[number]): number for number in missing}
        for future in as_completed(waiting):
            number = waiting[future]
            results[number] = cache.keep(parts[number], future.result())
            done(len(results))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        wait(waiting, GRACE_S)
        for future, number in waiting.items():
            if number not in results and future.done() and not future.cancelled() and future.exception() is None:
                cache.keep(parts[number], future.result())
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [results[number] for number in range(len(parts))]


def _begin() -> None:
    """Of each process: Ctrl-C is the business of the one that waits, and every core belongs to one process.

    It ends with the one that waits, also where that was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name="labrig-parent-watch", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
