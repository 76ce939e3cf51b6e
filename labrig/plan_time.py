"""How long a plan takes at least on a rig: what the plan and the board say, and the readings of its curves."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, cast

from labrig.plans.base import BesideCapacity, Plan, PlanNeeds
from labrig.rig import Rig
from labrig_drivers.capabilities import CellSweep

# An integration is counted in cycles of the mains, which last 16.7 ms where they are shortest.
_HIGHEST_MAINS_HZ: Final = 60.0


def needs_on(plan: Plan, rig: Rig) -> PlanNeeds:
    """What a plan needs on an open rig, its least time included.

    Args:
        plan: The plan.
        rig: The rig, open.

    Raises:
        CapabilityError: The board cannot do it.
    """
    needs = PlanNeeds.of(plan, rig.board.info)
    if not needs.beside.readings:
        return needs
    return replace(needs, readings_s=needs.beside.readings * _reading_s(rig, needs.beside))


def _reading_s(rig: Rig, beside: BesideCapacity) -> float:
    """Least time in s of one reading of a curve."""
    if not beside.meters:
        return cast(CellSweep, rig.board).cell_reading_s
    # A meter that the rig has not is refused, with every other fault, before anything is switched on.
    meters = rig.config.source_meters
    return min((meters[name].nplc for name in beside.meters if name in meters), default=0.0) / _HIGHEST_MAINS_HZ
