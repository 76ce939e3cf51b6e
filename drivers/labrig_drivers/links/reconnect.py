"""How patiently a question is asked again after its link failed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Reconnect:
    """Attempts with exponentially growing pauses, for idempotent queries only: nothing that sets is ever repeated.

    Attributes:
        attempts: How often it is tried again at most.
        first_pause_s: Pause in s before the first of these attempts.
        growth: Factor from one pause to the next.
        longest_pause_s: No pause is longer than this, in s.

    Raises:
        ValueError: A number is not positive, or the pauses would shrink.
    """

    attempts: int = 5
    first_pause_s: float = 0.1
    growth: float = 2.0
    longest_pause_s: float = 5.0

    def __post_init__(self) -> None:
        faults = [] if self.attempts >= 1 else [f"attempts = {self.attempts} is not positive"]
        faults += [] if self.growth >= 1.0 else [f"growth = {self.growth:g} makes pauses shrink; 1 or more is needed"]
        pauses_s = {"first_pause_s": self.first_pause_s, "longest_pause_s": self.longest_pause_s}
        faults += [f"{name} = {value:g} s is not positive" for name, value in pauses_s.items() if not value > 0.0]
        if faults:
            raise ValueError(f"reconnecting: {'; '.join(faults)}")

    def pauses_s(self) -> Iterator[float]:
        """The pause in s before each attempt."""
        for attempt in range(self.attempts):
            yield min(self.first_pause_s * self.growth**attempt, self.longest_pause_s)
