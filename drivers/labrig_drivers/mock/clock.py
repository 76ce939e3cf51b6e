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

    def set(self, now_s: float) -> None:
        """Puts the clock where it was in an earlier run."""
        self._now_s = now_s


class WallClock:
    """Follows the machine's monotonic clock."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def now_s(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._start_s


class ChipClock:
    """Follows the wall, but never falls behind the end of what the chip was busy with.

    The simulation may compute a batch in less time than the chip takes for it; the next batch comes after it all
    the same.
    """

    def __init__(self, wall: WallClock) -> None:
        self._wall = wall
        self._busy_until_s = 0.0

    def now_s(self) -> float:
        """Seconds since the bench was made, or the end of the chip's work where that is later."""
        return max(self._wall.now_s(), self._busy_until_s)

    def spend(self, duration_s: float) -> None:
        """Notes that the chip is busy from now on."""
        self._busy_until_s = self.now_s() + duration_s
