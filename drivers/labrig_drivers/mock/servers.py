"""Simulated source-meters on real sockets, one function for each model."""

from __future__ import annotations

import time
from collections.abc import Callable

from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import Load
from labrig_drivers.mock.output_event import OutputEvent

__all__ = ["InstrumentServer", "keithley2400_server"]


def keithley2400_server(
    load: Load,
    *,
    serial: str = "1234567",
    model: str = "MODEL 2400",
    line_frequency_hz: float = 50.0,
    log: Callable[[OutputEvent], None] | None = None,
    time_scale: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> InstrumentServer[SimulatedKeithley2400]:
    """A Keithley 2400 with `load` at its terminals; see `SimulatedKeithley2400` and `InstrumentServer`."""
    instrument = SimulatedKeithley2400(
        load, serial=serial, model=model, line_frequency_hz=line_frequency_hz, log=log, clock=clock
    )
    return InstrumentServer(instrument, time_scale=time_scale)
