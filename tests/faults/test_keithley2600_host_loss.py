"""The script inside a Keithley 2600 that switches off when the host falls silent; on the simulator, over sockets."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from labrig_drivers.errors import LinkTimeoutError, StateError
from labrig_drivers.instrument import ProtectsItself
from labrig_drivers.keithley2600 import ChannelName, Keithley2600
from labrig_drivers.links import TcpLink
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.tsp_guard import CALL, KICK, GuardRule, guard_script

STEP_V = 0.05
LEVEL_V = 0.2
SILENCE_S = 0.6
# Another process with two channels on one link; says "on", and later what a measurement finds.
HOST = f"""
import asyncio, sys
from labrig_drivers.errors import StateError
from labrig_drivers.keithley2600 import Keithley2600
from labrig_drivers.links import TcpLink
from labrig_drivers.links.shared import SharedLink

async def main():
    link = SharedLink(TcpLink("127.0.0.1", int(sys.argv[1])))
    meters = [
        Keithley2600(link, channel=name, ramp_v_per_s=2.0, ramp_step_v={STEP_V}, host_loss_s={SILENCE_S})
        for name in ("a", "b")
    ]
    async with meters[0], meters[1]:
        for meter in meters:
            await meter.configure(source="voltage", nplc=0.1)
            await meter.set_limit(current_a=1e-3)
            await meter.set_level(voltage_v={LEVEL_V})
            await meter.output_on()
        print("on", flush=True)
        while True:
            await asyncio.sleep(0.05)
            try:
                await meters[0].measure()
            except StateError as error:
                print(error, flush=True)
                return

asyncio.run(main())
"""


class Bench:
    """A simulated instrument on a socket and what its outputs did."""

    def __init__(self) -> None:
        self.events: list[OutputEvent] = []
        load = ResistorLoad(1000.0)
        self.instrument = SimulatedKeithley2600(load, load_b=load, log=self.events.append)
        self.server = InstrumentServer(self.instrument)

    def is_on(self, channel: str = "a") -> bool:
        return self.instrument.channels[channel].output_on

    async def off_after_s(self, since_s: float) -> float:
        """Waits until both outputs are off; time in s since then."""
        async with asyncio.timeout(20.0):
            while self.is_on("a") or self.is_on("b"):  # noqa: ASYNC110 - the instrument has no event for it
                await asyncio.sleep(0.01)
        return self.events[-1].time_s - since_s

    def check_ramps(self) -> None:
        """Each channel went down in steps of the ramp, to zero, before it was off."""
        for channel in ("a", "b"):
            own = [event for event in self.events if event.instrument.endswith(channel)]
            while_on = [event.voltage_v for event in own if event.output_on]
            assert while_on[0] == LEVEL_V
            assert while_on[-1] == 0.0
            assert max(abs(after - before) for before, after in pairwise(while_on)) <= STEP_V + 1e-12

    def both(self) -> tuple[Keithley2600, Keithley2600]:
        """Two channels on one link."""
        link = SharedLink(TcpLink("127.0.0.1", self.server.port))

        def on(channel: ChannelName) -> Keithley2600:
            return Keithley2600(link, channel=channel, ramp_v_per_s=2.0, ramp_step_v=STEP_V, host_loss_s=SILENCE_S)

        return on("a"), on("b")

    def meter(self, channel: ChannelName = "a", host_loss_s: float | None = SILENCE_S) -> Keithley2600:
        return Keithley2600(
            TcpLink("127.0.0.1", self.server.port),
            channel=channel,
            ramp_v_per_s=2.0,
            ramp_step_v=STEP_V,
            host_loss_s=host_loss_s,
        )


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    async with bench.server:
        yield bench


@asynccontextmanager
async def host(bench: Bench) -> AsyncIterator[asyncio.subprocess.Process]:
    """The other process, once both of its outputs are on."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST, str(bench.server.port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"on\n"
        assert bench.is_on("a")
        assert bench.is_on("b")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def switch_on(meter: Keithley2600, nplc: float = 0.1) -> None:
    await meter.configure(source="voltage", nplc=nplc)
    await meter.set_limit(current_a=1e-3)
    await meter.set_level(voltage_v=LEVEL_V)
    await meter.output_on()


async def test_a_killed_host_leaves_no_output_on(bench: Bench) -> None:
    async with host(bench) as process:
        killed_s = time.monotonic()
        process.kill()
        assert await bench.off_after_s(killed_s) < SILENCE_S + 1.0
    bench.check_ramps()


async def test_a_host_that_stood_still_finds_its_outputs_off(bench: Bench) -> None:
    async with host(bench) as process:
        assert process.stdout is not None
        stopped_s = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        assert await bench.off_after_s(stopped_s) < SILENCE_S + 1.0
        process.send_signal(signal.SIGCONT)
        assert b"the output is off" in await process.stdout.readline()
    bench.check_ramps()


async def test_while_the_host_lives_nothing_happens(bench: Bench) -> None:
    async with bench.meter() as meter:
        await switch_on(meter)
        bench.events.clear()
        # First nobody asks anything, then somebody measures and sweeps.
        await asyncio.sleep(3 * SILENCE_S)
        assert bench.events == []
        for _ in range(5):
            assert (await meter.measure()).voltage_v == LEVEL_V
            await asyncio.sleep(0.1)
        assert bench.events == []
        readings = await meter.sweep(voltage_v=[0.2, 0.21, 0.2])
        assert [reading.voltage_v for reading in readings] == [0.2, 0.21, 0.2]
        assert bench.is_on()
        assert await meter.errors() == []
    assert not bench.is_on()


