"""What waits for the broker: bounded, the latest of progress only, the oldest dropped and counted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

from labrig.events import BlockCommitted, CurveCommitted, Event, RunFinished, RunStarted, StepDone, SupplyRead
from labrig.telemetry.documents import Numbered, RunDocument, Stamp, document_of
from labrig.telemetry.topics import RigState
from labrig.telemetry.tracker import RunTracker

_MOST_KEYS = 64
_MOST_ATTEMPTS = 3

_Key = tuple[str, str]
_BLOCK: _Key = ("block", "")
_CURVE: _Key = ("curve", "")
_SUPPLY: _Key = ("supply", "")


@dataclass(slots=True)
class Entry:
    """One event on its way.

    Attributes:
        event: What happened; of several merged events, the latest.
        run_id: The run that it belongs to.
        time_unix_s: When it happened, in s since 1970 UTC.
        blocks: Committed blocks merged into it.
        earlier_mvms: MVMs of those before the latest, until it gets its number.
        sequence: Its number; 0 while it may still be merged.
        attempts: How often its delivery failed.
    """

    event: Event
    run_id: str | None
    time_unix_s: float
    blocks: int = 1
    earlier_mvms: int = 0
    sequence: int = 0
    attempts: int = 0

    def document(self) -> Numbered:
        """As it is published."""
        return document_of(self.event, Stamp(self.run_id, self.sequence, self.time_unix_s, self.blocks))


class Outbox:
    """Takes events from any thread in microseconds, and gives them to one reader at its own pace.

    Progress (blocks, readings of the supply, steps of a phase) is merged while it waits for its turn, at most
    `max_rate_hz` times a second for each kind; the sums stay right. Everything else waits in order. When more than
    `most_kept` wait, the oldest is dropped. Nothing merged is passed over: what a run still holds back when it ends is
    released before its end.

    Args:
        most_kept: Events that wait at most.
        max_rate_hz: Releases per second of each kind of progress.
        tracker: Follows the runs.
        clock: Monotonic time in s.
        wall_clock: Time in s since 1970 UTC.
    """

    def __init__(
        self,
        most_kept: int,
        max_rate_hz: float,
        tracker: RunTracker | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._most_kept = most_kept
        self._interval_s = 1.0 / max_rate_hz
        self._tracker = tracker or RunTracker()
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._queue: deque[Entry] = deque()
        self._merging: dict[_Key, Entry] = {}
        self._next_s: dict[_Key, float] = {}
        self._sequence = 0
        self._dropped = 0
        self._closed = False
        self._called = False
        self._wake: Callable[[], None] = _do_nothing

    def on_news(self, wake: Callable[[], None]) -> None:
        """Has `wake` called, in the thread of `put`, once when there is something new since the last `take`."""
        with self._lock:
            self._wake = wake

    @property
    def closed(self) -> bool:
        """Whether no more events are taken in."""
        return self._closed

    @property
    def dropped(self) -> int:
        """Documents dropped so far."""
        return self._dropped

    @property
    def state(self) -> RigState:
        """The word for the rig, as of the latest event."""
        with self._lock:
            return self._tracker.state

    def run(self) -> RunDocument | None:
        """The latest run, as of the latest event; None before the first."""
        with self._lock:
            tracker, dropped = copy(self._tracker), self._dropped
        # Making the document takes longer than an event should have to wait.
        return tracker.document(self._wall_clock(), dropped)

    def put(self, event: Event) -> None:
        """Takes an event in; ignored after `close()`."""
        with self._lock:
            if self._closed:
                return
            now_unix_s = self._wall_clock()
            run_id = self._tracker.note(event, now_unix_s)
            key = _progress(event)
            if key is None:
                if isinstance(event, RunStarted | RunFinished):
                    self._release_all()
                self._append(Entry(event, run_id, now_unix_s))
            else:
                before = self._merging.get(key)
                if before is not None:
                    _merge(before, event, now_unix_s)
                    return
                self._hold(key, Entry(event, run_id, now_unix_s))
            if self._called:
                return
            self._called = True
            wake = self._wake
        wake()

    def take(self) -> Entry | None:
        """The next entry, oldest first; None when nothing is due."""
        with self._lock:
            self._called = False
            self._release_due()
            return self._queue.popleft() if self._queue else None

    def give_back(self, entry: Entry) -> None:
        """Takes back an entry whose delivery failed; it is the next one again, a few times at most."""
        with self._lock:
            entry.attempts += 1
            if entry.attempts < _MOST_ATTEMPTS and len(self._queue) < self._most_kept:
                self._queue.appendleft(entry)
            else:
                self._dropped += 1

    def drop(self) -> None:
        """Counts an entry that was taken and cannot be delivered at all."""
        with self._lock:
            self._dropped += 1

    def due_in_s(self) -> float | None:
        """Time in s until `take` has something; None while there is nothing at all."""
        with self._lock:
            if self._queue:
                return 0.0
            now_s = self._clock()
            waits = [max(0.0, self._next_s.get(key, now_s) - now_s) for key in self._merging]
            return min(waits, default=None)

    def close(self) -> None:
        """Takes no more events; what is held back is released."""
        with self._lock:
            self._release_all()
            self._closed = True
            wake = self._wake
        wake()

    def __len__(self) -> int:
        with self._lock:
            return len(self._queue) + len(self._merging)

    def _hold(self, key: _Key, entry: Entry) -> None:
        if len(self._merging) >= _MOST_KEYS:
            self._append(self._merging.pop(next(iter(self._merging))))
        self._merging[key] = entry

    def _release_due(self) -> None:
        now_s = self._clock()
        for key in [key for key in self._merging if self._next_s.get(key, now_s) <= now_s]:
            self._append(self._merging.pop(key))
            self._next_s[key] = now_s + self._interval_s
        if len(self._next_s) > _MOST_KEYS:
            later = [(key, next_s) for key, next_s in self._next_s.items() if next_s > now_s]
            self._next_s = dict(later[-_MOST_KEYS:])

    def _release_all(self) -> None:
        for entry in self._merging.values():
            self._append(entry)
        self._merging.clear()

    def _append(self, entry: Entry) -> None:
        if isinstance(entry.event, BlockCommitted) and entry.blocks > 1:
            entry.event = replace(entry.event, mvms=entry.event.mvms + entry.earlier_mvms)
        self._sequence += 1
        entry.sequence = self._sequence
        if len(self._queue) >= self._most_kept:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(entry)


def _merge(entry: Entry, latest: Event, now_unix_s: float) -> None:
    """Puts an event in the place of the one before it. Runs once for each block, so that it makes no new object."""
    if isinstance(entry.event, BlockCommitted):
        entry.earlier_mvms += entry.event.mvms
        entry.blocks += 1
    entry.event, entry.time_unix_s = latest, now_unix_s


def _progress(event: Event) -> _Key | None:
    """Of which kind of progress an event is; None where every single one matters."""
    if isinstance(event, BlockCommitted):
        return _BLOCK
    if isinstance(event, CurveCommitted):
        return _CURVE
    if isinstance(event, SupplyRead):
        return _SUPPLY
    if isinstance(event, StepDone):
        return ("step", event.phase)
    return None


def _do_nothing() -> None:
    pass
