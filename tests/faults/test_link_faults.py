"""Late answers, cancellations, peers that leave: a link returns the right answer or raises, never an older one."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from labrig.testing.fault_plan import Fault, FaultMenu, FaultPlan
from labrig.testing.fault_proxy import FaultProxy
from labrig_drivers.errors import (
    LabrigError,
    LinkDesyncedError,
    LinkError,
    LinkLostError,
    LinkTimeoutError,
    ProtocolError,
    StateError,
)
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import LineFraming, Link, LinkState, SerialLink, TcpLink, VisaLink
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.scpi import ScpiChannel

LINE = LineFraming()
IDN = "ACME,FAULTY,1,0"


@dataclass
class Peer:
    """An instrument that answers in order, and whose answer to `SLOW?` comes only when it is released."""

    heard: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    release_on: str = ""
    send: Callable[[bytes], None] = print  # replaced by whoever connects it
    leave: Callable[[], None] = print
    _lines: asyncio.Queue[tuple[str, Callable[[bytes], None]]] = field(default_factory=asyncio.Queue)

    def hear(self, line: str, send: Callable[[bytes], None]) -> None:
        self.heard.append(line)
        self.asked.set()
        if line == self.release_on:
            self.released.set()
        self._lines.put_nowait((line, send))

    async def work(self) -> None:
        while True:
            line, send = await self._lines.get()
            if line == "SLOW?":
                await self.released.wait()
                send(b"slow\n")
            elif line == "HALF?":
                send(b"hal")
                self.leave()
            elif line == "*IDN?":
                send(IDN.encode() + b"\n")
            elif line == "*OPC?":
                send(b"1\n")
            elif line.startswith("SAY "):
                send(line.removeprefix("SAY ").encode() + b"\n")


@dataclass
class Place:
    """A link of one kind to a peer."""

    kind: str
    link: Link
    peer: Peer


async def tcp_place(kind: str, peer: Peer) -> AsyncIterator[Place]:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        peer.send = writer.write
        peer.leave = writer.close
        try:
            while line := await reader.readline():
                peer.hear(line.decode().strip(), writer.write)
        except ConnectionError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link: Link = TcpLink("127.0.0.1", port) if kind == "tcp" else VisaLink(f"TCPIP::127.0.0.1::{port}::SOCKET")
    yield Place(kind, link, peer)
    await link.close()
    server.close()
    for writer in writers:
        writer.close()
    await server.wait_closed()


async def serial_place(peer: Peer) -> AsyncIterator[Place]:
    loop = asyncio.get_running_loop()
    master, terminal = os.openpty()
    tty.setraw(terminal)
    buffer = bytearray()
    ends = [master, terminal]

    def send(data: bytes) -> None:
        os.write(master, data)

    def on_readable() -> None:
        buffer.extend(os.read(master, 4096))
        while (line := LINE.take(buffer)) is not None:
            peer.hear(line.decode(), send)

    def hang_up() -> None:
        while ends:
            os.close(ends.pop())

    def leave() -> None:
        loop.remove_reader(master)
        # A terminal that hangs up drops what was not read yet; the test wants it read.
        loop.call_later(0.02, hang_up)

    peer.send, peer.leave = send, leave
    loop.add_reader(master, on_readable)
    link = SerialLink(os.ttyname(terminal))
    yield Place("serial", link, peer)
    await link.close()
    if ends:
        loop.remove_reader(master)
        hang_up()


@pytest.fixture(params=["tcp", "serial", "visa"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    peer = Peer()
    working = asyncio.create_task(peer.work())
    places = serial_place(peer) if request.param == "serial" else tcp_place(request.param, peer)
    made = await anext(places)
    yield made
    await anext(places, None)
    working.cancel()


async def test_a_late_answer_is_never_returned(place: Place) -> None:
    link, peer = place.link, place.peer
    await link.open()
    with pytest.raises(LinkTimeoutError, match="SLOW"):
        await link.exchange(b"SLOW?\n", LINE, timeout_s=0.1)
    peer.released.set()
    await asyncio.sleep(0.02)
    for _ in range(2):
        with pytest.raises(LinkDesyncedError):
            await link.exchange(b"SAY new\n", LINE)
    await link.reopen()
    assert await link.exchange(b"SAY new\n", LINE) == b"new"
    assert peer.heard == ["SLOW?", "SAY new"]


async def test_an_answer_that_is_late_even_for_the_recovery_is_never_returned(place: Place) -> None:
    """The answer comes after the link was reopened, when the recovery has asked for the identity."""
    channel = ScpiChannel(place.link, "faulty", timeout_s=2.0)
    await channel.open()
    await channel.identify()
    with pytest.raises(LinkTimeoutError):
        await channel.query("SLOW?", timeout_s=0.1)
    place.peer.heard.clear()
    place.peer.release_on = "*IDN?"
    assert await channel.query("SAY new") == "new"
    assert place.peer.heard.count("SAY new") == 1
    assert "SLOW?" not in place.peer.heard
    await channel.close()


async def test_cancellation_inside_an_exchange(place: Place) -> None:
    link, peer = place.link, place.peer
    await link.open()
    task = asyncio.create_task(link.exchange(b"SLOW?\n", LINE, timeout_s=0.5))
    await peer.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.state is LinkState.DESYNCHRONISED
    peer.released.set()
    with pytest.raises(LinkDesyncedError):
        await link.exchange(b"SAY new\n", LINE)
    await link.reopen()
    assert await link.exchange(b"SAY new\n", LINE) == b"new"


async def test_a_task_that_waits_its_turn_can_be_cancelled_without_harm(place: Place) -> None:
    link = place.link
    await link.open()
    first = asyncio.create_task(link.exchange(b"SLOW?\n", LINE))
    await asyncio.sleep(0)
    second = asyncio.create_task(link.exchange(b"SAY second\n", LINE))
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    place.peer.released.set()
    assert await first == b"slow"
    assert link.state is LinkState.READY
    assert await link.exchange(b"SAY third\n", LINE) == b"third"


async def test_the_peer_leaves_in_the_middle_of_an_answer(place: Place) -> None:
    await place.link.open()
    if place.kind == "visa":
        # pyvisa-py cannot see it.
        with pytest.raises(LinkTimeoutError):
            await place.link.exchange(b"HALF?\n", LINE, timeout_s=0.3)
        assert place.link.state is LinkState.DESYNCHRONISED
        return
    with pytest.raises(LinkLostError, match="3 bytes"):
        await place.link.exchange(b"HALF?\n", LINE)
    assert place.link.state is LinkState.BROKEN
    with pytest.raises(LinkLostError, match="reopen"):
        await place.link.exchange(b"SAY new\n", LINE)


async def test_what_nobody_asked_for_is_not_taken_for_the_answer(place: Place) -> None:
    await place.link.open()
    assert await place.link.exchange(b"SAY first\n", LINE) == b"first"
    place.peer.send(b"unasked\n")
    await asyncio.sleep(0.02)
    with pytest.raises(ProtocolError, match="nobody asked"):
        await place.link.exchange(b"SAY second\n", LINE)
    assert place.link.state is LinkState.DESYNCHRONISED
    assert place.peer.heard == ["SAY first"]


@pytest.mark.parametrize("place", ["tcp", "serial"], indirect=True)
async def test_what_only_the_kernel_holds_is_older_than_the_question_too(place: Place) -> None:
    await place.link.open()
    assert await place.link.exchange(b"SAY first\n", LINE) == b"first"
    place.peer.send(b"unasked\n")  # and no turn of the loop that could collect it
    with pytest.raises(ProtocolError, match="nobody asked"):
        await place.link.exchange(b"SAY second\n", LINE)
    assert place.link.state is LinkState.DESYNCHRONISED


@pytest.mark.parametrize("place", ["tcp"], indirect=True)
async def test_a_peer_that_left_is_noticed_without_asking(place: Place) -> None:
    await place.link.open()
    assert await place.link.exchange(b"SAY a\n", LINE) == b"a"
    place.peer.leave()
    # One turn of the loop carries the end into the socket, another one out of it.
    for _ in range(100):
        await asyncio.sleep(0.01)
        if place.link.state is not LinkState.READY:
            break
    assert place.link.state is LinkState.BROKEN
    await place.link.reopen()
    assert await place.link.exchange(b"SAY b\n", LINE) == b"b"


async def test_closing_fails_the_exchange_in_flight(place: Place) -> None:
    await place.link.open()
    task = asyncio.create_task(place.link.exchange(b"SLOW?\n", LINE, timeout_s=0.3))
    await place.peer.asked.wait()
    await place.link.close()
    with pytest.raises(LinkError):
        await task
    assert place.link.state is LinkState.CLOSED


@pytest.mark.parametrize("place", ["serial"], indirect=True)
async def test_a_port_that_never_falls_silent_cannot_be_reopened(place: Place) -> None:
    await place.link.open()

    async def chatter() -> None:
        while True:
            place.peer.send(b"noise\n")
            await asyncio.sleep(0.01)

    noise = asyncio.create_task(chatter())
    with pytest.raises(LinkTimeoutError, match="another program"):
        await place.link.reopen(timeout_s=0.3)
    assert place.link.state is LinkState.BROKEN
    noise.cancel()


SPOILT_ANSWERS = FaultMenu(
    requests=(),
    answers=(Fault.DROP, Fault.DELAY, Fault.DUPLICATE, Fault.SPLIT, Fault.GARBAGE, Fault.CUT, Fault.HALF_CLOSE),
    durations_s=(0.005, 0.15),
)


@pytest.mark.parametrize("seed", range(4))
async def test_no_reading_is_wrong_behind_a_link_that_spoils_answers(seed: int) -> None:
    events: list[OutputEvent] = []
    right = raised = 0
    async with (
        InstrumentServer(SimulatedKeithley2400(ResistorLoad(1000.0), log=events.append), time_scale=0.01) as server,
        FaultProxy(server.port) as proxy,
    ):
        link = TcpLink("127.0.0.1", proxy.port)
        meter = Keithley2400(link, timeout_s=0.1, ramp_v_per_s=1e4)
        await meter.open()
        await meter.configure(source="voltage", nplc=0.01)
        await meter.set_limit(current_a=0.1)
        await meter.set_level(voltage_v=0.0)
        await meter.output_on()
        proxy.plan = FaultPlan.random(seed, 0.08, SPOILT_ANSWERS)
        for index in range(1, 41):
            try:
                await meter.set_level(voltage_v=index / 100.0)
                reading = await meter.measure()
            except LabrigError:
                raised += 1
                if link.state is LinkState.BROKEN:
                    await link.reopen()
                continue
            right += 1
            assert reading.voltage_v == pytest.approx(index / 100.0)
            assert reading.current_a == pytest.approx(index / 1e5)
        await proxy.heal()
        await meter.close()
    assert proxy.injected
    assert right > 0
    assert right + raised == 40
    levels = [event.voltage_v for event in events if event.output_on]
    assert max(abs(after - before) for before, after in pairwise(levels)) <= 0.05 + 1e-12
    assert (events[-1].output_on, levels[-1]) == (False, 0.0)


async def running_meter(server: InstrumentServer[SimulatedKeithley2400], timeout_s: float) -> Keithley2400:
    meter = Keithley2400(TcpLink("127.0.0.1", server.port), timeout_s=timeout_s, ramp_v_per_s=1000.0)
    await meter.open()
    await meter.configure(source="voltage", nplc=0.1)
    await meter.set_limit(current_a=0.1)
    await meter.set_level(voltage_v=0.1)
    await meter.output_on()
    return meter


async def test_a_connection_that_was_lost_is_made_again_to_switch_off() -> None:
    async with InstrumentServer(SimulatedKeithley2400(ResistorLoad(1000.0))) as server:
        meter = await running_meter(server, timeout_s=2.0)
        port = server.port
        await server.stop()
        await server.start(port=port)
        with pytest.raises(LinkLostError):
            await meter.measure()
        assert server.instrument.output_on
        await meter.close()
        assert not server.instrument.output_on


async def test_an_instrument_out_of_reach_is_a_persons_business() -> None:
    async with InstrumentServer(SimulatedKeithley2400(ResistorLoad(1000.0))) as server:
        meter = await running_meter(server, timeout_s=0.2)
        await server.stop()
        with pytest.raises(StateError, match="press OUTPUT OFF"):
            await meter.close()
        await meter.close()


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_cancelled_anywhere_the_output_ends_off(turns: int) -> None:
    """After any number of turns of the event loop, from opening to measuring."""
    events: list[OutputEvent] = []
    async with InstrumentServer(
        SimulatedKeithley2400(ResistorLoad(1000.0), log=events.append), time_scale=0.01
    ) as server:

        async def work() -> None:
            meter = Keithley2400(TcpLink("127.0.0.1", server.port), timeout_s=2.0, ramp_v_per_s=1000.0)
            async with meter:
                await meter.configure(source="voltage", nplc=0.1)
                await meter.set_limit(current_a=0.1)
                await meter.set_level(voltage_v=0.1)
                await meter.output_on()
                while True:
                    await meter.sweep(voltage_v=[0.1, 0.3, 0.0, 0.2])

        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.instrument.output_on
    levels = [event.voltage_v for event in events if event.output_on]
    if levels:
        assert levels[-1] == 0.0
