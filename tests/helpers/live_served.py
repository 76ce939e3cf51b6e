"""A live page with a bus of its own, what was asked of the run behind it, and a viewer that is no browser."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
from aiohttp import WSMsgType

from labrig.events import (
    Alarm,
    BlockCommitted,
    Event,
    EventBus,
    MeasuredBlock,
    Message,
    RunStarted,
    StepDone,
    SupplyRead,
)
from labrig.live.access import Access
from labrig.live.feed import LiveFeed
from labrig.live.hub import Rhythm
from labrig.live.page import Address, LivePage
from labrig.live.steering import ThisProgram
from labrig.run_control import RunControl
from labrig_drivers.crossbar import MvmResult
from labrig_drivers.source_meter import Reading

Json = dict[str, object]

VIEWER, OWNER = "v" * 20, "o" * 20
KEYS = Access(OWNER, VIEWER)
OPEN = Access(OWNER)
QUICK = Rhythm(tick_s=0.02, curves_s=0.05, array_s=0.05, sign_of_life_s=0.2)


class Served:
    """A page that is not served yet: `with Served(OPEN).page as page:`.

    Args:
        access: The keys.
        port: Where; by default at any free one.
    """

    def __init__(self, access: Access, port: int = 0) -> None:
        self.bus = EventBus()
        self.control = RunControl()
        self.stops: list[float] = []
        self.heard: list[Event] = []
        self.bus.subscribe(self.heard.append)
        steering = ThisProgram(self.bus, "labrig sweep", self.control, lambda: self.stops.append(time.monotonic()))
        address = Address("127.0.0.1", port)
        self.page = LivePage(
            self.bus,
            steering,
            access,
            title="bench",
            doing="MEASURING",
            address=address,
            rhythm=QUICK,
            feed=LiveFeed(most_samples=50, sample_every_s=0.0),
        )

    @property
    def port(self) -> int:
        """The port that it is served at."""
        return int(self.page.url.rsplit(":", 1)[1].rstrip("/"))

    @property
    def origin(self) -> dict[str, str]:
        """What a browser says when the page itself asks for something."""
        return {"Origin": self.page.url.rstrip("/")}

    def publish(self, *events: Event) -> None:
        """Has events happen."""
        for event in events:
            self.bus.publish(event)

    def fill(self) -> None:
        """Has everything happen that the page can show."""
        rng = np.random.default_rng(3)
        self.publish(RunStarted("mvm", 5000, 4, None), Message("a path/" + "long/" * 60 + "and a word " + "x" * 300))
        for array in range(2):
            target_s = rng.uniform(1e-5, 5e-5, (12, 8))
            cells_s = target_s + rng.normal(0.0, 1e-6, target_s.shape)
            for number in range(6):
                voltage_v = rng.uniform(-0.3, 0.3, (64, 12))
                current_a = voltage_v @ cells_s + rng.normal(0.0, 1e-7, (64, 8))
                result = MvmResult(
                    np.zeros(current_a.shape, np.int16), current_a, current_a > 1.0, np.arange(64.0), number
                )
                self.publish(BlockCommitted(array, 0, 64, 64 * (6 * array + number + 1)))
                self.bus.publish_block(MeasuredBlock(array, 0, target_s, voltage_v, result))
                if array == 0:
                    # The power is drawn twice a second.
                    time.sleep(0.26)
                    reading = Reading(1.2, 0.01 + 0.001 * number, in_compliance=False, time_s=float(number))
                    self.publish(SupplyRead(reading))
        for step in range(1, 31):
            self.publish(StepDone("in-loop", step, 40, 2.0 / step, step / 40, passes=2 * step, gap=0.2 / step))
            self.publish(StepDone("surrogate", step, 40, 3.0 / step))
        self.publish(Alarm("the array supply is at its limit"))


@asynccontextmanager
async def watching(client: aiohttp.ClientSession, page: LivePage) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A viewer of a page."""
    async with client.ws_connect(page.url + "live", headers={"Origin": page.url.rstrip("/")}) as viewer:
        yield viewer


async def until(viewer: aiohttp.ClientWebSocketResponse, wanted: Callable[[Json], bool]) -> Json:
    """Everything that the sections said, as soon as it is what was wanted."""
    sections: Json = {}
    async with asyncio.timeout(20):
        async for message in viewer:
            assert message.type is WSMsgType.TEXT
            sections |= json.loads(message.data)["sections"]
            if wanted(sections):
                return sections
    raise AssertionError(f"the page closed before; it said {sections}")


def word(sections: Json) -> object:
    """The state as the page shows it."""
    run = sections.get("run")
    return run["word"] if isinstance(run, dict) else None
