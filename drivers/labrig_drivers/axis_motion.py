"""How an axis gets to a value: set points no faster than its rate, then waiting until it is there and stays."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from labrig_drivers.axis import AxisReading
from labrig_drivers.errors import AxisTimeoutError
from labrig_drivers.settings_table import SettingsTable

Wait = Callable[[float], Awaitable[None]]
"""Waits for a time in s."""

_HAIR: Final = 1e-9


@dataclass(frozen=True)
class AxisSettings:
    """What an axis is and how it is moved; values are in its unit.

    Attributes:
        quantity: What it is, such as `temperature`.
        unit: Unit of every value, such as `K`.
        low: Lowest value that it may be set to.
        high: Highest value that it may be set to.
        tolerance: It has arrived when it reads this close to its target.
        hold_s: How long in s it has to stay there.
        timeout_s: Longest time in s from the last set point until it has arrived and stayed.
        poll_s: Time in s between two readings, and between two set points of a ramp.
        safe_value: Where it goes when nobody looks after it any more; None leaves it.
        max_rate: Fastest change of the set point in units per s; None sets it at once.
    """

    quantity: str
    unit: str
    low: float
    high: float
    tolerance: float
    hold_s: float = 0.0
    timeout_s: float = 600.0
    poll_s: float = 1.0
    safe_value: float | None = None
    max_rate: float | None = None

    @classmethod
    def from_table(cls, table: SettingsTable) -> AxisSettings:
        """Reads the keys of this name; every fault is noted in the table."""
        before = len(table.faults)
        settings = cls(
            quantity=table.text("quantity"),
            unit=table.text("unit"),
            low=table.number("low"),
            high=table.number("high"),
            tolerance=table.positive("tolerance"),
            hold_s=table.not_negative("hold_s", cls.hold_s),
            timeout_s=table.positive("timeout_s", cls.timeout_s),
            poll_s=table.positive("poll_s", cls.poll_s),
            safe_value=table.number("safe_value") if table.has("safe_value") else None,
            max_rate=table.positive("max_rate") if table.has("max_rate") else None,
        )
        if len(table.faults) == before:
            table.faults += [f"{table.where}.{fault}" for fault in settings._contradictions()]
        return settings

    def reasons(self, value: float, name: str) -> list[str]:
        """Everything that speaks against a value."""
        # Written so that NaN is refused as well.
        if self.low <= value <= self.high:
            return []
        return [f"{name}: {value:g} {self.unit} is outside {self.low:g} to {self.high:g} {self.unit}"]

    def _contradictions(self) -> list[str]:
        faults = []
        if self.low >= self.high:
            faults.append(f"high: {self.high:g} {self.unit} is not above low = {self.low:g} {self.unit}")
        elif self.safe_value is not None and not self.low <= self.safe_value <= self.high:
            faults.append(
                f"safe_value: {self.safe_value:g} {self.unit} is outside {self.low:g} to {self.high:g} {self.unit}"
            )
        if self.hold_s >= self.timeout_s:
            faults.append(f"hold_s: {self.hold_s:g} s is not below timeout_s = {self.timeout_s:g} s")
        return faults


@dataclass(frozen=True)
class AxisMotion:
    """Moves an axis by what it can do.

    Attributes:
        settings: What the axis is.
        name: What messages call it.
        send: Sends one set point.
        read: Reads the quantity.
        wait: Waits for a time in s; what it raises ends the motion.
        now_s: A clock in s that never goes back.
    """

    settings: AxisSettings
    name: str
    send: Callable[[float], Awaitable[None]]
    read: Callable[[], Awaitable[AxisReading]]
    wait: Wait
    now_s: Callable[[], float]

    async def go(self, value: float) -> None:
        """Sends the set points on the way to a value, the first one step from where the axis stands."""
        rate, low, high = self.settings.max_rate, self.settings.low, self.settings.high
        if rate is not None:
            start = (await self.read()).value
            # A hair off, so that 0.3 / 0.1 is three steps.
            steps = max(1, math.ceil(abs(value - start) / (rate * self.settings.poll_s) - _HAIR))
            for step in range(1, steps):
                # The way may begin outside of what can be set.
                await self.send(min(max(start + (value - start) * step / steps, low), high))
                await self.wait(abs(value - start) / (steps * rate))
        await self.send(value)

    async def arrive(self, value: float) -> AxisReading:
        """Goes to a value and waits until the axis is there and has stayed.

        Raises:
            AxisTimeoutError: It did not come there, or did not stay, in time.
        """
        await self.go(value)
        settings = self.settings
        deadline_s = self.now_s() + settings.timeout_s
        arrived_s: float | None = None
        while True:
            reading = await self.read()
            now_s = self.now_s()
            if not abs(reading.value - value) <= settings.tolerance:
                arrived_s = None
            elif arrived_s is None:
                arrived_s = now_s
            if arrived_s is not None and now_s - arrived_s >= settings.hold_s:
                return reading
            if now_s >= deadline_s:
                raise self._too_late(value, reading.value)
            await self.wait(min(settings.poll_s, deadline_s - now_s))

    def _too_late(self, target: float, value: float) -> AxisTimeoutError:
        settings = self.settings
        held = f" and stay there for {settings.hold_s:g} s" if settings.hold_s else ""
        text = (
            f"{self.name}: the {settings.quantity} did not come within {settings.tolerance:g} {settings.unit} of "
            f"{target:g} {settings.unit}{held} in {settings.timeout_s:g} s; it stands at {value:g} {settings.unit} and "
            "keeps its set point; look at the controller and what it drives, or allow more time or tolerance"
        )
        return AxisTimeoutError(text, target, value)
