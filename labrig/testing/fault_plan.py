"""What a `FaultProxy` does to a line, and when: a script of single faults, or random ones from a seed.

A plan is a value. The same plan on the same conversation injects the same faults, and what a proxy really injected is
a script again (`FaultPlan.replay`), so that a failure that was found by chance can be looked at calmly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Literal

Direction = Literal["requests", "answers"]
"""`requests` go from the host to the instrument, `answers` come back."""

DIRECTIONS: tuple[Direction, ...] = ("requests", "answers")


class Fault(Enum):
    """What can happen to one message on its way. Everything behind it on the same way waits for it.

    A duration of 0 is for ever, or until `FaultProxy.heal()`, where a fault waits for something (`MERGE`, `SWAP`,
    `FREEZE`, `REFUSE`).
    """

    DROP = "drop"
    """`count` bytes from `offset` on are lost; a count of 0 loses the whole message."""
    DELAY = "delay"
    """The message waits for `duration_s`."""
    DUPLICATE = "duplicate"
    """The message comes twice: in one piece, or the second time after `duration_s`."""
    SPLIT = "split"
    """The message comes in two pieces, cut at `offset`, `duration_s` apart; an offset of 0 sends each byte alone."""
    MERGE = "merge"
    """The message waits for the next one, at most for `duration_s`, and both come in one piece."""
    SWAP = "swap"
    """As `MERGE`, and the later message comes first: two answers, or an unasked notice and an answer."""
    GARBAGE = "garbage"
    """`data` comes in between, at `offset`."""
    CORRUPT = "corrupt"
    """The bits of `data` are flipped in the bytes from `offset` on."""
    NOTICE = "notice"
    """`data`, a whole message that nobody asked for, comes before it in one piece with it."""
    STALE = "stale"
    """The message before it comes again, in one piece with it and first."""
    HALF_CLOSE = "half-close"
    """The message comes, and the end of the stream after it; the other direction stays open."""
    FREEZE = "freeze"
    """Nothing moves in either direction for `duration_s`, but the connection stays."""
    RESET = "reset"
    """The message is lost and both sides see the connection reset."""
    CUT = "cut"
    """The first `offset` bytes come, then both sides see the connection end."""
    REFUSE = "refuse"
    """As `RESET`, and for `duration_s` nobody can connect."""


CONNECTION_FAULTS = frozenset({Fault.HALF_CLOSE, Fault.RESET, Fault.CUT, Fault.REFUSE})
"""Faults of a connection; a serial line has none."""


@dataclass(frozen=True)
class PlannedFault:
    r"""One fault at one place.

    Attributes:
        fault: What happens.
        direction: On which way.
        message: To which message, counted from 0 on this way since the proxy got its plan.
        byte: Or: to the message that holds this byte, counted likewise; it is the `offset` then.
        offset: Where in the message; see `Fault`.
        count: How many bytes are lost; see `Fault.DROP`.
        duration_s: How long it takes in s; see `Fault`.
        data: Bytes to insert, or the mask of the bits to flip.

    Raises:
        ValueError: Neither or both of message and byte were given, or a number is negative, or data are missing.
    """

    fault: Fault
    direction: Direction = "answers"
    message: int | None = None
    byte: int | None = None
    offset: int = 0
    count: int = 0
    duration_s: float = 0.0
    data: bytes = b""

    def __post_init__(self) -> None:
        faults = []
        if (self.message is None) == (self.byte is None):
            faults.append("give either the number of a message or that of a byte")
        if min(self.message or 0, self.byte or 0, self.offset, self.count, self.duration_s) < 0:
            faults.append("numbers count from 0 on")
        if self.fault in {Fault.GARBAGE, Fault.CORRUPT, Fault.NOTICE} and not self.data:
            faults.append("data are needed")
        if faults:
            raise ValueError(f"cannot plan {self.fault.value!r} in {self.direction}: " + "; ".join(faults))

    def __str__(self) -> str:
        """As it is written in a script."""
        where = f"message={self.message}" if self.byte is None else f"byte={self.byte}"
        numbers = [f"{name}={getattr(self, name)!r}" for name in ("offset", "count", "duration_s", "data")]
        given = [text for text in numbers if not text.endswith(("=0", "=0.0", "=b''"))]
        return f"PlannedFault({', '.join([f'Fault.{self.fault.name}', repr(self.direction), where, *given])})"

    def concerns(self, message: int, start: int, stop: int | None) -> bool:
        """Whether it is for the message of this number, which begins at byte `start` and ends before `stop`."""
        if self.message is not None:
            return self.message == message
        assert self.byte is not None  # checked above
        return start <= self.byte and (stop is None or self.byte < stop)


@dataclass(frozen=True)
class FaultMenu:
    """What a random plan chooses from.

    A text protocol has no checksum: a digit that is flipped, lost or inserted, a foreign number in place of the answer,
    or an answer that comes again while the next one is awaited, look like an answer, and no driver can tell. With
    `checked` false the plan therefore keeps to what can be told: flips and garbage leave ASCII, whole messages are
    lost, and what comes too often comes in one piece. A protocol with checksum and request numbers gets everything.

    Attributes:
        requests: Faults on the way to the instrument.
        answers: Faults on the way back.
        durations_s: Durations in s to choose from; some should be longer than the driver's deadline.
        checked: True for a protocol with checksum and request numbers.
        notice: What the instrument says unasked; needed for `Fault.NOTICE`.
    """

    requests: tuple[Fault, ...]
    answers: tuple[Fault, ...]
    durations_s: tuple[float, ...] = (0.001, 0.01, 0.1)
    checked: bool = False
    notice: bytes = b""

    def __post_init__(self) -> None:
        if Fault.NOTICE in (*self.requests, *self.answers) and not self.notice:
            raise ValueError("notices need a text to send")
        if not self.durations_s or min(self.durations_s) <= 0.0:
            raise ValueError(f"durations {self.durations_s} have to be positive, and at least one")

    def choose(self, rng: Random, direction: Direction, number: int, message: bytes) -> PlannedFault | None:
        """One fault with all its numbers, for message `number`; None when nothing can happen on this way."""
        kinds = self.requests if direction == "requests" else self.answers
        if not kinds:
            return None
        fault = rng.choice(kinds)
        offset = rng.randrange(len(message))
        planned = PlannedFault(
            fault,
            direction,
            message=number,
            offset=offset,
            duration_s=rng.choice(self.durations_s),
            data=self._noise(rng, fault),
        )
        if fault is Fault.DROP:
            part = self.checked and rng.random() < 0.5
            return replace(planned, count=rng.randrange(1, len(message) + 1) if part else 0)
        if fault is Fault.DUPLICATE and (not self.checked or rng.random() < 0.5):
            return replace(planned, duration_s=0.0)
        if fault is Fault.SPLIT:
            return replace(planned, duration_s=min(self.durations_s) if offset else 0.0)
        return planned

    def _noise(self, rng: Random, fault: Fault) -> bytes:
        if fault is Fault.NOTICE:
            return self.notice
        if fault is Fault.CORRUPT:
            return bytes([rng.randrange(1, 256) if self.checked else 0x80])
        if fault is Fault.GARBAGE:
            lowest = 0 if self.checked else 0x80
            return bytes(rng.randrange(lowest, 256) for _ in range(rng.randrange(1, 12)))
        return b""


_REQUEST_FAULTS = (
    Fault.DROP,
    Fault.DELAY,
    Fault.SPLIT,
    Fault.MERGE,
    Fault.GARBAGE,
    Fault.CORRUPT,
    Fault.FREEZE,
    Fault.HALF_CLOSE,
    Fault.RESET,
    Fault.CUT,
    Fault.REFUSE,
)

TEXT_MENU = FaultMenu(
    requests=_REQUEST_FAULTS,
    answers=(*_REQUEST_FAULTS, Fault.DUPLICATE, Fault.SWAP, Fault.NOTICE, Fault.STALE),
    notice=b"FAN SPEED LOW\n",
)
"""For lines of text over TCP. Requests are not repeated: the second answer could come at any time later."""

TEXT_LINE_MENU = FaultMenu(
    requests=tuple(fault for fault in TEXT_MENU.requests if fault not in CONNECTION_FAULTS),
    answers=tuple(fault for fault in TEXT_MENU.answers if fault not in CONNECTION_FAULTS),
    durations_s=(0.001, 0.05, 0.4, 0.6),
    notice=TEXT_MENU.notice,
)
"""For lines of text over a serial line."""

BLOCK_MENU = replace(
    TEXT_MENU, answers=tuple(fault for fault in TEXT_MENU.answers if fault not in {Fault.CORRUPT, Fault.SWAP})
)
"""For answers in binary blocks, which have a length but no checksum.

