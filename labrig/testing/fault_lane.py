"""One way through a `FaultProxy`, without any input or output: bytes go in, what is to be done with them comes out."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from labrig.testing.fault_plan import Direction, Fault, FaultPlan, Injected, PlannedFault

Cutter = Callable[[bytearray], int]
"""Says how long the first message in the bytes is, with everything that frames it; 0 while it is incomplete."""

# Magic, frame version, type, request id, length of the payload; a CRC of four bytes follows the payload.
_FRAME_HEADER = struct.Struct("<2sBBII")
_FRAME_END_BYTES = 4


def cut_lines(buffer: bytearray) -> int:
    """A message ends with a line feed."""
    return buffer.find(b"\n") + 1


def cut_pieces(buffer: bytearray) -> int:
    """A message is what arrives at once: a request as its driver sends it, also one of several lines."""
    return len(buffer)


def cut_frames(buffer: bytearray) -> int:
    """A message is a frame of labrig's board protocol; bytes that begin none are one message."""
    if len(buffer) < _FRAME_HEADER.size:
        return 0
    magic, _version, _kind, _request, payload_bytes = _FRAME_HEADER.unpack_from(buffer)
    if magic != b"LR":
        return len(buffer)
    end: int = _FRAME_HEADER.size + payload_bytes + _FRAME_END_BYTES
    return end if len(buffer) >= end else 0


@dataclass(frozen=True)
class Send:
    """Bytes to send in one piece."""

    data: bytes


@dataclass(frozen=True)
class Wait:
    """A pause in s on this way; 0 lets what was sent travel alone."""

    duration_s: float


class EndKind(Enum):
    """How a connection comes to an end, as far as this way is concerned."""

    HALF_CLOSE = "half-close"
    CUT = "cut"
    RESET = "reset"


@dataclass(frozen=True)
class End:
    """The end of the connection; `refuse_s` is how long nobody can connect after it, None if everybody can."""

    kind: EndKind
    refuse_s: float | None = None


@dataclass(frozen=True)
class Freeze:
    """Nothing moves both ways for `duration_s`; 0 is for ever."""

    duration_s: float


Step = Send | Wait | End | Freeze


class LaneCount:
    """How far the messages of one way have come, over all connections, since the plan was given."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.last = b""


class FaultLane:
    """One way of one connection.

    A message that no fault concerns passes byte by byte as it comes; one that may be hit is held until it is whole.

    Args:
        direction: Which way it is.
        cutter: Where messages end.
        connection: Number of the connection, for the record.
        record: Called with every fault that is injected.
    """

    def __init__(
        self, direction: Direction, cutter: Cutter, connection: int, record: Callable[[Injected], None]
    ) -> None:
        self.direction: Direction = direction
        self._cutter = cutter
        self._connection = connection
        self._record = record
        self._buffer = bytearray()
        # How much of the message at the head of the buffer has passed already.
        self._passed = 0
        self._held: tuple[PlannedFault, bytes] | None = None

    @property
    def patience_s(self) -> float | None:
        """How long in s a held message may wait for the next one; None while there is nothing to wait for."""
        return None if self._held is None else self._held[0].duration_s or None

    def feed(self, data: bytes, plan: FaultPlan, count: LaneCount) -> list[Step]:
        """Takes bytes that arrived and says what to do."""
        self._buffer += data
        return _joined(self._pass(plan, count))

    def release(self) -> list[Step]:
        """Gives up waiting for the next message."""
        held, self._held = self._held, None
        return [] if held is None else [Send(held[1])]

    def finish(self, plan: FaultPlan, count: LaneCount) -> list[Step]:
        """No more bytes come: what is left is a message too, the end follows it."""
        steps: list[Step] = []
        if self._buffer:
            rest = bytes(self._buffer)
            self._buffer.clear()
            steps += self._whole(rest, plan, count)
        return [*_joined(iter([*steps, *self.release()])), End(EndKind.HALF_CLOSE)]

    def _pass(self, plan: FaultPlan, count: LaneCount) -> Iterator[Step]:
        while self._buffer:
            length = self._cutter(self._buffer)
            if length == 0:
                break
            message = bytes(self._buffer[:length])
            del self._buffer[:length]
            yield from self._whole(message, plan, count)
        must_be_whole = self._held is not None or plan.may_concern(self.direction, count.messages, count.bytes)
        if self._buffer and (self._passed or not must_be_whole):
            yield Send(bytes(self._buffer[self._passed :]))
            self._passed = len(self._buffer)

    def _whole(self, message: bytes, plan: FaultPlan, count: LaneCount) -> Iterator[Step]:
        passed, self._passed = self._passed, 0
        planned = None
        if not passed:
            planned = plan.fault_for(self.direction, count.messages, count.bytes, message)
        before = count.last
        count.messages += 1
        count.bytes += len(message)
        count.last = message
        if passed:
            yield Send(message[passed:])
        elif self._held is not None:
            # A message that another one waits for has no fault of its own.
            (held_fault, held), self._held = self._held, None
            yield Send(message + held if held_fault.fault is Fault.SWAP else held + message)
        elif planned is None or (planned.fault is Fault.STALE and not before):
            yield Send(message)
        else:
            self._record(Injected(planned, message, self._connection))
            yield from self._spoil(planned, message, before)

    def _spoil(self, planned: PlannedFault, message: bytes, before: bytes) -> Iterator[Step]:
        offset, duration_s = min(planned.offset, len(message)), planned.duration_s
        match planned.fault:
            case Fault.DROP:
                if planned.count:
                    yield Send(message[:offset] + message[offset + planned.count :])
            case Fault.DELAY:
                yield Wait(duration_s)
                yield Send(message)
            case Fault.DUPLICATE:
                yield Send(message)
                if duration_s:
                    yield Wait(duration_s)
                yield Send(message)
            case Fault.SPLIT:
                ends = [0, offset, len(message)] if offset else list(range(len(message) + 1))
                for start, stop in pairwise(ends):
                    yield Send(message[start:stop])
                    yield Wait(duration_s)
            case Fault.MERGE | Fault.SWAP:
                self._held = planned, message
            case Fault.GARBAGE:
                yield Send(message[:offset] + planned.data + message[offset:])
            case Fault.CORRUPT:
                mask = bytes(offset) + planned.data
                flips = mask[: len(message)].ljust(len(message), b"\0")
                yield Send(bytes(byte ^ flip for byte, flip in zip(message, flips, strict=True)))
            case Fault.NOTICE:
                yield Send(planned.data + message)
            case Fault.STALE:
                yield Send(before + message)
            case Fault.HALF_CLOSE:
                yield Send(message)
                yield End(EndKind.HALF_CLOSE)
            case Fault.FREEZE:
                yield Freeze(duration_s)
                yield Send(message)
            case Fault.RESET:
                yield End(EndKind.RESET)
            case Fault.CUT:
                yield Send(message[:offset])
                yield End(EndKind.CUT)
            case Fault.REFUSE:
                yield End(EndKind.RESET, refuse_s=duration_s)


def _joined(steps: Iterator[Step]) -> list[Step]:
    """The same steps; what goes out without a pause between goes out in one piece, as it came."""
    joined: list[Step] = []
    for step in steps:
        if isinstance(step, Send) and joined and isinstance(joined[-1], Send):
            joined[-1] = Send(joined[-1].data + step.data)
        else:
            joined.append(step)
    return [step for step in joined if not (isinstance(step, Send) and not step.data)]
