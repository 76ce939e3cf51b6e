"""The wire driver and the board's server on real sockets: sessions, refusals, safety."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig_drivers.board_messages import (
    Done,
    Fault,
    FaultCode,
    Hello,
    Message,
    Mvm,
    Ping,
    Pong,
    Program,
    Programmed,
    Safe,
    Welcome,
    info_to_json,
)
from labrig_drivers.board_protocol import BoardFraming, decode, encode
from labrig_drivers.errors import (
    CapabilityError,
    IdentityError,
    InstrumentError,
    LinkError,
    LinkTimeoutError,
    ProtocolError,
    SafetyError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.links.base import LinkState
from labrig_drivers.links.memory import MemoryLink
from labrig_drivers.links.serial import SerialLink
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.event_log import BoardEvent
from labrig_drivers.mock.ports import TcpPort
from labrig_drivers.wire_board import WireBoard

SETTINGS = ChipSettings(seed=4, arrays=1, rows=6, columns=5)
TARGET_S = np.full((6, 5), 20e-6)


class Bench:
    """A served board and what its server noted."""

    def __init__(self, board: MockBoard, **options: float) -> None:
        self.board = board
        self.events: list[BoardEvent] = []
        self._noted_more = asyncio.Event()
        self.server = BoardServer(
            board,
            self._note,
            gap_s=options.get("gap_s", 0.5),
            silence_s=options.get("silence_s", 10.0),
            handover_s=options.get("handover_s", 0.05),
        )
        self.port = 0

    def link(self) -> TcpLink:
        return TcpLink("127.0.0.1", self.port)

    def noted(self) -> list[str]:
        return [event.what for event in self.events]

    async def seen(self, what: str, count: int = 1) -> None:
        """Waits until the server has noted `what` so many times."""
        async with asyncio.timeout(10.0):
            while self.noted().count(what) < count:
                self._noted_more.clear()
                await self._noted_more.wait()

    def _note(self, event: BoardEvent) -> None:
        self.events.append(event)
        self._noted_more.set()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(MockBoard(SETTINGS))
    async with bench.server:
        bench.port = await bench.server.start_tcp()
        yield bench


class RawHost:
    """A host that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = bytearray()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> tuple[int, Message]:
        framing = BoardFraming()
        async with asyncio.timeout(10.0):
            while (frame := framing.take(self._buffer)) is None:
                piece = await self._reader.read(65536)
                if not piece:
                    raise EOFError
                self._buffer += piece
        return decode(frame)

    async def ask(self, message: Message, request_id: int = 1) -> Message:
        await self.send(encode(message, request_id))
        answered_id, answer = await self.receive()
        assert answered_id == request_id
        return answer


@pytest.fixture
async def raw_host(bench: Bench) -> AsyncIterator[RawHost]:
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    yield RawHost(reader, writer)
    writer.close()
    await writer.wait_closed()


async def test_opening_and_closing_moves_nothing(bench: Bench) -> None:
    async with WireBoard(bench.link(), expected=ExpectedIdentity("LR-SIM1", "SIM-0004")) as board:
        assert board.identity.serial == "SIM-0004"
        assert board.info.chip_id == "SIM-0004"
    await bench.seen("disconnect")
    assert bench.noted() == ["connect", "grounded", "disconnect"]


@pytest.mark.parametrize("expected", [ExpectedIdentity(model="LR-9"), ExpectedIdentity(serial="SIM-0005")])
async def test_another_board_is_refused_and_let_go(bench: Bench, expected: ExpectedIdentity) -> None:
    link = bench.link()
    board = WireBoard(link, expected=expected)
    with pytest.raises(IdentityError, match="SIM-0004"):
        await board.open()
    assert link.state is LinkState.CLOSED
    with pytest.raises(StateError, match="not open"):
        await board.mvm(0, np.zeros((1, 6)))
    await bench.seen("disconnect")
    assert "program" not in bench.noted()


async def test_opening_twice_is_refused_and_the_first_session_goes_on(bench: Bench) -> None:
    async with WireBoard(bench.link()) as board:
        with pytest.raises(StateError, match="already open"):
            await board.open()
        await board.ping()


async def test_refused_requests_never_reach_the_board(bench: Bench) -> None:
    async with WireBoard(bench.link()) as board:
        with pytest.raises(SafetyError, match="nothing was sent"):
            await board.program(0, 10 * TARGET_S)
        with pytest.raises(SafetyError):
            await board.mvm(0, np.full((1, 6), np.inf))
        with pytest.raises(CapabilityError):
            await board.mvm(1, np.zeros((1, 6)))
        with pytest.raises(CapabilityError):
            await board.read_conductance(-1)
        assert "fault" not in bench.noted()
        assert "program" not in bench.noted()


