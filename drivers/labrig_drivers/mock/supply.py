"""What the array supply of a simulated board draws over time, for the source-meter that feeds it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# A source-meter integrates over at most ten power line cycles; older activity cannot be asked for any more.
_HISTORY_S = 30.0


@dataclass(frozen=True)
class _Activity:
    start_s: float
    stop_s: float
    current_a: float


class SupplyPin:
    """The supply pin of the array: idle current, plus the current of each burst while it lasts.

    Args:
        idle_current_a: Current in A that the periphery draws whenever the supply is on.
    """

    def __init__(self, idle_current_a: float) -> None:
        self._idle_current_a = idle_current_a
        self._activities: deque[_Activity] = deque()
        self.voltage_v = 0.0

    def burst(self, start_s: float, stop_s: float, power_w: float) -> None:
        """Notes that the array drew `power_w` on top of idling between two times of the chip clock."""
        current_a = power_w / self.voltage_v if self.voltage_v > 0.0 else 0.0
        self._activities.append(_Activity(start_s, stop_s, current_a))
        while self._activities and self._activities[0].stop_s < stop_s - _HISTORY_S:
            self._activities.popleft()

    def mean_current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:
        """Mean current in A drawn at `voltage_v` between two times of the chip clock."""
        if voltage_v <= 0.0 or stop_s <= start_s:
            return 0.0
        charge_c = sum(
            activity.current_a * max(0.0, min(stop_s, activity.stop_s) - max(start_s, activity.start_s))
            for activity in self._activities
        )
        return self._idle_current_a + charge_c / (stop_s - start_s)
