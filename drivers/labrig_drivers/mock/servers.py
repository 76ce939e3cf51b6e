"""Every simulated instrument, and what serves it on a real socket.

    async with InstrumentServer(SimulatedKeithley2450(ResistorLoad(1e3)), time_scale=0.1) as server:
        meter = Keithley2450(TcpLink("127.0.0.1", server.port))

A crossbar board is served by `BoardServer`.
"""

from __future__ import annotations

from labrig_drivers.mock.axis_controller import SimulatedAxisController
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.instrument_server import InstrumentServer, run_at_once
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.keithley2450 import SimulatedKeithley2450
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import DiodeLoad, Load, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.switch_matrix import SimulatedSwitchMatrix

__all__ = [
    "BoardServer",
    "DiodeLoad",
    "InstrumentServer",
    "Load",
    "OutputEvent",
    "ResistorLoad",
    "SimulatedAxisController",
    "SimulatedKeithley2400",
    "SimulatedKeithley2450",
    "SimulatedKeithley2600",
    "SimulatedKeysightB2900",
    "SimulatedSwitchMatrix",
    "run_at_once",
]
