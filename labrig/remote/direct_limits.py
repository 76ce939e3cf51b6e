"""What both ends of the direct link keep."""

from __future__ import annotations

from typing import Final

from labrig.remote.envelope import LONGEST_MESSAGE_BYTES

LONGEST_PACKET_BYTES: Final = LONGEST_MESSAGE_BYTES + (1 << 16)
"""Longest message with its envelope."""
HEARTBEAT_S: Final = 5.0
"""Time in s after which each end looks whether the other one is still there."""
