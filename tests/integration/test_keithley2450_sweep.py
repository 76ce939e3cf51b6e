"""Sweeps inside a Keithley 2450: the same readings as point by point, and safe to interrupt on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labrig_drivers.errors import LinkTimeoutError
from labrig_drivers.keithley2450 import Keithley2450
from labrig_drivers.links import MemoryLink, TcpLink
from labrig_drivers.mock.instrument_server import InstrumentServer, run_at_once
from labrig_drivers.mock.keithley2450 import SimulatedKeithley2450
from labrig_drivers.mock.loads import DiodeLoad, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.source_meter import Reading

STEP_V = 0.05


async def switched_on(meter: Keithley2450, level_v: float = 0.0) -> None:
    await meter.configure(source="voltage", nplc=0.01)
    await meter.set_limit(current_a=1e-3)
    await meter.set_level(voltage_v=level_v)
    await meter.output_on()


def in_memory(instrument: SimulatedKeithley2450, ramp_step_v: float = STEP_V) -> tuple[Keithley2450, list[str]]:
    said: list[str] = []

    def handle(request: bytes) -> bytes:
        said.extend(request.decode().splitlines())
        answers = [run_at_once(instrument, line) for line in request.decode().splitlines()]
        return b"".join(one.encode() + b"\n" for one in answers if isinstance(one, str))

    return Keithley2450(MemoryLink(handle), ramp_v_per_s=1e6, ramp_step_v=ramp_step_v), said


async def swept(levels: Sequence[float], ramp_step_v: float) -> tuple[list[Reading], list[str]]:
    meter, said = in_memory(SimulatedKeithley2450(DiodeLoad(1e-9, 1.5)), ramp_step_v)
    async with meter:
        await switched_on(meter)
        return await meter.sweep(voltage_v=levels), said


async def one_by_one(levels: Sequence[float]) -> list[Reading]:
    meter, said = in_memory(SimulatedKeithley2450(DiodeLoad(1e-9, 1.5)), ramp_step_v=1.0)
    readings = []
    async with meter:
        await switched_on(meter)
        for level in levels:
            await meter.set_level(voltage_v=level)
            readings.append(await meter.measure())
    assert ":INIT" not in said
    return readings


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-0.5, 0.6), min_size=2, max_size=40))
@example([0.6, 0.6])
@example([0.1, 0.1, 0.1, 0.2])
def test_inside_and_point_by_point_agree(levels: list[float]) -> None:
    inside, said = asyncio.run(swept(levels, ramp_step_v=1.2))
    assert ":INIT" in said
    assert [(one.voltage_v, one.current_a, one.in_compliance) for one in inside] == [
        (one.voltage_v, one.current_a, one.in_compliance) for one in asyncio.run(one_by_one(levels))
    ]
    assert all(before.time_s <= after.time_s for before, after in pairwise(inside))


@settings(max_examples=20, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(-0.04, 0.04), st.integers(3, 60))
@example(0.1, 0.0, 3)
def test_evenly_spaced_levels_are_the_instruments_to_make(start: float, step: float, count: int) -> None:
    levels = [start + index * step for index in range(count)]
    readings, said = asyncio.run(swept(levels, STEP_V))
    linear = [line for line in said if line.startswith(":SOUR:SWE:VOLT:LIN ")]
    listed = [line for line in said if line.startswith(":SOUR:LIST:VOLT ")]
    assert len(linear) + len(listed) == 1
    # A step so small that the levels' own rounding shows is not an even one.
    assert linear or abs(step) < 1e-6
    # The instrument rounds otherwise than the list does, which may show in the last of the seven digits.
    expected = [one.voltage_v for one in asyncio.run(one_by_one(levels))]
    assert [one.voltage_v for one in readings] == pytest.approx(expected, rel=2e-6, abs=1e-12)


async def test_steps_beyond_the_ramp_are_not_given_to_the_instrument() -> None:
    readings, said = await swept([0.0, 0.2, 0.1], STEP_V)
    assert ":INIT" not in said
    assert [one.voltage_v for one in readings] == pytest.approx([0.0, 0.2, 0.1])


async def test_a_long_list_goes_in_pieces_of_a_hundred() -> None:
    levels = [(index % 50) / 1000.0 for index in range(250)]
    readings, said = await swept(levels, STEP_V)
    assert [one.voltage_v for one in readings] == levels
    assert sum(line.startswith(":SOUR:LIST:VOLT ") for line in said) == 1
    assert sum(line.startswith(":SOUR:LIST:VOLT:APP ") for line in said) == 2


async def test_automatic_and_fixed_source_ranges_are_left_as_they_were() -> None:
    for voltage_v, automatic in ((None, "1"), (0.1, "0")):
        instrument = SimulatedKeithley2450(ResistorLoad(1e6))
        meter, _ = in_memory(instrument)
        async with meter:
            await meter.configure(source="voltage")
            await meter.set_ranges(voltage_v=voltage_v)
            await meter.set_limit(current_a=1e-3)
            await meter.set_level(voltage_v=0.0)
            await meter.output_on()
            await meter.sweep(voltage_v=[0.0, 0.02, 0.04])
            assert run_at_once(instrument, ":SOUR:VOLT:RANG:AUTO?") == automatic


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.01, 0.02, 0.03, 0.06])
async def test_an_interrupted_sweep_is_aborted_and_never_jumps(after_s: float) -> None:
    events: list[OutputEvent] = []
    async with InstrumentServer(SimulatedKeithley2450(ResistorLoad(1e3), log=events.append)) as server:
        async with Keithley2450(TcpLink("127.0.0.1", server.port), ramp_v_per_s=5.0, ramp_step_v=STEP_V) as meter:
            await switched_on(meter)
            sweep = asyncio.create_task(meter.sweep(voltage_v=[index * STEP_V for index in range(11)]))
            await asyncio.sleep(after_s)
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sweep
            # The next call finds the instrument free again, at a level of the sweep, and its own answer.
            reading = await meter.measure()
            assert reading.current_a == pytest.approx(reading.voltage_v / 1e3)
            # And a new sweep runs to its end.
            again = await meter.sweep(voltage_v=[0.0, 0.05])
            assert [one.voltage_v for one in again] == [0.0, 0.05]
        assert not server.instrument.output_on
    levels = [0.0, *(event.voltage_v for event in events if event.output_on)]
    assert max(abs(after - before) for before, after in pairwise(levels)) <= STEP_V + 1e-12
    assert levels[-1] == 0.0


async def test_closing_in_the_middle_of_a_sweep_ramps_down_from_where_it_is() -> None:
    events: list[OutputEvent] = []
    half_way = asyncio.Event()

    def log(event: OutputEvent) -> None:
        events.append(event)
        if event.voltage_v >= 0.1:
            half_way.set()

    async with InstrumentServer(SimulatedKeithley2450(ResistorLoad(1e3), log=log)) as server:
        meter = Keithley2450(TcpLink("127.0.0.1", server.port), ramp_v_per_s=5.0, ramp_step_v=STEP_V)
        await meter.open()
        await switched_on(meter)
        sweep = asyncio.create_task(meter.sweep(voltage_v=[index * STEP_V for index in range(21)]))
        await half_way.wait()
        sweep.cancel()
        await meter.close()
        with pytest.raises(asyncio.CancelledError):
            await sweep
    levels = [0.0, *(event.voltage_v for event in events if event.output_on)]
    assert 0.1 <= max(levels) < 1.0
    assert max(abs(after - before) for before, after in pairwise(levels)) <= STEP_V + 1e-12
    assert levels[-1] == 0.0
    assert not events[-1].output_on


async def test_a_sweep_that_takes_too_long_is_aborted() -> None:
    async with InstrumentServer(SimulatedKeithley2450(ResistorLoad(1e3)), time_scale=30.0) as server:
        async with Keithley2450(TcpLink("127.0.0.1", server.port), ramp_v_per_s=100.0, timeout_s=0.2) as meter:
            await switched_on(meter)
            with pytest.raises(LinkTimeoutError):
                await meter.sweep(voltage_v=[0.0, 0.01] * 40)
            # Whatever is asked next: the sweep is ended first, and not waited for.
            assert await meter.output_is_on()
        assert not server.instrument.output_on
