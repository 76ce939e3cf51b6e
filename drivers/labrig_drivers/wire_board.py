"""`WireBoard`: a crossbar board behind a link that speaks labrig's board protocol."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.board_messages import (
    Conductance,
    Done,
    Fault,
    FaultCode,
    Hello,
    Message,
    Mvm,
    MvmAnswer,
    Ping,
    Pong,
    Program,
    Programmed,
    ReadConductance,
    Safe,
    Welcome,
    info_from_json,
)
from labrig_drivers.board_protocol import (
    MVM_ANSWER_HEAD_BYTES,
    MVM_HEAD_BYTES,
    PROGRAM_HEAD_BYTES,
    PROTOCOL_VERSION,
    BoardFraming,
    decode,
    encode,
)
from labrig_drivers.crossbar import (
    BoardInfo,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import (
    CapabilityError,
    IdentityError,
    InstrumentError,
    LabrigError,
    ProtocolError,
    SafetyError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.links.base import Link, LinkState
from labrig_drivers.links.guard import settle

# How long `close()` waits for each step of making the board safe before it disconnects all the same.
_SAFE_TIMEOUT_S: Final = 1.0
_UINT32: Final = 2**32

AnswerT = TypeVar("AnswerT", bound=Message)


class WireBoard:
    """A crossbar board at the other end of a link; keeps `CrossbarBoard`.

    Requests are checked before anything is sent. An exchange that did not end with its own answer (timeout,
    cancellation, damaged or foreign answer, lost connection) raises; the next call first reopens the link and
    makes sure that the same board answers. No request is ever sent twice. Voltages and conductances travel as
    float32.

    Args:
        link: A closed link that this driver owns from now on.
        expected: Identity that `open()` demands.
        name: How messages call this board.
        timeout_s: Longest wait for an answer in s, on top of the board's own latency.
    """

    def __init__(
        self,
        link: Link,
        *,
        expected: ExpectedIdentity | None = None,
        name: str = "board",
        timeout_s: float = 10.0,
    ) -> None:
        self._link = link
        self._expected = expected or ExpectedIdentity()
        self._name = name
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._framing = BoardFraming()
        self._welcome: Welcome | None = None
        self._info: BoardInfo | None = None
        self._in_step = False
        self._requests = 0
        self._programs = 0

    @classmethod
    def from_settings(cls, link: Link, expected: ExpectedIdentity, name: str) -> WireBoard:
        """Makes the driver from what a rig file gives."""
        return cls(link, expected=expected, name=name)

    @property
    def identity(self) -> Identity:
        """Who the board said it is; `StateError` before `open()`."""
        return self._demand_open()[0].identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        return self._demand_open()[1]

    async def open(self) -> None:
        """Connects, agrees on the protocol's version and checks the identity; nothing is driven.

        Raises:
            IdentityError: Another board than the rig file names.
            LinkError: The board cannot be reached or does not answer.
            ProtocolError: What answers does not speak the protocol.
            StateError: Already open, or the board serves another host.
        """
        async with self._lock:
            if self._info is not None:
                raise StateError(f"{self._name} at {self._link.address} is already open")
            try:
                await self._link.open(timeout_s=self._timeout_s)
                await self._greet(self._timeout_s)
            except BaseException:
                await self._link.close()
                raise

    async def close(self) -> None:
        """Grounds all lines as far as the board still answers, then disconnects; also when cancelled."""
        ending = asyncio.ensure_future(self._end())
        cancelled = await settle(ending)
        ending.result()
        if cancelled is not None:
            raise cancelled

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: NDArray[np.float64]) -> ProgramReport:
        """Programs one array; see `CrossbarBoard.program`.

        After a link error the array may or may not be programmed: the next answer's write index tells.
        """
        target_s = np.asarray(conductance_s, dtype=np.float64)
        check_program_request(self.info, array, target_s)
        async with self._lock:
            welcome, info = await self._in_session()
            self._programs += 1
            key = welcome.session * _UINT32 + self._programs % _UINT32
            request = Program(array, key, target_s.astype(np.float32))
            answer = await self._exchange(request, Programmed, self._timeout_s + info.program_latency_s)
        return ProgramReport(answer.write_index, answer.time_s, answer.pulses, answer.rms_error_s)

    async def mvm(self, array: int, voltage_v: NDArray[np.float64]) -> MvmResult:
        """Measures one batch; see `CrossbarBoard.mvm`.

        A batch that is too long for one frame goes in several, in order, each a request of its own.
        """
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_mvm_request(self.info, array, line_v)
        async with self._lock:
            welcome, info = await self._in_session()
            step = _vectors_per_frame(info, welcome.max_payload_bytes)
            pieces = [line_v[start : start + step] for start in range(0, len(line_v), step)]
            answers = [await self._mvm_piece(info, array, piece) for piece in pieces]
            if any(answer.write_index != answers[0].write_index for answer in answers):
                raise self._distrust("it was programmed by somebody else during a batch")
        code = np.concatenate([answer.code for answer in answers])
        return MvmResult(
            code=code,
            current_a=code * info.adc_lsb_a,
            saturated=np.concatenate([answer.saturated for answer in answers]),
            time_s=np.concatenate([answer.time_s for answer in answers]),
            write_index=answers[0].write_index,
        )

    async def read_conductance(self, array: int) -> NDArray[np.float64]:
        """Reads every cell; see `CrossbarBoard.read_conductance`."""
        if not 0 <= array < self.info.arrays:
            raise CapabilityError(
                f"read_conductance refused, nothing was sent: array {array} does not exist "
                f"(the board has arrays 0 to {self.info.arrays - 1})"
            )
        async with self._lock:
            _, info = await self._in_session()
            duration_s = info.rows * info.columns * info.mvm_latency_s
            answer = await self._exchange(ReadConductance(array), Conductance, self._timeout_s + duration_s)
            if answer.conductance_s.shape != (info.rows, info.columns):
                raise self._distrust(f"it answered conductances of shape {list(answer.conductance_s.shape)}")
        return answer.conductance_s.astype(np.float64)

    async def ping(self) -> None:
        """Makes sure that the board answers, and keeps it from taking the host for gone."""
        self._demand_open()
        async with self._lock:
            await self._in_session()
            nonce = self._requests
            answer = await self._exchange(Ping(nonce), Pong, self._timeout_s)
            if answer.nonce != nonce:
                raise self._distrust("it answered another ping")

    async def _mvm_piece(self, info: BoardInfo, array: int, line_v: NDArray[np.float64]) -> MvmAnswer:
        timeout_s = self._timeout_s + len(line_v) * info.mvm_latency_s
        answer = await self._exchange(Mvm(array, line_v.astype(np.float32)), MvmAnswer, timeout_s)
        if answer.code.shape != (len(line_v), info.columns):
            raise self._distrust(f"it answered codes of shape {list(answer.code.shape)}")
        return answer

    def _demand_open(self) -> tuple[Welcome, BoardInfo]:
        if self._welcome is None or self._info is None:
            raise StateError(f"{self._name} at {self._link.address} is not open; use `async with` or call open()")
        return self._welcome, self._info

    async def _in_session(self, timeout_s: float | None = None) -> tuple[Welcome, BoardInfo]:
        """The session, begun anew when the last exchange did not end with its own answer."""
        self._demand_open()
        if not self._in_step or self._link.state is not LinkState.READY:
            self._in_step = False
            timeout_s = timeout_s or self._timeout_s
            await self._link.reopen(timeout_s=timeout_s)
            await self._greet(timeout_s)
        return self._demand_open()

    async def _greet(self, timeout_s: float) -> None:
        try:
            welcome = await self._exchange(Hello(PROTOCOL_VERSION, PROTOCOL_VERSION), Welcome, timeout_s)
        finally:
            # There is no session until everything below was found right, not even after a proper refusal.
            self._in_step = False
        address = self._link.address
        self._expected.check(welcome.identity, address)
        if self._welcome is not None and welcome.identity != self._welcome.identity:
            raise IdentityError(str(self._welcome.identity), str(welcome.identity), address)
        if welcome.version != PROTOCOL_VERSION:
            raise ProtocolError(f"{self._name} at {address} chose version {welcome.version}, which was not offered")
        info = info_from_json(welcome.info_json)
        array_bytes = PROGRAM_HEAD_BYTES + 4 * info.rows * info.columns
        if array_bytes > welcome.max_payload_bytes or _vectors_per_frame(info, welcome.max_payload_bytes) < 1:
            raise ProtocolError(
                f"{self._name} at {address} takes payloads of {welcome.max_payload_bytes} bytes, "
                "too short for one of its own arrays or for one input vector and its answer"
            )
        self._welcome, self._info = welcome, info
        self._in_step = True

    async def _exchange(self, request: Message, answer_type: type[AnswerT], timeout_s: float) -> AnswerT:
        """Sends one request and returns its answer; the caller holds the lock."""
        # Never 0: that is what a board answers to a frame that it cannot read.
        request_id = self._requests % (_UINT32 - 1) + 1
        self._requests += 1
        frame = encode(request, request_id)
        # Cancelled or failed from here on, the next answer on this link could be this one's.
        self._in_step = False
        answered_id, answer = decode(await self._link.exchange(frame, self._framing, timeout_s=timeout_s))
        if answered_id != request_id:
            said = f" ({answer.text})" if isinstance(answer, Fault) else ""
            raise self._distrust(f"it answered request {answered_id}{said} when asked {request_id}")
        if isinstance(answer, Fault):
            self._in_step = True
            raise _fault_error(answer, type(request).__name__, f"{self._name} at {self._link.address}")
        if not isinstance(answer, answer_type):
            raise self._distrust(f"it answered {type(answer).__name__} to {type(request).__name__}")
        self._in_step = True
        return answer

    def _distrust(self, reason: str) -> ProtocolError:
        self._in_step = False
        return ProtocolError(
            f"{self._name} at {self._link.address}: {reason}; the answer was thrown away, "
            "and the link will be reopened before its next use"
        )

    async def _end(self) -> None:
        async with self._lock:
            if self._info is None:
                return
            try:
                # The board may be gone or deaf; it grounds its lines by itself when the connection ends.
                with contextlib.suppress(LabrigError):
                    await self._in_session(_SAFE_TIMEOUT_S)
                    await self._exchange(Safe(), Done, _SAFE_TIMEOUT_S)
            finally:
                self._welcome = self._info = None
                self._in_step = False
                await self._link.close()


def _vectors_per_frame(info: BoardInfo, max_payload_bytes: int) -> int:
    """How many input vectors fit into one request, and their answers into one answer."""
    asked = (max_payload_bytes - MVM_HEAD_BYTES) // (4 * info.rows)
    # 8 bytes of time, 2 bytes and 1 bit for each column; the flags are padded to a byte once.
    answered = 8 * (max_payload_bytes - MVM_ANSWER_HEAD_BYTES - 1) // (64 + 17 * info.columns)
    return min(asked, answered)


def _fault_error(fault: Fault, request: str, board: str) -> LabrigError:
    match fault.code:
        case FaultCode.UNSAFE_VALUE:
            return SafetyError([f"{board} says: {fault.text}"])
        case FaultCode.NOT_PROGRAMMED | FaultCode.SUPPLY_OFF | FaultCode.BUSY:
            return StateError(f"{board} says: {fault.text}")
        case FaultCode.UNSUPPORTED:
            return CapabilityError(f"{board} says: {fault.text}")
        case _:
            return InstrumentError(fault.code, fault.text, request, board)
