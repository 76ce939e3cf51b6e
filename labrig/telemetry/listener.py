"""The listener that a run's events go to on their way to MQTT."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from labrig.events import Event
from labrig.telemetry.broker import Broker
from labrig.telemetry.outbox import Outbox
from labrig.telemetry.pace import Pace
from labrig.telemetry.sender import Sender

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

_MARGIN_S = 1.0
_CANCEL_S = 0.5


class Telemetry:
    """Publishes events over MQTT: `with Telemetry(broker, topic, say) as telemetry: bus.subscribe(telemetry)`.

    It works in a thread and an event loop of its own, so that it serves runs in an event loop and trainings without
    one, and neither a name server nor a broker that keeps it waiting holds up a measurement. Calling it costs
    microseconds, from any thread, and never fails. Leaving takes `pace.flush_s` and a second at most.

    Args:
        broker: Where to publish.
        topic: What all topics begin with; see `labrig.telemetry.topics.rig_topic`.
        say: Gets a line when the broker comes, goes or refuses, and at the end for what was not delivered. Called in
            the thread of telemetry.
        pace: Bounds.
    """

    def __init__(self, broker: Broker, topic: str, say: Callable[[str], None], pace: Pace | None = None) -> None:
        self._broker = broker
        self._topic = topic
        self._say_it = say
        self._pace = pace or Pace()
        self._outbox = Outbox(self._pace.most_kept, self._pace.max_rate_hz)
        # A daemon: whatever it hangs in, the program ends.
        self._thread = threading.Thread(target=self._work, name="labrig-telemetry", daemon=True)

    @property
    def waiting(self) -> int:
        """Events that are not delivered yet."""
        return len(self._outbox)

    @property
    def dropped(self) -> int:
        """Documents that were dropped so far."""
        return self._outbox.dropped

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._outbox.close()
        self._thread.join(self._pace.flush_s + _MARGIN_S)
        left, dropped = len(self._outbox), self._outbox.dropped
        if left:
            earlier = f"; {dropped} were dropped before" if dropped else ""
            self._say(f"telemetry: {left} events could not be delivered{earlier}")

    def __call__(self, event: Event) -> None:
        """Takes an event in."""
        self._outbox.put(event)

    def _say(self, text: str) -> None:
        try:
            self._say_it(text)
        except Exception:  # whoever listens must not end telemetry, nor the run with it
            _log.exception("nobody could be told: %s", text)

    def _work(self) -> None:
        try:
            # The selector loop is the one that the client works with on every system.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._send())
        except Exception as error:  # a run must not miss more than its telemetry
            self._say(f"telemetry ended, the run goes on: {type(error).__name__}: {error}")

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_DaemonThreads())
        # The client forgets the error of a connection that ended the moment it was made; nothing else runs here.
        loop.set_exception_handler(lambda _, context: _log.info("%s", context.get("exception") or context["message"]))
        sender = Sender(self._outbox, self._broker, self._topic, self._say, self._pace)
        closed = asyncio.Event()

        def look() -> None:
            sender.notice()
            if self._outbox.closed:
                closed.set()

        def wake() -> None:
            # The loop may have ended before the last event.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(look)

        self._outbox.on_news(wake)
        look()
        sending = asyncio.create_task(sender.run(), name="labrig-telemetry-sender")
        closing = asyncio.create_task(closed.wait(), name="labrig-telemetry-closing")
        try:
            await asyncio.wait([sending, closing], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([sending], timeout=self._pace.flush_s)
        finally:
            closing.cancel()
            sending.cancel()
            await asyncio.wait([sending, closing], timeout=_CANCEL_S)
        if sending.done() and not sending.cancelled():
            sending.result()


class _DaemonThreads(ThreadPoolExecutor):
    """A thread for each call, waited for by nobody: a name server that does not answer must not hold the program."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Starts a call."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name="labrig-telemetry-call", daemon=True).start()
        return future
