"""`InstrumentServer`: a simulated instrument behind a real socket, or behind any pair of byte streams."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from labrig_drivers.errors import LinkError, StateError
from labrig_drivers.mock.scpi_parser import Run


class Errors(Protocol):
    """Where an instrument notes what went wrong."""

    def add(self, code: int, text: str) -> None:
        """Notes an error."""
        ...


class SimulatedInstrument(Protocol):
    """An instrument without input and output: one line in, one answer out, and what takes time yields it."""

    @property
    def errors(self) -> Errors:
        """The error queue."""
        ...

    def run(self, line: str) -> Run:
        """Runs one line; yields the seconds to wait and returns the answer, None for none."""
        ...

    def take_operation(self) -> Run | None:
        """Hands over the overlapped operation (a sweep) that the last line started; None when it started none.

        The server runs it in the background and holds all later lines back until it has ended, as instruments do,
        except one that `is_abort`.
        """
        ...

    def is_abort(self, line: str) -> bool:
        """Whether this line ends a running operation."""
        ...


InstrumentT = TypeVar("InstrumentT", bound=SimulatedInstrument)


def run_at_once(instrument: SimulatedInstrument, line: str) -> str | bytes | None:
    """Runs one line, and the operation that it started, without any time passing; for in-process links.

    Returns:
        The answer to the line.
    """
    answer = _exhaust(instrument.run(line))
    operation = instrument.take_operation()
    if operation is not None:
        _exhaust(operation)
    return answer


def _exhaust(run: Run) -> str | bytes | None:
    while True:
        try:
            next(run)
        except StopIteration as end:
            answer: str | bytes | None = end.value
            return answer


class InstrumentServer(Generic[InstrumentT]):
    """Serves one simulated instrument to any number of clients, one command at a time.

    A client that leaves changes nothing: the output stays as it is, as on the instrument.

    Args:
        instrument: What is served.
        time_scale: What takes time takes this many times its nominal duration.
    """

    def __init__(self, instrument: InstrumentT, *, time_scale: float = 1.0) -> None:
        self.instrument = instrument
        self._time_scale = time_scale
        self._server: asyncio.Server | None = None
        self._busy = asyncio.Lock()
        self._clients: set[asyncio.Task[None]] = set()
        self._operation: asyncio.Task[str | bytes | None] | None = None

    @property
    def port(self) -> int:
        """The TCP port.

        Raises:
            StateError: The server was not started.
        """
        if self._server is None or not self._server.sockets:
            raise StateError("the simulated instrument is not listening; start it first")
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
        tasks: list[asyncio.Task[None] | asyncio.Task[str | bytes | None]] = list(self._clients)
        if self._operation is not None:
            tasks.append(self._operation)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
            # One character for each byte, whatever came: an instrument knows no other alphabet.
            text = line.decode("ascii", errors="replace").replace("\ufffd", "?")
            answer = await self._run(text.strip())
            if answer is not None:
                writer.write(answer if isinstance(answer, bytes) else answer.encode("ascii", errors="replace") + b"\n")
                await writer.drain()

    async def _run(self, line: str) -> str | bytes | None:
        if self._operation is not None and self.instrument.is_abort(line):
            self._operation.cancel()
        async with self._busy:
            if self._operation is not None:
                await asyncio.wait([self._operation])
                self._operation = None
            answer = await self._step(self.instrument.run(line))
            started = self.instrument.take_operation()
            if started is not None:
                self._operation = asyncio.create_task(self._step(started))
            return answer

    async def _step(self, run: Run) -> str | bytes | None:
        try:
            while True:
                try:
                    duration_s = next(run)
                except StopIteration as end:
                    answer: str | bytes | None = end.value
                    return answer
                await asyncio.sleep(duration_s * self._time_scale)
        finally:
            # An operation that is aborted ends where it stands.
            run.close()
