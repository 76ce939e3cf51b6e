"""Events of a run as MQTT messages: bounded, beside the run, never in its way.

`Telemetry` is a listener of the event bus. What it publishes, and where, is in docs/how-to/watch-over-mqtt.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labrig.telemetry.broker import Broker
    from labrig.telemetry.listener import Telemetry
    from labrig.telemetry.pace import Pace

__all__ = ["Broker", "Pace", "Telemetry"]

_HOMES = {
    "Broker": "labrig.telemetry.broker",
    "Pace": "labrig.telemetry.pace",
    "Telemetry": "labrig.telemetry.listener",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'labrig.telemetry' has no attribute {name!r}")
    return getattr(import_module(home), name)
