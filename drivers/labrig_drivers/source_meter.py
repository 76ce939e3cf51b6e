"""The contract of a source-meter: source one quantity, measure voltage and current."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from labrig_drivers.instrument import Instrument

SourceKind = Literal["voltage", "current"]


@dataclass(frozen=True)
class Reading:
    """One reading of a source-meter.

    Attributes:
        voltage_v: Voltage at the terminals in V.
        current_a: Current out of the instrument in A.
        in_compliance: True when the limit, not the level, determines the output.
        time_s: UTC time of the reading in s (the host's monotonic clock, mapped once).
        instrument_time_s: The instrument's own stamp in s, counted from a zero of its own; None where it gives none.
    """

    voltage_v: float
    current_a: float
    in_compliance: bool
    time_s: float
    instrument_time_s: float | None = None


class SourceMeter(Instrument, Protocol):
    """A source-meter. The order is always: configure, limit, level, output on."""

    async def configure(self, *, source: SourceKind, nplc: float = 1.0, wires: Literal[2, 4] = 2) -> None:
        """Sets source function, integration time (power line cycles) and sense wiring; the output stays off.

        Args:
            source: The quantity that is sourced.
            nplc: Integration time in power line cycles.
            wires: Sense wiring: 2 or 4.
        """
        ...

    async def set_limit(self, *, current_a: float | None = None, voltage_v: float | None = None) -> None:
        """Sets the compliance limit of the quantity that is not sourced.

        Args:
            current_a: Largest current in A, when a voltage is sourced.
            voltage_v: Largest voltage in V, when a current is sourced.
        """
        ...

    async def set_ranges(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Fixes the range of the source (the sourced quantity) and of the meter (the other one); None is automatic.

        Args:
            voltage_v: Range of voltage in V; None is automatic.
            current_a: Range of current in A; None is automatic.
        """
        ...

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Sets the source level; refused with `StateError` before a limit was set.

        Args:
            voltage_v: Level in V, when a voltage is sourced.
            current_a: Level in A, when a current is sourced.
        """
        ...

    async def output_on(self) -> None:
        """Switches the output on; refused with `StateError` before limit and level were set."""
        ...

    async def output_off(self) -> None:
        """Ramps to zero, switches the output off and reads the state back."""
        ...

    async def output_is_on(self) -> bool:
        """Asks the instrument for the state of its output."""
        ...

    async def measure(self) -> Reading:
        """Takes one reading; refused with `StateError` while the output is off."""
        ...

    async def sweep(
        self, *, voltage_v: Sequence[float] | None = None, current_a: Sequence[float] | None = None
    ) -> list[Reading]:
        """Takes one reading at each level of the sourced quantity, in the given order; the last level stays.

        In the instrument where it has sweeps and the steps are within the ramp rate, else point by point.

        Args:
            voltage_v: Levels in V, when a voltage is sourced.
            current_a: Levels in A, when a current is sourced.
        """
        ...

    async def errors(self) -> list[tuple[int, str]]:
        """Reads the instrument's error queue until it is empty: (code, text) pairs, oldest first."""
        ...
