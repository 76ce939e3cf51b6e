"""What is behind the commands of a simulated Keithley 2450: settings, terminals, lists of levels and reading buffers.

Numbers and rules are those of the reference manual 2450-901-01, section 6. The manual gives no numbers for most of
its errors; unconfirmed are 802 for the open interlock and -221 for a limit too small for the measuring range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock.loads import Load, Terminals, at_current, at_voltage
from labrig_drivers.mock.output_event import OutputEvent

MAX_LEVEL = {"VOLT": 210.0, "CURR": 1.05}
"""Largest level and limit in V and A."""

LONGEST_LIST = 2500
"""Most levels that a list made by `:SOUR:LIST` holds."""

_RANGES = {"VOLT": (0.02, 0.2, 2.0, 20.0, 200.0), "CURR": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)}
_OTHER = {"VOLT": "CURR", "CURR": "VOLT"}
_OVER_RANGE = 1.05
_BUFFER_CAPACITY = 100_000
_INTERLOCK_V = 21.0
_OVERFLOW = 9.9e37
_STATUS_LIMIT, _STATUS_SENSE, _STATUS_OUTPUT = 1 << 5, 1 << 6, 1 << 7


@dataclass(frozen=True)
class Source:
    """The settings of one source function, as one index of a source configuration list stores them.

    Attributes:
        level: Level in V or A.
        range: Full scale of a fixed range in V or A.
        autorange: Whether the range follows the level.
    """

    level: float = 0.0
    range: float = 200.0
    autorange: bool = True


@dataclass(frozen=True)
class Sample:
    """One reading in a buffer.

    Attributes:
        reading: What was measured in V or A, with the seven digits of the display.
        source: The source value in V or A, read back or as set.
        time_s: The server's clock in s.
        source_status: Bits of the buffer element `SOURSTATus`.
    """

    reading: float
    source: float
    time_s: float
    source_status: int


class Settings:
    """Everything that `*RST` resets, readings included."""

    def __init__(self) -> None:
        self.function = "VOLT"
        self.output_on = False
        self.source = {"VOLT": Source(), "CURR": Source(range=1.0)}
        self.limit = {"VOLT": 21.0, "CURR": 1.05e-4}
        self.readback = {"VOLT": True, "CURR": True}
        self.measured = "CURR"
        self.sense_range = {"VOLT": 20.0, "CURR": 1e-4}
        self.sense_autorange = {"VOLT": True, "CURR": True}
        self.nplc = {"VOLT": 1.0, "CURR": 1.0}
        self.four_wire = {"VOLT": False, "CURR": False}
        self.lists: dict[str, list[tuple[str, Source]]] = {}
        self.buffers: dict[str, list[Sample]] = {"defbuffer1": [], "defbuffer2": []}
        self.capacity = {"defbuffer1": _BUFFER_CAPACITY, "defbuffer2": _BUFFER_CAPACITY}


class Keithley2450Unit:
    """Settings and terminals; keeps the trigger model's `Stage`.

    Args:
        load: What hangs at the terminals.
        serial: What the log calls the instrument.
        line_frequency_hz: Mains frequency in Hz; one power line cycle is its inverse.
        log: Called with every `OutputEvent`.
        clock: The server's clock in s.
    """

    def __init__(
        self,
        load: Load,
        serial: str,
        line_frequency_hz: float,
        log: Callable[[OutputEvent], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._load = load
        self._serial = serial
        self._line_frequency_hz = line_frequency_hz
        self._log = log
        self._clock = clock
        self.settings = Settings()
        self.interlock_closed = True

    @property
    def present(self) -> Source:
        """The settings of the present source function."""
        return self.settings.source[self.settings.function]

    def reset(self) -> None:
        """Goes back to the state after power-on."""
        self.settings = Settings()
        self._output_changed()

    def set_function(self, name: str) -> None:
        """Sources `VOLT` or `CURR`; another function than before switches the output off."""
        if name != self.settings.function:
            self.settings.output_on = False
            self.settings.function = name
            self._output_changed()

    def set_level(self, name: str, level: float) -> None:
        """Sets the level in V or A.

        Raises:
            InstrumentError: -222, it is beyond the fixed range; 802, the interlock is open.
        """
        source = self.settings.source[name]
        if not source.autorange and abs(level) > source.range * _OVER_RANGE:
            raise InstrumentError(-222, "Parameter data out of range", repr(level))
        if name == "VOLT" and self.settings.output_on and self.settings.function == name:
            self._demand_interlock(level)
        self.settings.source[name] = replace(source, level=level)
        self._output_changed()

    def set_source_range(self, name: str, wanted: float) -> None:
        """Fixes the source range that holds `wanted` V or A."""
        self.settings.source[name] = replace(
            self.settings.source[name], range=_range_for(name, wanted), autorange=False
        )

    def set_source_autorange(self, name: str, automatic: bool) -> None:
        """Lets the source range follow the level, or fixes it where it is."""
        self.settings.source[name] = replace(self.settings.source[name], autorange=automatic)

    def set_sense_range(self, name: str, wanted: float) -> None:
        """Fixes the measuring range that holds `wanted` V or A."""
        self.settings.sense_range[name] = _range_for(name, wanted)
        self.settings.sense_autorange[name] = False

    def set_limit(self, name: str, limit: float) -> None:
        """Sets the compliance limit in V or A.

        Raises:
            InstrumentError: -221, it is no more than 0.1 % of a fixed measuring range.
        """
        fixed = self.settings.measured == name and not self.settings.sense_autorange[name]
        if fixed and limit <= 1e-3 * self.settings.sense_range[name]:
            raise InstrumentError(-221, "Settings conflict", repr(limit))
        self.settings.limit[name] = limit
        self._output_changed()

    def set_wiring(self, name: str, four_wire: bool) -> None:
        """Sets the sense wiring; another one than before switches the output off."""
        if four_wire != self.settings.four_wire[name]:
            self.settings.four_wire[name] = four_wire
            self.switch_source(False)

    def switch_source(self, on: bool) -> None:
        """Switches the output.

        Raises:
            InstrumentError: 802, the interlock is open and the level too high for that.
        """
        if on and self.settings.function == "VOLT":
            self._demand_interlock(self.present.level)
        self.settings.output_on = on
        self._output_changed()

    def is_tripped(self, limited: str) -> bool:
        """Whether the limit of `VOLT` or `CURR` rules at this moment."""
        if not self.settings.output_on or limited == self.settings.function:
            return False
        now_s = self._clock()
        return self._terminals(now_s, now_s).in_compliance

    def store_list(self, name: str, function: str, levels: list[float], *, autorange: bool) -> None:
        """Makes a source configuration list of `levels` in V or A, with all other settings as they are now."""
        template = replace(self.settings.source[function], autorange=autorange)
        self.settings.lists[name] = [(function, replace(template, level=level)) for level in levels]

    def list_levels(self, name: str) -> list[float]:
        """Levels in V or A of a source configuration list, empty where there is none."""
        return [source.level for _, source in self.settings.lists.get(name, [])]

    def list_size(self, name: str) -> int:
        """Number of indexes in a source configuration list."""
        return len(self.settings.lists[name])

    def recall(self, name: str, index: int) -> None:
        """Makes one index, counted from 1, the present settings.

        The state of the output stays. The manual counts it among what such lists store, but its own examples store
        lists with the output off and measure with it on.

        Raises:
            InstrumentError: 2790, there is no such index.
        """
        if index > len(self.settings.lists[name]):
            raise InstrumentError(2790, "Configuration list, error, does not exist", name)
        function, source = self.settings.lists[name][index - 1]
        self.settings.function = function
        self.settings.source[function] = source
        self._output_changed()

    def clear_buffer(self, buffer: str) -> None:
        """Empties a reading buffer."""
        self.settings.buffers[buffer].clear()

    def take_reading(self, buffer: str) -> Generator[float, None, None]:
        """Takes one reading into a buffer; yields the seconds of its integration."""
        settings = self.settings
        start_s = self._clock()
        duration_s = settings.nplc[settings.measured] / self._line_frequency_hz
        yield duration_s
        stop_s = self._clock()
        if stop_s == start_s:
            # A clock that does not move by itself: the reading took its nominal time.
            stop_s = start_s + duration_s
        samples = settings.buffers[buffer]
        samples.append(self._sample(start_s, stop_s))
        # Filled continuously, a buffer loses its oldest reading.
        del samples[: max(0, len(samples) - settings.capacity[buffer])]

    def _sample(self, start_s: float, stop_s: float) -> Sample:
        settings, function = self.settings, self.settings.function
        terminals = self._terminals(start_s, stop_s)
        found = {"VOLT": terminals.voltage_v, "CURR": terminals.current_a}
        reading = found[settings.measured]
        if not settings.sense_autorange[settings.measured] and settings.measured != function:
            largest = settings.sense_range[settings.measured] * _OVER_RANGE
            reading = math.copysign(_OVERFLOW, reading) if abs(reading) > largest else reading
        source = found[function] if settings.readback[function] else self.present.level
        status = _STATUS_LIMIT * terminals.in_compliance + _STATUS_OUTPUT * self.settings.output_on
        status += _STATUS_SENSE * settings.four_wire[settings.measured]
        return Sample(float(f"{reading:.6E}"), float(f"{source:.6E}"), stop_s, status)

    def _terminals(self, start_s: float, stop_s: float) -> Terminals:
        if not self.settings.output_on:
            # The normal output-off state is a source of 0 V.
            return at_voltage(self._load, 0.0, self.settings.limit["CURR"], start_s, stop_s)
        level, limit = self.present.level, self.settings.limit[_OTHER[self.settings.function]]
        at = at_voltage if self.settings.function == "VOLT" else at_current
        return at(self._load, level, limit, start_s, stop_s)

    def _demand_interlock(self, level_v: float) -> None:
        if not self.interlock_closed and abs(level_v) > _INTERLOCK_V:
            raise InstrumentError(802, "OUTPUT blocked by interlock", repr(level_v))

    def _output_changed(self) -> None:
        """Tells load and log what the source does now."""
        now_s, output_on = self._clock(), self.settings.output_on
        voltage_v, limit_a = self.settings.source["VOLT"].level, self.settings.limit["CURR"]
        if self.settings.function == "CURR":
            limit_a = abs(self.present.level)
            voltage_v = self._terminals(now_s, now_s).voltage_v if output_on else 0.0
        self._load.supply_changed(voltage_v if output_on else 0.0, now_s)
        if self._log is not None:
            self._log(OutputEvent(now_s, self._serial, output_on, voltage_v, limit_a))


def _range_for(name: str, wanted: float) -> float:
    """The smallest range that holds a magnitude in V or A.

    Raises:
        InstrumentError: -222, there is none.
    """
    for full_scale in _RANGES[name]:
        if abs(wanted) <= full_scale:
            return full_scale
    raise InstrumentError(-222, "Parameter data out of range", repr(wanted))
