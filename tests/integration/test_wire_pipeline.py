"""Several requests under way, and answers in parts: order, back-pressure, refusals, streams that are left or closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self

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
    MvmAnswer,
    MvmPart,
    Ping,
    Pong,
    Safe,
    StreamMvm,
    Welcome,
    info_to_json,
)
from labrig_drivers.board_protocol import BoardFraming, decode, encode
from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
from labrig_drivers.errors import CapabilityError, SafetyError, StateError
from labrig_drivers.instrument import Identity
from labrig_drivers.links.base import Link
from labrig_drivers.links.memory import MemoryLink
from labrig_drivers.links.serial import SerialLink
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.links.visa import VisaLink
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.event_log import BoardEvent
from labrig_drivers.wire_board import WireBoard

ROWS, COLUMNS = 3, 4
# Eleven vectors in a frame, so that short batches go in many.
PAYLOAD_BYTES, IN_A_FRAME = 200, 11
INFO = BoardInfo(
    chip_id="A-1",
    arrays=1,
    rows=ROWS,
    columns=COLUMNS,
    conductance_min_s=0.0,
    conductance_max_s=1e-4,
    voltage_min_v=-10.0,
    voltage_max_v=10.0,
    dac_bits=16,
    adc_bits=16,
    adc_full_scale_a=(1.0,) * COLUMNS,
    mvm_latency_s=0.0,
    program_latency_s=0.0,
)


async def at_once() -> None:
    """What a board does before it measures, unless a test wants more."""


class ExactBoard:
    """A board whose codes tell which vector they answer: `code = 1000 * voltage` of the first row."""

    identity = Identity("labrig", "exact", "A-1", "1")
    info = INFO

    def __init__(self, before: Callable[[], Awaitable[None]] = at_once) -> None:
        self.before = before
        self.measured: list[int] = []

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        pass

    async def program(self, array: int, conductance_s: NDArray[np.float64]) -> ProgramReport:
        return ProgramReport(0, 0.0, 1, 0.0)

    async def mvm(self, array: int, voltage_v: NDArray[np.float64]) -> MvmResult:
        await self.before()
        self.measured.append(len(voltage_v))
        code = np.repeat(np.round(1000 * voltage_v[:, :1]), COLUMNS, axis=1).astype(np.int16)
        nothing = np.zeros(code.shape)
        return MvmResult(code, nothing, code % 2 == 1, np.arange(len(code), dtype=float), 0)

    async def read_conductance(self, array: int) -> NDArray[np.float64]:
        return np.zeros((ROWS, COLUMNS))


class Bench:
    """A served board, and what its server noted."""

    def __init__(self) -> None:
        self.board = ExactBoard()
        self.events: list[BoardEvent] = []
        self.server = BoardServer(self.board, self._note, max_payload_bytes=PAYLOAD_BYTES, max_requests=4)
        self.port = 0
        self._noted_more = asyncio.Event()

    async def seen(self, what: str) -> None:
        """Waits until the server has noted `what`."""
        async with asyncio.timeout(10.0):
            while what not in [event.what for event in self.events]:
                self._noted_more.clear()
                await self._noted_more.wait()

    def _note(self, event: BoardEvent) -> None:
        self.events.append(event)
        self._noted_more.set()

    def link(self) -> TcpLink:
        return TcpLink("127.0.0.1", self.port)

    def link_of(self, kind: str) -> Link:
        if kind == "tcp":
            return self.link()
        if kind == "visa":
            return VisaLink(f"TCPIP::127.0.0.1::{self.port}::SOCKET")
        return SerialLink(self.server.start_pty())

    def connects(self) -> int:
        return sum(event.what == "connect" for event in self.events)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    async with bench.server:
        bench.port = await bench.server.start_tcp()
        yield bench


def marked(marks: range) -> NDArray[np.float64]:
    voltage_v = np.zeros((len(marks), ROWS))
    voltage_v[:, 0] = np.array(marks) / 1000
    return voltage_v


def assert_answers(result: MvmResult, marks: range) -> None:
    assert result.code.tolist() == [[mark] * COLUMNS for mark in marks]
    assert result.saturated.tolist() == [[mark % 2 == 1] * COLUMNS for mark in marks]
    np.testing.assert_array_equal(result.current_a, result.code * INFO.adc_lsb_a)
    assert len(result.time_s) == len(marks)
    assert result.code.flags.writeable


@pytest.mark.parametrize("line", ["tcp", "serial", "visa"])
async def test_a_long_batch_is_answered_vector_by_vector_in_order(bench: Bench, line: str) -> None:
    link = bench.link_of(line)
    async with WireBoard(link) as board:
        for size in (1, IN_A_FRAME, IN_A_FRAME + 1, 500):
            bench.board.measured.clear()
            assert_answers(await board.mvm(0, marked(range(-7, size - 7))), range(-7, size - 7))
            assert sum(bench.board.measured) == size
            assert max(bench.board.measured) <= IN_A_FRAME
            # Even pieces: no request is sent for a vector or two.
            assert max(bench.board.measured) - min(bench.board.measured) <= len(bench.board.measured)


async def test_two_callers_with_long_batches_get_their_own_answers(bench: Bench) -> None:
    async def turn() -> None:
        await asyncio.sleep(0)

    bench.board.before = turn
    ranges = [range(start, start + 100) for start in (0, 5000, -9000)]
    async with WireBoard(bench.link()) as board:
        results = await asyncio.gather(*(board.mvm(0, marked(marks)) for marks in ranges))
    for result, marks in zip(results, ranges, strict=True):
        assert_answers(result, marks)


class ScriptedPeer:
    """A board's end of a connection that answers when the test says so."""

    def __init__(self, max_requests: int) -> None:
        self.requests: asyncio.Queue[tuple[int, Message]] = asyncio.Queue()
        self._welcome = Welcome(1, 1, PAYLOAD_BYTES, max_requests, 0.0, ExactBoard.identity, info_to_json(INFO))
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        framing, buffer = BoardFraming(), bytearray()
        while piece := await reader.read(65536):
            buffer += piece
            while (frame := framing.take(buffer)) is not None:
                request_id, request = decode(frame)
                if isinstance(request, Hello):
                    writer.write(encode(self._welcome, request_id))
                elif isinstance(request, Safe):
                    writer.write(encode(Done(), request_id))
                else:
                    self.requests.put_nowait((request_id, request))
        writer.close()

    def answer(self, request_id: int, request: Message) -> None:
        assert isinstance(request, Mvm)
        assert self._writer is not None
        code = np.repeat(np.round(1000 * request.voltage_v[:, :1]), COLUMNS, axis=1).astype(np.int16)
        self._writer.write(encode(MvmAnswer(0, np.zeros(len(code)), code, code % 2 == 1), request_id))


