"""An instrument that costs next to nothing: lines in, fixed answers out, as a process of its own.

`*IDN?` is answered with an identity, `BLOCK?` with an IEEE 488.2 block of random bytes (line ends among them), every
other line that ends with `?` with `1`. Answers come after a fixed delay.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

BLOCK_BYTES: Final = 1_000_000
BLOCK: Final = b"#7" + b"%07d" % BLOCK_BYTES + random.Random(1).randbytes(BLOCK_BYTES) + b"\n"
IDENTITY: Final = b"KEITHLEY INSTRUMENTS INC.,MODEL 2400,1,0\n"


@dataclass(frozen=True)
class LineServer:
    """A running server process.

    Attributes:
        port: Its TCP port on the loopback interface.
        pid: Its process id.
    """

    port: int
    pid: int


@asynccontextmanager
async def line_server(delay_s: float = 0.0) -> AsyncIterator[LineServer]:
    """Runs the server as a process; it ends with its standard input, also when this process dies."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.line_server", str(delay_s)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the server process has no pipes")
    try:
        yield LineServer(int(await process.stdout.readline()), process.pid)
    finally:
        process.stdin.close()
        await process.wait()


class _Conversation(asyncio.Protocol):
    """One client; as little work as Python allows."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.endswith(b"?"):
                continue
            answer = {b"*IDN?": IDENTITY, b"BLOCK?": BLOCK, b":SYST:ERR?": b'0,"No error"\n'}.get(line, b"1\n")
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def _serve(delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Conversation(delay_s), "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
