"""What is behind the commands of one channel of a simulated Keysight B2900: settings, terminals, sweeps, readings.

Rules and reset values are those of the SCPI Command Reference B2910-90030, section 4. Unconfirmed: that an aborted
sweep leaves the output as one that has ended does; what a measurement with the output off gives (here: not a number);
and the number of the error for more than 42 V with the interlock open (here: -221).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock.loads import Load, Terminals, at_current, at_voltage
from labrig_drivers.mock.output_event import OutputEvent

MAX_LEVEL = {"VOLT": 210.0, "CURR": 3.03}
"""Largest level and limit in V and A."""

LONGEST_LIST = 2500
"""Most levels that a list holds."""

_NPLC_CYCLES_S = (8e-6, 2.0)
_OVER_RANGE = 1.06
_INTERLOCK_V = 42.0
_STATUS_CURRENT_SOURCE, _STATUS_COMPLIANCE, _STATUS_OVERFLOW = 1 << 0, 1 << 1, 1 << 13


@dataclass(frozen=True)
class Sample:
    """One reading in the measurement memory; voltage, current and resistance are NaN where they were not measured.

    Attributes:
        voltage_v: Voltage in V, with the instrument's digits.
        current_a: Current in A, with the instrument's digits.
        resistance_ohm: Resistance in ohm.
        time_s: The server's clock in s.
        status: Bits of the element `STATus`.
        source: Source level in V or A.
    """

    voltage_v: float
    current_a: float
    resistance_ohm: float
    time_s: float
    status: int
    source: float


class Settings:
    """Everything of one channel that `*RST` resets."""

    def __init__(self) -> None:
        self.source = "VOLT"
        self.shape = "DC"
        self.level = {"VOLT": 0.0, "CURR": 0.0}
        self.mode = {"VOLT": "FIX", "CURR": "FIX"}
        self.list = {"VOLT": [0.0], "CURR": [0.0]}
        self.start = {"VOLT": 0.0, "CURR": 0.0}
        self.stop = {"VOLT": 0.0, "CURR": 0.0}
        self.points = 1
        self.ranging = "BEST"
        self.direction = "UP"
        self.source_range = dict(MAX_LEVEL)
        self.source_autorange = {"VOLT": True, "CURR": True}
        self.sense_range = dict(MAX_LEVEL)
        self.sense_autorange = {"VOLT": True, "CURR": True}
        self.limit = {"VOLT": 2.0, "CURR": 1e-4}
        self.functions = {"VOLT", "CURR"}
        self.nplc = 0.1
        self.nplc_auto = False
        self.remote_sense = False
        self.output_on = False
        # The traps: a channel switches itself on at a measurement unless told not to.
        self.on_auto = True
        self.off_auto = False
        self.protection = False
        self.continuous = False
        self.count = 1
        self.delay_s = {"ACQ": 0.0, "TRAN": 0.0}


class SourceChannel:
    """One channel: a source, a meter and what hangs between its terminals.

    Args:
        name: What its events say.
        load: What hangs at the terminals.
        line_frequency_hz: Mains frequency in Hz.
        log: Called with every `OutputEvent`.
        clock: The server's clock in s.
        interlock_closed: Tells whether more than 42 V are allowed.
    """

    def __init__(
        self,
        name: str,
        load: Load,
        line_frequency_hz: float,
        log: Callable[[OutputEvent], None] | None,
        clock: Callable[[], float],
        interlock_closed: Callable[[], bool],
    ) -> None:
        self._name = name
        self._load = load
        self._line_frequency_hz = line_frequency_hz
        self._log = log
        self._clock = clock
        self._interlock_closed = interlock_closed
        self.settings = Settings()
        self.samples: list[Sample] = []
        self.is_idle = True
        # Where a sweep left the source; None while the fixed level rules.
        self._swept: float | None = None

    def reset(self) -> None:
        """Does this channel's part of `*RST`."""
        self.settings = Settings()
        self._swept = None
        self.samples.clear()
        self.output_changed()

    def switch(self, on: bool) -> None:
        """Switches the output."""
        if on:
            self._check_interlock(self.present_level("VOLT"))
        self.settings.output_on = on
        self.output_changed()

    def set_source(self, source: str) -> None:
        """Chooses the sourced quantity; the output goes off when it is another one."""
        if source != self.settings.source:
            self.settings.output_on = False
            self.settings.source = source
            self._swept = None
            self.output_changed()

    def largest_level(self, name: str) -> float:
        """Largest level in V or A that the range allows."""
        fixed = not self.settings.source_autorange[name]
        return min(self.settings.source_range[name] * _OVER_RANGE, MAX_LEVEL[name]) if fixed else MAX_LEVEL[name]

    def set_level(self, name: str, level: float) -> None:
        """Sets the immediate level, which appears at once."""
        if name == "VOLT" and self.settings.output_on:
            self._check_interlock(level)
        self.settings.level[name] = level
        if name == self.settings.source:
            self._swept = None
        self.output_changed()

    def set_mode(self, name: str, mode: str) -> None:
        """Chooses fixed level or sweep; a fixed level appears at once."""
        self.settings.mode[name] = mode
        if mode == "FIX" and name == self.settings.source:
            self._swept = None
            self.output_changed()

    def set_nplc(self, nplc: float) -> None:
        """Sets the integration time; the instrument takes the nearest that it has, without an error."""
        low, high = (cycle_s * self._line_frequency_hz for cycle_s in _NPLC_CYCLES_S)
        self.settings.nplc = min(max(nplc, low), high)
        self.settings.nplc_auto = False

    def present_level(self, name: str) -> float:
        """What the source puts out, or would if it were on."""
        swept = self._swept if name == self.settings.source else None
        return self.settings.level[name] if swept is None else swept

    def in_compliance(self) -> bool:
        """Whether the limit rules right now."""
        now_s = self._clock()
        return self.settings.output_on and self._terminals(now_s, now_s).in_compliance

    def measure(self) -> Generator[float, None, None]:
        """One reading at the present level; the memory then holds this one only."""
        self.samples.clear()
        self._switch_on_by_itself()
        self.samples.append((yield from self._sample()))

    def sweep(self) -> Generator[float, None, None]:
        """Source, delay and measure, as often as the trigger counts; ends where it stands when it is closed."""
        settings = self.settings
        self.samples.clear()
        self._switch_on_by_itself()
        self.is_idle = False
        try:
            for index in range(settings.count):
                yield settings.delay_s["TRAN"]
                self._step(index)
                yield settings.delay_s["ACQ"]
                self.samples.append((yield from self._sample()))
        finally:
            self.is_idle = True
            if not settings.continuous:
                self._swept = None
            if settings.off_auto:
                settings.output_on = False
            self.output_changed()

    def output_changed(self) -> None:
        """Tells load and log what the source does now; switches off at compliance where that is set."""
        settings, now_s = self.settings, self._clock()
        if settings.protection and settings.output_on and self._terminals(now_s, now_s).in_compliance:
            settings.output_on = False
        voltage_v, limit_a = self.present_level("VOLT"), settings.limit["CURR"]
        if settings.source == "CURR":
            limit_a = abs(self.present_level("CURR"))
            voltage_v = self._terminals(now_s, now_s).voltage_v if settings.output_on else 0.0
        self._load.supply_changed(voltage_v if settings.output_on else 0.0, now_s)
        if self._log is not None:
            self._log(OutputEvent(now_s, self._name, settings.output_on, voltage_v, limit_a))

    def _step(self, index: int) -> None:
        settings = self.settings
        mode = settings.mode[settings.source]
        if mode == "FIX":
            return
        levels = settings.list[settings.source] if mode == "LIST" else self._staircase()
        self._swept = levels[index % len(levels)]
        self.output_changed()

    def _staircase(self) -> list[float]:
        settings = self.settings
        start, stop = settings.start[settings.source], settings.stop[settings.source]
        if settings.direction == "DOWN":
            start, stop = stop, start
        last = max(settings.points - 1, 1)
        return [start + (stop - start) * index / last for index in range(settings.points)]

    def _switch_on_by_itself(self) -> None:
        if self.settings.on_auto and not self.settings.output_on:
            self.switch(True)

    def _sample(self) -> Generator[float, None, Sample]:
        settings = self.settings
        start_s = self._clock()
        duration_s = settings.nplc / self._line_frequency_hz
        yield duration_s
        stop_s = self._clock()
        if stop_s == start_s:
            # A clock that does not move by itself: the reading took its nominal time.
            stop_s = start_s + duration_s
        level = self.present_level(settings.source)
        if not settings.output_on:
            return Sample(math.nan, math.nan, math.nan, stop_s, 0, level)
        terminals = self._terminals(start_s, stop_s)
        status = _STATUS_CURRENT_SOURCE if settings.source == "CURR" else 0
        status |= _STATUS_COMPLIANCE if terminals.in_compliance else 0
        voltage_v = self._measured("VOLT", terminals.voltage_v)
        current_a = self._measured("CURR", terminals.current_a)
        status |= _STATUS_OVERFLOW if math.isinf(voltage_v) or math.isinf(current_a) else 0
        has_resistance = "RES" in settings.functions and current_a not in {0.0, math.inf, -math.inf}
        return Sample(
            voltage_v, current_a, voltage_v / current_a if has_resistance else math.nan, stop_s, status, level
        )

    def _measured(self, name: str, value: float) -> float:
        settings = self.settings
        if name not in settings.functions:
            return math.nan
        # What is sourced is measured on the source's own range.
        is_fixed = name != settings.source and not settings.sense_autorange[name]
        if is_fixed and abs(value) > settings.sense_range[name] * _OVER_RANGE:
            return math.copysign(math.inf, value)
        return float(f"{value:.6E}")

    def _check_interlock(self, voltage_v: float) -> None:
        if self.settings.source == "VOLT" and abs(voltage_v) > _INTERLOCK_V and not self._interlock_closed():
            raise InstrumentError(-221, "Settings conflict", f"{voltage_v}")

    def _terminals(self, start_s: float, stop_s: float) -> Terminals:
        limit, source = self.settings.limit, self.settings.source
        if source == "VOLT":
            return at_voltage(self._load, self.present_level("VOLT"), limit["CURR"], start_s, stop_s)
        return at_current(self._load, self.present_level("CURR"), limit["VOLT"], start_s, stop_s)
