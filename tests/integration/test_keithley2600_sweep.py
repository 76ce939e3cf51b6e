"""Sweeps inside a Keithley 2600: the same readings as point by point, and safe to interrupt over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig_drivers.errors import LinkLostError
from labrig_drivers.keithley2600 import ChannelName, Keithley2600
from labrig_drivers.links import LinkState, MemoryLink, TcpLink
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.mock.instrument_server import InstrumentServer, run_at_once
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.loads import DiodeLoad, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.source_meter import Reading

STEP_V = 0.05


async def switched_on(meter: Keithley2600, nplc: float = 0.01) -> None:
    await meter.configure(source="voltage", nplc=nplc)
    await meter.set_limit(current_a=1e-3)
    await meter.set_level(voltage_v=0.0)
    await meter.output_on()


async def swept(levels: Sequence[float], ramp_step_v: float) -> tuple[list[Reading], bool]:
    """The readings at some levels, and whether the instrument took them by itself."""
    instrument, said = SimulatedKeithley2600(DiodeLoad(1e-9, 1.5)), []

    def handle(request: bytes) -> bytes:
        said.extend(request.decode().splitlines())
        answers = [run_at_once(instrument, line) for line in request.decode().splitlines()]
        return b"".join(one for one in answers if isinstance(one, bytes))

    async with Keithley2600(MemoryLink(handle), ramp_v_per_s=1e6, ramp_step_v=ramp_step_v) as meter:
        await switched_on(meter)
        return await meter.sweep(voltage_v=levels), "loadandrunscript" in said


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1.0, 1.0), max_size=30))
def test_one_reading_for_each_level_in_order_both_ways(levels: list[float]) -> None:
    inside, used = asyncio.run(swept(levels, ramp_step_v=3.0))
    outside, used_too = asyncio.run(swept(levels, ramp_step_v=0.2))
    assert used == (len(levels) > 1)
    small = all(abs(after - before) <= 0.2 * (1.0 + 1e-9) for before, after in pairwise(levels))
    assert used_too == (len(levels) > 1 and small)
    for level, one, other in zip(levels, inside, outside, strict=True):
        assert one.in_compliance == other.in_compliance
        assert one.in_compliance or one.voltage_v == pytest.approx(level, rel=1e-6, abs=1e-300)
        assert (one.voltage_v, one.current_a) == (other.voltage_v, other.current_a)
    stamps_s = [one.instrument_time_s for one in inside]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(stamps_s))


def bench(events: list[OutputEvent], time_scale: float = 1.0) -> InstrumentServer[SimulatedKeithley2600]:
    load = ResistorLoad(1000.0)
    return InstrumentServer(SimulatedKeithley2600(load, load_b=load, log=events.append), time_scale=time_scale)


@pytest.mark.parametrize("host_loss_s", [None, 20.0])
async def test_an_interrupted_sweep_is_aborted_and_ramped_down(host_loss_s: float | None) -> None:
    events: list[OutputEvent] = []
    async with bench(events) as server:
        link = TcpLink("127.0.0.1", server.port)
        meter = Keithley2600(link, ramp_v_per_s=5.0, ramp_step_v=STEP_V, host_loss_s=host_loss_s, timeout_s=0.5)
        async with meter:
            await switched_on(meter)
            levels = [0.01 * index for index in range(500)]
            sweep = asyncio.create_task(meter.sweep(voltage_v=levels))
            while server.instrument.level_v < 0.1:  # noqa: ASYNC110 - the instrument has no event for it
                await asyncio.sleep(0.01)
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sweep
            assert link.state is LinkState.DESYNCHRONISED
            reading = await meter.measure()
            assert reading.voltage_v == server.instrument.level_v
            assert 0.1 <= reading.voltage_v < 2.5
            assert await meter.errors() == []
        assert not server.instrument.output_on
    while_on = [event.voltage_v for event in events if event.output_on]
    assert max(abs(after - before) for before, after in pairwise(while_on)) <= STEP_V + 1e-12
    assert while_on[-1] == 0.0


async def test_a_long_sweep_goes_in_parts_and_levels_arrive_bit_for_bit() -> None:
    events: list[OutputEvent] = []
    levels = [0.3 * (1 + index / 7919) ** 2 for index in range(600)]
    async with bench(events, time_scale=0.1) as server:
        link = TcpLink("127.0.0.1", server.port)
        async with Keithley2600(link, ramp_v_per_s=1e4, ramp_step_v=STEP_V) as meter:
            # So slow that one part of five seconds holds some 200 levels.
            await switched_on(meter, nplc=0.1)
            await meter.set_level(voltage_v=levels[0])
            events.clear()
            readings = await meter.sweep(voltage_v=levels)
            seen = [event.voltage_v for event in events]
    assert [reading.voltage_v for reading in readings] == pytest.approx(levels, rel=1e-6)
    # The first level of a part is set once more by the part itself, which moves nothing.
    assert list(dict.fromkeys(seen)) == levels
    assert 600 < len(seen) < 610


async def test_a_lost_connection_is_news_for_both_channels() -> None:
    events: list[OutputEvent] = []
    server = bench(events)
    await server.start()
    port = server.port
    link = SharedLink(TcpLink("127.0.0.1", port))
    names: tuple[ChannelName, ...] = ("a", "b")
    a, b = (Keithley2600(link, channel=name, ramp_v_per_s=100.0, name=name) for name in names)
    async with a, b:
        await switched_on(a)
        await server.stop()
        for meter in (a, b):
            with pytest.raises(LinkLostError):
                await meter.output_is_on()
        await server.start(port=port)
        await a.output_off()
        assert not server.instrument.output_on
        # The connection stands again, but b has not been told that the instrument may have been off.
        with pytest.raises(LinkLostError, match=r"b: .* may have been off"):
            await b.output_is_on()
        await b.output_off()
        assert not await b.output_is_on()
    await server.stop()
