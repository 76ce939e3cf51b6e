"""`MockAxis`: an axis without an instrument, which follows its set point with a first-order lag."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from labrig_drivers.axis import AxisReading
from labrig_drivers.axis_motion import AxisMotion, AxisSettings
from labrig_drivers.errors import SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.mock.clock import CommandedClock
from labrig_drivers.mock.first_order import FirstOrderLag
from labrig_drivers.settings_table import SettingsTable


class NowClock(Protocol):
    """A clock to read."""

    def now_s(self) -> float:
        """Seconds since some moment."""
        ...


@dataclass(frozen=True)
class LagSettings:
    """What a simulated axis is made of.

    Attributes:
        start: Where it stands before anybody has moved it, in its unit.
        lag_s: Time constant in s.
        noise: Standard deviation of a reading, in its unit.
        seed: Decides the noise, together with the time of the reading.
    """

    start: float
    lag_s: float = 5.0
    noise: float = 0.0
    seed: int = 1


class MockAxis:
    """A simulated axis in this process; keeps the `Axis` contract.

    On a `CommandedClock` a move takes no real time: the wait for arrival moves the clock instead. On any other clock
    it waits as long as the axis takes. Equal clocks give equal readings, bit for bit.

    Args:
        settings: What is moved, and how.
        lag: What it is made of.
        clock: Time base; a `CommandedClock` at zero when None.
        expected: Identity that `open()` demands.
        name: What messages call the axis.

    Attributes:
        physics: The quantity itself, for tests that disturb it or look at the truth.
    """

    def __init__(
        self,
        settings: AxisSettings,
        lag: LagSettings,
        *,
        clock: NowClock | None = None,
        expected: ExpectedIdentity | None = None,
        name: str = "mock-axis",
    ) -> None:
        self._settings = settings
        self._lag = lag
        self._clock = clock or CommandedClock()
        self.physics = FirstOrderLag(lag.start, lag.lag_s, self._clock.now_s)
        self._expected = expected or ExpectedIdentity()
        self._name = name
        self._is_open = False
        self._moved = False
        self._moving = asyncio.Lock()
        self._made_safe = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], expected: ExpectedIdentity, name: str) -> MockAxis:
        """Makes the axis that a rig file describes, on a clock of its own that moves only while the axis does.

        Settings: the fields of `AxisSettings` and `LagSettings`; `start` is the middle of `low` and `high` by default.

        Raises:
            ConfigError: A key is missing, unknown or has a wrong value; every fault at once.
        """
        table = SettingsTable(settings, f"axes.{name}.settings")
        own = AxisSettings.from_table(table)
        lag = LagSettings(
            start=table.number("start", 0.5 * (own.low + own.high)),
            lag_s=table.positive("lag_s", LagSettings.lag_s),
            noise=table.not_negative("noise", LagSettings.noise),
            seed=table.whole("seed", LagSettings.seed, low=0),
        )
        table.finish()
        return cls(own, lag, expected=expected, name=name)

    @property
    def identity(self) -> Identity:
        """Who the axis is; `StateError` before `open()`."""
        self._require_open()
        return Identity("labrig", "MOCK-AXIS", f"SIM-{self._lag.seed:04d}", "1.0")

    @property
    def quantity(self) -> str:
        """What is moved; see `Axis.quantity`."""
        return self._settings.quantity

    @property
    def unit(self) -> str:
        """Unit of every value."""
        return self._settings.unit

    @property
    def low(self) -> float:
        """Lowest value that can be set."""
        return self._settings.low

    @property
    def high(self) -> float:
        """Highest value that can be set."""
        return self._settings.high

    @property
    def safe_value(self) -> float | None:
        """Where it goes when nobody looks after it any more; None where it stays as it is."""
        return self._settings.safe_value

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Checks the expected identity; moves nothing.

        Raises:
            StateError: It is open already.
        """
        if self._is_open:
            raise StateError(f"{self._name}: open already")
        self._is_open = True
        try:
            self._expected.check(self.identity, self._name)
        except BaseException:
            self._is_open = False
            raise
        self._moved = False

    async def close(self) -> None:
        """Sends a moved axis to its safe value, at once: nothing is at stake in a simulation; ends a move."""
        if self._is_open and self._moved and self.safe_value is not None:
            self.physics.set_target(self.safe_value)
        self._is_open = False

    async def move_to(self, value: float) -> AxisReading:
        """Sets the quantity and waits for it; see `Axis.move_to`."""
        self._require_open()
        if reasons := self._settings.reasons(value, self._name):
            raise SafetyError(reasons)
        if self._moving.locked():
            raise StateError(f"{self._name}: moving already; wait for that move, or cancel it, first")
        async with self._moving:
            self._made_safe = False
            motion = AxisMotion(self._settings, self._name, self._send, self.read, self._wait, self._clock.now_s)
            return await motion.arrive(float(value))

    async def read(self) -> AxisReading:
        """Reads the quantity; noise belongs to the time of the reading."""
        self._require_open()
        value, now_s = self.physics.value_and_time_s()
        rng = np.random.default_rng([self._lag.seed, round(now_s * 1e6)])
        return AxisReading(value + self._lag.noise * float(rng.standard_normal()), now_s)

    async def make_safe(self) -> None:
        """Sends the axis to its safe value, at once; see `Axis.make_safe`."""
        self._require_open()
        if self.safe_value is not None:
            self._made_safe = True
            self.physics.set_target(self.safe_value)

    async def _send(self, value: float) -> None:
        self._require_open()
        self._moved = True
        self.physics.set_target(value)

    async def _wait(self, duration_s: float) -> None:
        if isinstance(self._clock, CommandedClock):
            self._clock.advance(duration_s)
            duration_s = 0.0
        await asyncio.sleep(duration_s)
        if self._made_safe or not self._is_open:
            raise StateError(f"{self._name}: closed or made safe while it moved")

    def _require_open(self) -> None:
        if not self._is_open:
            raise StateError(f"{self._name}: not open; use `async with` or call open() first")
