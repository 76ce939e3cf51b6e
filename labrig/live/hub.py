"""Between the run and the viewers: fetches what happened, and gives each viewer what changed."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from labrig.events import Message
from labrig.json_numbers import finite_json
from labrig.live.feed import LiveFeed
from labrig.live.steering import Steering
from labrig.live.view import LiveView
from labrig.live.viewers import ViewerQueue

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rhythm:
    """How often viewers get what changed.

    Attributes:
        tick_s: Time in s between two looks at what happened.
        curves_s: Least time in s between two versions of a curve.
        array_s: Least time in s between two versions of an array's pictures.
        sign_of_life_s: Longest time in s without any word to the viewers.
    """

    tick_s: float = 0.5
    curves_s: float = 1.0
    array_s: float = 2.0
    sign_of_life_s: float = 2.0


class Hub:
    """Runs in the event loop of the page. A section is put into JSON once, however many viewers get it.

    Args:
        view: What is shown.
        feed: Where the run leaves what happened.
        steering: Says who holds the rig.
        rhythm: How often.
        clock: Time in s since 1970 UTC.
    """

    def __init__(
        self,
        view: LiveView,
        feed: LiveFeed,
        steering: Steering,
        rhythm: Rhythm | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._view = view
        self._feed = feed
        self._steering = steering
        self._rhythm = rhythm or Rhythm()
        self._clock = clock
        self._boot = uuid.uuid4().hex
        self._queues: set[ViewerQueue] = set()
        self._soon = asyncio.Event()
        self._gone = asyncio.Event()
        self._said: dict[str, int] = {}
        self._said_s: dict[str, float] = {}
        self._rig = b""
        self._dropped = 0
        self._undrawn: set[str] = set()

    @property
    def viewers(self) -> int:
        """Viewers now."""
        return len(self._queues)

    @property
    def dropped(self) -> int:
        """Sections that a newer one overtook on the way to a slow viewer, over all viewers so far."""
        return self._dropped + sum(queue.dropped for queue in self._queues)

    def hurry(self) -> None:
        """Has the next look come at once."""
        self._soon.set()

    async def run(self) -> None:
        """Looks at what happened again and again, until it is cancelled."""
        while True:
            self.look()
            try:
                async with asyncio.timeout(self._rhythm.tick_s):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()

    def look(self, *, everything: bool = False) -> None:
        """Fetches what happened, and puts what changed and is due into the viewers' queues.

        Args:
            everything: Also what is not due yet, as at the end.
        """
        self._fetch()
        if not self._queues:
            return
        sections = self._due(everything=everything)
        if sections:
            for queue in self._queues:
                queue.put(sections)

    @contextmanager
    def viewing(self) -> Iterator[ViewerQueue]:
        """The queue of one viewer, with all that there is to see now in it."""
        self._fetch()
        queue = ViewerQueue()
        queue.put({"rig": self._rig_section(), "run": self._encoded("run"), **self._all_encoded(self._view.versions)})
        self._queues.add(queue)
        self._feed.watched = True
        try:
            yield queue
        finally:
            self._queues.discard(queue)
            self._feed.watched = bool(self._queues)
            self._dropped += queue.dropped
            self._gone.set()

    def close(self) -> None:
        """Gives the viewers the last of everything; then their queues end."""
        self.look(everything=True)
        for queue in self._queues:
            queue.close()

    async def left(self) -> None:
        """Waits until the last viewer is gone."""
        while self._queues:
            self._gone.clear()
            await self._gone.wait()

    def end(self, fault: str | None) -> None:
        """The program is about to end, with a fault or without."""
        self._fetch()
        self._view.end(self._clock(), fault)

    def _fetch(self) -> None:
        events, samples = self._feed.take_all()
        for event, time_unix_s in events:
            self._view.note(event, time_unix_s)
        for sample in samples:
            try:
                self._view.note_sample(sample)
            except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
                self._cannot_draw(f"array {sample.array}", error)

    def _due(self, *, everything: bool) -> dict[str, bytes]:
        now_s = self._clock()
        due: dict[str, bytes] = {}
        rig = self._rig_section()
        if rig != self._rig:
            self._rig = due["rig"] = rig
        versions = self._view.versions
        waiting = [name for name, version in versions.items() if self._said.get(name) != version]
        if now_s - self._said_s.get("run", 0.0) >= self._rhythm.sign_of_life_s:
            waiting = [*(name for name in waiting if name != "run"), "run"]
        # Pictures of one array at a time, the one that waited longest first: no look takes long.
        arrays = sorted(
            (name for name in waiting if name.startswith("array/")), key=lambda name: self._said_s.get(name, 0.0)
        )
        chosen = [name for name in waiting if not name.startswith("array/")] + (arrays if everything else arrays[:1])
        for name in chosen:
            if everything or now_s - self._said_s.get(name, 0.0) >= self._least_s(name):
                self._said[name], self._said_s[name] = versions.get(name, 0), now_s
                due |= self._all_encoded([name])
        return due

    def _least_s(self, name: str) -> float:
        if name.startswith("array/"):
            return self._rhythm.array_s
        return self._rhythm.curves_s if name in ("steps", "supply") else 0.0

    def _encoded(self, name: str) -> bytes:
        content = self._view.section(name, self._clock(), self._feed.missed)
        # Numbers that are not finite are no JSON; the packed ones may be.
        return json.dumps(finite_json(content), separators=(",", ":"), allow_nan=False).encode()

    def _all_encoded(self, names: Iterable[str]) -> dict[str, bytes]:
        """Sections as JSON, without those that cannot be drawn: whoever watches needs all the others, and STOP."""
        found: dict[str, bytes] = {}
        for name in names:
            try:
                found[name] = self._encoded(name)
            except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
                self._cannot_draw(name, error)
        return found

    def _cannot_draw(self, what: str, error: Exception) -> None:
        _log.warning("the live page cannot draw %s", what, exc_info=error)
        if what not in self._undrawn:
            self._undrawn.add(what)
            self._view.note(Message(f"the live page cannot draw {what}: {error}"), self._clock())

    def _rig_section(self) -> bytes:
        lease = self._steering.lease()
        content = {
            "boot": self._boot,
            "can_stop": self._steering.can_stop,
            "stop_ends": self._steering.stop_ends,
            "can_pause": self._steering.can_pause,
            "lease": None if lease is None else asdict(lease),
        }
        return json.dumps(content, separators=(",", ":")).encode()
