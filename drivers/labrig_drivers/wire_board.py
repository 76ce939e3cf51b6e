"""`WireBoard`: a crossbar board behind a link that speaks labrig's board protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.board_batches import (
    Collected,
    StreamOrder,
    pieces,
    result_of,
    vectors_per_request,
    vectors_per_stream,
)
from labrig_drivers.board_keep_alive import KeepAlive
from labrig_drivers.board_messages import (
    Conductance,
    Done,
    Mvm,
    MvmAnswer,
    MvmPart,
    Program,
    Programmed,
    ReadConductance,
    Safe,
    StreamMvm,
)
from labrig_drivers.board_session import BoardSession
from labrig_drivers.board_turns import MvmStream, Turn
from labrig_drivers.capabilities import READ_CONDUCTANCE, STREAMING, require_capability
from labrig_drivers.crossbar import (
    BoardInfo,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import CapabilityError, LabrigError, ProtocolError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection, Identity
from labrig_drivers.links.base import Link
from labrig_drivers.settling import settle

# How long `close()` waits for each step of making the board safe before it disconnects all the same.
_SAFE_TIMEOUT_S: Final = 1.0
_UINT32: Final = 2**32
# Requests of a stream under way: one that is answered, and one that waits for its turn.
_STREAM_WINDOW: Final = 2

AnswerT = TypeVar("AnswerT")
ResultT = TypeVar("ResultT")


class WireBoard:
    """A crossbar board at the other end of a link; keeps `CrossbarBoard` and `ProtectsItself`.

    Requests are checked before anything is sent. An exchange that did not end with its own answer (timeout,
    cancellation, damaged or foreign answer, lost connection) raises; the next call first reopens the link and
    makes sure that the same board answers. No request is ever sent twice. Voltages and conductances travel as
    float32.

    Args:
        link: A closed link that this driver owns from now on.
        expected: Identity that `open()` demands.
        name: How messages call this board.
        timeout_s: Longest wait for an answer in s, on top of the board's own latency.
        keep_alive: Pings an idle board by itself, so that it grounds its lines when the host is gone, and not when the
            host only thinks.
    """

    def __init__(
        self,
        link: Link,
        *,
        expected: ExpectedIdentity | None = None,
        name: str = "board",
        timeout_s: float = 10.0,
        keep_alive: bool = True,
    ) -> None:
        self._session = BoardSession(link, expected or ExpectedIdentity(), name)
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._keep_alive = KeepAlive(self._session, self._lock, timeout_s) if keep_alive else None
        # Weak, so that a stream that was left by `break` is still found and closed by the event loop.
        self._streams: WeakSet[MvmStream] = WeakSet()
        self._turn = Turn(self._session, self._lock, timeout_s)
        self._ending = False
        self._programs = 0

    @classmethod
    def from_settings(cls, link: Link, expected: ExpectedIdentity, name: str) -> WireBoard:
        """Makes the driver from what a rig file gives."""
        return cls(link, expected=expected, name=name)

    @property
    def identity(self) -> Identity:
        """Who the board said it is; `StateError` before `open()`."""
        return self._session.demand_open()[0].identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        return self._session.demand_open()[1]

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What the board does when its host falls silent; `StateError` before `open()`."""
        silence_s = self._session.demand_open()[0].silence_s
        if silence_s == 0.0:
            text = "the board has no limit on its host's silence: it grounds its lines when the connection ends"
            return HostLossProtection(None, text)
        text = f"the board grounds its lines when its host is gone or silent for {silence_s:g} s"
        return HostLossProtection(silence_s, text)

    async def open(self) -> None:
        """Connects, agrees on the protocol's version and checks the identity; nothing is driven.

        Raises:
            IdentityError: Another board than the rig file names.
            LinkError: The board cannot be reached or does not answer.
            ProtocolError: What answers does not speak the protocol.
            StateError: Already open, or the board serves another host.
        """
        async with self._lock:
            await self._session.begin(self._timeout_s)
            self._ending = False
            if self._keep_alive is not None:
                self._keep_alive.start(self._session.demand_open()[0].silence_s)

    async def close(self) -> None:
        """Grounds all lines as far as the board still answers, then disconnects; also when cancelled.

        A stream that somebody still holds is ended.
        """
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
        async with self._turn as (welcome, info):
            self._programs += 1
            key = welcome.session * _UINT32 + self._programs % _UINT32
            request = Program(array, key, target_s.astype(np.float32))
            answer = await self._session.ask(request, Programmed, self._timeout_s + info.program_latency_s)
        return ProgramReport(answer.write_index, answer.time_s, answer.pulses, answer.rms_error_s)

    async def mvm(self, array: int, voltage_v: NDArray[np.float64]) -> MvmResult:
        """Measures one batch; see `CrossbarBoard.mvm`.

        A long batch goes in several requests, in order, as many at a time as the board queues. When the board refuses
        one of them, the whole batch is refused.
        """
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_mvm_request(self.info, array, line_v)
        async with self._turn as (welcome, info):
            step = vectors_per_request(info, welcome, len(line_v))
            timeout_s = self._timeout_s + step * info.mvm_latency_s
            if step == len(line_v):
                answer = await self._session.ask(Mvm(array, line_v.astype(np.float32)), MvmAnswer, timeout_s)
                return self._accept(partial(result_of, info, step), answer)
            collected = Collected(info, len(line_v), step)
            requests = (Mvm(array, piece.astype(np.float32)) for piece in pieces(line_v, step))
            asking = self._session.ask_many(requests, MvmAnswer, timeout_s=timeout_s, window=welcome.max_requests)
            async with aclosing(asking) as answers:
                async for answer in answers:
                    self._accept(collected.add, answer)
            return collected.result()

    def mvm_stream(self, array: int, voltage_v: NDArray[np.float64], *, part_vectors: int = 256) -> MvmStream:
        """Measures one batch and yields its results in order, part by part, while the board goes on measuring.

        The board belongs to the stream until it is exhausted or left; other tasks wait, and a request by the task that
        reads the stream is refused. Left early (by `break`, an error or a cancellation), its late results are thrown
        away, and the link is reopened before its next use. Nothing is pinged while the reader holds a part.

        Args:
            array: Which array.
            voltage_v: Inputs in V, `[batch, rows]`.
            part_vectors: The most vectors that one part answers, at least 1.

        Raises:
            CapabilityError: The board does not stream, no such array, or wrong shape; nothing was sent.
            SafetyError: A voltage lies outside the board's range, or is not finite; nothing was sent.
            LabrigError: While it is read, as for `mvm`; the parts before stay right.
        """
        line_v = np.asarray(voltage_v, dtype=np.float64)
        require_capability(self.info, STREAMING)
        check_mvm_request(self.info, array, line_v)
        if part_vectors < 1:
            raise CapabilityError(f"mvm_stream refused, nothing was sent: part_vectors is {part_vectors}, not positive")
        stream = MvmStream(self._parts(array, line_v, min(part_vectors, len(line_v))), self._session.where)
        self._streams.add(stream)
        return stream

    async def read_conductance(self, array: int) -> NDArray[np.float64]:
        """Reads every cell; see `CrossbarBoard.read_conductance`."""
        if not 0 <= array < self.info.arrays:
            raise CapabilityError(
                f"read_conductance refused, nothing was sent: array {array} does not exist "
                f"(the board has arrays 0 to {self.info.arrays - 1})"
            )
        require_capability(self.info, READ_CONDUCTANCE)
        async with self._turn as (_, info):
            duration_s = info.rows * info.columns * info.mvm_latency_s
            answer = await self._session.ask(ReadConductance(array), Conductance, self._timeout_s + duration_s)
            if answer.conductance_s.shape != (info.rows, info.columns):
                raise self._session.distrust(
                    f"it answered conductances of shape {list(answer.conductance_s.shape)} "
                    f"where {[info.rows, info.columns]} were asked for"
                )
        return answer.conductance_s.astype(np.float64)

    async def ping(self) -> None:
        """Makes sure that the board answers."""
        self._session.demand_open()
        async with self._turn:
            await self._session.ping(self._timeout_s)

    async def _parts(self, array: int, line_v: NDArray[np.float64], part_vectors: int) -> AsyncGenerator[MvmResult]:
        async with self._turn as (welcome, info):
            step = vectors_per_stream(info, welcome, len(line_v))
            order = StreamOrder(info, len(line_v), step)
            requests = (StreamMvm(array, part_vectors, piece.astype(np.float32)) for piece in pieces(line_v, step))
            asking = self._session.ask_many(
                requests,
                MvmPart,
                timeout_s=self._timeout_s + part_vectors * info.mvm_latency_s,
                window=min(welcome.max_requests, _STREAM_WINDOW),
            )
            self._turn.streaming = asyncio.current_task()
            try:
                async with aclosing(asking) as parts:
                    async for part in parts:
                        if self._ending:
                            raise StateError(f"{self._session.where} was closed while it streamed results")
                        result = self._accept(order.take, part)
                        # The last one is given out when the exchange has ended, so that leaving then costs nothing.
                        if order.complete and await anext(parts, None) is not None:
                            raise self._session.distrust("it sent more parts than there are results")
                        yield result
            finally:
                self._turn.streaming = None

    def _accept(self, take: Callable[[AnswerT], ResultT], answer: AnswerT) -> ResultT:
        try:
            return take(answer)
        except ProtocolError as error:
            raise self._session.distrust(str(error)) from None

    async def _end(self) -> None:
        self._ending = True
        for stream in list(self._streams):
            await stream.cut()
        async with self._lock:
            if not self._session.is_open:
                return
            try:
                if self._keep_alive is not None:
                    await self._keep_alive.stop()
                # The board may be gone or deaf; it grounds its lines by itself when the connection ends.
                with contextlib.suppress(LabrigError):
                    await self._session.ensure(_SAFE_TIMEOUT_S)
                    await self._session.ask(Safe(), Done, _SAFE_TIMEOUT_S)
            finally:
                await self._session.end()
