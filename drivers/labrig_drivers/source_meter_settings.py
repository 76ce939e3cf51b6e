"""What rig files say about source-meters, checked: ramps and settings of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.settings_table import SettingsTable

_DEFAULT_RAMP_V_PER_S: Final = 1.0


def ramp_of(ramp_v_per_s: float | None) -> float:
    """The ramp in V/s that a rig file asks for, or the default where it asks for none."""
    return _DEFAULT_RAMP_V_PER_S if ramp_v_per_s is None else ramp_v_per_s


def settings_of(settings: Mapping[str, object] | None, name: str) -> SettingsTable:
    """The table `settings` of the source-meter `name` in a rig file, ready to be read key by key."""
    return SettingsTable(settings or {}, f"source_meters.{name}.settings")


def reconnect_of(table: SettingsTable) -> Reconnect | None:
    """How a question that does no harm is asked again after its link failed; None where a rig file does not say.

    The key is `reconnect_attempts`, a whole number of at least 1.
    """
    if not table.has("reconnect_attempts"):
        return None
    return Reconnect(attempts=table.whole("reconnect_attempts", low=1))
