"""A line with latency: passes bytes between a host and a server, each piece a fixed time after it came.

Run as a process of its own, so that the line works while its two ends do.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class SlowLine:
    """A running line.

    Attributes:
        address: Where a host connects, as a `tcp://` link.
        pid: Its process id.
    """

    address: str
    pid: int


@asynccontextmanager
async def slow_line(address: str, delay_s: float) -> AsyncIterator[SlowLine]:
    """Runs a line to the server at a `tcp://` address that takes `delay_s` each way, without a limit on its rate."""
    parts = urlsplit(address)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.slow_line", str(parts.hostname), str(parts.port), str(delay_s)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the line's process has no pipes")
    try:
        port = int(await process.stdout.readline())
        yield SlowLine(f"tcp://127.0.0.1:{port}", process.pid)
    finally:
        process.stdin.close()
        await process.wait()


class _End(asyncio.Protocol):
    """One end of the line: what comes in here leaves at the other end a while later, in order."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._waiting: deque[bytes] = deque()
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._waiting.append(data)
        asyncio.get_running_loop().call_later(self._delay_s, self._pass_on)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the contract names it
        if self.other is not None and self.other.transport is not None:
            self.other.transport.abort()

    def _pass_on(self) -> None:
        # Timers of one length fire in the order in which they were set.
        piece = self._waiting.popleft()
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(piece)


async def _serve(host: str, port: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    dialling: set[asyncio.Task[None]] = set()

    async def dial(near: _End) -> None:
        _, far = await loop.create_connection(lambda: _End(delay_s), host, port)
        near.other, far.other = far, near

    def accept() -> _End:
        near = _End(delay_s)
        task = loop.create_task(dial(near))
        dialling.add(task)
        task.add_done_callback(dialling.discard)
        return near

    server = await loop.create_server(accept, "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