async def test_it_says_what_is_armed(bench: Bench) -> None:
    async with bench.meter() as meter:
        assert isinstance(meter, ProtectsItself)
        assert meter.host_loss_protection.silence_s is None
        await switch_on(meter)
        protection = meter.host_loss_protection
        assert protection.silence_s == SILENCE_S
        assert "simulator only" in protection.text
        await meter.output_off()
        assert meter.host_loss_protection.silence_s is None
    async with bench.meter(host_loss_s=None) as meter:
        await switch_on(meter)
        assert meter.host_loss_protection.silence_s is None
        assert "host_loss_s" in meter.host_loss_protection.text


async def test_a_high_level_takes_its_time_down() -> None:
    rule = GuardRule(silence_s=10.0, voltage_step_v=0.05, pause_s=0.05, current_steps=20)
    assert rule.off_after_s(2.0) == 10.0
    assert rule.off_after_s(-40.0) == pytest.approx(45.0)
    assert rule.kick_every_s < 10.0 / 3


async def test_both_channels_switched_on_and_off_at_the_same_time_are_both_guarded(bench: Bench) -> None:
    a, b = bench.both()
    async with a, b:
        await asyncio.gather(switch_on(a), switch_on(b))
        assert [one.host_loss_protection.silence_s for one in (a, b)] == [SILENCE_S, SILENCE_S]
        await asyncio.gather(a.output_off(), b.output_off())
        assert [one.host_loss_protection.silence_s for one in (a, b)] == [None, None]
        await asyncio.gather(switch_on(a), switch_on(b))
        await asyncio.sleep(2 * SILENCE_S)  # long enough for a script that nobody talks to
        assert bench.is_on("a")
        assert bench.is_on("b")


async def test_one_script_guards_both_channels_and_the_second_survives_the_first(bench: Bench) -> None:
    a, b = bench.both()
    async with a, b:
        await switch_on(a)
        await switch_on(b)
        assert [one.host_loss_protection.silence_s for one in (a, b)] == [SILENCE_S, SILENCE_S]
        await a.output_off()
        assert [one.host_loss_protection.silence_s for one in (a, b)] == [None, SILENCE_S]
        await asyncio.sleep(SILENCE_S)
        assert (bench.is_on("a"), bench.is_on("b")) == (False, True)
        assert (await b.measure()).voltage_v == LEVEL_V


async def test_a_guard_ends_what_it_began_and_the_next_one_is_as_good(bench: Bench) -> None:
    async with bench.meter() as meter:
        await switch_on(meter)
        await stop_kicking()
        async with asyncio.timeout(20.0):
            while bench.instrument.level_v == LEVEL_V:  # noqa: ASYNC110 - the instrument has no event for it
                await asyncio.sleep(0.005)
        # In the middle of the ramp: the host's trigger comes too late, and is left over.
        with pytest.raises(StateError, match="the output is off"):
            await meter.measure()
        bench.events.clear()
        await meter.configure(source="current", nplc=0.1)
        await meter.set_limit(voltage_v=2.0)
        await meter.set_level(current_a=1e-3)
        await meter.output_on()
        assert bench.is_on()
        await stop_kicking()
        await bench.off_after_s(time.monotonic())
    levels = [event.current_limit_a for event in bench.events if event.output_on]
    assert len(levels) == 21
    assert (levels[0], levels[-1]) == (1e-3, 0.0)


async def test_a_host_that_dies_while_it_measures_is_guarded_against_too(bench: Bench) -> None:
    link = TcpLink("127.0.0.1", bench.server.port)
    meter = Keithley2600(link, ramp_v_per_s=2.0, ramp_step_v=STEP_V, host_loss_s=SILENCE_S)
    await meter.open()
    await switch_on(meter, nplc=10.0)
    await stop_kicking()
    measuring = asyncio.create_task(meter.measure())
    await asyncio.sleep(0.1)
    await link.close()
    await asyncio.wait([measuring])
    await bench.off_after_s(time.monotonic())
    with pytest.raises(StateError, match="cannot be asked"):
        await meter.close()


async def test_a_new_host_waits_for_the_guard_of_the_dead_one(bench: Bench) -> None:
    async with host(bench) as process:
        process.kill()
        await process.wait()
        impatient = Keithley2600(TcpLink("127.0.0.1", bench.server.port), timeout_s=0.1)
        with pytest.raises(LinkTimeoutError):
            await impatient.open()
        assert bench.is_on()
        async with bench.meter() as meter:
            assert not await meter.output_is_on()
    bench.check_ramps()


async def test_a_lost_connection_is_mended_and_guarded_again(bench: Bench) -> None:
    async with bench.meter() as meter:
        await switch_on(meter)
        port = bench.server.port
        await bench.server.stop()
        await bench.server.start(port=port)
        bench.events.clear()
        await meter.output_off()
        assert not bench.is_on()
        assert bench.events[-1].voltage_v == 0.0
        await switch_on(meter)
        assert meter.host_loss_protection.silence_s == SILENCE_S


async def stop_kicking() -> None:
    """Ends the task that lets the instrument hear from this host, as if the host were dead."""
    (kicker,) = [task for task in asyncio.all_tasks() if "_kick_for_ever" in str(task.get_coro())]
    kicker.cancel()
    await asyncio.wait([kicker])


def test_the_script_needs_a_channel_and_names_each() -> None:
    with pytest.raises(ValueError, match="channel"):
        guard_script({})
    rule = GuardRule(silence_s=2.0, voltage_step_v=0.1, pause_s=0.1, current_steps=20)
    text = "\n".join(guard_script({"b": rule, "a": rule}))
    assert text.index("smu = smua") < text.index("smu = smub")
    assert f"function {CALL}" in text
    assert KICK not in text