async def test_a_limit_that_only_the_board_knows_comes_back_as_a_safety_error(raw_host: RawHost) -> None:
    await raw_host.ask(Hello(1, 1))
    answer = await raw_host.ask(Program(0, 1, np.full((6, 5), 1e-3, dtype=np.float32)))
    assert isinstance(answer, Fault)
    assert answer.code == FaultCode.UNSAFE_VALUE


async def test_an_array_that_was_never_programmed_is_a_state_error(bench: Bench) -> None:
    async with WireBoard(bench.link()) as board:
        with pytest.raises(StateError, match="never programmed"):
            await board.mvm(0, np.zeros((1, 6)))
        # A refusal is a whole answer: the same session goes on.
        await board.program(0, TARGET_S)
        await board.mvm(0, np.zeros((1, 6)))
    await bench.seen("disconnect")
    assert bench.noted().count("connect") == 1


async def test_without_its_supply_the_board_refuses() -> None:
    voltage_v = 0.0
    board = MockBoard(SETTINGS, minimum_supply_v=1.0)
    events: list[BoardEvent] = []
    async with BoardServer(board, events.append, supply_is_on=lambda: voltage_v >= 1.0) as server:
        port = await server.start_tcp()
        async with WireBoard(TcpLink("127.0.0.1", port)) as wire:
            with pytest.raises(StateError, match="supply"):
                await wire.program(0, TARGET_S)
            assert events[-1].text.startswith("SUPPLY_OFF")
            voltage_v = 1.2
            board.set_supply_voltage(voltage_v)
            assert (await wire.program(0, TARGET_S)).write_index == 0


async def test_a_board_that_fails_inside_is_an_instrument_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def burnt(array: int) -> NDArray[np.float64]:
        raise ZeroDivisionError("sense amplifier")

    monkeypatch.setattr(bench.board, "read_conductance", burnt)
    async with WireBoard(bench.link()) as board:
        with pytest.raises(InstrumentError, match="sense amplifier") as caught:
            await board.read_conductance(0)
        assert caught.value.code == FaultCode.INTERNAL
        assert caught.value.command == "ReadConductance"


async def test_one_host_at_a_time_whatever_way_it_comes(bench: Bench) -> None:
    device = bench.server.start_pty()
    async with WireBoard(bench.link()) as first:
        for other in (WireBoard(bench.link()), WireBoard(SerialLink(device))):
            with pytest.raises(StateError, match="another host"):
                await other.open()
        await first.ping()
    async with WireBoard(SerialLink(device)) as second:
        with pytest.raises(StateError, match="another host"):
            await WireBoard(bench.link()).open()
        await second.ping()


async def test_what_is_programmed_stays_for_the_next_host(bench: Bench) -> None:
    async with WireBoard(bench.link()) as board:
        assert (await board.program(0, TARGET_S)).write_index == 0
    async with WireBoard(SerialLink(bench.server.start_pty())) as board:
        assert (await board.mvm(0, np.zeros((1, 6)))).write_index == 0


async def test_a_host_that_vanishes_leaves_grounded_lines(bench: Bench) -> None:
    link = bench.link()
    board = WireBoard(link)
    await board.open()
    await board.program(0, TARGET_S)
    # Gone without a word, as when the host's process is killed.
    await link.close()
    await bench.seen("disconnect")
    assert bench.noted() == ["connect", "program", "grounded", "disconnect"]
    await board.close()


async def test_a_host_that_vanishes_from_a_serial_line_leaves_grounded_lines(bench: Bench) -> None:
    link = SerialLink(bench.server.start_pty())
    board = WireBoard(link)
    await board.open()
    await link.close()
    await bench.seen("disconnect")
    assert bench.noted() == ["connect", "grounded", "disconnect"]
    await board.close()


async def test_a_silent_host_finds_its_lines_grounded_and_goes_on() -> None:
    bench = Bench(MockBoard(SETTINGS), silence_s=0.02)
    async with bench.server:
        bench.port = await bench.server.start_tcp()
        async with WireBoard(bench.link(), keep_alive=False) as board:
            await board.program(0, TARGET_S)
            await bench.seen("grounded")
            assert "disconnect" not in bench.noted()
            assert (await board.mvm(0, np.zeros((1, 6)))).write_index == 0


