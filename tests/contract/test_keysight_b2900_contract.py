"""The Keysight B2900 keeps the `SourceMeter` contract over a link in memory, TCP, VISA and a shared connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from labrig.testing.driver_contract import check_source_meter
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.keysight_b2900 import KeysightB2900
from labrig_drivers.links import Link, MemoryLink, TcpLink, VisaLink
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.mock.instrument_server import InstrumentServer, run_at_once
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.source_meter import SourceMeter

RAMP_STEP_V = 0.05


@dataclass
class Place:
    """One channel of a source-meter somewhere, and what its output did."""

    link: Link
    instrument: SimulatedKeysightB2900
    events: list[OutputEvent]
    channel: int = 1

    def meter(self, expected: ExpectedIdentity | None = None) -> SourceMeter:
        return KeysightB2900(
            self.link, channel=self.channel, expected=expected, ramp_v_per_s=1000.0, ramp_step_v=RAMP_STEP_V
        )

    def output_on(self) -> bool:
        return self.instrument.channels[self.channel].settings.output_on

    def levels_while_on(self) -> list[float]:
        return [event.voltage_v for event in self.events if event.output_on]


@pytest.fixture(params=["memory", "tcp", "visa", "shared"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    events: list[OutputEvent] = []
    instrument = SimulatedKeysightB2900(ResistorLoad(1000.0), ResistorLoad(1000.0), log=events.append)

    def handle(message: bytes) -> bytes:
        answers = [run_at_once(instrument, line) for line in message.decode("ascii").splitlines()]
        return b"".join(one if isinstance(one, bytes) else one.encode() + b"\n" for one in answers if one is not None)

    async with InstrumentServer(instrument, time_scale=0.01) as server:
        if request.param == "memory":
            yield Place(MemoryLink(handle), instrument, events)
        elif request.param == "tcp":
            yield Place(TcpLink("127.0.0.1", server.port), instrument, events)
        elif request.param == "visa":
            yield Place(VisaLink(f"TCPIP::127.0.0.1::{server.port}::SOCKET"), instrument, events)
        else:
            yield Place(SharedLink(TcpLink("127.0.0.1", server.port)), instrument, events, channel=2)


async def switch_on(meter: SourceMeter, level_v: float) -> None:
    await meter.configure(source="voltage", nplc=0.1)
    await meter.set_limit(current_a=0.1)
    await meter.set_level(voltage_v=level_v)
    await meter.output_on()


async def test_the_contract_is_kept(place: Place) -> None:
    await check_source_meter(place.meter)
    assert not place.output_on()


async def test_opening_and_closing_touch_nothing(place: Place) -> None:
    async with place.meter(ExpectedIdentity(serial="MY51140001")) as meter:
        assert meter.identity.model == "B2902A"
        assert not await meter.output_is_on()
    assert place.events == []


async def test_sweeps_inside_read_every_level_in_order(place: Place) -> None:
    async with place.meter() as meter:
        await switch_on(meter, 0.0)
        for levels in ([0.0, 0.04, 0.08, 0.12], [0.12, 0.1, 0.11, 0.06]):
            readings = await meter.sweep(voltage_v=levels)
            assert [reading.voltage_v for reading in readings] == pytest.approx(levels, abs=1e-9)
            assert [reading.time_s for reading in readings] == sorted(reading.time_s for reading in readings)
            stamps = [reading.instrument_time_s or 0.0 for reading in readings]
            assert stamps == sorted(stamps)
        assert await meter.errors() == []
    assert max(abs(after - before) for before, after in pairwise(place.levels_while_on())) <= RAMP_STEP_V + 1e-12
    assert place.levels_while_on()[-1] == 0.0
    assert not place.output_on()


async def test_output_is_ramped_down_and_off_after_a_cancellation(place: Place) -> None:
    """Cancelled twice, in the middle of whatever it was doing, the second time while it cleans up."""
    measured = asyncio.Event()

    async def measure_for_ever() -> None:
        async with place.meter() as meter:
            await switch_on(meter, 0.2)
            while True:
                await meter.measure()
                measured.set()
                # A link in memory never suspends by itself.
                await asyncio.sleep(0)

    task = asyncio.create_task(measure_for_ever())
    await measured.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not place.output_on()
    assert place.levels_while_on()[-1] == 0.0
