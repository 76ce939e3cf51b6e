"""An axis whose every move is held against the limits of the rig file before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from labrig.safety import AxisEnvelope
from labrig_drivers.axis import Axis, AxisReading
from labrig_drivers.errors import SafetyError
from labrig_drivers.instrument import Identity
from labrig_drivers.settling import undivided


class GuardedAxis:
    """Keeps the contract of the axis inside, so nothing above knows that the guard is there.

    Args:
        inner: The axis.
        envelope: What it must keep, beside its own range.
        before_move: Awaited before each move; what it raises keeps the axis where it is.
    """

    def __init__(
        self, inner: Axis, envelope: AxisEnvelope, before_move: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._inner = inner
        self._envelope = envelope
        self._before_move = before_move

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is; `StateError` before `open()`."""
        return self._inner.identity

    @property
    def quantity(self) -> str:
        """What is moved; see `Axis.quantity`."""
        return self._inner.quantity

    @property
    def unit(self) -> str:
        """Unit of every value."""
        return self._inner.unit

    @property
    def low(self) -> float:
        """Lowest value that may be set: the tightest of all limits."""
        own = self._envelope.low
        return self._inner.low if own is None else max(own, self._inner.low)

    @property
    def high(self) -> float:
        """Highest value that may be set: the tightest of all limits."""
        own = self._envelope.high
        return self._inner.high if own is None else min(own, self._inner.high)

    @property
    def safe_value(self) -> float | None:
        """Where it goes when nobody looks after it any more; None where it stays as it is."""
        return self._inner.safe_value

    async def open(self) -> None:
        """Connects and checks the identity; moves nothing."""
        await self._inner.open()

    async def close(self) -> None:
        """Sends a moved axis to its safe value, where it has one, and disconnects."""
        await self._inner.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def move_to(self, value: float) -> AxisReading:
        """Sets the quantity and waits for it; see `Axis.move_to`.

        Raises:
            SafetyError: The value lies outside the limits of the rig file or of the axis; every reason at once.
        """
        inner = self._inner
        reasons = self._envelope.reasons(value, inner.unit)
        if not inner.low <= value <= inner.high:
            reasons.append(f"{self._envelope.name}: {value:g} {inner.unit} is not what it can do, {self._range()}")
        if math.isinf(value):
            reasons.append(f"{self._envelope.name}: {value:g} {inner.unit} is not finite")
        if reasons:
            raise SafetyError(reasons)
        if self._before_move is not None:
            await undivided(self._before_move())
        return await inner.move_to(value)

    async def read(self) -> AxisReading:
        """Reads the quantity, also while it moves."""
        return await self._inner.read()

    async def make_safe(self) -> None:
        """Ends a move and sends the axis to its safe value; see `Axis.make_safe`."""
        await self._inner.make_safe()

    def _range(self) -> str:
        return f"{self._inner.low:g} to {self._inner.high:g} {self._inner.unit}"
