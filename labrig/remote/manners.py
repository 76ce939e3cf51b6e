"""The bounds of a served rig."""

from __future__ import annotations

from dataclasses import dataclass

from labrig.remote.envelope import LONGEST_MESSAGE_BYTES


@dataclass(frozen=True)
class Manners:
    """Bounds of a served rig.

    Attributes:
        lease_s: How long in s a lease lasts that is not renewed; outputs are off soon after.
        window: How many requests for one instrument may wait or be under way.
        most_queued_bytes: Bytes of arrays in all of them together.
        traffic_s: Time in s between two reports of what came, where there is news.
    """

    lease_s: float = 10.0
    window: int = 8
    most_queued_bytes: int = 2 * LONGEST_MESSAGE_BYTES
    traffic_s: float = 2.0