Nobody can tell a flipped bit of a double, or two pieces of a block that changed places, so these are left out.
"""


def checked_menu(notice: bytes) -> FaultMenu:
    """Every fault, for a protocol with checksum and request numbers such as labrig's board protocol.

    Args:
        notice: A whole message that the instrument could say unasked.
    """
    return FaultMenu(
        requests=tuple(fault for fault in Fault if fault is not Fault.NOTICE),
        answers=tuple(Fault),
        checked=True,
        notice=notice,
    )


@dataclass(frozen=True)
class FaultPlan:
    """When which fault comes: those of the script, and at every other message one of the menu with probability `rate`.

    A message has one fault at most; of two that are planned for it the first is injected. What comes at a message
    depends on the seed, the way and the message's number alone, so one lost race elsewhere does not change the rest.

    Attributes:
        script: Faults at given places.
        rate: Probability of a random fault at each message, 0 to 1.
        seed: Where the random faults come from.
        menu: What they are.

    Raises:
        ValueError: The rate is no probability.
    """

    script: tuple[PlannedFault, ...] = ()
    rate: float = 0.0
    seed: int = 0
    menu: FaultMenu = TEXT_MENU

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"a rate of {self.rate} is no probability")

    @classmethod
    def of(cls, *faults: PlannedFault) -> FaultPlan:
        """These faults and no others."""
        return cls(script=faults)

    @classmethod
    def random(cls, seed: int, rate: float, menu: FaultMenu = TEXT_MENU) -> FaultPlan:
        """Random faults alone."""
        return cls(rate=rate, seed=seed, menu=menu)

    @classmethod
    def replay(cls, injected: Iterable[Injected]) -> FaultPlan:
        """The faults that a proxy injected, as a script."""
        return cls(script=tuple(one.planned for one in injected))

    def __str__(self) -> str:
        """What is needed to write it again; the menu is the caller's."""
        script = "".join(f"\n    {planned}" for planned in self.script)
        return (
            f"FaultPlan with seed {self.seed}, rate {self.rate:g} and {len(self.script)} faults in its script{script}"
        )

    @property
    def kinds(self) -> frozenset[Fault]:
        """Every fault that can come."""
        chosen = (*self.menu.requests, *self.menu.answers) if self.rate else ()
        return frozenset({*chosen, *(planned.fault for planned in self.script)})

    def may_concern(self, direction: Direction, message: int, start: int) -> bool:
        """Whether the message that begins here could have a fault; the proxy waits for its end then."""
        return self._is_hit(direction, message) or any(
            planned.direction == direction and planned.concerns(message, start, None) for planned in self.script
        )

    def fault_for(self, direction: Direction, number: int, start: int, message: bytes) -> PlannedFault | None:
        """The fault of one whole message, with all its numbers, or None.

        Args:
            direction: The way.
            number: Number of the message.
            start: Number of its first byte.
            message: The message.
        """
        for planned in self.script:
            if planned.direction == direction and planned.concerns(number, start, start + len(message)):
                offset = planned.offset if planned.byte is None else planned.byte - start
                return replace(planned, message=number, byte=None, offset=offset)
        if self._is_hit(direction, number):
            return self.menu.choose(self._generator(direction, number, "what"), direction, number, message)
        return None

    def _is_hit(self, direction: Direction, message: int) -> bool:
        return self.rate > 0.0 and self._generator(direction, message, "whether").random() < self.rate

    def _generator(self, direction: Direction, message: int, question: str) -> Random:
        return Random(f"{self.seed} {direction} {message} {question}")


CLEAN = FaultPlan()
"""No fault at all."""


@dataclass(frozen=True)
class Injected:
    """One fault that was injected.

    Attributes:
        planned: The fault with all its numbers; its message counts since the proxy got its plan.
        message: What it happened to.
        connection: Number of the connection, from 1 on.
    """

    planned: PlannedFault
    message: bytes
    connection: int

    def __str__(self) -> str:
        shown = self.message if len(self.message) <= 40 else self.message[:40] + b"..."
        return f"{self.planned}  # on connection {self.connection}: {shown!r}"
