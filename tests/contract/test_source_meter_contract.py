"""Every source-meter driver over every link keeps the `SourceMeter` contract; here the Keithley 2400 over all four."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import pytest

from labrig_drivers.errors import IdentityError, StateError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import Link, MemoryLink, SerialLink, TcpLink, VisaLink
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.servers import InstrumentServer
from labrig_drivers.source_meter import SourceMeter

RAMP_STEP_V = 0.05


@asynccontextmanager
async def on_pty(server: InstrumentServer[SimulatedKeithley2400]) -> AsyncIterator[str]:
    """Serves one client on a new pseudo-terminal and yields the path of its other end."""
    loop = asyncio.get_running_loop()
    master, terminal = os.openpty()
    tty.setraw(terminal)
    reader = asyncio.StreamReader()
    incoming, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(master, "rb", buffering=0)
    )
    outgoing, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(os.dup(master), "wb", buffering=0)
    )
    writer = asyncio.StreamWriter(outgoing, protocol, None, loop)
    serving = asyncio.create_task(server.serve(reader, writer))
    try:
        yield os.ttyname(terminal)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        incoming.close()
        # Pipe transports close their files one turn of the loop later.
        await asyncio.sleep(0)
        os.close(terminal)


def handler_of(instrument: SimulatedKeithley2400) -> Callable[[bytes], bytes]:
    """The instrument as a function from requests to answers; readings take no time."""

    def handle(request: bytes) -> bytes:
        answers = b""
        for line in request.decode("ascii").splitlines():
            run = instrument.run(line)
            while True:
                try:
                    next(run)
                except StopIteration as end:
                    answers += b"" if end.value is None else str(end.value).encode() + b"\n"
                    break
        return answers

    return handle


@dataclass
class Place:
    """One source-meter somewhere, and what its output did."""

    link: Link
    instrument: SimulatedKeithley2400
    events: list[OutputEvent]

    def meter(self, expected: ExpectedIdentity | None = None) -> SourceMeter:
        return Keithley2400(self.link, expected=expected, ramp_v_per_s=1000.0, ramp_step_v=RAMP_STEP_V)

    def levels_while_on(self) -> list[float]:
        return [event.voltage_v for event in self.events if event.output_on]


@pytest.fixture(params=["memory", "tcp", "serial", "visa"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    events: list[OutputEvent] = []
    instrument = SimulatedKeithley2400(ResistorLoad(1000.0), log=events.append)
    async with InstrumentServer(instrument, time_scale=0.01) as server:
        if request.param == "memory":
            yield Place(MemoryLink(handler_of(instrument)), instrument, events)
        elif request.param == "tcp":
            yield Place(TcpLink("127.0.0.1", server.port), instrument, events)
        elif request.param == "visa":
            yield Place(VisaLink(f"TCPIP::127.0.0.1::{server.port}::SOCKET"), instrument, events)
        else:
            async with on_pty(server) as device:
                yield Place(SerialLink(device), instrument, events)


async def switch_on(meter: SourceMeter, level_v: float, limit_a: float = 0.1) -> None:
    await meter.configure(source="voltage", nplc=0.1)
    await meter.set_limit(current_a=limit_a)
    await meter.set_level(voltage_v=level_v)
    await meter.output_on()


async def test_opening_and_closing_touch_nothing(place: Place) -> None:
    async with place.meter() as meter:
        assert meter.identity.model == "MODEL 2400"
        assert meter.identity.serial == "1234567"
        assert not await meter.output_is_on()
    assert place.events == []


async def test_a_wrong_identity_is_refused_with_the_output_untouched(place: Place) -> None:
    meter = place.meter(ExpectedIdentity(model="2400", serial="another"))
    with pytest.raises(IdentityError, match="another"):
        await meter.open()
    await meter.close()
    assert place.events == []


async def test_configure_limit_level_on_measure_off(place: Place) -> None:
    async with place.meter() as meter:
        await switch_on(meter, 1.2345678)
        assert await meter.output_is_on()
        assert (place.instrument.level_v, place.instrument.limit_a) == (1.2345678, 0.1)
        reading = await meter.measure()
        assert reading.voltage_v == pytest.approx(1.2345678, rel=1e-6)
        assert reading.current_a == pytest.approx(reading.voltage_v / 1000.0, rel=1e-6)
        assert not reading.in_compliance
        await meter.output_off()
        assert not await meter.output_is_on()
        assert await meter.errors() == []
        with pytest.raises(StateError):
            await meter.measure()
    assert place.events[-1].voltage_v == 0.0


async def test_compliance_is_reported(place: Place) -> None:
    async with place.meter() as meter:
        await switch_on(meter, 1.0, limit_a=1e-7)
        reading = await meter.measure()
        assert reading.voltage_v == pytest.approx(1e-4)
        assert reading.current_a == 1e-7
        assert reading.in_compliance


async def test_sweeps_read_every_level_in_order(place: Place) -> None:
    levels = [0.0, 0.1, -0.1, 0.25]
    async with place.meter() as meter:
        await switch_on(meter, 0.0)
        readings = await meter.sweep(voltage_v=levels)
    assert [reading.voltage_v for reading in readings] == pytest.approx(levels, abs=1e-9)
    assert [reading.time_s for reading in readings] == sorted(reading.time_s for reading in readings)


async def test_output_is_ramped_down_and_off_at_the_end(place: Place) -> None:
    async with place.meter() as meter:
        await switch_on(meter, 0.0)
        await meter.set_level(voltage_v=0.33)
    levels = place.levels_while_on()
    assert max(levels) == 0.33
    assert levels[-1] == 0.0
    assert max(abs(b - a) for a, b in pairwise(levels)) <= RAMP_STEP_V + 1e-12
    assert not place.events[-1].output_on


async def test_output_is_off_after_an_exception(place: Place) -> None:
    async def fail() -> None:
        async with place.meter() as meter:
            await switch_on(meter, 0.2)
            raise ArithmeticError("of the caller")

    with pytest.raises(ArithmeticError):
        await fail()
    assert not place.instrument.output_on
    assert place.levels_while_on()[-1] == 0.0


async def test_output_is_off_after_a_cancellation(place: Place) -> None:
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
    assert not place.instrument.output_on
    assert place.levels_while_on()[-1] == 0.0
