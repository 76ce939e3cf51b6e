"""What a recording holds, in a few numbers, and the readings of its supply."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.crossbar import FloatArray


@dataclass(frozen=True)
class SupplyTrace:
    """Readings of the array supply, all `[N]`.

    Attributes:
        time_s: UTC in s.
        voltage_v: Voltage in V.
        current_a: Current in A.
        in_compliance: True where the limit determined the output.
    """

    time_s: FloatArray
    voltage_v: FloatArray
    current_a: FloatArray
    in_compliance: NDArray[np.bool_]

    @property
    def energy_j(self) -> float:
        """Energy in J: voltage times current, integrated over time by trapezoids."""
        power_w = self.voltage_v * self.current_a
        return float(np.sum(0.5 * (power_w[1:] + power_w[:-1]) * np.diff(self.time_s)))


@dataclass(frozen=True)
class RecordingSummary:
    """What a recording holds, in a few numbers.

    Attributes:
        path: The file.
        status: `running`; `finished`, `stopped` or `aborted`; or `interrupted` where the writer died.
        chip_id: Which chip.
        rig_name: Which rig.
        plan: Name of the plan.
        run_id: Identity of the run; empty in files of before format 1.2.
        started_utc: Start, ISO 8601.
        ended_utc: End, ISO 8601; empty where the run has not ended, or the writer died.
        mvms: Committed MVMs by array.
        writes: Committed programmings by array.
        supply_readings: Committed readings of the supply.
        energy_j: Energy in J from the supply.
    """

    path: Path
    status: str
    chip_id: str
    rig_name: str
    plan: str
    run_id: str
    started_utc: str
    ended_utc: str
    mvms: dict[int, int]
    writes: dict[int, int]
    supply_readings: int
    energy_j: float
