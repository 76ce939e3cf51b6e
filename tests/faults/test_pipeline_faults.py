"""Faults at every byte of a pipelined exchange and of a stream: an error or the right values, and never others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
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
    MvmAnswer,
    MvmPart,
    Ping,
    Pong,
    Safe,
    StreamMvm,
    Welcome,
    info_to_json,
)
from labrig_drivers.board_protocol import decode, encode
from labrig_drivers.capabilities import STREAMING
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import LabrigError, LinkError, ProtocolError, StateError
from labrig_drivers.instrument import Identity
from labrig_drivers.links.memory import MemoryLink
from labrig_drivers.links.serial import SerialLink
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.wire_board import WireBoard

ROWS, COLUMNS = 3, 4
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
    capabilities=frozenset({STREAMING}),
)
# Three vectors in a frame: the batches below go in four requests, all of them under way at once.
WELCOME = Welcome(1, 1, 70, 4, 0.0, Identity("labrig", "exact", "A-1", "1"), info_to_json(INFO))
BATCH = 12
# Faults that swallow bytes end in this deadline where time passes.
TIMEOUT_S = 0.1

Read = Callable[[WireBoard, int], AsyncIterator[int]]


def answer_of(voltage_v: NDArray[np.float32], write_index: int = 0) -> MvmAnswer:
    """Codes that tell which vector they answer."""
    code = np.repeat(np.round(1000 * voltage_v[:, :1]), COLUMNS, axis=1).astype(np.int16)
    return MvmAnswer(write_index, np.zeros(len(code)), code, code % 2 == 1)


def answers_to(frame: bytes) -> list[bytes]:
    """The frames of a good board's answer."""
    request_id, request = decode(frame)
    match request:
        case Hello():
            messages: list[Message] = [WELCOME]
        case Ping(nonce):
            messages = [Pong(nonce)]
        case Safe():
            messages = [Done()]
        case Mvm():
            messages = [answer_of(request.voltage_v)]
        case StreamMvm():
            step, size = request.part_vectors, len(request.voltage_v)
            messages = [
                MvmPart(first, first + step >= size, answer_of(request.voltage_v[first : first + step]))
                for first in range(0, size, step)
            ]
        case _:
            messages = [Fault(FaultCode.BAD_REQUEST, "what?")]
    return [encode(message, request_id) for message in messages]


class SpoiltLine:
    """A good board at the end of a line that spoils its answers once, when it is told to."""

    def __init__(self) -> None:
        self.passed = 0
        self.greetings = 0
        self._spoil: Callable[[bytes], bytes] | None = None

    def arm(self, spoil: Callable[[bytes], bytes]) -> None:
        """From now on `spoil` gets all answers since this call together and returns what arrives of them."""
        self._spoil, self.passed = spoil, 0
        self._true = self._seen = b""

    def __call__(self, frame: bytes) -> bytes:
        answer = b"".join(answers_to(frame))
        if isinstance(decode(frame)[1], Hello):
            self._spoil = None
            self.greetings += 1
        self.passed += len(answer)
        if self._spoil is None:
            return answer
        self._true += answer
        arrived = self._spoil(self._true)
        new, self._seen = arrived[len(self._seen) :], arrived
        return new


async def whole(board: WireBoard, start: int) -> AsyncIterator[int]:
    """Marks of one long batch, as codes tell them."""
    for code in (await board.mvm(0, marked(start))).code:
        assert len(set(code.tolist())) == 1
        yield int(code[0])


async def streamed(board: WireBoard, start: int) -> AsyncIterator[int]:
    """The same, part by part."""
    async with aclosing(board.mvm_stream(0, marked(start), part_vectors=2)) as parts:
        async for part in parts:
            for code in part.code:
                assert len(set(code.tolist())) == 1
                yield int(code[0])


def marked(start: int) -> NDArray[np.float64]:
    voltage_v = np.zeros((BATCH, ROWS))
    voltage_v[:, 0] = np.arange(start, start + BATCH) / 1000
    return voltage_v


async def right_or_refused(board: WireBoard, read: Read, start: int) -> bool:
    """Reads one batch; True when all of it was right, False when it was refused. What came before is right anyway."""
    done = start
    try:
        async for mark in read(board, start):
            assert mark == done
            done += 1
    except LabrigError:
        return False
    assert done == start + BATCH
    return True


def cut(position: int) -> Callable[[bytes], bytes]:
    return lambda stream: stream[:position]


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda stream: b"".join((stream[:position], bytes([stream[position] ^ 0x04]), stream[position + 1 :]))


def drop(position: int) -> Callable[[bytes], bytes]:
    return lambda stream: stream[:position] + stream[position + 1 :]


