"""Clocks of a simulated bench: one that a test commands, one that follows the wall."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The time base of a simulated chip."""

    def now_s(self) -> float:
        """Seconds since the chip was switched on."""
        ...

    def spend(self, duration_s: float) -> None:
        """Tells the clock that the chip was busy for `duration_s`."""
        ...


class CommandedClock:
    """Moves only when told to, so that drift is the same in every run."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Seconds since the chip was switched on."""
        return self._now_s

    def spend(self, duration_s: float) -> None:
        """Moves the clock by the time that the chip was busy."""
        self._now_s += duration_s

    def advance(self, duration_s: float) -> None:
        """Lets time pass while nothing happens, for example to see drift.

        Raises:
            ValueError: `duration_s` is negative.
        """
        if duration_s < 0.0:
            raise ValueError(f"a clock cannot go back by {-duration_s} s")
        self._now_s += duration_s


class WallClock:
    """Follows the machine's monotonic clock; busy time passes by itself."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def now_s(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._start_s

    def spend(self, duration_s: float) -> None:
        """Does nothing: the wall needs no telling."""
