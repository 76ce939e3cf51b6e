"""Faults between host and board: every call gives its own answer or a typed error, and the next one is right again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig_drivers.board_messages import Done, Fault, FaultCode, Message, MvmAnswer, Welcome, info_to_json
from labrig_drivers.board_protocol import decode, encode
from labrig_drivers.capabilities import READ_CONDUCTANCE
from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
from labrig_drivers.errors import (
    IdentityError,
    LabrigError,
    LinkError,
    LinkLostError,
    LinkTimeoutError,
    ProtocolError,
    StateError,
)
from labrig_drivers.instrument import Identity
from labrig_drivers.links.base import LinkState
from labrig_drivers.links.memory import MemoryLink
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.wire_board import WireBoard

ROWS, COLUMNS = 3, 4
TARGET_S = np.full((ROWS, COLUMNS), 1e-5)
# Faults that swallow an answer end in this deadline.
TIMEOUT_S = 0.3


class ExactBoard:
    """A board whose codes tell which vector they answer: `code = 1000 * voltage` of the first row."""

    def __init__(self, serial: str = "A-1") -> None:
        self.identity = Identity("labrig", "exact", serial, "1")
        self.info = BoardInfo(
            chip_id=serial,
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
            capabilities=frozenset({READ_CONDUCTANCE}),
        )
        self.writes = 0

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
        self.writes += 1
        return ProgramReport(self.writes - 1, 0.0, 1, 0.0)

    async def mvm(self, array: int, voltage_v: NDArray[np.float64]) -> MvmResult:
        code = np.repeat(np.round(1000 * voltage_v[:, :1]), COLUMNS, axis=1).astype(np.int16)
        nothing = np.zeros(code.shape)
        return MvmResult(code, nothing, nothing > 0, np.zeros(len(code)), max(self.writes - 1, 0))

    async def read_conductance(self, array: int) -> NDArray[np.float64]:
        return TARGET_S


Spoil = Callable[[bytes], list[bytes]]
"""What becomes of one answer on its way: the pieces to send on; an empty piece ends the connection."""


class FaultProxy:
    """Passes bytes between hosts and a server, and spoils the answers that it is told to."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.port = 0
        self._spoils: list[Spoil | None] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def spoil(self, *spoils: Spoil | None) -> None:
        """Sets what becomes of the next answers, in their order; None passes one on as it is."""
        self._spoils = list(spoils)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _pass(self, host: asyncio.StreamReader, to_host: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        to_server: asyncio.StreamWriter | None = None
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self.server_port)
            onward = asyncio.ensure_future(_copy(host, to_server))
            back = asyncio.ensure_future(self._answers(server, to_host))
            try:
                await asyncio.wait({onward, back}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copying in (onward, back):
                    copying.cancel()
                await asyncio.gather(onward, back, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            return
        finally:
            for writer in (to_host, to_server):
                if writer is not None:
                    writer.transport.abort()

    async def _answers(self, server: asyncio.StreamReader, to_host: asyncio.StreamWriter) -> None:
        while True:
            head = await server.readexactly(12)
            frame = head + await server.readexactly(int.from_bytes(head[8:12], "little") + 4)
            spoil = self._spoils.pop(0) if self._spoils else None
            for piece in [frame] if spoil is None else spoil(frame):
                if not piece:
                    return
                to_host.write(piece)
                await to_host.drain()
                # Lets each piece travel on its own.
                await asyncio.sleep(0)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()


class Bench:
    """A board, its server, and the faulty line before it."""

    def __init__(self, board: ExactBoard, proxy: FaultProxy) -> None:
        self.board, self.proxy = board, proxy

    def host(self) -> WireBoard:
        return WireBoard(TcpLink("127.0.0.1", self.proxy.port), timeout_s=TIMEOUT_S)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    board = ExactBoard()
    async with BoardServer(board) as server:
        proxy = FaultProxy(await server.start_tcp())
        await proxy.start()
        yield Bench(board, proxy)
        await proxy.stop()


async def _mvm_is_right(host: WireBoard, marks: list[int]) -> None:
    voltage_v = np.zeros((len(marks), ROWS))
    voltage_v[:, 0] = np.array(marks) / 1000
    result = await host.mvm(0, voltage_v)
    assert result.code.tolist() == [[mark] * COLUMNS for mark in marks]


def _flip(position: int) -> Spoil:
    def spoil(frame: bytes) -> list[bytes]:
        damaged = bytearray(frame)
        damaged[position % len(frame)] ^= 0x10
        return [bytes(damaged)]

    return spoil


def _drop(frame: bytes) -> list[bytes]:
    return []


def _twice(frame: bytes) -> list[bytes]:
    return [frame + frame]


def _cut(frame: bytes) -> list[bytes]:
    return [frame[:-5], b""]


def _end(frame: bytes) -> list[bytes]:
    return [b""]


def _noise_before(frame: bytes) -> list[bytes]:
    return [b"\xff\x00" + frame]


def _renumbered(frame: bytes) -> list[bytes]:
    request_id, message = decode(frame)
    return [encode(message, request_id - 1)]


def _bytewise(frame: bytes) -> list[bytes]:
    return [frame[index : index + 1] for index in range(len(frame))]


FAULTS: dict[str, Spoil] = {
    "drop": _drop,
    "twice": _twice,
    "cut": _cut,
    "end": _end,
    "noise before": _noise_before,
    "another request's": _renumbered,
    "magic": _flip(0),
    "frame version": _flip(2),
    "type": _flip(3),
    "request id": _flip(4),
    "length": _flip(8),
    "payload": _flip(20),
    "checksum": _flip(-1),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_in_an_answer_is_a_typed_error_and_the_next_answer_is_right(bench: Bench, fault: str) -> None:
    async with bench.host() as host:
        await _mvm_is_right(host, [1, 2, 3])
        bench.proxy.spoil(FAULTS[fault])
        with pytest.raises((LinkError, ProtocolError)):
            await _mvm_is_right(host, [4, 5, 6])
        await _mvm_is_right(host, [7, 8, 9])
        await _mvm_is_right(host, [-7, -8])


async def test_an_answer_in_single_bytes_is_an_answer(bench: Bench) -> None:
    async with bench.host() as host:
        bench.proxy.spoil(_bytewise, _bytewise)
        await _mvm_is_right(host, [4, 5, 6])
        await _mvm_is_right(host, [7])


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_in_the_answer_to_programming_never_programs_twice(bench: Bench, fault: str) -> None:
    async with bench.host() as host:
        bench.proxy.spoil(FAULTS[fault])
        with pytest.raises((LinkError, ProtocolError)):
            await host.program(0, TARGET_S)
        result = await host.mvm(0, np.zeros((1, ROWS)))
        assert bench.board.writes == 1
        assert result.write_index == 0
        # Asked for again by the caller, who knows, it is a new programming.
        assert (await host.program(0, TARGET_S)).write_index == 1


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "another request's"])
async def test_a_fault_in_the_greeting_leaves_nothing_open(bench: Bench, fault: str) -> None:
    link = TcpLink("127.0.0.1", bench.proxy.port)
    host = WireBoard(link, timeout_s=TIMEOUT_S)
    bench.proxy.spoil(FAULTS[fault])
    with pytest.raises((LinkError, ProtocolError)):
        await host.open()
    assert link.state is LinkState.CLOSED
    await host.open()
    await _mvm_is_right(host, [1])
    await host.close()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_in_the_last_answer_does_not_keep_a_host_from_closing(bench: Bench, fault: str) -> None:
    link = TcpLink("127.0.0.1", bench.proxy.port)
    host = WireBoard(link, timeout_s=TIMEOUT_S)
    await host.open()
    bench.proxy.spoil(FAULTS[fault])
    await host.close()
    assert link.state is LinkState.CLOSED


async def test_seeded_faults_at_any_answer_never_give_a_wrong_value(bench: Bench) -> None:
    rng = np.random.default_rng(11)
    # Those that end in the deadline take time, and were seen above.
    names = [name for name in FAULTS if name not in {"drop", "length"}]
    failed = right = 0
    async with bench.host() as host:
        for mark in range(200):
            if rng.random() < 0.3:
                bench.proxy.spoil(*([None] * int(rng.integers(2))), FAULTS[names[rng.integers(len(names))]])
            try:
                await _mvm_is_right(host, [mark, -mark])
                right += 1
            except LabrigError:
                failed += 1
    assert failed > 10
    assert right > 100


async def test_cancelled_at_any_moment_the_next_answer_is_right(bench: Bench) -> None:
    async with bench.host() as host:
        for turns in range(40):
            asking = asyncio.ensure_future(_mvm_is_right(host, [turns, turns + 1]))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert asking.cancelled() or asking.exception() is None
            await _mvm_is_right(host, [1000 + turns])


async def test_programming_that_was_cancelled_is_never_repeated(bench: Bench) -> None:
    calls = 0
    async with bench.host() as host:
        for turns in range(0, 40, 3):
            before = bench.board.writes
            asking = asyncio.ensure_future(host.program(0, TARGET_S))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await _mvm_is_right(host, [turns])
            assert bench.board.writes - before <= 1
            calls += 1
    assert bench.board.writes <= calls


async def test_another_board_after_a_reconnect_is_refused(bench: Bench) -> None:
    async with BoardServer(ExactBoard("B-2")) as other, bench.host() as host:
        await _mvm_is_right(host, [1])
        bench.proxy.server_port = await other.start_tcp()
        bench.proxy.spoil(_end)
        with pytest.raises(LinkLostError):
            await _mvm_is_right(host, [2])
        for _ in range(2):
            with pytest.raises(IdentityError, match="A-1"):
                await _mvm_is_right(host, [3])
        assert host.identity.serial == "A-1"


async def test_a_board_that_goes_and_comes_back_is_used_again() -> None:
    board = ExactBoard()
    first = BoardServer(board)
    port = await first.start_tcp()
    host = WireBoard(TcpLink("127.0.0.1", port), timeout_s=TIMEOUT_S)
    await host.open()
    await first.stop()
    for _ in range(3):
        with pytest.raises(LinkLostError):
            await host.mvm(0, np.zeros((1, ROWS)))
    async with BoardServer(board) as second:
        await second.start_tcp(port=port)
        await _mvm_is_right(host, [5])
        await host.close()


async def test_a_listener_that_never_speaks_is_a_timeout() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    link = TcpLink("127.0.0.1", server.sockets[0].getsockname()[1])
    with pytest.raises(LinkTimeoutError):
        await WireBoard(link, timeout_s=0.05).open()
    assert link.state is LinkState.CLOSED
    server.close()
    await server.wait_closed()


def _scripted(answers: dict[str, Message]) -> Callable[[bytes], bytes]:
    """A peer that greets properly and then says what it was told to each kind of request."""
    board = ExactBoard()
    welcome = Welcome(1, 1, 10_000, 1, 0.0, board.identity, info_to_json(board.info))

    def answer(frame: bytes) -> bytes:
        request_id, request = decode(frame)
        return encode({"Hello": welcome, "Safe": Done(), **answers}[type(request).__name__], request_id)

    return answer


WRONG_SHAPE = MvmAnswer(0, np.zeros(2), np.zeros((2, COLUMNS), dtype=np.int16), np.zeros((2, COLUMNS), np.bool_))


@pytest.mark.parametrize("answer", [Done(), WRONG_SHAPE])
async def test_an_answer_of_another_kind_or_shape_is_never_a_value(answer: Message) -> None:
    link = MemoryLink(_scripted({"Mvm": answer}))
    async with WireBoard(link) as host:
        for _ in range(2):
            with pytest.raises(ProtocolError, match="thrown away"):
                await host.mvm(0, np.zeros((1, ROWS)))


@pytest.mark.parametrize("code", [FaultCode.NOT_PROGRAMMED, FaultCode.SUPPLY_OFF, FaultCode.BUSY])
async def test_a_state_of_the_board_is_a_state_error(code: FaultCode) -> None:
    async with WireBoard(MemoryLink(_scripted({"Mvm": Fault(code, "not now")}))) as host:
        with pytest.raises(StateError, match="not now"):
            await host.mvm(0, np.zeros((1, ROWS)))
