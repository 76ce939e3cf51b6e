"""What rig files say about source-meters, checked: ramps and settings of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from labrig_drivers.errors import ConfigError

_DEFAULT_RAMP_V_PER_S: Final = 1.0


def ramp_of(ramp_v_per_s: float | None) -> float:
    """The ramp in V/s that a rig file asks for, or the default where it asks for none."""
    return _DEFAULT_RAMP_V_PER_S if ramp_v_per_s is None else ramp_v_per_s


def no_settings(settings: Mapping[str, object] | None, name: str) -> None:
    """Refuses settings that nobody would read.

    Raises:
        ConfigError: There are some; the message names each.
    """
    if settings:
        raise ConfigError(
            "\n".join(f"source_meters.{name}.settings.{key}: this driver has no such setting" for key in settings)
        )
