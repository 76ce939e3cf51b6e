"""A firmware written from docs/reference/board-protocol.md alone, and what `WireBoard` makes of it.

It shares no code with labrig: where the page leaves something out, it cannot work.
"""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.testing.driver_contract import check_crossbar_board
from labrig_drivers.errors import InstrumentError, StateError
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.wire_board import WireBoard

ROWS, COLUMNS, FULL_SCALE_A, BITS = 6, 4, 1e-4, 12
DESCRIPTION = {
    "chip_id": "page-1",
    "arrays": 1,
    "rows": ROWS,
    "columns": COLUMNS,
    "conductance_min_s": 1e-6,
    "conductance_max_s": 1e-4,
    "voltage_min_v": -0.5,
    "voltage_max_v": 0.5,
    "dac_bits": 8,
    "adc_bits": BITS,
    "adc_full_scale_a": [FULL_SCALE_A] * COLUMNS,
    "mvm_latency_s": 1e-6,
    "program_latency_s": 1e-3,
    "capabilities": ["streaming", "read-conductance"],
}


class Refusal(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Firmware:
    """One board that serves one host."""

    def __init__(self) -> None:
        self.clock_s, self.sessions, self.writes = 0.0, 0, 0
        self.grounded = 0
        self.cells_s: NDArray[np.float64] | None = None
        self.host: asyncio.StreamWriter | None = None
        self.keys: dict[int, bytes] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readexactly(12)
                magic, version, kind, request, length = struct.unpack("<2sBBII", head)
                payload, (crc,) = await reader.readexactly(length), struct.unpack("<I", await reader.readexactly(4))
                if magic != b"LR" or version != 1 or crc != zlib.crc32(head + payload):
                    return
                try:
                    for answer_kind, answer in self.answers(kind, payload, writer):
                        self.send(writer, answer_kind, request, answer)
                except Refusal as error:
                    text = str(error).encode()
                    self.send(writer, 0xFF, request, struct.pack("<HH", error.code, len(text)) + text)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            if self.host is writer:
                self.host, self.grounded = None, self.grounded + 1
            writer.close()

    def send(self, writer: asyncio.StreamWriter, kind: int, request: int, payload: bytes) -> None:
        frame = struct.pack("<2sBBII", b"LR", 1, kind, request, len(payload)) + payload
        writer.write(frame + struct.pack("<I", zlib.crc32(frame)))

    def answers(self, kind: int, payload: bytes, writer: asyncio.StreamWriter) -> Iterator[tuple[int, bytes]]:
        if kind == 0x01:
            if self.host not in {None, writer}:
                raise Refusal(5, "another host has the board")
            self.host, self.sessions = writer, self.sessions + 1
            texts = b"".join(struct.pack("<H", len(text)) + text for text in (b"ACME", b"PAGE", b"P-1", b"1"))
            info = json.dumps(DESCRIPTION).encode()
            limits = struct.pack("<BIIHf", 1, self.sessions, 4096, 4, 1.0)
            yield 0x81, limits + texts + struct.pack("<I", len(info)) + info
        elif self.host is not writer:
            raise Refusal(1, "Hello first")
        elif kind == 0x02:
            key = struct.unpack_from("<Q", payload, 6)[0]
            if key not in self.keys:
                self.cells_s = np.frombuffer(payload[14:], "<f4").reshape(ROWS, COLUMNS).astype(float)
                self.clock_s += 1e-3
                self.keys[key] = struct.pack("<IQdd", self.writes, ROWS * COLUMNS, self.clock_s, 0.0)
                self.writes += 1
            yield 0x82, self.keys[key]
        elif self.cells_s is None:
            raise Refusal(3, "never programmed")
        elif kind == 0x03:
            yield 0x83, self.measure(np.frombuffer(payload[8:], "<f4").reshape(-1, ROWS))
        elif kind == 0x04:
            yield 0x84, struct.pack("<HH", ROWS, COLUMNS) + self.cells_s.astype("<f4").tobytes()
        elif kind == 0x05:
            yield 0x85, payload
        elif kind == 0x06:
            self.grounded += 1
            yield 0x86, b""
        elif kind == 0x07:
            batch, part = struct.unpack_from("<II", payload, 4)
            line_v = np.frombuffer(payload[12:], "<f4").reshape(batch, ROWS)
            for first in range(0, batch, part):
                last = first + part >= batch
                yield 0x87, struct.pack("<BI", last, first) + self.measure(line_v[first : first + part])
        else:
            raise Refusal(1, f"type {kind:02x}")

    def measure(self, line_v: NDArray[np.float32]) -> bytes:
        assert self.cells_s is not None
        low, high = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
        steps = np.round(line_v @ self.cells_s / FULL_SCALE_A * 2 ** (BITS - 1))
        code: NDArray[np.int16] = np.clip(steps, low, high).astype("<i2")
        flags = np.packbits((code == low) | (code == high), bitorder="little").tobytes()
        time_s = self.clock_s + 1e-6 * np.arange(1, len(code) + 1)
        self.clock_s = float(time_s[-1])
        head = struct.pack("<IIH", self.writes - 1, len(code), COLUMNS)
        return b"".join((head, time_s.astype("<f8").tobytes(), code.tobytes(), flags))


class Served:
    def __init__(self, firmware: Firmware, port: int) -> None:
        self.firmware, self.port = firmware, port

    def board(self) -> WireBoard:
        return WireBoard(TcpLink("127.0.0.1", self.port), timeout_s=5.0)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    firmware = Firmware()
    server = await asyncio.start_server(firmware.serve, "127.0.0.1", 0)
    yield Served(firmware, server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()


def expected_a(cells_s: NDArray[np.float64], line_v: NDArray[np.float64]) -> NDArray[np.float64]:
    sent_v, programmed_s = line_v.astype(np.float32).astype(float), cells_s.astype(np.float32).astype(float)
    current_a: NDArray[np.float64] = sent_v @ programmed_s
    return current_a


async def test_it_is_driven_from_opening_to_closing(served: Served) -> None:
    rng = np.random.default_rng(2)
    cells_s = rng.uniform(1e-6, 1e-4, (ROWS, COLUMNS))
    # Far more than fits into one of its frames.
    line_v = rng.uniform(-0.1, 0.1, (1000, ROWS))
    async with served.board() as board:
        assert (board.identity.model, board.info.rows, board.host_loss_protection.silence_s) == ("PAGE", ROWS, 1.0)
        with pytest.raises(StateError, match="never programmed"):
            await board.mvm(0, line_v)
        assert (await board.program(0, cells_s)).write_index == 0
        whole = await board.mvm(0, line_v)
        parts = [part async for part in board.mvm_stream(0, line_v, part_vectors=7)]
        await board.ping()
    step_a = FULL_SCALE_A / 2 ** (BITS - 1)
    np.testing.assert_allclose(whole.current_a, expected_a(cells_s, line_v), atol=0.51 * step_a)
    np.testing.assert_array_equal(np.concatenate([part.code for part in parts]), whole.code)
    assert max(len(part.code) for part in parts) == 7
    assert served.firmware.grounded >= 1


async def test_it_keeps_the_whole_contract(served: Served) -> None:
    await check_crossbar_board(served.board)


async def test_what_it_does_not_know_is_an_error_with_its_words(served: Served) -> None:
    async with served.board() as board:
        served.firmware.host = None
        with pytest.raises(InstrumentError, match="Hello first"):
            await board.ping()