@pytest.mark.parametrize("read", [whole, streamed])
@pytest.mark.parametrize("fault", [cut, flip, drop])
async def test_a_fault_at_any_byte_of_the_answers(fault: Callable[[int], Callable[[bytes], bytes]], read: Read) -> None:
    line = SpoiltLine()
    async with WireBoard(MemoryLink(line)) as board:
        line.arm(lambda stream: stream)
        assert await right_or_refused(board, read, 0)
        total = line.passed
        assert total > 250
        for position in range(total):

            def spoil(stream: bytes, position: int = position) -> bytes:
                return fault(position)(stream) if position < len(stream) else stream

            line.arm(spoil)
            assert not await right_or_refused(board, read, 100)
            assert await right_or_refused(board, read, -50)


def swapped(stream: list[bytes]) -> list[bytes]:
    return [stream[1], stream[0], *stream[2:]]


def doubled(stream: list[bytes]) -> list[bytes]:
    return [stream[0], *stream]


def one_missing(stream: list[bytes]) -> list[bytes]:
    return [stream[0], *stream[2:]]


def one_more(stream: list[bytes]) -> list[bytes]:
    return [*stream, stream[-1]]


def renumbered(stream: list[bytes]) -> list[bytes]:
    request_id, message = decode(stream[1])
    return [stream[0], encode(message, request_id + 1), *stream[2:]]


def of_another_kind(stream: list[bytes]) -> list[bytes]:
    return [stream[0], encode(Done(), decode(stream[1])[0]), *stream[2:]]


def of_another_write(stream: list[bytes]) -> list[bytes]:
    request_id, message = decode(stream[1])
    if isinstance(message, MvmPart):
        message = replace(message, answer=replace(message.answer, write_index=1))
    else:
        assert isinstance(message, MvmAnswer)
        message = replace(message, write_index=1)
    return [stream[0], encode(message, request_id), *stream[2:]]


WRONG_ORDERS = [swapped, doubled, one_missing, one_more, renumbered, of_another_kind, of_another_write]


def frames_of(stream: bytes) -> list[bytes]:
    frames = []
    while stream:
        end = 16 + int.from_bytes(stream[8:12], "little")
        frames.append(stream[:end])
        stream = stream[end:]
    return frames


@pytest.mark.parametrize("read", [whole, streamed])
@pytest.mark.parametrize("spoil", WRONG_ORDERS)
async def test_sound_frames_in_a_wrong_order_are_never_values(
    spoil: Callable[[list[bytes]], list[bytes]], read: Read
) -> None:
    line = SpoiltLine()
    async with WireBoard(MemoryLink(line)) as board:
        line.arm(lambda stream: stream)
        assert await right_or_refused(board, read, 0)
        total = line.passed
        # Everything is held back until the last answer was made.
        line.arm(lambda stream: b"" if len(stream) < total else b"".join(spoil(frames_of(stream))))
        assert not await right_or_refused(board, read, 300)
        assert await right_or_refused(board, read, 20)


def _part(change: Callable[[MvmPart], MvmPart], which: int) -> Callable[[list[bytes]], list[bytes]]:
    def spoil(stream: list[bytes]) -> list[bytes]:
        request_id, part = decode(stream[which])
        assert isinstance(part, MvmPart)
        stream[which] = encode(change(part), request_id)
        return stream

    return spoil


def _shorter(part: MvmPart) -> MvmPart:
    answer = part.answer
    kept = MvmAnswer(answer.write_index, answer.time_s[:0], answer.code[:0], answer.saturated[:0])
    return replace(part, answer=kept)


@pytest.mark.parametrize(
    "spoil",
    [
        _part(lambda part: replace(part, first=part.first + 1), 1),
        _part(lambda part: replace(part, first=0), 1),
        _part(lambda part: replace(part, last=True), 0),
        _part(lambda part: replace(part, last=False), -1),
        _part(_shorter, 1),
    ],
)
async def test_parts_that_do_not_follow_one_another_are_never_values(
    spoil: Callable[[list[bytes]], list[bytes]],
) -> None:
    line = SpoiltLine()
    async with WireBoard(MemoryLink(line)) as board:
        line.arm(lambda stream: b"".join(spoil(frames_of(stream))))
        with pytest.raises((ProtocolError, LinkError)):
            [mark async for mark in streamed(board, 300)]
        assert await right_or_refused(board, streamed, 20)