@pytest.mark.parametrize("window", [1, 3])
async def test_no_more_requests_are_under_way_than_the_board_takes(window: int) -> None:
    peer = ScriptedPeer(window)
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    board = WireBoard(TcpLink("127.0.0.1", server.sockets[0].getsockname()[1]), timeout_s=0.5)
    await board.open()
    marks = range(6 * IN_A_FRAME)
    asking = asyncio.create_task(board.mvm(0, marked(marks)))
    async with asyncio.timeout(10.0):
        waiting = [await peer.requests.get() for _ in range(window)]
        for left in range(6 - window, -1, -1):
            # Nothing more comes until one is answered.
            await asyncio.sleep(0.01)
            assert peer.requests.empty()
            peer.answer(*waiting.pop(0))
            if left:
                waiting.append(await peer.requests.get())
        for request in waiting:
            peer.answer(*request)
        assert_answers(await asking, marks)
    await board.close()
    server.close()
    await server.wait_closed()


async def test_a_refusal_in_the_middle_refuses_the_batch_and_the_session_goes_on(bench: Bench) -> None:
    async def fail_at_third() -> None:
        if len(bench.board.measured) == 2:
            bench.board.before = at_once
            raise StateError("not now")

    bench.board.before = fail_at_third
    async with WireBoard(bench.link()) as board:
        with pytest.raises(StateError, match="not now"):
            await board.mvm(0, marked(range(500)))
        # What was on its way was carried out, and nothing after that.
        assert len(bench.board.measured) <= 2 + 4
        assert_answers(await board.mvm(0, marked(range(100))), range(100))
    assert bench.connects() == 1


