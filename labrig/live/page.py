"""Serves the page from a thread of its own, for runs in an event loop and for trainings without one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from labrig.addresses import bind_reason
from labrig.events import EventBus, Message
from labrig.live.access import Access
from labrig.live.app import Site, make_app
from labrig.live.feed import LiveFeed
from labrig.live.hub import Hub, Rhythm
from labrig.live.steering import Steering
from labrig.live.view import LiveView
from labrig_drivers.errors import ConfigError

_log = logging.getLogger(__name__)

PORT = 8600
"""Where the page is by default; the next free one of ten, where another run has it."""

_PORTS_TRIED = 10
_FAREWELL_S = 0.5
_JOIN_S = 4.0


@dataclass(frozen=True)
class Address:
    """Where a page is served.

    Attributes:
        host: Name or address.
        port: 0 for any free one; None for the usual one, or one of those after it.
    """

    host: str = "127.0.0.1"
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads `HOST:PORT`, `HOST` or `:PORT`; an IPv6 address in brackets.

        Raises:
            ConfigError: It is none of these.
        """
        host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
        if not colon:
            host, port = text, ""
        if (port and not (port.isdecimal() and int(port) < 1 << 16)) or any(
            one.isspace() or one == "/" for one in text
        ):
            raise ConfigError(f"{text!r} is no address to serve a page at: expected HOST:PORT, such as 127.0.0.1:8600")
        return cls(host.strip("[]") or cls.host, int(port) if port else None)


class LivePage:
    """Shows the events of a bus: `with LivePage(bus, ...) as page: print(page.url)`.

    A run pays for an event about a microsecond, for the numbers of a block a copy of some vectors twice a second,
    and never waits. Leaving takes half a second at most while viewers get the end, and ends every connection.

    Args:
        bus: The events.
        steering: What the page may ask of the run.
        access: The keys.
        title: What runs, such as the name of the rig.
        doing: The word for it while it goes on, such as `MEASURING`.
        address: Where to serve it.
        rhythm: How often viewers get what changed.
        feed: Where events wait for the page; by default one that suits a run.
        between: The word between two runs, for a program that outlasts them; see `LiveView`.
    """

    def __init__(
        self,
        bus: EventBus,
        steering: Steering,
        access: Access,
        *,
        title: str,
        doing: str,
        address: Address | None = None,
        rhythm: Rhythm | None = None,
        feed: LiveFeed | None = None,
        between: str | None = None,
    ) -> None:
        self._bus = bus
        self._steering = steering
        self._access = access
        self._view = LiveView(title, doing, of_file=not steering.can_stop, between=between)
        self._address = address or Address()
        self._rhythm = rhythm
        self._feed = feed or LiveFeed()
        self._started: Future[tuple[str, int]] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hub: Hub | None = None
        self._closing = asyncio.Event()
        self._fault: str | None = None
        # A daemon: whatever it hangs in, the program ends.
        self._thread = threading.Thread(target=self._work, name="labrig-live", daemon=True)

    @property
    def url(self) -> str:
        """Where to look."""
        host, port = self._started.result()
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    @property
    def viewers(self) -> int:
        """Viewers now."""
        return 0 if self._hub is None else self._hub.viewers

    @property
    def dropped(self) -> int:
        """Sections that a newer one overtook on the way to a slow viewer."""
        return 0 if self._hub is None else self._hub.dropped

    @property
    def missed(self) -> int:
        """Events that the page was too slow for."""
        return self._feed.missed

    def failed(self, fault: str) -> None:
        """Has the page say at its end that all is not well."""
        self._fault = fault

    def __enter__(self) -> Self:
        """Serves the page.

        Raises:
            ConfigError: It cannot be served at that address.
        """
        self._thread.start()
        try:
            self._started.result()
        except OSError as error:
            self._thread.join(_JOIN_S)
            where = f"{self._address.host}:{PORT if self._address.port is None else self._address.port}"
            raise ConfigError(f"the live page cannot be served at {where}: {bind_reason(error)}") from error
        self._leave = [self._bus.subscribe(self._feed), self._bus.subscribe_blocks(self._feed.take_block)]
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for unsubscribe in self._leave:
            unsubscribe()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(_JOIN_S)

    def _work(self) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        except Exception as error:
            if not self._started.done():
                self._started.set_exception(error)
                return
            # A run must not miss more than its page.
            _log.warning("the live page ended", exc_info=error)
            self._bus.publish(Message(f"the live page ended, the run goes on: {type(error).__name__}: {error}"))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._hub = hub = Hub(self._view, self._feed, self._steering, self._rhythm)
        self._feed.on_urgent(self._hurry)
        site = Site(hub, self._steering, self._access, self._address.host)
        runner = web.AppRunner(make_app(site), access_log=None, shutdown_timeout=_FAREWELL_S)
        await runner.setup()
        looking = asyncio.create_task(hub.run(), name="labrig-live-looking")
        try:
            self._started.set_result(await self._bound(runner))
            closing = asyncio.create_task(self._closing.wait(), name="labrig-live-closing")
            await asyncio.wait([closing, looking], return_when=asyncio.FIRST_COMPLETED)
            closing.cancel()
            if looking.done():
                looking.result()
            hub.end(self._fault)
            hub.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await hub.left()
        finally:
            looking.cancel()
            await asyncio.wait([looking])
            await runner.cleanup()

    async def _bound(self, runner: web.AppRunner) -> tuple[str, int]:
        host, wanted = self._address.host, self._address.port
        ports = [wanted] if wanted is not None else [PORT + one for one in range(_PORTS_TRIED)]
        for port in ports:
            try:
                await web.TCPSite(runner, host, port).start()
            except OSError:
                if port == ports[-1]:
                    raise
                continue
            break
        name = runner.addresses[0]
        return host, int(name[1])

    def _hurry(self) -> None:
        loop, hub = self._loop, self._hub
        if loop is not None and hub is not None:
            with contextlib.suppress(RuntimeError):  # it ended already
                loop.call_soon_threadsafe(hub.hurry)
