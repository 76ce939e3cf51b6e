"""`BoardSession`: requests and their answers on a link that speaks the board protocol, and nothing but whole ones."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Final, TypeVar

from labrig_drivers.board_batches import check_frames_hold_a_vector
from labrig_drivers.board_messages import Fault, FaultCode, Hello, Message, Ping, Pong, Welcome, info_from_json
from labrig_drivers.board_protocol import PROTOCOL_VERSION, BoardFraming, decode_verified, encode, ends_answer
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import (
    CapabilityError,
    IdentityError,
    InstrumentError,
    LabrigError,
    LinkTimeoutError,
    ProtocolError,
    SafetyError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.links.base import Link, LinkState

_UINT32: Final = 2**32
# On a serial line the first greeting may end in the rest of a request that was cut off, which the board throws away
# after half a second. A greeting drives nothing, so it may be sent again.
_FIRST_GREETING_S: Final = 1.0

AnswerT = TypeVar("AnswerT", bound=Message)


class BoardSession:
    """One host's conversation with one board. Its caller sees to it that one request is made at a time.

    An answer counts only when its request id and its type fit. After anything else (timeout, cancellation, damage, lost
    connection) the session is out of step: `ensure()` reopens the link and makes sure that the same board answers.
    Nothing but a greeting is ever sent twice.

    Args:
        link: A closed link that the session owns from now on.
        expected: Identity that the board must have.
        name: How messages call the board.
    """

    def __init__(self, link: Link, expected: ExpectedIdentity, name: str) -> None:
        self._link = link
        self._expected = expected
        self._where = f"{name} at {link.address}"
        self._framing = BoardFraming()
        self._opened: tuple[Welcome, BoardInfo] | None = None
        self._in_step = False
        self._requests = 0
        self._last_sent_s = -math.inf

    @property
    def where(self) -> str:
        """Name and address of the board, for messages."""
        return self._where

    @property
    def is_open(self) -> bool:
        """Whether `begin()` succeeded and `end()` was not called yet."""
        return self._opened is not None

    @property
    def last_sent_s(self) -> float:
        """The event loop's time in s when something was last sent."""
        return self._last_sent_s

    def demand_open(self) -> tuple[Welcome, BoardInfo]:
        """What the board said of itself.

        Raises:
            StateError: The session is not open.
        """
        if self._opened is None:
            raise StateError(f"{self._where} is not open; use `async with` or call open()")
        return self._opened

    async def begin(self, timeout_s: float) -> None:
        """Connects, agrees on the protocol's version and checks the identity; see `WireBoard.open`."""
        if self._opened is not None:
            raise StateError(f"{self._where} is already open")
        try:
            await self._link.open(timeout_s=timeout_s)
            await self._greet(timeout_s)
        except BaseException:
            await self._link.close()
            raise

    async def ensure(self, timeout_s: float) -> tuple[Welcome, BoardInfo]:
        """The session, begun anew when it is out of step.

        Raises:
            IdentityError: Another board answers now.
            LinkError, ProtocolError: The board cannot be reached, or does not speak the protocol any more.
            StateError: The session is not open, or the board serves another host.
        """
        self.demand_open()
        if not self._is_ready():
            self._in_step = False
            try:
                await self._begin_anew(min(timeout_s, _FIRST_GREETING_S))
            except (LinkTimeoutError, ProtocolError):
                await self._begin_anew(timeout_s)
        return self.demand_open()

    async def end(self) -> None:
        """Disconnects; harmless when ended."""
        self._opened = None
        self._in_step = False
        await self._link.close()

    async def ask(self, request: Message, answer_type: type[AnswerT], timeout_s: float) -> AnswerT:
        """Sends one request and returns its answer.

        Raises:
            LinkError: No answer came in time, or the board is gone.
            ProtocolError: Something else came, and was thrown away.
            SafetyError, StateError, CapabilityError, InstrumentError: The board's own refusal.
        """
        request_id = self._next_id()
        frame = encode(request, request_id)
        # Cancelled or failed from here on, the next answer on this link could be this one's.
        self._in_step = False
        self._note_sent()
        answer = self._read(await self._link.exchange(frame, self._framing, timeout_s=timeout_s), request_id)
        if isinstance(answer, Fault):
            self._in_step = True
            raise _fault_error(answer, type(request).__name__, self._where)
        if not isinstance(answer, answer_type):
            raise self.distrust(f"it answered {type(answer).__name__} to {type(request).__name__}")
        self._in_step = True
        return answer

    async def ask_many(
        self, requests: Iterable[Message], answer_type: type[AnswerT], *, timeout_s: float, window: int
    ) -> AsyncGenerator[AnswerT]:
        """Sends requests, up to `window` of them ahead of their answers, and yields the answers in order.

        After a refusal nothing more is sent, and the answers that are still on their way are waited for. Left before it
        is exhausted, the session is out of step.

        Args:
            requests: Requests of one kind, each taken when its turn comes.
            answer_type: Their answer; `MvmPart` for those that are answered in parts.
            timeout_s: Longest wait for one answer.
            window: How many requests may be under way, at least 1.

        Raises:
            LinkError, ProtocolError, SafetyError, StateError, CapabilityError, InstrumentError: As for `ask`.
        """
        unanswered: deque[int] = deque()
        refused: LabrigError | None = None
        kind = "a request"

        def frames() -> Iterator[bytes]:
            nonlocal kind
            for request in requests:
                if refused is not None:
                    return
                kind = type(request).__name__
                unanswered.append(self._next_id())
                self._note_sent()
                yield encode(request, unanswered[-1])

        self._in_step = False
        exchange = self._link.exchange_many(
            frames(), self._framing, timeout_s=timeout_s, window=window, is_last=ends_answer
        )
        async with aclosing(exchange) as answers:
            async for frame in answers:
                request_id = unanswered.popleft() if ends_answer(frame) else unanswered[0]
                answer = self._read(frame, request_id)
                if isinstance(answer, Fault):
                    refused = refused or _fault_error(answer, kind, self._where)
                elif not isinstance(answer, answer_type):
                    raise self.distrust(f"it answered {type(answer).__name__} to {kind}")
                elif refused is None:
                    yield answer
        self._in_step = True
        if refused is not None:
            raise refused

    async def ping(self, timeout_s: float) -> None:
        """Makes sure that the board answers; errors as for `ask`."""
        nonce = self._requests
        answer = await self.ask(Ping(nonce), Pong, timeout_s)
        if answer.nonce != nonce:
            raise self.distrust("it answered another ping")

    async def give_sign_of_life(self, timeout_s: float) -> None:
        """Pings a board that is in step; what goes wrong is left for the next request to find out."""
        if self._is_ready():
            with contextlib.suppress(LabrigError):
                await self.ping(timeout_s)

    def distrust(self, reason: str) -> ProtocolError:
        """Puts the session out of step and makes the error that says why."""
        self._in_step = False
        return ProtocolError(
            f"{self._where}: {reason}; the answer was thrown away, and the link will be reopened before its next use"
        )

    def _is_ready(self) -> bool:
        return self._in_step and self._link.state is LinkState.READY

    async def _begin_anew(self, timeout_s: float) -> None:
        await self._link.reopen(timeout_s=timeout_s)
        await self._greet(timeout_s)

    async def _greet(self, timeout_s: float) -> None:
        try:
            welcome = await self.ask(Hello(PROTOCOL_VERSION, PROTOCOL_VERSION), Welcome, timeout_s)
        finally:
            # There is no session until everything below was found right, not even after a proper refusal.
            self._in_step = False
        address = self._link.address
        self._expected.check(welcome.identity, address)
        if self._opened is not None and welcome.identity != self._opened[0].identity:
            raise IdentityError(str(self._opened[0].identity), str(welcome.identity), address)
        try:
            info = _checked_info(welcome)
        except ProtocolError as error:
            raise ProtocolError(f"{self._where}: {error}; its firmware does not keep the board protocol") from None
        self._opened = welcome, info
        self._in_step = True

    def _next_id(self) -> int:
        # Never 0: that is what a board answers to a frame that it cannot read.
        request_id = self._requests % (_UINT32 - 1) + 1
        self._requests += 1
        return request_id

    def _note_sent(self) -> None:
        self._last_sent_s = asyncio.get_running_loop().time()

    def _read(self, frame: bytes, request_id: int) -> Message:
        answered_id, answer = decode_verified(frame)
        if answered_id != request_id:
            said = f" ({answer.text})" if isinstance(answer, Fault) else ""
            raise self.distrust(f"it answered request {answered_id}{said} when asked {request_id}")
        return answer


def _checked_info(welcome: Welcome) -> BoardInfo:
    if welcome.version != PROTOCOL_VERSION:
        raise ProtocolError(f"it chose version {welcome.version}, which was not offered")
    if welcome.max_requests < 1:
        raise ProtocolError("it takes in 0 requests at a time")
    if not (math.isfinite(welcome.silence_s) and welcome.silence_s >= 0.0):
        raise ProtocolError(f"its silence_s is {welcome.silence_s}, neither 0 nor a time")
    info = info_from_json(welcome.info_json)
    check_frames_hold_a_vector(info, welcome.max_payload_bytes)
    return info


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