class RawHost:
    """A host that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._buffer = bytearray()

    async def receive(self) -> tuple[int, Message]:
        async with asyncio.timeout(10.0):
            while (frame := BoardFraming().take(self._buffer)) is None:
                piece = await self._reader.read(65536)
                if not piece:
                    raise EOFError
                self._buffer += piece
        return decode(frame)


@pytest.fixture
async def raw_host(bench: Bench) -> AsyncIterator[RawHost]:
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    host = RawHost(reader, writer)
    writer.write(encode(Hello(1, 1), 1))
    assert isinstance((await host.receive())[1], Welcome)
    yield host
    writer.close()
    await writer.wait_closed()


def mvm_request(marks: range) -> Mvm:
    return Mvm(0, marked(marks).astype(np.float32))


async def test_the_server_answers_everything_in_order_whatever_is_refused(raw_host: RawHost) -> None:
    requests: list[Message] = [Ping(1), mvm_request(range(3)), ping_answer := Pong(2), Ping(3), mvm_request(range(2))]
    raw_host.writer.write(b"".join(encode(request, 10 + index) for index, request in enumerate(requests)))
    answers = [await raw_host.receive() for _ in requests]
    assert [request_id for request_id, _ in answers] == [10, 11, 12, 13, 14]
    assert [type(answer) for _, answer in answers] == [Pong, MvmAnswer, Fault, Pong, MvmAnswer]
    assert isinstance(ping_answer, Pong)


async def test_a_host_that_sends_far_ahead_is_held_back_and_loses_nothing() -> None:
    going = asyncio.Event()

    async def wait() -> None:
        await going.wait()

    board = ExactBoard(wait)
    count, size = 48, 30_000
    async with BoardServer(board, max_payload_bytes=2**20) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", await server.start_tcp())
        host = RawHost(reader, writer)
        writer.write(encode(Hello(1, 1), 1))
        await host.receive()
        zeros = Mvm(0, np.zeros((size, ROWS), np.float32))
        # Far more than the buffers in between hold: the server does not read what it cannot do yet.
        writer.write(b"".join(encode(zeros, number) for number in range(count)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await writer.drain()
        assert board.measured == []
        going.set()
        assert [(await host.receive())[0] for _ in range(count)] == list(range(count))
        assert board.measured == [size] * count
        writer.close()
        await writer.wait_closed()


async def test_a_request_for_parts_is_checked_as_a_whole_before_anything_is_measured(
    bench: Bench, raw_host: RawHost
) -> None:
    good = marked(range(IN_A_FRAME)).astype(np.float32)
    wild = good.copy()
    wild[-1, -1] = 11.0
    for request, code in (
        (StreamMvm(0, 2, wild), FaultCode.UNSAFE_VALUE),
        (StreamMvm(1, 2, good), FaultCode.UNSUPPORTED),
        (StreamMvm(0, 0, good), FaultCode.UNSUPPORTED),
        (StreamMvm(0, 2, good[:0]), FaultCode.UNSUPPORTED),
    ):
        raw_host.writer.write(encode(request, 5))
        request_id, answer = await raw_host.receive()
        assert request_id == 5
        assert isinstance(answer, Fault)
        assert answer.code == code
    assert bench.board.measured == []


async def test_parts_are_numbered_and_the_last_is_marked(raw_host: RawHost) -> None:
    raw_host.writer.write(encode(StreamMvm(0, 4, marked(range(10)).astype(np.float32)), 5) + encode(Ping(1), 6))
    parts = [await raw_host.receive() for _ in range(3)]
    assert [request_id for request_id, _ in parts] == [5, 5, 5]
    seen = [(part.first, part.last, len(part.answer.code)) for _, part in parts if isinstance(part, MvmPart)]
    assert seen == [(0, False, 4), (4, False, 4), (8, True, 2)]
    assert await raw_host.receive() == (6, Pong(1))


async def test_a_host_that_leaves_ends_the_measuring(bench: Bench, raw_host: RawHost) -> None:
    async def turn() -> None:
        await asyncio.sleep(0.001)

    bench.board.before = turn
    request = StreamMvm(0, 1, marked(range(IN_A_FRAME)).astype(np.float32))
    raw_host.writer.write(b"".join(encode(request, number) for number in range(1, 101)))
    await raw_host.receive()
    raw_host.writer.transport.abort()
    await bench.seen("disconnect")
    assert len(bench.board.measured) < 100 * IN_A_FRAME
    assert [event.what for event in bench.events][-2:] == ["grounded", "disconnect"]


@pytest.mark.parametrize("line", ["tcp", "serial", "visa"])
async def test_streamed_results_come_in_order_and_are_all_there(bench: Bench, line: str) -> None:
    link = bench.link_of(line)
    async with WireBoard(link) as board:
        for size, part in ((1, 1), (10, 3), (500, 4), (300, 1000)):
            done = 0
            async for result in board.mvm_stream(0, marked(range(size)), part_vectors=part):
                assert 1 <= len(result.code) <= part
                assert_answers(result, range(done, done + len(result.code)))
                done += len(result.code)
            assert done == size
        await board.ping()
    assert bench.connects() == 1


async def test_the_first_results_are_there_before_the_last_are_measured(bench: Bench) -> None:
    going = asyncio.Semaphore(1)

    async def one_by_one() -> None:
        await going.acquire()

    bench.board.before = one_by_one
    async with WireBoard(bench.link(), timeout_s=5.0) as board:
        async for _ in board.mvm_stream(0, marked(range(40)), part_vectors=10):
            # Only now may the next part be measured.
            going.release()
    assert len(bench.board.measured) >= 4


async def test_what_cannot_be_streamed_is_refused_before_anything_is_sent(bench: Bench) -> None:
    async with WireBoard(bench.link()) as board:
        with pytest.raises(SafetyError):
            board.mvm_stream(0, np.full((2, ROWS), 11.0))
        with pytest.raises(CapabilityError, match="array 3"):
            board.mvm_stream(3, np.zeros((2, ROWS)))
        with pytest.raises(CapabilityError, match="part_vectors"):
            board.mvm_stream(0, np.zeros((2, ROWS)), part_vectors=0)
    with pytest.raises(StateError, match="not open"):
        board.mvm_stream(0, np.zeros((2, ROWS)))
    assert bench.board.measured == []
    plain = Welcome(1, 1, PAYLOAD_BYTES, 1, 0.0, ExactBoard.identity, info_to_json(INFO))
    link = MemoryLink(lambda request: encode(replace(plain), decode(request)[0]))
    old = WireBoard(link)
    await old.open()
    with pytest.raises(CapabilityError, match="streaming"):
        old.mvm_stream(0, np.zeros((2, ROWS)))
    await old.close()


@pytest.mark.parametrize("way", ["break", "aclosing", "error", "cancel"])
async def test_a_stream_that_is_left_early_costs_the_connection_and_nothing_else(bench: Bench, way: str) -> None:
    async def read(board: WireBoard) -> None:
        if way == "aclosing":
            async with aclosing(board.mvm_stream(0, marked(range(400)), part_vectors=2)) as parts:
                await anext(parts)
            return
        async for _ in board.mvm_stream(0, marked(range(400)), part_vectors=2):
            if way == "break":
                break
            if way == "error":
                raise ValueError("enough")
            holding.set()
            await asyncio.sleep(60.0)

    holding = asyncio.Event()
    async with WireBoard(bench.link()) as board:
        reading = asyncio.create_task(read(board))
        if way == "cancel":
            await holding.wait()
            reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        for start in (1000, 2000):
            assert_answers(await board.mvm(0, marked(range(start, start + 50))), range(start, start + 50))
    assert bench.connects() == 2


async def test_a_stream_that_is_left_by_the_reader_of_its_next_request_is_left(bench: Bench) -> None:
    async with WireBoard(bench.link()) as board:
        async for result in board.mvm_stream(0, marked(range(50)), part_vectors=1):
            assert_answers(result, range(1))
            break
        # The same task, at once: the stream is gone by then.
        assert_answers(await board.mvm(0, marked(range(5))), range(5))
        async for result in board.mvm_stream(0, marked(range(6)), part_vectors=4):
            if len(result.code) == 2:
                break
        # Left at its last part, it was over.
        await board.ping()
    assert bench.connects() == 2


async def test_a_request_inside_the_loop_over_a_stream_is_an_error_and_no_standstill(bench: Bench) -> None:
    async with WireBoard(bench.link()) as board:
        done = 0
        async for result in board.mvm_stream(0, marked(range(30)), part_vectors=10):
            if not done:
                with pytest.raises(StateError, match="aclosing"):
                    await board.mvm(0, marked(range(1)))
            assert_answers(result, range(done, done + len(result.code)))
            done += len(result.code)
        assert done == 30


async def test_another_task_waits_until_a_stream_is_over(bench: Bench) -> None:
    async with WireBoard(bench.link()) as board:
        other: asyncio.Task[MvmResult] | None = None
        async for _ in board.mvm_stream(0, marked(range(40)), part_vectors=10):
            other = other or asyncio.create_task(board.mvm(0, marked(range(9))))
            await asyncio.sleep(0.002)
            assert not other.done()
        assert other is not None
        assert_answers(await other, range(9))


async def test_closing_ends_a_stream_and_its_reader_knows(bench: Bench) -> None:
    board = WireBoard(bench.link())
    await board.open()
    stream = board.mvm_stream(0, marked(range(400)), part_vectors=1)
    await anext(stream)
    async with asyncio.timeout(5.0):
        await board.close()
    assert [event.what for event in bench.events].count("grounded") >= 1
    # Never an end that looks like the end of the results.
    for _ in range(2):
        with pytest.raises(StateError, match="closed while"):
            await anext(stream)
    async with board:
        parts = [part async for part in board.mvm_stream(0, marked(range(20)))]
        assert_answers(parts[0], range(len(parts[0].code)))


async def test_closing_ends_a_stream_that_another_task_is_reading(bench: Bench) -> None:
    started = asyncio.Event()
    seen = 0

    async def slowly() -> None:
        await asyncio.sleep(0.005)

    async def read(board: WireBoard) -> None:
        nonlocal seen
        async for _ in board.mvm_stream(0, marked(range(4000)), part_vectors=1):
            seen += 1
            started.set()

    bench.board.before = slowly
    board = WireBoard(bench.link())
    await board.open()
    reading = asyncio.create_task(read(board))
    await started.wait()
    async with asyncio.timeout(5.0):
        await board.close()
    with pytest.raises(StateError, match="closed while"):
        await reading
    assert seen < 4000
