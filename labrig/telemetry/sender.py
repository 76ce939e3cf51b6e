"""Brings what waits in an outbox to a broker, as often as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from labrig.telemetry.broker import Broker, BrokerAwayError, BrokerRefusedError, connected, gone
from labrig.telemetry.documents import Document, DroppedDocument, RunDocument, utc_text
from labrig.telemetry.outbox import Entry, Outbox
from labrig.telemetry.pace import Pace
from labrig.telemetry.topics import STATE, RigState

if TYPE_CHECKING:
    from aiomqtt import Client

_GOES_ON = "The run goes on, and so do the attempts to connect"

_Condition = Literal["new", "connected", "away", "refused"]


class Sender:
    """Connects, publishes, and connects again; says each change of condition once.

    Args:
        outbox: What to publish.
        broker: Where.
        topic: What all topics begin with, `labrig/1/SITE/RIG`.
        say: Gets a line for whoever watches the run.
        pace: Bounds.
    """

    def __init__(self, outbox: Outbox, broker: Broker, topic: str, say: Callable[[str], None], pace: Pace) -> None:
        self._outbox = outbox
        self._broker = broker
        self._topic = topic
        self._say = say
        self._pace = pace
        self._client_id = f"labrig{uuid.uuid4().hex[:12]}"
        self._news = asyncio.Event()
        self._condition: _Condition = "new"
        self._state: RigState | None = None
        self._run: RunDocument | None = None
        self._dropped = 0
        self._next_summary_s = 0.0

    def notice(self) -> None:
        """Says that the outbox has something new, or was closed; to be called in the event loop."""
        self._news.set()

    async def run(self) -> None:
        """Returns when the outbox is closed, and everything is delivered or nobody is there to take it."""
        retry_s = self._pace.first_retry_s
        while True:
            since_s = time.monotonic()
            try:
                await self._connection()
            except BrokerAwayError as error:
                self._tell("away", str(error))
            except BrokerRefusedError as error:
                self._tell("refused", f"{error}; check account and certificates in the section [telemetry]")
            except Exception as error:  # whatever a library does, a run does not lose its telemetry for good
                self._tell("away", f"{type(error).__name__}: {error}")
            if self._outbox.closed:
                return
            # A connection that held was a good one; one that breaks at once does not make the next attempt hasty.
            if time.monotonic() - since_s > self._pace.longest_retry_s:
                retry_s = self._pace.first_retry_s
            await self._pause(retry_s)
            retry_s = min(2.0 * retry_s, self._pace.longest_retry_s)

    async def _connection(self) -> None:
        from aiomqtt import Will

        will = Will(f"{self._topic}/{STATE}", "lost", qos=1, retain=True)
        pace = self._pace
        async with connected(self._broker, self._client_id, will, pace.answer_s, pace.keep_alive_s) as client:
            self._tell("connected", f"events are published under {self._topic}/")
            self._state, self._run = None, None
            # A message that waits for its acknowledgement does not notice that the connection is gone.
            delivery = asyncio.create_task(self._deliver(client), name="labrig-telemetry-delivery")
            watch = asyncio.create_task(gone(client), name="labrig-telemetry-watch")
            try:
                await asyncio.wait([delivery, watch], return_when=asyncio.FIRST_COMPLETED)
            finally:
                delivery.cancel()
                watch.cancel()
                await asyncio.wait([delivery, watch])
            if delivery.cancelled():
                raise BrokerAwayError("the broker closed the connection, or gives no sign of life")
            delivery.result()

    async def _deliver(self, client: Client) -> None:
        """Returns when the outbox is closed and empty."""
        while True:
            self._news.clear()
            await self._publish_state(client, self._outbox.state)
            entry = self._outbox.take()
            if entry is not None:
                await self._publish_entry(client, entry)
            closing = self._outbox.closed and entry is None
            in_s = await self._publish_summary(client, now=closing)
            if closing:
                await self._publish_state(client, "disconnected")
                return
            if entry is None:
                due_s = [one for one in (in_s, self._outbox.due_in_s()) if one is not None]
                await self._wait(min(due_s, default=None))

    async def _publish_entry(self, client: Client, entry: Entry) -> None:
        try:
            await self._publish(client, entry.document())
        except ValueError as error:
            self._outbox.drop()
            self._say(f"telemetry: a document could not be published: {error}")
        except BaseException:
            self._outbox.give_back(entry)
            raise

    async def _publish_state(self, client: Client, state: RigState) -> None:
        if state != self._state:
            await client.publish(f"{self._topic}/{STATE}", state, qos=1, retain=True)
            self._state = state

    async def _publish_summary(self, client: Client, *, now: bool) -> float | None:
        """Publishes how the run stands, and what was dropped, at their rate; returns the time in s until it is due."""
        run, dropped = self._outbox.run(), self._outbox.dropped
        before = self._run
        if dropped == self._dropped and _same(run, before):
            return None
        clock_s = time.monotonic()
        turned = run is not None and (before is None or (run.run_id, run.status) != (before.run_id, before.status))
        if clock_s < self._next_summary_s and not now and not turned:
            return self._next_summary_s - clock_s
        self._next_summary_s = clock_s + 1.0 / self._pace.max_rate_hz
        if dropped != self._dropped:
            unix_s = time.time()
            run_id = None if run is None else run.run_id
            document = DroppedDocument(run_id=run_id, time_unix_s=unix_s, time_utc=utc_text(unix_s), dropped=dropped)
            await self._publish(client, document)
            self._dropped = dropped
        if run is not None:
            await self._publish(client, run)
            self._run = run
        return None

    async def _publish(self, client: Client, document: Document) -> None:
        topic = f"{self._topic}/{document.topic}"
        await client.publish(topic, document.encoded(), qos=document.qos, retain=document.retained)

    async def _wait(self, seconds: float | None) -> None:
        """Until there is news, or time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _pause(self, seconds: float) -> None:
        """Waits between two attempts; not while the outbox is closed."""
        until_s = time.monotonic() + seconds
        while not self._outbox.closed and (left_s := until_s - time.monotonic()) > 0.0:
            self._news.clear()
            await self._wait(left_s)

    def _tell(self, condition: _Condition, text: str) -> None:
        if condition == self._condition:
            return
        before, self._condition = self._condition, condition
        where = f"telemetry: {self._broker.address}"
        match condition:
            case "connected":
                dropped = self._outbox.dropped - self._dropped
                again = "" if before == "new" else " again"
                lost = f"; {dropped} were dropped meanwhile" if dropped else ""
                self._say(f"{where} is connected{again}, {text}{lost}")
            case "refused":
                self._say(f"{where} refuses the connection: {text}. {_GOES_ON}")
            case _:
                what = "is lost" if before == "connected" else "cannot be reached"
                self._say(f"{where} {what}: {text}. {_GOES_ON}")


def _same(one: RunDocument | None, other: RunDocument | None) -> bool:
    """Whether two say the same of a run, but for the time."""
    if one is None or other is None:
        return one is other
    clock = {"time_unix_s", "time_utc"}
    return one.model_dump(exclude=clock) == other.model_dump(exclude=clock)
