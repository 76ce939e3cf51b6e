"""Takes events and measured numbers from a run in microseconds; the page fetches them when it likes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labrig.events import Alarm, BlockCommitted, Event, MeasuredBlock, RunFinished, RunPaused, RunResumed, SupplyRead
from labrig.live.array_view import Sample

_SAMPLED_VECTORS = 64
_UNWATCHED = 4.0
_MOST_NUMBERS = 1 << 20
"""Numbers of one sample at most: a board with wide arrays has fewer vectors sampled."""


@dataclass
class _Merged:
    """Blocks of one array since the page last looked; a run may commit thousands in that time."""

    last: BlockCommitted
    time_unix_s: float
    earlier_mvms: int = 0


class LiveFeed:
    """Bounded; when the page is too slow the oldest goes, and is counted. Safe to call from any thread.

    Blocks are merged by array, of the supply the latest reading is kept; everything else waits in order.

    Args:
        most_events: Events that wait at most.
        most_samples: Samples of measured blocks that wait at most.
        sample_every_s: Least time in s between two samples of one array, and half of that between any two; numbers in
            between are passed over. While nobody watches, four times as long.
        merge_supply: Whether only the latest reading of the supply is kept.
        clock: Time in s since 1970 UTC.
    """

    def __init__(
        self,
        most_events: int = 2000,
        most_samples: int = 8,
        sample_every_s: float = 1.0,
        *,
        merge_supply: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._events: deque[tuple[Event, float]] = deque()
        self._blocks: dict[int, _Merged] = {}
        self._supply: tuple[SupplyRead, float] | None = None
        self._samples: deque[Sample] = deque()
        self._next_sample_s: dict[int, float] = {}
        self._next_of_all_s = 0.0
        self.watched = False
        self._most_events, self._most_samples, self._sample_every_s = most_events, most_samples, sample_every_s
        self._merge_supply = merge_supply
        self._clock = clock
        self._lock = threading.Lock()
        self._missed = 0
        self._wake: Callable[[], None] | None = None

    @property
    def missed(self) -> int:
        """Events that went because the page did not fetch them in time."""
        return self._missed

    def on_urgent(self, wake: Callable[[], None]) -> None:
        """Has `wake` called, in the thread of the event, when something happened that should be seen at once."""
        self._wake = wake

    def __call__(self, event: Event) -> None:
        """Takes an event in that happens now."""
        self.put(event, self._clock())

    def put(self, event: Event, time_unix_s: float) -> None:
        """Takes an event in that happened at a time in s since 1970 UTC."""
        with self._lock:
            if isinstance(event, BlockCommitted):
                merged = self._blocks.get(event.array)
                if merged is None:
                    self._blocks[event.array] = _Merged(event, time_unix_s)
                else:
                    merged.earlier_mvms += merged.last.mvms
                    merged.last, merged.time_unix_s = event, time_unix_s
                return
            if self._merge_supply and isinstance(event, SupplyRead):
                self._supply = event, time_unix_s
                return
            if len(self._events) >= self._most_events:
                self._events.popleft()
                self._missed += 1
            if isinstance(event, RunFinished):
                # So that the last blocks are counted before the end.
                self._release_blocks()
            self._events.append((event, time_unix_s))
            wake = self._wake if isinstance(event, Alarm | RunPaused | RunResumed | RunFinished) else None
        if wake is not None:
            wake()

    def take_block(self, block: MeasuredBlock) -> None:
        """Copies some vectors of a block, now and then."""
        now_s = self._clock()
        if now_s < self._next_of_all_s or now_s < self._next_sample_s.get(block.array, 0.0):
            return
        every_s = self._sample_every_s * (1.0 if self.watched else _UNWATCHED)
        self._next_sample_s[block.array], self._next_of_all_s = now_s + every_s, now_s + 0.5 * every_s
        batch, width = block.voltage_v.shape[0], block.voltage_v.shape[1] + block.result.current_a.shape[1]
        most = max(1, min(_SAMPLED_VECTORS, _MOST_NUMBERS // width))
        kept = np.linspace(0, batch - 1, min(batch, most)).astype(np.int64)
        sample = Sample(
            block.array,
            block.write,
            block.target_s,
            block.voltage_v[kept],
            block.result.current_a[kept],
            block.result.saturated[kept],
        )
        with self._lock:
            if len(self._samples) >= self._most_samples:
                self._samples.popleft()
            self._samples.append(sample)

    def take_all(self) -> tuple[list[tuple[Event, float]], list[Sample]]:
        """Everything that waits, oldest first."""
        with self._lock:
            self._release_blocks()
            if self._supply is not None:
                self._events.append(self._supply)
                self._supply = None
            events, samples = list(self._events), list(self._samples)
            self._events.clear()
            self._samples.clear()
        return events, samples

    def _release_blocks(self) -> None:
        # In the order of their totals, so that the run's total only grows.
        for merged in sorted(self._blocks.values(), key=lambda one: one.last.total_mvms):
            last = merged.last
            mvms = last.mvms + merged.earlier_mvms
            self._events.append((BlockCommitted(last.array, last.write, mvms, last.total_mvms), merged.time_unix_s))
        self._blocks.clear()
