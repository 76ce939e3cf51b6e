"""A simulated controller of one quantity behind SCPI: a first-order lag, noise, an error queue, and a log as judge."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labrig_drivers.mock.first_order import FirstOrderLag
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.scpi_parser import Command, ErrorQueue, Run, ScpiParser, number


@dataclass(frozen=True)
class SetPointEvent:
    """One change of a simulated controller's set point.

    Attributes:
        time_s: The controller's clock in s.
        instrument: Serial number.
        set_point: What it regulates to from now on.
        value: Where the quantity was then.
    """

    time_s: float
    instrument: str
    set_point: float
    value: float


class SimulatedAxisController:
    """The controller: state and commands, without any input or output.

    `SOURce:TEMPerature <number>` sets, `SOURce:TEMPerature?` tells the set point, `MEASure:TEMPerature?` reads.

    Args:
        start: Where the quantity is, and the first set point.
        low: Lowest set point that it takes.
        high: Highest set point that it takes.
        lag_s: Time constant in s.
        noise: Standard deviation of a reading.
        rng: Source of the noise; None for readings without.
        quantity: Keyword of the quantity in headers, as manuals print it.
        serial: Serial number in `*IDN?`.
        log: Called with every change of the set point.
        clock: The controller's clock in s.

    Attributes:
        physics: The quantity itself, to disturb it or to look at the truth.
        errors: The error queue.
    """

    def __init__(
        self,
        start: float,
        *,
        low: float,
        high: float,
        lag_s: float = 0.05,
        noise: float = 0.0,
        rng: np.random.Generator | None = None,
        quantity: str = "TEMPerature",
        serial: str = "TC-0001",
        log: Callable[[SetPointEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.physics = FirstOrderLag(start, lag_s, clock)
        self._low, self._high = low, high
        self._noise = noise
        self._rng = rng
        self._serial = serial
        self._log = log
        self._clock = clock
        self.errors = ErrorQueue()
        commands = [
            Command("*IDN?", lambda _: f"labrig,SIM-CONTROLLER,{serial},1.0"),
            Command("*CLS", lambda _: self.errors.clear()),
            Command("*OPC?", lambda _: "1"),
            Command("*ESR?", lambda _: self.errors.read_event_status()),
            Command("SYSTem:ERRor[:NEXT]?", lambda _: self.errors.next()),
            Command(f"SOURce:{quantity}", self._set),
            Command(f"SOURce:{quantity}?", lambda _: repr(self.physics.target)),
            Command(f"MEASure:{quantity}?", lambda _: self._measure()),
        ]
        self._parser = ScpiParser(commands, self.errors)

    def run(self, line: str) -> Run:
        """Runs one line of SCPI; returns the answer or None."""
        return self._parser.run(line)

    def take_operation(self) -> Run | None:
        """It regulates all the time, and nothing overlaps."""
        return None

    def is_abort(self, line: str) -> bool:  # noqa: ARG002 - the server asks every instrument
        """There is nothing to abort."""
        return False

    def _set(self, text: str) -> None:
        set_point = number(text, self._low, self._high)
        self.physics.set_target(set_point)
        if self._log is not None:
            self._log(SetPointEvent(self._clock(), self._serial, set_point, self.physics.value()))

    def _measure(self) -> str:
        noise = 0.0 if self._rng is None else self._noise * float(self._rng.standard_normal())
        return f"{self.physics.value() + noise:+.6E}"


class AxisControllerServer(InstrumentServer[SimulatedAxisController]):
    """A simulated controller on a real socket; see `InstrumentServer`."""
