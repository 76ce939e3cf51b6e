"""The contract of an axis: one quantity of the surroundings that can be set and read.

The temperature of a chuck, a magnetic field, the light on a sample, the bias of a gate: whatever a plan holds still
while it measures, and moves between two measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from labrig_drivers.instrument import Instrument


@dataclass(frozen=True)
class AxisReading:
    """Where an axis stands.

    Attributes:
        value: The quantity, in the unit of its axis.
        time_s: UTC time of the reading in s (the host's monotonic clock, mapped once).
    """

    value: float
    time_s: float


class Axis(Instrument, Protocol):
    """One quantity of the surroundings. What it is and what it may be is known before `open()`.

    `open()` never moves it. `close()` sends it to `safe_value` where it has one and this object has moved it (a heater
    goes off), and otherwise leaves it where it is.
    """

    @property
    def quantity(self) -> str:
        """What it is, such as `temperature`."""
        ...

    @property
    def unit(self) -> str:
        """Unit of every value, such as `K`."""
        ...

    @property
    def low(self) -> float:
        """Lowest value that it can be set to."""
        ...

    @property
    def high(self) -> float:
        """Highest value that it can be set to."""
        ...

    @property
    def safe_value(self) -> float | None:
        """Where it goes when nobody looks after it any more; None where it stays as it is."""
        ...

    async def move_to(self, value: float) -> AxisReading:
        """Sets the quantity and returns when it is there, within its tolerance, and has stayed so for its hold time.

        One move at a time. A cancelled move ends at once and leaves the axis on its way to the last set point that was
        sent; the next move starts from wherever it is then. Set points are never sent a second time.

        Args:
            value: Where to, in the axis' unit.

        Returns:
            The reading that ended the wait.

        Raises:
            SafetyError: The value is outside `low` to `high`, or not finite; nothing was sent.
            AxisTimeoutError: It did not come there, or did not stay, in time; the message says where it stands.
            StateError: Not open, moving already, or closed or made safe while it moved.
        """
        ...

    async def read(self) -> AxisReading:
        """Reads the quantity, also while it moves."""
        ...

    async def make_safe(self) -> None:
        """Ends a move and sends the axis to `safe_value`, whoever moved it; nothing where it has none.

        Returns when the last set point was accepted, not when the quantity has arrived.
        """
        ...
