"""Sweeps inside a Keithley 2400, over a real socket: the same readings as point by point, and safe to interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig_drivers.errors import LinkTimeoutError, SafetyError, StateError
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import LinkState, MemoryLink, TcpLink
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import DiodeLoad, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.servers import InstrumentServer
from labrig_drivers.source_meter import Reading

STEP_V = 0.05


async def switched_on(meter: Keithley2400, level_v: float = 0.0) -> None:
    await meter.configure(source="voltage", nplc=0.01)
    await meter.set_limit(current_a=1e-3)
    await meter.set_level(voltage_v=level_v)
    await meter.output_on()


def in_memory(instrument: SimulatedKeithley2400, ramp_step_v: float = STEP_V) -> tuple[Keithley2400, list[str]]:
    said: list[str] = []

    def handle(request: bytes) -> bytes:
        said.extend(request.decode().splitlines())
        answers = [run_at_once(instrument, line) for line in request.decode().splitlines()]
        return b"".join(one.encode() + b"\n" for one in answers if isinstance(one, str))

    return Keithley2400(MemoryLink(handle), ramp_v_per_s=1e6, ramp_step_v=ramp_step_v), said


async def swept(levels: Sequence[float], ramp_step_v: float) -> tuple[list[Reading], list[str]]:
    meter, said = in_memory(SimulatedKeithley2400(DiodeLoad(1e-9, 1.5)), ramp_step_v)
    async with meter:
        await switched_on(meter)
        return await meter.sweep(voltage_v=levels), said


async def one_by_one(levels: Sequence[float]) -> list[Reading]:
    meter, said = in_memory(SimulatedKeithley2400(DiodeLoad(1e-9, 1.5)), ramp_step_v=1.0)
    readings = []
    async with meter:
        await switched_on(meter)
        for level in levels:
            await meter.set_level(voltage_v=level)
            readings.append(await meter.measure())
    assert ":INIT" not in said
    return readings


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=40))
def test_inside_and_point_by_point_agree(levels: list[float]) -> None:
    inside, said = asyncio.run(swept(levels, ramp_step_v=1.0))
    assert ":INIT" in said
    assert [(one.voltage_v, one.current_a, one.in_compliance) for one in inside] == [
        (one.voltage_v, one.current_a, one.in_compliance) for one in asyncio.run(one_by_one(levels))
    ]
    assert all(before.time_s <= after.time_s for before, after in pairwise(inside))


async def test_steps_beyond_the_ramp_are_not_given_to_the_instrument() -> None:
    readings, said = await swept([0.0, 0.2, 0.1], STEP_V)
    assert ":INIT" not in said
    assert [one.voltage_v for one in readings] == pytest.approx([0.0, 0.2, 0.1])


async def test_a_long_list_goes_in_pieces_of_a_hundred() -> None:
    levels = [index / 1000.0 for index in range(250)]
    readings, said = await swept(levels, STEP_V)
    assert [one.voltage_v for one in readings] == pytest.approx(levels)
    assert sum(line.startswith(":SOUR:LIST:VOLT ") for line in said) == 1
    assert sum(line.startswith(":SOUR:LIST:VOLT:APP ") for line in said) == 2


async def test_currents_are_swept_too() -> None:
    meter, said = in_memory(SimulatedKeithley2400(ResistorLoad(1e6)))
    async with meter:
        await meter.configure(source="current", nplc=0.01)
        await meter.set_limit(voltage_v=2.0)
        await meter.set_level(current_a=0.0)
        await meter.output_on()
        levels = [index * 1e-7 for index in range(21)]
        readings = await meter.sweep(current_a=levels)
        with pytest.raises(StateError, match="current_a"):
            await meter.sweep(voltage_v=[0.1])
    assert ":INIT" in said
    assert [one.voltage_v for one in readings] == pytest.approx([level * 1e6 for level in levels])
    assert [one.in_compliance for one in readings] == [False] * 21


async def test_what_is_refused_is_refused_before_anything_is_sent() -> None:
    meter, said = in_memory(SimulatedKeithley2400(ResistorLoad(1e3)))
    async with meter:
        await switched_on(meter)
        said.clear()
        with pytest.raises(SafetyError) as refused:
            await meter.sweep(voltage_v=[0.0, 300.0, float("nan")])
        assert refused.value.reasons == ("keithley2400: 2 levels of 3 are not in -210 to 210 V (the first is 300 V)",)
        assert said == []
        assert await meter.sweep(voltage_v=[]) == []


async def test_the_instruments_own_stamp_is_kept_apart() -> None:
    readings, _ = await swept([0.0, 0.01, 0.02], STEP_V)
    stamps = [one.instrument_time_s for one in readings]
    assert all(stamp is not None and 0.0 <= stamp < 60.0 for stamp in stamps)
    assert readings[0].time_s > 1e9


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.06])
async def test_an_interrupted_sweep_is_aborted_and_never_jumps(after_s: float) -> None:
    events: list[OutputEvent] = []
    async with InstrumentServer(SimulatedKeithley2400(ResistorLoad(1e3), log=events.append)) as server:
        async with Keithley2400(TcpLink("127.0.0.1", server.port), ramp_v_per_s=5.0, ramp_step_v=STEP_V) as meter:
            await switched_on(meter)
            sweep = asyncio.create_task(meter.sweep(voltage_v=[index * STEP_V for index in range(11)]))
            await asyncio.sleep(after_s)
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sweep
            # The next call finds the instrument free again, at a level of the sweep, and its own answer.
            reading = await meter.measure()
            assert reading.current_a == pytest.approx(reading.voltage_v / 1e3)
        assert not server.instrument.output_on
    levels = [0.0, *(event.voltage_v for event in events if event.output_on)]
    assert max(abs(after - before) for before, after in pairwise(levels)) <= STEP_V + 1e-12
    assert levels[-1] == 0.0


async def test_a_sweep_of_a_program_that_died_is_ended_and_ramped_down() -> None:
    """The buffer belongs to the simulator's instrument, not to the link: a fresh driver finds it in the middle."""
    events: list[OutputEvent] = []
    async with InstrumentServer(SimulatedKeithley2400(ResistorLoad(1e3), log=events.append)) as server:
        dead = Keithley2400(TcpLink("127.0.0.1", server.port), ramp_v_per_s=2.0, ramp_step_v=STEP_V)
        await dead.open()
        await switched_on(dead)
        sweep = asyncio.create_task(dead.sweep(voltage_v=[index * STEP_V for index in range(9)]))
        await asyncio.sleep(0.12)
        # The program dies: nothing is sent any more. What it had asked for goes on.
        sweep.cancel()
        await asyncio.gather(sweep, return_exceptions=True)
        await dead._channel.close()
        async with Keithley2400(TcpLink("127.0.0.1", server.port), ramp_v_per_s=50.0, ramp_step_v=STEP_V) as fresh:
            await fresh.output_off()
        assert not server.instrument.output_on
    levels = [event.voltage_v for event in events if event.output_on]
    assert max(levels) > 2 * STEP_V
    assert max(abs(after - before) for before, after in pairwise(levels)) <= STEP_V + 1e-7
    assert levels[-1] == 0.0


