"""How much telemetry keeps, how fast it speaks, and how long it waits for a broker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Bounds of one telemetry.

    Attributes:
        most_kept: Events that wait for the broker at most; beyond that the oldest is dropped.
        max_rate_hz: Documents per second of one kind of progress, the latest of each.
        answer_s: Longest wait in s for an answer of the broker; then the connection counts as lost.
        keep_alive_s: Time in s without a sign of life after which broker and client ask, then give each other up.
        first_retry_s: Pause in s before the first attempt to connect again; doubled after each.
        longest_retry_s: Longest such pause in s.
        flush_s: Longest time in s that the end of a run waits until the rest is delivered.
    """

    most_kept: int = 1000
    max_rate_hz: float = 5.0
    answer_s: float = 5.0
    keep_alive_s: int = 15
    first_retry_s: float = 0.5
    longest_retry_s: float = 30.0
    flush_s: float = 2.0
