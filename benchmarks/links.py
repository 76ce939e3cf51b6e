"""Links: what a query costs with a lock, a deadline and a state machine around it, and what a block of data costs.

The references are bare asyncio streams (no deadline, no lock, no checks) and pyvisa-py as its documentation uses it,
against the same server in another process. "eight instruments" answer after 2 ms each and are asked at the same time.
QCoDeS is measured where it is installed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.harness import Case, sync
from benchmarks.line_server import BLOCK, BLOCK_BYTES, LineServer, line_server
from benchmarks.report import Script, Suite, main
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import BlockFraming, LineFraming, Link, TcpLink, VisaLink
from labrig_drivers.scpi import ScpiChannel

if TYPE_CHECKING:
    from pyvisa.resources import MessageBasedResource

INSTRUMENTS = 8
DELAY_S = 2e-3
QUESTION = b":OUTP?\n"


class BareStream:
    """A connection of asyncio streams with nothing around it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def query(self) -> None:
        """Sends a line and reads a line."""
        self._writer.write(QUESTION)
        await self._reader.readline()

    async def block(self) -> None:
        """Asks for the block and reads exactly as many bytes."""
        self._writer.write(b"BLOCK?\n")
        await self._reader.readexactly(len(BLOCK))


@asynccontextmanager
async def bare_stream(server: LineServer) -> AsyncIterator[BareStream]:
    """Connects bare streams."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield BareStream(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def together(runs: list[Callable[[], Awaitable[None]]]) -> Callable[[], Awaitable[None]]:
    """All of them at the same time, each in a task of its own."""

    async def ask(run: Callable[[], Awaitable[None]]) -> None:
        await run()

    async def run() -> None:
        await asyncio.gather(*(ask(one) for one in runs))

    return run


def exchange(link: Link, block: bool) -> Callable[[], Awaitable[None]]:
    """One exchange of a link."""
    framing = BlockFraming() if block else LineFraming()

    async def run() -> None:
        answer = await link.exchange(b"BLOCK?\n" if block else QUESTION, framing)
        assert len(answer) == (BLOCK_BYTES if block else 1)

    return run


def asks(meter: Keithley2400) -> Callable[[], Awaitable[None]]:
    """One query through a driver."""

    async def run() -> None:
        await meter.output_is_on()

    return run


def queries(channel: ScpiChannel) -> Callable[[], Awaitable[None]]:
    """One query through a channel."""

    async def run() -> None:
        await channel.query(":OUTP?")

    return run


async def meter_at(stack: AsyncExitStack, server: LineServer) -> Keithley2400:
    """A driver, open, of the server's instrument."""
    return await stack.enter_async_context(Keithley2400(TcpLink("127.0.0.1", server.port)))


def plain_visa(stack: AsyncExitStack, server: LineServer) -> MessageBasedResource:
    """pyvisa-py as its documentation opens a socket."""
    import pyvisa
    from pyvisa.resources import MessageBasedResource

    resource = pyvisa.ResourceManager("@py").open_resource(f"TCPIP::127.0.0.1::{server.port}::SOCKET")
    assert isinstance(resource, MessageBasedResource)
    resource.read_termination = resource.write_termination = "\n"
    stack.callback(resource.close)
    return resource


def in_thread(resource: MessageBasedResource) -> Callable[[], Awaitable[None]]:
    """What a user of asyncio does with a blocking library."""

    async def run() -> None:
        await asyncio.to_thread(resource.query, ":OUTP?")

    return run


def qcodes_get(stack: AsyncExitStack, server: LineServer) -> Callable[[], object]:
    """A parameter's get of a QCoDeS instrument over pyvisa-py."""
    from qcodes.instrument import VisaInstrument  # type: ignore[import-not-found, unused-ignore]

    address = f"TCPIP::127.0.0.1::{server.port}::SOCKET"
    instrument = VisaInstrument("meter", address, visalib="@py", terminator="\n")
    stack.callback(instrument.close)
    parameter = instrument.add_parameter("output", get_cmd=":OUTP?", get_parser=int)
    get: Callable[[], object] = parameter.get
    return get


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:  # noqa: ARG001 - the effort alone makes a run quick
    """Starts the servers and opens every connection."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(line_server())
        slow = await stack.enter_async_context(line_server(DELAY_S))
        bare = await stack.enter_async_context(bare_stream(server))
        tcp, channel_link = TcpLink("127.0.0.1", server.port), TcpLink("127.0.0.1", server.port)
        visa = VisaLink(f"TCPIP::127.0.0.1::{server.port}::SOCKET")
        for link in (tcp, visa):
            await link.open()
            stack.push_async_callback(link.close)
        channel = ScpiChannel(channel_link, "bench")
        await channel.open()
        stack.push_async_callback(channel.close)
        meter = await meter_at(stack, server)
        plain = plain_visa(stack, server)
        streams = [await stack.enter_async_context(bare_stream(slow)) for _ in range(INSTRUMENTS)]
        meters = [await meter_at(stack, slow) for _ in range(INSTRUMENTS)]
        block = float(BLOCK_BYTES)
        cases = [
            Case("bare asyncio streams, query", bare.query),
            Case("TcpLink.exchange", exchange(tcp, block=False), 1, "bare asyncio streams, query"),
            Case("ScpiChannel.query", queries(channel), 1, "bare asyncio streams, query"),
            Case("Keithley2400.output_is_on", asks(meter), 1, "bare asyncio streams, query"),
            Case("pyvisa-py query, blocking", sync(lambda: plain.query(":OUTP?")), 1, "bare asyncio streams, query"),
            Case("pyvisa-py query, asyncio.to_thread", in_thread(plain), 1, "bare asyncio streams, query"),
            Case("VisaLink.exchange", exchange(visa, block=False), 1, "bare asyncio streams, query"),
        ]
        if importlib.util.find_spec("qcodes") is not None:
            cases.append(Case("QCoDeS parameter get", sync(qcodes_get(stack, server)), 1, cases[0].name))
        cases += [
            Case("bare asyncio streams, block (bytes)", bare.block, block),
            Case("TcpLink, block (bytes)", exchange(tcp, block=True), block, "bare asyncio streams, block (bytes)"),
            Case("pyvisa-py naive, block (bytes)", sync(lambda: _naive_block(plain)), block),
            Case("VisaLink, block (bytes)", exchange(visa, block=True), block, "pyvisa-py naive, block (bytes)"),
            Case("eight bare tasks of 2 ms", together([one.query for one in streams]), INSTRUMENTS),
            Case(
                "eight drivers of 2 ms",
                together([asks(one) for one in meters]),
                INSTRUMENTS,
                "eight bare tasks of 2 ms",
            ),
        ]
        yield Suite("Links: queries, and blocks of 1 MB", "query", cases, [server.pid, slow.pid])


def _naive_block(resource: MessageBasedResource) -> None:
    values = resource.query_binary_values("BLOCK?", datatype="B", container=bytes)
    assert len(values) == BLOCK_BYTES


if __name__ == "__main__":
    main(Script("benchmarks.links", prepare, ("pyvisa", "pyvisa-py"), pin_one_core=True))
