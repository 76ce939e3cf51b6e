"""A Keysight B2900 over a real socket: sweeps that are interrupted, and two channels on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest

from labrig_drivers.errors import LinkLostError, LinkTimeoutError, StateError
from labrig_drivers.keysight_b2900 import KeysightB2900
from labrig_drivers.links import TcpLink
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.scpi import ScpiChannel

STEP_V = 0.05


async def switched_on(meter: KeysightB2900, level_v: float = 0.0) -> None:
    await meter.configure(source="voltage", nplc=0.01)
    await meter.set_limit(current_a=1e-3)
    await meter.set_level(voltage_v=level_v)
    await meter.output_on()


def levels_of(events: list[OutputEvent], instrument: str) -> list[float]:
    """What was at the terminals while the output was on, from 0 V."""
    return [0.0, *(event.voltage_v for event in events if event.output_on and event.instrument == instrument)]


def largest_step(levels: list[float]) -> float:
    return max(abs(after - before) for before, after in pairwise(levels))


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.06])
async def test_an_interrupted_sweep_is_aborted_and_never_jumps(after_s: float) -> None:
    events: list[OutputEvent] = []
    instrument = SimulatedKeysightB2900(ResistorLoad(1e3), serial="S", log=events.append)
    async with InstrumentServer(instrument) as server:
        async with KeysightB2900(TcpLink("127.0.0.1", server.port), ramp_v_per_s=5.0, ramp_step_v=STEP_V) as meter:
            await switched_on(meter)
            # One before it, so that old readings are in the memory.
            await meter.sweep(voltage_v=[0.0, 0.01])
            sweep = asyncio.create_task(meter.sweep(voltage_v=[index * STEP_V for index in range(11)]))
            await asyncio.sleep(after_s)
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sweep
            # The next call finds the instrument free again, at a level of the sweep, and its own answer.
            reading = await meter.measure()
            assert reading.current_a == pytest.approx(reading.voltage_v / 1e3)
        assert not instrument.output_on
    levels = levels_of(events, "S")
    assert largest_step(levels) <= STEP_V + 1e-12
    assert levels[-1] == 0.0


async def test_a_sweep_that_takes_too_long_is_aborted() -> None:
    instrument = SimulatedKeysightB2900(ResistorLoad(1e3))
    # Seven seconds, in which only an abort is taken: longer than the patience of any recovery without one.
    async with InstrumentServer(instrument, time_scale=300.0) as server:
        async with KeysightB2900(TcpLink("127.0.0.1", server.port), ramp_v_per_s=100.0, timeout_s=0.3) as meter:
            await switched_on(meter)
            with pytest.raises(LinkTimeoutError):
                await meter.sweep(voltage_v=[0.0, 0.01] * 40)
            assert instrument.output_on
        assert not instrument.output_on


async def test_a_list_that_takes_its_time_on_the_way_leaves_the_sweep_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = ScpiChannel.write_all

    async def slowly(self: ScpiChannel, commands: Sequence[str]) -> None:
        await write_all(self, commands)
        if any(":LIST:" in command for command in commands):
            await asyncio.sleep(1.5)

    async with (
        InstrumentServer(SimulatedKeysightB2900(ResistorLoad(1e3))) as server,
        KeysightB2900(TcpLink("127.0.0.1", server.port), ramp_v_per_s=100.0, timeout_s=0.3) as meter,
    ):
        await switched_on(meter)
        monkeypatch.setattr(ScpiChannel, "write_all", slowly)
        readings = await meter.sweep(voltage_v=[0.0, 0.01])
        assert [one.current_a for one in readings] == pytest.approx([0.0, 1e-5], abs=1e-9)


async def test_a_new_driver_ends_the_sweep_of_a_program_that_died() -> None:
    events: list[OutputEvent] = []
    instrument = SimulatedKeysightB2900(ResistorLoad(1e3), serial="S", log=events.append)
    async with InstrumentServer(instrument) as server:
        lost = KeysightB2900(TcpLink("127.0.0.1", server.port), ramp_v_per_s=1.0, ramp_step_v=STEP_V)
        await lost.open()
        await switched_on(lost)
        sweep = asyncio.create_task(lost.sweep(voltage_v=[index * STEP_V for index in range(5)]))
        await asyncio.sleep(0.12)
        sweep.cancel()
        await asyncio.gather(sweep, return_exceptions=True)
        # What a killed program does: its connection ends, and nobody cleans up.
        await lost._channel.close()
        async with KeysightB2900(TcpLink("127.0.0.1", server.port), ramp_v_per_s=5.0, ramp_step_v=STEP_V) as meter:
            await meter.output_off()
    assert not instrument.output_on
    levels = levels_of(events, "S")
    assert largest_step(levels) <= STEP_V + 1e-12
    assert max(levels) >= 2 * STEP_V
    assert levels[-1] == 0.0


async def test_two_channels_work_at_the_same_time_on_one_connection() -> None:
    events: list[OutputEvent] = []
    instrument = SimulatedKeysightB2900(ResistorLoad(1e3), ResistorLoad(500.0), serial="S", log=events.append)
    async with InstrumentServer(instrument, time_scale=0.05) as server:
        link = SharedLink(TcpLink("127.0.0.1", server.port))
        first = KeysightB2900(link, channel=1, ramp_v_per_s=100.0, name="one")
        second = KeysightB2900(link, channel=2, ramp_v_per_s=100.0, name="two")
        async with first, second:
            await asyncio.gather(switched_on(first, 0.1), switched_on(second, 0.2))
            sweeps = asyncio.gather(first.sweep(voltage_v=[0.1, 0.11, 0.12]), second.sweep(voltage_v=[0.2, 0.19, 0.18]))
            await sweeps
            for _ in range(20):
                mine, other = await asyncio.gather(first.measure(), second.measure())
                assert [mine.voltage_v, mine.current_a] == pytest.approx([0.12, 1.2e-4])
                assert [other.voltage_v, other.current_a] == pytest.approx([0.18, 3.6e-4])
            assert [one.current_a for one in sweeps.result()[0]] == pytest.approx([1e-4, 1.1e-4, 1.2e-4])
            assert [one.current_a for one in sweeps.result()[1]] == pytest.approx([4e-4, 3.8e-4, 3.6e-4])
            await first.close()
            # The other one still has the connection, and its output.
            assert not instrument.output_on
            assert (await second.measure()).voltage_v == 0.18
        assert no_outputs(instrument)


def no_outputs(instrument: SimulatedKeysightB2900) -> bool:
    return not any(channel.settings.output_on for channel in instrument.channels.values())


async def test_after_a_fault_of_one_channel_the_other_asks_who_is_there_too() -> None:
    instrument = SimulatedKeysightB2900(ResistorLoad(1e3), ResistorLoad(1e3), serial="S")
    async with InstrumentServer(instrument) as server:
        link = SharedLink(TcpLink("127.0.0.1", server.port))
        first = KeysightB2900(link, channel=1, ramp_v_per_s=10.0, timeout_s=0.3)
        second = KeysightB2900(link, channel=2, ramp_v_per_s=10.0, timeout_s=0.3)
        async with first, second:
            await switched_on(first, 0.1)
            await switched_on(second, 0.2)
            sweep = asyncio.create_task(first.sweep(voltage_v=[0.1, 0.15] * 10))
            await asyncio.sleep(0.05)
            sweep.cancel()
            await asyncio.gather(sweep, return_exceptions=True)
            assert (await first.measure()).voltage_v in {0.1, 0.15}
            assert (await second.measure()).voltage_v == 0.2
    assert no_outputs(instrument)


async def test_a_connection_that_was_lost_is_lost_for_both_channels() -> None:
    instrument = SimulatedKeysightB2900(ResistorLoad(1e3), ResistorLoad(1e3))
    server = InstrumentServer(instrument)
    await server.start()
    port = server.port
    link = SharedLink(TcpLink("127.0.0.1", port))
    first, second = (KeysightB2900(link, channel=one, ramp_v_per_s=10.0, timeout_s=0.3) for one in (1, 2))
    async with first, second:
        await switched_on(second, 0.2)
        await server.stop()
        await server.start(port=port)
        for meter in (first, second):
            with pytest.raises(LinkLostError):
                await meter.output_is_on()
        # Off is what a lost connection may be opened for again; it brings back this channel only.
        await first.output_off()
        assert not await first.output_is_on()
        with pytest.raises(LinkLostError, match="connect anew"):
            await second.measure()
    assert no_outputs(instrument)
    await server.stop()
    with pytest.raises(StateError):
        await first.measure()
