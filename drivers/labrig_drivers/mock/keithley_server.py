"""`Keithley2400Server`: the simulated Keithley 2400 behind a real socket, or behind any pair of byte streams."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from labrig_drivers.errors import LinkError, StateError
from labrig_drivers.mock.keithley2400 import OutputEvent, SimulatedKeithley2400
from labrig_drivers.mock.loads import DiodeLoad, Load, ResistorLoad

__all__ = ["DiodeLoad", "Keithley2400Server", "Load", "OutputEvent", "ResistorLoad"]


class Keithley2400Server:
    """Serves one simulated instrument to any number of clients, one command at a time.

    A client that leaves changes nothing: the output stays as it is, as on the instrument.

    Args:
        load: What hangs at the terminals.
        serial: Serial number in `*IDN?`.
        model: Model in `*IDN?`.
        line_frequency_hz: Mains frequency in Hz.
        log: Called with every change of output, level or limit.
        time_scale: Readings take this many times their nominal duration.
        clock: The server's clock in s, which `OutputEvent` and the load are told.
    """

    def __init__(
        self,
        load: Load,
        *,
        serial: str = "1234567",
        model: str = "MODEL 2400",
        line_frequency_hz: float = 50.0,
        log: Callable[[OutputEvent], None] | None = None,
        time_scale: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instrument = SimulatedKeithley2400(
            load, serial=serial, model=model, line_frequency_hz=line_frequency_hz, log=log, clock=clock
        )
        self._time_scale = time_scale
        self._server: asyncio.Server | None = None
        self._busy = asyncio.Lock()
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The TCP port.

        Raises:
            StateError: The server was not started.
        """
        if self._server is None or not self._server.sockets:
            raise StateError("the simulated Keithley 2400 is not listening; start it first")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        if self._server is None:
            await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listens on `host:port`; port 0 takes a free one.

        Raises:
            LinkError: The address is in use or not this machine's.
        """
        try:
            self._server = await asyncio.start_server(self.serve, host, port)
        except OSError as error:
            raise LinkError(
                f"cannot listen on {host}:{port}: {error.strerror}; stop the other program or choose another port"
            ) from error

    async def stop(self) -> None:
        """Disconnects every client and frees the port; harmless when stopped. The instrument keeps its state."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talks to one client until it leaves; also for streams that are no sockets, such as a pseudo-terminal."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._clients.add(task)
        tcp_socket: socket.socket | None = writer.get_extra_info("socket")
        if tcp_socket is not None:
            tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.CancelledError):
            # The client is gone, or stop() was called; the streams' own callback would report a cancelled task.
            return
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                # Longer than the stream's limit and thrown away, as an instrument's input buffer does.
                self.instrument.errors.add(-363, "Input buffer overrun")
                continue
            if not line.endswith(b"\n"):
                return
            answer = await self._run(line.decode("ascii", errors="replace").strip())
            if answer is not None:
                writer.write(answer.encode("ascii", errors="replace") + b"\n")
                await writer.drain()

    async def _run(self, line: str) -> str | None:
        async with self._busy:
            run = self.instrument.run(line)
            while True:
                try:
                    duration_s = next(run)
                except StopIteration as end:
                    answer: str | None = end.value
                    return answer
                await asyncio.sleep(duration_s * self._time_scale)