class ByteProxy:
    """Passes bytes between hosts and a server; one fault at one byte of one direction, when it is armed."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self._server_port = server_port
        self._armed: tuple[str, int, str] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def arm(self, direction: str, position: int, fault: str) -> None:
        """Spoils the byte at `position`, counted from now, of what goes `up` to the board or `down` from it."""
        self._armed = (direction, position, fault)

    async def __aenter__(self) -> ByteProxy:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
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
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        copying = [
            asyncio.ensure_future(self._copy("up", host, to_server)),
            asyncio.ensure_future(self._copy("down", server, to_host)),
        ]
        try:
            await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            return
        finally:
            for copy in copying:
                copy.cancel()
            await asyncio.gather(*copying, return_exceptions=True)
            for writer in (to_host, to_server):
                writer.transport.abort()

    async def _copy(self, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := bytearray(await source.read(65536)):
            if self._armed is not None and self._armed[0] == direction:
                _, position, fault = self._armed
                if position >= len(data):
                    self._armed = (direction, position - len(data), fault)
                else:
                    self._armed = None
                    if fault == "flip":
                        data[position] ^= 0x20
                    elif fault == "drop":
                        del data[position]
                    else:
                        sink.write(data[:position])
                        await sink.drain()
                        return
            sink.write(data)
            await sink.drain()


# Without noise and drift: the same inputs have the same codes, whatever came before.
EXACT = ChipSettings(
    seed=9,
    arrays=1,
    rows=6,
    columns=5,
    amplifier_noise_a=0.0,
    shot_noise_a=0.0,
    conductance_noise=0.0,
    drift_exponent=0.0,
    drift_exponent_sigma=0.0,
)
LINE_V = np.random.default_rng(5).uniform(-0.3, 0.3, (64, 6))


async def codes_of(board: WireBoard, line_v: NDArray[np.float64], *, by_parts: bool) -> NDArray[np.int16]:
    if not by_parts:
        return (await board.mvm(0, line_v)).code
    async with aclosing(board.mvm_stream(0, line_v, part_vectors=3)) as parts:
        return np.concatenate([part.code async for part in parts])


@pytest.mark.parametrize("by_parts", [False, True])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_faults_on_a_real_connection_in_both_directions(direction: str, by_parts: bool) -> None:
    rng = random.Random(5)
    faults = ["flip"] * 25 + ["cut"] * 25 + ["drop"] * 4
    async with BoardServer(MockBoard(EXACT), max_payload_bytes=300, gap_s=0.05, handover_s=1.0) as server:
        port = await server.start_tcp()
        async with ByteProxy(port) as proxy, WireBoard(TcpLink("127.0.0.1", proxy.port), timeout_s=TIMEOUT_S) as board:
            await board.program(0, np.full((6, 5), 20e-6))
            truth = await codes_of(board, LINE_V, by_parts=by_parts)
            assert len(np.unique(truth)) > 50
            refused = 0
            for fault in faults:
                proxy.arm(direction, rng.randrange(1000), fault)
                try:
                    np.testing.assert_array_equal(await codes_of(board, LINE_V, by_parts=by_parts), truth)
                except LabrigError:
                    refused += 1
                np.testing.assert_array_equal(await codes_of(board, LINE_V[:3], by_parts=by_parts), truth[:3])
            assert refused >= 50


@pytest.mark.parametrize("by_parts", [False, True])
async def test_cancelled_at_any_moment_the_next_batch_is_right(by_parts: bool) -> None:
    async with BoardServer(MockBoard(EXACT), max_payload_bytes=300, handover_s=1.0) as server:
        port = await server.start_tcp()
        async with WireBoard(TcpLink("127.0.0.1", port)) as board:
            await board.program(0, np.full((6, 5), 20e-6))
            truth = await codes_of(board, LINE_V, by_parts=by_parts)
            long_v = np.tile(LINE_V[::-1], (10, 1))
            cancelled = 0
            for turns in range(60):
                asking = asyncio.ensure_future(codes_of(board, long_v, by_parts=by_parts))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                cancelled += asking.cancelled()
                np.testing.assert_array_equal(await codes_of(board, LINE_V[:9], by_parts=by_parts), truth[:9])
            assert cancelled > 10


async def test_a_serial_line_recovers_at_once_from_a_batch_that_was_cut_off_while_it_was_sent() -> None:
    server = BoardServer(MockBoard(EXACT), gap_s=0.2)
    async with server, WireBoard(SerialLink(server.start_pty()), timeout_s=5.0) as board:
        await board.program(0, np.full((6, 5), 20e-6))
        truth = (await board.mvm(0, LINE_V)).code
        # A terminal holds some kilobytes, so this is cut in the middle of a request.
        asking = asyncio.ensure_future(board.mvm(0, np.zeros((40_000, 6))))
        await asyncio.sleep(0.002)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        np.testing.assert_array_equal((await board.mvm(0, LINE_V)).code, truth)


async def test_a_refusal_between_pipelined_answers_is_raised_when_all_have_come() -> None:
    line = SpoiltLine()

    def refuse_second(stream: bytes) -> bytes:
        frames = frames_of(stream)
        if len(frames) > 1:
            frames[1] = encode(Fault(FaultCode.SUPPLY_OFF, "no supply"), decode(frames[1])[0])
        return b"".join(frames)

    async with WireBoard(MemoryLink(line)) as board:
        line.arm(refuse_second)
        with pytest.raises(StateError, match="no supply"):
            await board.mvm(0, marked(0))
        line.arm(lambda stream: stream)
        assert await right_or_refused(board, whole, 40)
        # All in one session: the answers behind the refusal were read, and thrown away.
        assert line.greetings == 1
