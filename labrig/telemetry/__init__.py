"""Events of a run as MQTT messages: bounded, beside the run, never in its way.

`Telemetry` is a listener of the event bus. What it publishes, and where, is in docs/how-to/watch-over-mqtt.md.
"""

from labrig.telemetry.broker import Broker
from labrig.telemetry.listener import Telemetry
from labrig.telemetry.pace import Pace

__all__ = ["Broker", "Pace", "Telemetry"]
