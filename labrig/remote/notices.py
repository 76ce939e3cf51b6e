"""What a served rig tells everybody: the latest word of each retained topic, and events; bounded, never waited for."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from labrig.telemetry.documents import clean_text, utc_text

Field = str | int | float | bool | None


@dataclass(frozen=True)
class Notice:
    """One thing to publish.

    Attributes:
        topic: Below the topic of the rig.
        payload: What.
        retained: Whether the broker keeps it.
        qos: 0 for live values, 1 for what should arrive.
    """

    topic: str
    payload: bytes
    retained: bool = False
    qos: int = 1


class Notices:
    """Waits for a broker to take what is to be told; the oldest events give way when there are too many.

    Args:
        most_events: How many events wait at most.
    """

    def __init__(self, most_events: int = 256) -> None:
        self._retained: dict[str, bytes] = {}
        self._unsent: dict[str, None] = {}
        self._events: deque[Notice] = deque(maxlen=most_events)
        self._news = asyncio.Event()
        self.dropped = 0

    def keep(self, topic: str, payload: bytes) -> None:
        """Sets what a retained topic says."""
        self._retained[topic] = payload
        self._unsent[topic] = None
        self._news.set()

    def event(self, topic: str, fields: Mapping[str, Field], qos: int = 1) -> None:
        """Tells an event: a JSON object with the time in it."""
        now_s = time.time()
        clean = {name: clean_text(value) if isinstance(value, str) else value for name, value in fields.items()}
        payload = json.dumps({"time_unix_s": now_s, "time_utc": utc_text(now_s), **clean}).encode()
        if len(self._events) == self._events.maxlen:
            self.dropped += 1
        self._events.append(Notice(topic, payload, qos=qos))
        self._news.set()

    def renew(self) -> None:
        """Has every retained topic published again: the broker may have been started anew."""
        self._unsent = dict.fromkeys(self._retained)
        self._news.set()

    def take(self) -> Notice | None:
        """The next one; None when everything is out. Retained topics first."""
        if self._unsent:
            topic = next(iter(self._unsent))
            del self._unsent[topic]
            return Notice(topic, self._retained[topic], retained=True)
        return self._events.popleft() if self._events else None

    async def wait(self) -> None:
        """Returns when there may be something to take."""
        await self._news.wait()
        self._news.clear()
