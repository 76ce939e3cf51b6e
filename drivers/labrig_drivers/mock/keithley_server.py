"""Old names, to be removed."""

from __future__ import annotations

from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import DiodeLoad, Load, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.servers import InstrumentServer
from labrig_drivers.mock.servers import keithley2400_server as Keithley2400Server  # noqa: N812

__all__ = [
    "DiodeLoad",
    "InstrumentServer",
    "Keithley2400Server",
    "Load",
    "OutputEvent",
    "ResistorLoad",
    "SimulatedKeithley2400",
]
