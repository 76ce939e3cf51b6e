"""A two-sided cumulative sum as a training follows it, value by value; the scheme is `labrig_calibration.alarms`'."""

from __future__ import annotations

from dataclasses import dataclass

from labrig_calibration.alarms import Cusum


@dataclass
class RunningCusum:
    """Adds up what a standardised statistic exceeds its allowance by, on both sides.

    Attributes:
        scheme: Allowance and limit.
        high: Sum of what was too high.
        low: Sum of what was too low.
        began_s: Time at which the larger sum was zero last: since then, it seems, something is different.
    """

    scheme: Cusum
    high: float = 0.0
    low: float = 0.0
    began_s: float = float("nan")

    def update(self, value: float, time_s: float) -> bool:
        """Adds one value that was measured at a time in s; True where a sum is beyond the limit."""
        if max(self.high, self.low) == 0.0:
            self.began_s = time_s
        self.high = max(0.0, self.high + value - self.scheme.allowance)
        self.low = max(0.0, self.low - value - self.scheme.allowance)
        return max(self.high, self.low) > self.scheme.limit

    def reset(self) -> None:
        """Starts from zero, as after a recalibration."""
        self.high = self.low = 0.0
