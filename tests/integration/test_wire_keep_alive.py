"""A host that only thinks keeps its lines; one that is gone, stopped or deaf does not."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from labrig_drivers.board_messages import Hello, Ping, ReadConductance, Welcome, info_to_json
from labrig_drivers.board_protocol import BoardFraming, decode, encode
from labrig_drivers.errors import LinkLostError, StateError
from labrig_drivers.instrument import ProtectsItself
from labrig_drivers.links.base import LinkState
from labrig_drivers.links.memory import MemoryLink
from labrig_drivers.links.serial import SerialLink
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.event_log import BoardEvent
from labrig_drivers.wire_board import WireBoard

SETTINGS = ChipSettings(seed=4, arrays=1, rows=6, columns=5)
TARGET_S = np.full((6, 5), 20e-6)
SILENCE_S = 0.5
# What a busy machine may add to any time.
SLACK_S = 2.0

HOST = """
import asyncio, sys
import numpy as np
from labrig_drivers.links import link_from_url
from labrig_drivers.wire_board import WireBoard

async def main():
    async with WireBoard(link_from_url(sys.argv[1])) as board:
        await board.program(0, np.full((6, 5), 20e-6))
        print("programmed", flush=True)
        # Thinks for a long time.
        await asyncio.sleep(60.0)

