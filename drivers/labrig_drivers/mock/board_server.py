"""`BoardServer`: any crossbar board behind labrig's board protocol, over TCP and over a pseudo-terminal."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import numpy as np

from labrig_drivers.board_batches import vectors_per_part
from labrig_drivers.board_messages import (
    Conductance,
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
    Program,
    Programmed,
    ReadConductance,
    Safe,
    StreamMvm,
    Welcome,
    info_to_json,
)
from labrig_drivers.board_protocol import PROTOCOL_VERSION, BoardFraming, decode_verified, encode, request_id_of
from labrig_drivers.capabilities import CELL_SWEEP, FLOATING_LINES, STREAMING, TEMPERATURE, TRANSPOSED_MVM
from labrig_drivers.commanded import COMMANDED
from labrig_drivers.crossbar import CrossbarBoard, MvmResult, check_mvm_request
from labrig_drivers.errors import CapabilityError, LinkError, ProtocolError, SafetyError, StateError
from labrig_drivers.mock.event_log import BoardEvent, BoardEventKind
from labrig_drivers.mock.ports import Port, PtyPort, TcpPort

_KEPT_KEYS: Final = 1024
# The protocol has no message for these, so a host could not use them.
_NOT_CARRIED: Final = frozenset({TRANSPOSED_MVM, FLOATING_LINES, TEMPERATURE, CELL_SWEEP, COMMANDED})
_FAULT_TEXT_LENGTH: Final = 1000
# A host that takes no byte of an answer for so long is gone, also for a board that has no limit on silence.
_STUCK_S: Final = 10.0


class BoardServer:
    """Serves one board, to one host at a time.

    The board is opened for a host's first request and closed, which grounds its lines, when the host says
    `Safe`, falls silent or leaves; what is programmed stays.

    Args:
        board: The board, closed; the server owns it from now on.
        log: Called with every `BoardEvent`.
        name: How the log calls the board.
        now_s: The server's clock in s.
        supply_is_on: Tells a refusal for want of supply from one of an unprogrammed array; None when the
            board feeds itself.
        max_payload_bytes: Longest payload that is taken or sent.
        max_requests: How many requests a host is told that it may have under way. They are answered in order; while
            the board works, nothing is read, and what a host sends waits on the line.
        silence_s: Lines are grounded when the host sends nothing, or takes nothing of its answers, for longer than
            this; 0 is never.
        gap_s: Part of a frame is thrown away when its rest does not follow for so long, so that a serial line comes
            back into step by itself.
        handover_s: How long a new host waits for the one before it to leave, before it is told `BUSY`.
    """

    def __init__(
        self,
        board: CrossbarBoard,
        log: Callable[[BoardEvent], None] | None = None,
        *,
        name: str = "board",
        now_s: Callable[[], float] = time.monotonic,
        supply_is_on: Callable[[], bool] | None = None,
        max_payload_bytes: int = 4 * 2**20,
        max_requests: int = 16,
        silence_s: float = 10.0,
        gap_s: float = 0.5,
        handover_s: float = 0.5,
    ) -> None:
        self._board = board
        self._log = log
        self._name = name
        self._now_s = now_s
        self._supply_is_on = supply_is_on
        self._max_payload_bytes = max_payload_bytes
        self._framing = BoardFraming(max_payload_bytes)
        self._max_requests = max_requests
        self._silence_s = silence_s
        self._stuck_s = silence_s or _STUCK_S
        self._gap_s = gap_s
        self._handover_s = handover_s
        self._host: Port | None = None
        self._host_left = asyncio.Event()
        self._awake = False
        self._sessions = 0
        self._programmed: OrderedDict[int, Programmed] = OrderedDict()
        self._servers: list[asyncio.Server] = []
        self._ptys: list[PtyPort] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start_tcp(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listens on `host:port` and returns the port; 0 takes a free one.

        Raises:
            LinkError: The address is in use or not this machine's.
        """
        try:
            server = await asyncio.start_server(self._serve_connection, host, port)
        except OSError as error:
            raise LinkError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; "
                "stop the program that does, or choose another port"
            ) from error
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    def start_pty(self) -> str:
        """Serves a new pseudo-terminal from the running event loop and returns the path of its device."""
        port = PtyPort(self._stuck_s)
        self._ptys.append(port)
        self._keep(asyncio.ensure_future(self._serve_line(port)))
        return port.device

    async def stop(self) -> None:
        """Disconnects every host, grounds the lines and frees the addresses, for good."""
        self._stopped = True
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
        for port in self._ptys:
            port.close()
        self._servers.clear()
        self._ptys.clear()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The task belongs to the stream server, which would not cancel it when it stops.
        task = asyncio.current_task()
        assert task is not None
        self._keep(task)
        port = TcpPort(reader, writer, self._stuck_s)
        try:
            try:
                # A connection may have been accepted in the last moment before the end.
                if not self._stopped:
                    await self._serve_host(port)
            finally:
                await port.close()
        except asyncio.CancelledError:
            # Only `stop()` cancels; the stream server would report a cancelled handler as a failure.
            return

    async def _serve_line(self, port: PtyPort) -> None:
        while True:
            await self._serve_host(port)

    async def _serve_host(self, port: Port) -> None:
        buffer = bytearray()
        try:
            while piece := await self._receive(port, buffer):
                buffer += piece
                if not await self._answer_all(port, buffer):
                    return
        finally:
            if self._host is port:
                await self._ground(port)
                self._note("disconnect", port)
                self._host = None
                self._host_left.set()

    async def _receive(self, port: Port, buffer: bytearray) -> bytes:
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        while True:
            gap_ends_s = since_s + self._gap_s if buffer else math.inf
            watched = self._silence_s > 0.0 and self._awake and self._host is port
            silence_ends_s = since_s + self._silence_s if watched else math.inf
            until_s = min(gap_ends_s, silence_ends_s)
            try:
                async with asyncio.timeout_at(None if until_s == math.inf else until_s):
                    return await port.receive()
            except TimeoutError:
                if gap_ends_s == until_s:
                    buffer.clear()
                if silence_ends_s == until_s:
                    await self._ground(port)

    async def _answer_all(self, port: Port, buffer: bytearray) -> bool:
        """Answers every whole frame; False when the line cannot be trusted any more and should be closed."""
        while True:
            try:
                frame = self._framing.take(buffer)
            except ProtocolError as error:
                buffer.clear()
                await port.send(self._fault(port, FaultCode.BAD_REQUEST, str(error), request_id=0))
                return port.outlives_host
            if frame is None:
                return True
            answer = await self._answer(port, frame)
            if answer is None or not await port.send(answer):
                # Gone, or as good as gone: what it still asked for is not done.
                buffer.clear()
                if self._host is port:
                    await self._ground(port)
                return port.outlives_host

    async def _answer(self, port: Port, frame: bytes) -> bytes | None:
        """Carries a request out; returns its answer, or the last part of it, or None when the host left meanwhile."""
        request_id = request_id_of(frame)
        try:
            _, request = decode_verified(frame)
            if isinstance(request, StreamMvm):
                last = await self._stream(port, request, request_id)
                return None if last is None else encode(last, request_id)
            return encode(await self._carry_out(port, request), request_id)
        except ProtocolError as error:
            return self._fault(port, FaultCode.BAD_REQUEST, str(error), request_id)
        except SafetyError as error:
            return self._fault(port, FaultCode.UNSAFE_VALUE, "; ".join(error.reasons), request_id)
        except CapabilityError as error:
            return self._fault(port, FaultCode.UNSUPPORTED, str(error), request_id)
        except _BusyError as error:
            return self._fault(port, FaultCode.BUSY, str(error), request_id)
        except StateError as error:
            no_supply = self._supply_is_on is not None and not self._supply_is_on()
            code = FaultCode.SUPPLY_OFF if no_supply else FaultCode.NOT_PROGRAMMED
            return self._fault(port, code, str(error), request_id)
        except Exception as error:  # whatever the board does, its host gets an answer and the server goes on
            return self._fault(port, FaultCode.INTERNAL, f"{type(error).__name__}: {error}", request_id)

    async def _carry_out(self, port: Port, request: Message) -> Message:
        if isinstance(request, Hello):
            return await self._welcome(port, request)
        self._require_session(port)
        match request:
            case Program():
                return await self._program(port, request)
            case Mvm():
                await self._wake()
                return _mvm_answer(await self._board.mvm(request.array, request.voltage_v.astype(np.float64)))
            case ReadConductance():
                await self._wake()
                conductance_s = await self._board.read_conductance(request.array)
                return Conductance(conductance_s.astype(np.float32))
            case Ping():
                return Pong(request.nonce)
            case Safe():
                await self._ground(port)
                return Done()
            case _:
                raise ProtocolError(f"{type(request).__name__} is an answer, not a request")

    async def _stream(self, port: Port, request: StreamMvm, request_id: int) -> MvmPart | None:
        """Sends each part as soon as it is measured, and returns the last one; None when the host left meanwhile."""
        self._require_session(port)
        await self._wake()
        step = min(request.part_vectors, vectors_per_part(self._board.info, self._max_payload_bytes))
        if step < 1:
            raise CapabilityError(f"parts of {request.part_vectors} vectors are not possible here")
        line_v = request.voltage_v.astype(np.float64)
        # All of it, before the first part is measured.
        check_mvm_request(self._board.info, request.array, line_v)
        first = 0
        while True:
            answer = _mvm_answer(await self._board.mvm(request.array, line_v[first : first + step]))
            part = MvmPart(first, first + step >= len(line_v), answer)
            if part.last:
                return part
            if not await port.send(encode(part, request_id)):
                return None
            first += step

    def _require_session(self, port: Port) -> None:
        if self._host is not port:
            raise ProtocolError("no session: send Hello first")

    async def _welcome(self, port: Port, request: Hello) -> Welcome:
        if not request.min_version <= PROTOCOL_VERSION <= request.max_version:
            raise CapabilityError(
                f"the board speaks version {PROTOCOL_VERSION} of the protocol, "
                f"the host {request.min_version} to {request.max_version}"
            )
        await self._admit(port)
        await self._wake()
        self._sessions += 1
        info = self._board.info
        return Welcome(
            version=PROTOCOL_VERSION,
            session=self._sessions,
            max_payload_bytes=self._max_payload_bytes,
            max_requests=self._max_requests,
            silence_s=self._silence_s,
            identity=self._board.identity,
            info_json=info_to_json(replace(info, capabilities=info.capabilities - _NOT_CARRIED | {STREAMING})),
        )

    async def _admit(self, port: Port) -> None:
        # A host that reconnects may be faster than the news of the end of its own last connection.
        deadline_s = time.monotonic() + self._handover_s
        while self._host not in {None, port}:
            self._host_left.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                    await self._host_left.wait()
            except TimeoutError:
                raise _BusyError("the board serves another host; it is free when that one disconnects") from None
        if self._host is None:
            self._host = port
            self._note("connect", port)

    async def _program(self, port: Port, request: Program) -> Programmed:
        known = self._programmed.get(request.idempotency_key)
        if known is not None:
            return known
        await self._wake()
        report = await self._board.program(request.array, request.conductance_s.astype(np.float64))
        answer = Programmed(report.write_index, report.time_s, report.pulses, report.rms_error_s)
        self._programmed[request.idempotency_key] = answer
        if len(self._programmed) > _KEPT_KEYS:
            self._programmed.popitem(last=False)
        self._note("program", port, request.array, report.write_index)
        return answer

    async def _wake(self) -> None:
        if not self._awake:
            await self._board.open()
            self._awake = True

    async def _ground(self, port: Port) -> None:
        if self._awake:
            self._awake = False
            await self._board.close()
            self._note("grounded", port)

    def _fault(self, port: Port, code: FaultCode, text: str, request_id: int) -> bytes:
        self._note("fault", port, text=f"{code.name}: {text}")
        return encode(Fault(code, text[:_FAULT_TEXT_LENGTH]), request_id)

    def _note(
        self,
        what: BoardEventKind,
        port: Port,
        array: int | None = None,
        write_index: int | None = None,
        text: str = "",
    ) -> None:
        if self._log is not None:
            self._log(BoardEvent(self._now_s(), self._name, what, port.address, array, write_index, text))


def _mvm_answer(result: MvmResult) -> MvmAnswer:
    return MvmAnswer(result.write_index, result.time_s, result.code, result.saturated)


class _BusyError(StateError):
    """Another host has the board."""
