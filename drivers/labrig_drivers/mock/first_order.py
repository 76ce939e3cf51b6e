"""A quantity that follows its set point with a first-order lag, as a heated chuck does."""

from __future__ import annotations

import math
from collections.abc import Callable


class FirstOrderLag:
    """A value that closes the gap to its target by a factor e in each time constant.

    Args:
        value: Where it starts, and its first target.
        lag_s: Time constant in s.
        now_s: The clock in s.
    """

    def __init__(self, value: float, lag_s: float, now_s: Callable[[], float]) -> None:
        self._value = value
        self._target = value
        self._lag_s = lag_s
        self._now_s = now_s
        self._since_s = now_s()
        self._stuck = False

    @property
    def target(self) -> float:
        """Where it goes."""
        return self._target

    def value(self) -> float:
        """Where it is now."""
        return self.value_and_time_s()[0]

    def value_and_time_s(self) -> tuple[float, float]:
        """Where it is now, and the moment of the clock at which it is there, in s."""
        now_s = self._now_s()
        if not self._stuck:
            self._value = self._target + (self._value - self._target) * math.exp((self._since_s - now_s) / self._lag_s)
        self._since_s = now_s
        return self._value, now_s

    def set_target(self, target: float) -> None:
        """Sets where it goes from now on."""
        self.value()
        self._target = target

    def disturb(self, value: float) -> None:
        """Puts it somewhere else at once, as an open lid does; it comes back by itself."""
        self.value()
        self._value = value

    def stick(self) -> None:
        """Keeps it where it is, as a broken heater does."""
        self.value()
        self._stuck = True
