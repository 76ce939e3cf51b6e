"""What a recording holds, in a few numbers, and the readings of its supply."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.crossbar import FloatArray

# A supply that is on is read several times in a second; a link that is opened again may take a moment.
_LONGEST_USUAL_S: Final = 2.0
_FAR_LONGER: Final = 10.0


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
        """Energy in J: voltage times current, integrated over time by trapezoids.

        While an interlock, a person or the night between a run and its resumption keeps the supply off, nothing is
        read: times without a reading that are far longer than usual do not count.
        """
        power_w, apart_s = self.voltage_v * self.current_a, np.diff(self.time_s)
        if not len(apart_s):
            return 0.0
        fed = apart_s <= max(_LONGEST_USUAL_S, _FAR_LONGER * float(np.median(apart_s)))
        return float(np.sum((0.5 * (power_w[1:] + power_w[:-1]) * apart_s)[fed]))


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
