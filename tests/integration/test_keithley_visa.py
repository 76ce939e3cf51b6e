"""The Keithley 2400 driver through real pyvisa and pyvisa-py against the simulated instrument's socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from labrig_drivers.errors import LinkError, LinkLostError, LinkTimeoutError, StateError
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import LineFraming, LinkState, TcpLink, VisaLink
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.servers import InstrumentServer, SimulatedKeithley2400

Server = InstrumentServer[SimulatedKeithley2400]

LINE = LineFraming()


@pytest.fixture
async def server() -> AsyncIterator[InstrumentServer[SimulatedKeithley2400]]:
    async with InstrumentServer(SimulatedKeithley2400(ResistorLoad(1000.0)), time_scale=0.1) as running:
        yield running


def visa(server: Server) -> VisaLink:
    return VisaLink(f"TCPIP::127.0.0.1::{server.port}::SOCKET")


async def test_a_session_lives_on_one_thread_that_ends_with_it(server: Server) -> None:
    before = set(threading.enumerate())
    link = visa(server)
    await link.open()
    (thread,) = set(threading.enumerate()) - before
    assert thread.name.startswith("visa TCPIP")
    await asyncio.gather(*(link.exchange(b"*IDN?\n", LINE) for _ in range(20)))
    await link.reopen()
    assert set(threading.enumerate()) - before == {thread}
    await link.close()
    assert set(threading.enumerate()) == before


async def test_closing_one_instrument_leaves_the_others_open(server: Server) -> None:
    first, second = visa(server), visa(server)
    await asyncio.gather(first.open(), second.open())
    await first.close()
    assert (await second.exchange(b"*IDN?\n", LINE)).startswith(b"KEITHLEY")
    await second.close()


async def test_two_tasks_on_one_session_never_swap_answers(server: Server) -> None:
    """Two threads on one pyvisa-py session do."""
    link = visa(server)
    await link.open()

    async def ask(query: bytes, wanted: bytes) -> int:
        answers = [await link.exchange(query, LINE) for _ in range(150)]
        return sum(not answer.startswith(wanted) for answer in answers)

    swapped = await asyncio.gather(ask(b"*IDN?\n", b"KEITHLEY"), ask(b":SOUR:FUNC?\n", b"VOLT"))
    assert sum(swapped) == 0
    await link.close()


async def test_a_cancelled_reading_waits_for_its_thread_and_is_never_seen_again(
    server: Server,
) -> None:
    meter = Keithley2400(visa(server), ramp_v_per_s=1000.0)
    async with meter:
        await meter.configure(source="voltage", nplc=10.0)
        await meter.set_limit(current_a=0.01)
        await meter.set_level(voltage_v=0.5)
        await meter.output_on()
        for _ in range(3):
            task = asyncio.create_task(meter.measure())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await meter.output_is_on()
            assert (await meter.measure()).current_a == pytest.approx(5e-4)
    assert not server.instrument.output_on


async def test_a_dead_peer_ends_in_a_timeout_and_the_person_is_told() -> None:
    server = InstrumentServer(SimulatedKeithley2400(ResistorLoad(1000.0)))
    await server.start()
    meter = Keithley2400(visa(server), timeout_s=0.2)
    await meter.open()
    await meter.configure(source="voltage")
    await meter.set_limit(current_a=0.01)
    await meter.set_level(voltage_v=0.5)
    await meter.output_on()
    await server.stop()
    with pytest.raises(LinkError):
        await meter.output_is_on()
    with pytest.raises(StateError, match="press OUTPUT OFF"):
        await meter.close()


async def test_an_unanswered_request_times_out_and_reopening_helps(
    server: Server,
) -> None:
    link = visa(server)
    await link.open()
    with pytest.raises(LinkTimeoutError):
        await link.exchange(b":READ?\n", LINE, timeout_s=0.1)
    assert link.state is LinkState.DESYNCHRONISED
    await link.reopen()
    assert await link.exchange(b":SYST:ERR?\n", LINE) == b'+803,"Not permitted with OUTPUT off"'
    await link.close()


async def test_a_backend_that_does_not_exist_is_a_link_error() -> None:
    link = VisaLink("TCPIP::127.0.0.1::1::SOCKET", backend="@no-such-backend")
    with pytest.raises(LinkLostError, match="no VISA library '@no-such-backend'"):
        await link.open()
    assert link.state is LinkState.CLOSED


async def test_the_server_survives_garbage_and_a_client_that_leaves(
    server: Server,
) -> None:
    garbage = [bytes(range(256)) + b"\n", b"x" * 300_000 + b"\n", b";;;:\n\n\r\n", b':SENS:FUNC "VOLT\n', b"#9999\n"]
    for piece in garbage:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(piece)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"y" * 300_000 + b"\n*CLS\n:SENS:CURR:PROT 1;:SOUR:VOLT:LEV 1;:OUTP 1\n*OPC?\n")
    assert await reader.readline() == b"1\n"
    writer.write(b":READ?\n")
    writer.close()
    await writer.wait_closed()
    link = TcpLink("127.0.0.1", server.port)
    await link.open()
    # The client that switched on is gone; as on the instrument, its output is not.
    assert await link.exchange(b":OUTP?\n", LINE) == b"1"
    await link.close()


async def test_stopping_the_server_disconnects_its_clients(server: Server) -> None:
    link = TcpLink("127.0.0.1", server.port)
    await link.open()
    await link.exchange(b"*IDN?\n", LINE)
    await server.stop()
    await server.stop()
    with pytest.raises(LinkLostError):
        await link.exchange(b"*IDN?\n", LINE)
    await link.close()
    with pytest.raises(StateError):
        _ = server.port


async def test_a_port_in_use_is_a_link_error(server: Server) -> None:
    with pytest.raises(LinkError, match="cannot listen"):
        await InstrumentServer(SimulatedKeithley2400(ResistorLoad(1.0))).start(port=server.port)
