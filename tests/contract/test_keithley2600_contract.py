"""The Keithley 2600 driver keeps the `SourceMeter` contract over every link, with and without its guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from labrig.testing.driver_contract import check_source_meter
from labrig_drivers.keithley2600 import ChannelName, Keithley2600
from labrig_drivers.links import Link, MemoryLink, TcpLink, VisaLink
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.mock.instrument_server import InstrumentServer, run_at_once
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent

RAMP_STEP_V = 0.05

Server = InstrumentServer[SimulatedKeithley2600]


class Place:
    """A simulated instrument that is served, and what its outputs did."""

    def __init__(self) -> None:
        self.events: list[OutputEvent] = []
        load = ResistorLoad(1000.0)
        self.instrument = SimulatedKeithley2600(load, load_b=load, log=self.events.append)
        self.server = InstrumentServer(self.instrument, time_scale=0.01)

    def link(self, kind: str) -> Link:
        if kind == "memory":
            return MemoryLink(self.handle)
        if kind == "visa":
            return VisaLink(f"TCPIP::127.0.0.1::{self.server.port}::SOCKET")
        return TcpLink("127.0.0.1", self.server.port)

    def handle(self, request: bytes) -> bytes:
        answers = [run_at_once(self.instrument, line) for line in request.decode("ascii").splitlines()]
        return b"".join(answer for answer in answers if isinstance(answer, bytes))

    def check_steps(self, channel: str) -> None:
        """No level ever moved faster than the ramp while on, and the output is off in the end."""
        own = [event for event in self.events if event.instrument.endswith(channel)]
        levels = [event.voltage_v for event in own if event.output_on]
        assert max(levels) > 0.4
        steps = [abs(b.voltage_v - a.voltage_v) for a, b in pairwise(own) if a.output_on and b.output_on]
        assert max(steps) <= RAMP_STEP_V + 1e-12
        assert not own[-1].output_on


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    async with place.server:
        yield place


def maker(link: Link, channel: ChannelName = "a", host_loss_s: float | None = None) -> Callable[[], Keithley2600]:
    return lambda: Keithley2600(
        link, channel=channel, ramp_v_per_s=100.0, ramp_step_v=RAMP_STEP_V, host_loss_s=host_loss_s, timeout_s=20.0
    )


@pytest.mark.parametrize("kind", ["memory", "tcp", "visa"])
async def test_it_keeps_the_contract(place: Place, kind: str) -> None:
    await check_source_meter(maker(place.link(kind)))
    place.check_steps("a")


@pytest.mark.parametrize("kind", ["tcp", "visa"])
async def test_it_keeps_the_contract_under_guard(place: Place, kind: str) -> None:
    # A hundred times the time that the guard then really waits.
    await check_source_meter(maker(place.link(kind), host_loss_s=1000.0))
    place.check_steps("a")


async def test_both_channels_of_one_link_keep_it_side_by_side(place: Place) -> None:
    link = SharedLink(place.link("tcp"))
    async with maker(link, "a")():
        await check_source_meter(maker(link, "b"))
    place.check_steps("b")
    assert [event for event in place.events if event.instrument.endswith("a")] == []