asyncio.run(main())
"""


class Bench:
    """A served board, and what its server noted."""

    def __init__(self, silence_s: float) -> None:
        self.events: list[BoardEvent] = []
        self.server = BoardServer(MockBoard(SETTINGS), self._note, silence_s=silence_s)
        self.port = 0
        self._noted_more = asyncio.Event()

    def link(self) -> TcpLink:
        return TcpLink("127.0.0.1", self.port)

    def noted(self) -> list[str]:
        return [event.what for event in self.events]

    async def seen(self, what: str) -> float:
        """Waits until the server has noted `what`; returns when it did, in s."""
        async with asyncio.timeout(10.0):
            while what not in self.noted():
                self._noted_more.clear()
                await self._noted_more.wait()
        return next(event.time_s for event in self.events if event.what == what)

    def _note(self, event: BoardEvent) -> None:
        self.events.append(event)
        self._noted_more.set()


@asynccontextmanager
async def bench_of(silence_s: float) -> AsyncIterator[Bench]:
    bench = Bench(silence_s)
    async with bench.server:
        bench.port = await bench.server.start_tcp()
        yield bench


@pytest.mark.parametrize("line", ["tcp", "serial"])
async def test_an_idle_host_keeps_its_lines_for_as_long_as_it_lives(line: str) -> None:
    async with bench_of(SILENCE_S) as bench:
        link = bench.link() if line == "tcp" else SerialLink(bench.server.start_pty())
        async with WireBoard(link) as board:
            await board.program(0, TARGET_S)
            await asyncio.sleep(2 * SILENCE_S)
            assert "grounded" not in bench.noted()
            # A second session is alive as well.
            await board.close()
            assert bench.noted().count("grounded") == 1
            await board.open()
            await asyncio.sleep(1.5 * SILENCE_S)
            assert bench.noted().count("grounded") == 1


async def test_pings_never_come_between_a_request_and_its_answer() -> None:
    # A ping every 2 ms: some fall due during almost every request.
    async with bench_of(6e-3) as bench, WireBoard(bench.link()) as board:
        await board.program(0, TARGET_S)
        for size in range(1, 120):
            assert (await board.mvm(0, np.zeros((size, 6)))).code.shape == (size, 5)
            await asyncio.sleep(0.001 * (size % 4))
        parts = [part async for part in board.mvm_stream(0, np.zeros((50, 6)), part_vectors=1)]
        assert len(parts) == 50
    assert bench.noted().count("connect") == 1


async def test_a_board_that_is_lost_while_the_host_thinks_is_found_by_the_next_request() -> None:
    async with bench_of(0.06) as bench:
        port = bench.port
        board = WireBoard(bench.link(), timeout_s=0.5)
        await board.open()
    # Long enough for several pings, which nobody hears of.
    await asyncio.sleep(0.1)
    for _ in range(2):
        with pytest.raises(LinkLostError):
            await board.ping()
    async with BoardServer(MockBoard(SETTINGS), silence_s=0.06) as other:
        await other.start_tcp(port=port)
        await board.ping()
        await board.close()


async def welcome_of(silence_s: float) -> Welcome:
    async with MockBoard(SETTINGS) as board:
        return Welcome(1, 1, 10_000, 1, silence_s, board.identity, info_to_json(board.info))


class Mumbler:
    """A board that greets properly and answers pings with noise."""

    def __init__(self, welcome: Welcome) -> None:
        self.pings = 0
        self._welcome = welcome

    def __call__(self, frame: bytes) -> bytes:
        request_id, request = decode(frame)
        if isinstance(request, Ping):
            self.pings += 1
            return b"mumble"
        return encode(self._welcome, request_id)


async def test_a_ping_that_goes_wrong_is_not_repeated_and_not_reported_by_the_task() -> None:
    peer = Mumbler(await welcome_of(0.03))
    link = MemoryLink(peer)
    board = WireBoard(link)
    await board.open()
    await asyncio.sleep(0.1)
    assert peer.pings == 1
    assert link.state is LinkState.DESYNCHRONISED
    assert board.identity.serial == "SIM-0004"
    await board.close()


@pytest.mark.parametrize(("silence_s", "keep_alive"), [(0.0, True), (0.03, False)])
async def test_nothing_is_pinged_where_it_is_not_wanted(silence_s: float, keep_alive: bool) -> None:
    peer = Mumbler(await welcome_of(silence_s))
    async with WireBoard(MemoryLink(peer), keep_alive=keep_alive):
        await asyncio.sleep(0.08)
    assert peer.pings == 0


async def test_closing_does_not_wait_for_a_board_that_went_silent() -> None:
    welcome = await welcome_of(0.03)

    async def greet_and_fall_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer = bytearray()
        while (frame := BoardFraming().take(buffer)) is None:
            buffer += await reader.read(1000)
        writer.write(encode(welcome, decode(frame)[0]))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet_and_fall_silent, "127.0.0.1", 0)
    link = TcpLink("127.0.0.1", server.sockets[0].getsockname()[1])
    board = WireBoard(link, timeout_s=0.2)
    await board.open()
    # The first ping is under way by now, and is never answered.
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5.0):
        await board.close()
    assert link.state is LinkState.CLOSED
    server.close()
    await server.wait_closed()


async def test_the_board_says_what_protects_the_lines() -> None:
    async with bench_of(2.5) as bench:
        board = WireBoard(bench.link())
        with pytest.raises(StateError):
            _ = board.host_loss_protection
        async with board:
            assert isinstance(board, ProtectsItself)
            assert board.host_loss_protection.silence_s == pytest.approx(2.5)
            assert "2.5 s" in board.host_loss_protection.text
    async with bench_of(0.0) as bench, WireBoard(bench.link()) as board:
        assert board.host_loss_protection.silence_s is None
        assert "connection ends" in board.host_loss_protection.text


@asynccontextmanager
async def host_process(address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A host with a process of its own that has programmed the board and thinks now."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOST, address, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"programmed\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("line", ["tcp", "serial"])
async def test_a_host_that_is_killed_leaves_grounded_lines(line: str) -> None:
    async with bench_of(SILENCE_S) as bench:
        address = f"tcp://127.0.0.1:{bench.port}" if line == "tcp" else f"serial://{bench.server.start_pty()}"
        async with host_process(address) as process:
            await asyncio.sleep(2 * SILENCE_S)
            assert "grounded" not in bench.noted()
            killed_s = time.monotonic()
            process.send_signal(signal.SIGKILL)
            assert await bench.seen("grounded") - killed_s < SILENCE_S + SLACK_S
        await bench.seen("disconnect")


@pytest.mark.parametrize("line", ["tcp", "serial"])
async def test_a_host_that_is_stopped_leaves_grounded_lines_and_may_come_back(line: str) -> None:
    async with bench_of(SILENCE_S) as bench:
        address = f"tcp://127.0.0.1:{bench.port}" if line == "tcp" else f"serial://{bench.server.start_pty()}"
        async with host_process(address) as process:
            stopped_s = time.monotonic()
            process.send_signal(signal.SIGSTOP)
            grounded_s = await bench.seen("grounded")
            assert grounded_s - stopped_s < SILENCE_S + SLACK_S
            # The connection lives on: only the host's silence told.
            assert "disconnect" not in bench.noted()
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGINT)
            await bench.seen("disconnect")


async def test_a_host_that_takes_nothing_of_its_answers_leaves_grounded_lines() -> None:
    async with bench_of(0.2) as bench:
        async with WireBoard(bench.link()) as board:
            await board.program(0, TARGET_S)
        await bench.seen("disconnect")
        bench.events.clear()
        # A small limit, so that little is taken from the kernel's buffers.
        _, writer = await asyncio.open_connection("127.0.0.1", bench.port, limit=1024)
        reads = b"".join(encode(ReadConductance(0), number) for number in range(2, 60_000))
        writer.write(encode(Hello(1, 1), 1) + reads)
        await bench.seen("grounded")
        await bench.seen("disconnect")
        writer.transport.abort()