async def test_closing_grounds_the_lines_also_when_it_is_cancelled(bench: Bench) -> None:
    link = bench.link()
    board = WireBoard(link)
    await board.open()
    closing = asyncio.ensure_future(board.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert link.state is LinkState.CLOSED
    assert "grounded" in bench.noted()


async def test_a_repeated_key_programs_once(bench: Bench, raw_host: RawHost) -> None:
    assert isinstance(await raw_host.ask(Hello(1, 1)), Welcome)
    request = Program(0, 99, TARGET_S.astype(np.float32))
    first = await raw_host.ask(request, 2)
    assert isinstance(first, Programmed)
    assert await raw_host.ask(request, 3) == first
    assert bench.noted().count("program") == 1
    other = await raw_host.ask(Program(0, 100, TARGET_S.astype(np.float32)), 4)
    assert isinstance(other, Programmed)
    assert other.write_index == first.write_index + 1


async def test_nothing_is_done_without_a_session(bench: Bench, raw_host: RawHost) -> None:
    for request in (Program(0, 1, TARGET_S.astype(np.float32)), Safe(), Ping(1)):
        answer = await raw_host.ask(request)
        assert isinstance(answer, Fault)
        assert answer.code == FaultCode.BAD_REQUEST
        assert "Hello" in answer.text
    assert "program" not in bench.noted()


async def test_a_host_of_another_version_is_told_so(raw_host: RawHost) -> None:
    answer = await raw_host.ask(Hello(2, 9))
    assert isinstance(answer, Fault)
    assert answer.code == FaultCode.UNSUPPORTED
    assert isinstance(await raw_host.ask(Hello(0, 9)), Welcome)


async def test_an_answer_sent_as_a_request_and_an_unknown_type_are_refused(raw_host: RawHost) -> None:
    await raw_host.ask(Hello(1, 1))
    answer = await raw_host.ask(Done())
    assert isinstance(answer, Fault)
    assert answer.code == FaultCode.BAD_REQUEST
    assert await raw_host.ask(Ping(5)) == Pong(5)


async def test_garbage_ends_a_connection_and_nothing_else(bench: Bench, raw_host: RawHost) -> None:
    async with WireBoard(bench.link()) as board:
        await raw_host.send(b"GET / HTTP/1.1\r\n\r\n")
        request_id, answer = await raw_host.receive()
        assert request_id == 0
        assert isinstance(answer, Fault)
        with pytest.raises(EOFError):
            await raw_host.receive()
        await board.ping()


async def test_a_serial_line_comes_back_into_step_after_garbage(bench: Bench) -> None:
    link = SerialLink(bench.server.start_pty())
    await link.open()
    request_id, answer = decode(await link.exchange(b"noise\n", BoardFraming()))
    assert request_id == 0
    assert isinstance(answer, Fault)
    assert isinstance(decode(await link.exchange(encode(Hello(1, 1), 2), BoardFraming()))[1], Welcome)
    await link.close()


async def test_a_serial_line_comes_back_into_step_after_half_a_frame() -> None:
    bench = Bench(MockBoard(SETTINGS), gap_s=0.02)
    async with bench.server:
        link = SerialLink(bench.server.start_pty())
        await link.open()
        # It announces 1,000 bytes that never come, so the first greeting may be taken for a part of them.
        half = encode(Mvm(0, np.zeros((1, 248), dtype=np.float32)), 1)[:20]
        await link.exchange(half, None)
        answers = []
        for request_id in (2, 3):
            with contextlib.suppress(LinkTimeoutError):
                frame = await link.exchange(encode(Hello(1, 1), request_id), BoardFraming(), timeout_s=0.5)
                answers.append(decode(frame))
            await link.reopen()
        assert answers[-1][0] == 3
        assert isinstance(answers[-1][1], Welcome)
        await link.close()


async def test_a_port_in_use_is_one_clear_error(bench: Bench) -> None:
    async with BoardServer(MockBoard(SETTINGS)) as other:
        with pytest.raises(LinkError, match=f"127.0.0.1:{bench.port}.*in use.*another port"):
            await other.start_tcp(port=bench.port)


async def test_the_server_answers_without_waiting_for_more_to_send() -> None:
    options: asyncio.Queue[int] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = TcpPort(reader, writer)
        connection: socket.socket = writer.get_extra_info("socket")
        options.put_nowait(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await port.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link = TcpLink("127.0.0.1", server.sockets[0].getsockname()[1])
    await link.open()
    assert await options.get() != 0
    await link.close()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("spoil", ["version", "description", "payload", "requests", "silence"])
async def test_a_welcome_that_makes_no_sense_is_refused(spoil: str) -> None:
    async with MockBoard(SETTINGS) as board:
        good = Welcome(1, 1, 10_000, 1, 0.0, board.identity, info_to_json(board.info))
    welcome = {
        "version": replace(good, version=2),
        "description": replace(good, info_json="{}"),
        "payload": replace(good, max_payload_bytes=20),
        "requests": replace(good, max_requests=0),
        "silence": replace(good, silence_s=math.inf),
    }[spoil]
    link = MemoryLink(lambda request: encode(welcome, decode(request)[0]))
    with pytest.raises(ProtocolError, match=spoil):
        await WireBoard(link).open()
    assert link.state is LinkState.CLOSED