async def test_a_sweep_that_takes_too_long_is_aborted() -> None:
    async with InstrumentServer(SimulatedKeithley2400(ResistorLoad(1e3)), time_scale=30.0) as server:
        async with Keithley2400(TcpLink("127.0.0.1", server.port), ramp_v_per_s=100.0, timeout_s=0.3) as meter:
            await switched_on(meter)
            with pytest.raises(LinkTimeoutError):
                await meter.sweep(voltage_v=[0.0, 0.01] * 40)
            assert server.instrument.output_on
        assert not server.instrument.output_on
        assert meter is not None


async def test_a_sweep_keeps_the_ramp_rate_by_waiting_at_each_level() -> None:
    events: list[OutputEvent] = []
    async with InstrumentServer(SimulatedKeithley2400(ResistorLoad(1e3), log=events.append)) as server:
        link = TcpLink("127.0.0.1", server.port)
        async with Keithley2400(link, ramp_v_per_s=2.0, ramp_step_v=STEP_V) as meter:
            await switched_on(meter)
            readings = await meter.sweep(voltage_v=[0.0, 0.05, 0.1, 0.12])
            assert [one.voltage_v for one in readings] == pytest.approx([0.0, 0.05, 0.1, 0.12])
            assert link.state is LinkState.READY
    moves = [event for event in events if event.output_on]
    for before, after in pairwise(moves):
        way_v = abs(after.voltage_v - before.voltage_v)
        # The way of one loop turn more, for a server and a driver on one busy core.
        assert way_v <= 2.0 * (after.time_s - before.time_s) + 0.01
