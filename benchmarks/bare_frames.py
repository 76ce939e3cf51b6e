"""The cheapest client of a board: frames made before, sent ahead in a window, whose answers are only counted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from labrig_drivers.board_messages import Hello, Message, Program
from labrig_drivers.board_protocol import PROTOCOL_VERSION, BoardFraming, decode, encode
from labrig_drivers.crossbar import BoardInfo

# asyncio's own limit would pause the connection inside every longer answer.
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class BareFrames:
    """A session in which the same requests are sent again and again.

    Attributes:
        reader: From the board.
        writer: To the board.
        frames: The requests.
        answer_bytes: Length of the answer to each.
        window: How many requests are under way at most.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    frames: Sequence[bytes]
    answer_bytes: Sequence[int]
    window: int

    async def run(self) -> None:
        """Sends every frame and reads every answer, unseen."""
        for frame in self.frames[: self.window]:
            self.writer.write(frame)
        for index, length in enumerate(self.answer_bytes):
            await self.reader.readexactly(length)
            if index + self.window < len(self.frames):
                self.writer.write(self.frames[index + self.window])


@asynccontextmanager
async def bare_frames(
    address: str, info: BoardInfo, frames: Sequence[bytes], answer_bytes: Sequence[int], window: int
) -> AsyncIterator[BareFrames]:
    """Begins a session with the board at a `tcp://` address and programs its array, as whoever measures must."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=_LIMIT_BYTES)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        target_s = np.full((info.rows, info.columns), info.conductance_max_s / 2.0, np.float32)
        for request in (Hello(PROTOCOL_VERSION, PROTOCOL_VERSION), Program(0, 1, target_s)):
            await _ask(reader, writer, request)
        yield BareFrames(reader, writer, frames, answer_bytes, window)
    finally:
        writer.close()
        await writer.wait_closed()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Message) -> Message:
    writer.write(encode(request, 1))
    framing, buffer = BoardFraming(), bytearray()
    while (frame := framing.take(buffer)) is None:
        piece = await reader.read(_LIMIT_BYTES)
        if not piece:
            raise ConnectionError("the board hung up")
        buffer += piece
    return decode(frame)[1]
