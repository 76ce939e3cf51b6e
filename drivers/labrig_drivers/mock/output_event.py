"""What the log of a simulated source-meter says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputEvent:
    """One change of a simulated source-meter's output, level or limit.

    Attributes:
        time_s: The server's clock in s.
        instrument: Serial number of the instrument; with the channel after a colon where it has several.
        output_on: State of the output after the change.
        voltage_v: Source level in V, also while the output is off; sourcing current, the voltage that it causes.
        current_limit_a: Compliance limit in A; sourcing current, the magnitude of the level.
    """

    time_s: float
    instrument: str
    output_on: bool
    voltage_v: float
    current_limit_a: float
