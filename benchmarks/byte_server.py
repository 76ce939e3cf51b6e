"""The other end of a bare exchange: reads a fixed number of bytes, sends a fixed number of bytes, for ever.

Run as a process of its own, because a simulated bench is one too: both cost the same wake-ups.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class ByteServer:
    """A running server process.

    Attributes:
        port: Its TCP port on the loopback interface.
        pid: Its process id.
    """

    port: int
    pid: int


@dataclass(frozen=True)
class BareExchange:
    """The cheapest way to send a request over asyncio streams and to read its answer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    request: bytes
    answer_bytes: int

    async def run(self) -> None:
        """Does one exchange."""
        self.writer.write(self.request)
        await self.reader.readexactly(self.answer_bytes)


@asynccontextmanager
async def byte_server(request_bytes: int, answer_bytes: int) -> AsyncIterator[ByteServer]:
    """Runs the server as a process; it ends with its standard input, also when this process dies."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.byte_server", str(request_bytes), str(answer_bytes)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the server process has no pipes")
    try:
        yield ByteServer(int(await process.stdout.readline()), process.pid)
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def bare_exchange(server: ByteServer, request: bytes, answer_bytes: int) -> AsyncIterator[BareExchange]:
    """Connects to a server that was started for the same numbers of bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    _no_delay(writer)
    try:
        yield BareExchange(reader, writer, request, answer_bytes)
    finally:
        writer.close()
        await writer.wait_closed()


def _no_delay(writer: asyncio.StreamWriter) -> None:
    # Without it Nagle's algorithm holds every second small message back.
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _serve(request_bytes: int, answer_bytes: int) -> None:
    answer = bytes(answer_bytes)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _no_delay(writer)
        try:
            while True:
                await reader.readexactly(request_bytes)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
