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
        if self.attempts < 1 or self.first_pause_s <= 0.0 or self.growth < 1.0 or self.longest_pause_s <= 0.0:
            raise ValueError(f"{self}: attempts and pauses must be positive and must not shrink")

    def pauses_s(self) -> Iterator[float]:
        """The pause in s before each attempt."""
        for attempt in range(self.attempts):
            yield min(self.first_pause_s * self.growth**attempt, self.longest_pause_s)
