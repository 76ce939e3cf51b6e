"""Prefixes of units, so that numbers lie between 1 and 1000."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Final

_PREFIXES: Final = MappingProxyType({-15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M"})


def with_prefix(magnitude: float, unit: str) -> tuple[float, str]:
    """What numbers as large as this are multiplied by, and the unit that they then have.

    Args:
        magnitude: Typical or largest of the numbers, 0 or above.
        unit: Without a prefix. Nobody reads kiloseconds, so seconds get none above one; nor has a number without a
            unit, or in `%`, one.
    """
    if not unit or unit == "%" or not magnitude > 0.0:
        return 1.0, unit
    power = 3 * math.floor(math.log10(magnitude) / 3.0)
    power = min(max(power, min(_PREFIXES)), 0 if unit == "s" else max(_PREFIXES))
    return 10.0**-power, _PREFIXES[power] + unit
