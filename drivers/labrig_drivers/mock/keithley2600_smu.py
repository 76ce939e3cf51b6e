"""One channel (SMU) of a simulated Keithley 2600: its settings, its physics and its two reading buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock.loads import Load, Terminals, at_current, at_voltage
from labrig_drivers.mock.tsp_interpreter import Attribute, Column, Part, Thing, Timed, Value

COMPLIANCE_STATUS: Final = 0x40
_FOUR_WIRE_STATUS: Final = 0x10
_BUFFER_CAPACITY: Final = 60_000
_DIGITS: Final = 7


@dataclass(frozen=True)
class Family:
    """What tells the 40 V models from the 200 V models.

    Attributes:
        ranges_v: Voltage ranges in V.
        ranges_a: Current ranges in A.
        limit_a: Current limit in A after a reset.
        limit_v: Voltage limit in V after a reset.
        has_output_enable: True for an output enable line (40 V models), False for an interlock (200 V models).
    """

    ranges_v: tuple[float, ...]
    ranges_a: tuple[float, ...]
    limit_a: float
    limit_v: float
    has_output_enable: bool


_LOW_RANGES_A: Final = (100e-9, 1e-6, 10e-6, 100e-6, 1e-3, 10e-3, 100e-3)
FAMILY_40_V: Final = Family((0.1, 1.0, 6.0, 40.0), (*_LOW_RANGES_A, 1.0, 3.0), 1.0, 40.0, True)
FAMILY_200_V: Final = Family((0.2, 2.0, 20.0, 200.0), (*_LOW_RANGES_A, 1.0, 1.5), 0.1, 20.0, False)


@dataclass
class ReadingBuffer:
    """One of the dedicated reading buffers; indices count from 1."""

    name: str
    readings: list[float] = field(default_factory=list)
    timestamps_s: list[float] = field(default_factory=list)
    statuses: list[float] = field(default_factory=list)
    first_s: float = 0.0
    appends: bool = False
    stamps: bool = False

    def add(self, value: float, status: int, time_s: float) -> None:
        """Stores one reading; without append mode it replaces what was there."""
        if not self.appends:
            self.clear()
        if len(self.readings) >= _BUFFER_CAPACITY:
            raise InstrumentError(4900, f"Reading buffer index {len(self.readings) + 1} is invalid", self.name)
        if not self.readings:
            self.first_s = time_s
        self.readings.append(value)
        self.statuses.append(float(status))
        self.timestamps_s.append(time_s - self.first_s if self.stamps else 0.0)

    def clear(self) -> None:
        """Forgets the readings, not the settings."""
        self.readings.clear()
        self.timestamps_s.clear()
        self.statuses.clear()

    def column(self, name: str) -> list[float]:
        """One kind of stored values by its TSP name."""
        return {"readings": self.readings, "timestamps": self.timestamps_s, "statuses": self.statuses}[name]

    def thing(self) -> Thing:
        """What scripts see of it."""
        columns = {name: Column(f"{self.name}.{name}", self._item(name)) for name in COLUMN_NAMES}
        parts: dict[str, Part] = {
            "n": Attribute(lambda: float(len(self.readings))),
            "capacity": Attribute(lambda: float(_BUFFER_CAPACITY)),
            "appendmode": Attribute(lambda: float(self.appends), self._set_appends),
            "collecttimestamps": Attribute(lambda: float(self.stamps), self._set_stamps),
            "clear": self.clear,
        }
        return Thing(parts | columns, self.name)

    def _item(self, name: str) -> Callable[[int], float]:
        def item(index: int) -> float:
            values = self.column(name)
            if not 1 <= index <= len(values):
                raise InstrumentError(4900, f"Reading buffer index {index} is invalid", self.name)
            return values[int(index) - 1]

        return item

    def _set_appends(self, value: Value) -> None:
        self.appends = flag(value)

    def _set_stamps(self, value: Value) -> None:
        if self.readings:
            raise InstrumentError(5032, "Cannot change this setting unless buffer is cleared", self.name)
        self.stamps = flag(value)


COLUMN_NAMES: Final = ("readings", "timestamps", "statuses")


class SimulatedSmu:
    """One channel.

    Args:
        name: `smua` or `smub`.
        load: What hangs at its terminals.
        family: What the model can do.
        line_frequency_hz: Mains frequency in Hz.
        clock: The instrument's clock in s.
        changed: Told of every change of output, level or limit.
    """

    def __init__(
        self,
        name: str,
        load: Load,
        family: Family,
        line_frequency_hz: float,
        clock: Callable[[], float],
        changed: Callable[[SimulatedSmu], None],
    ) -> None:
        self.name = name
        self.load = load
        self._family = family
        self._line_frequency_hz = line_frequency_hz
        self._clock = clock
        self._changed = changed
        self._enabled = True
        self.buffers = (ReadingBuffer(f"{name}.nvbuffer1"), ReadingBuffer(f"{name}.nvbuffer2"))
        self._settings = self._defaults()

    @property
    def output_on(self) -> bool:
        """State of the output."""
        return bool(self._settings["output"])

    @property
    def level_v(self) -> float:
        """Voltage source level in V; sourcing current and switched on, the voltage that it causes."""
        if self._settings["func"] == 1.0:
            return self._settings["levelv"]
        now_s = self._clock()
        return self._terminals(now_s, now_s).voltage_v if self.output_on else 0.0

    @property
    def limit_a(self) -> float:
        """Current limit in A; sourcing current, the magnitude of the level."""
        return self._settings["limiti"] if self._settings["func"] == 1.0 else abs(self._settings["leveli"])

    @property
    def nplc(self) -> float:
        """Integration time in power line cycles."""
        return self._settings["nplc"]

    @property
    def enabled(self) -> bool:
        """Whether the interlock (200 V models) or the output enable line (40 V models) is asserted."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        if self.output_on and self._blocked() is not None:
            self._settings["output"] = 0.0
            self._changed(self)

    def reset(self) -> None:
        """`smuX.reset()`: output off, everything else as after switching on; the buffers keep their readings."""
        self._settings = self._defaults()
        self._changed(self)

    def condition(self) -> float:
        """The register `status.measurement.instrument.smuX.condition`."""
        limited = self._in_compliance()
        bit = 0x2 if self._settings["func"] == 1.0 else 0x1
        return float(bit * limited + 0x800 * self._enabled)

    def thing(self) -> Thing:
        """What scripts see of it."""
        source: dict[str, Part] = {
            "func": self._attribute("func", self._set_function),
            "output": self._attribute("output", self._set_output),
            "compliance": Attribute(self._in_compliance),
            "outputenableaction": self._attribute("enableaction", self._set_choice("enableaction", 0, 1)),
            "delay": self._attribute("delay", self._set_number("delay", -1.0, 1e5)),
            "autorangev": self._attribute("sourceautov", self._set_choice("sourceautov", 0, 1)),
            "autorangei": self._attribute("sourceautoi", self._set_choice("sourceautoi", 0, 1)),
        }
        measure: dict[str, Part] = {
            "nplc": self._attribute("nplc", self._set_number("nplc", 0.001, 25.0)),
            "autorangev": self._attribute("measureautov", self._set_choice("measureautov", 0, 1, 2)),
            "autorangei": self._attribute("measureautoi", self._set_choice("measureautoi", 0, 1, 2)),
            "iv": Timed(self._begin("i", "v"), self._end),
            "i": Timed(self._begin("i"), self._end),
            "v": Timed(self._begin("v"), self._end),
        }
        for suffix in ("v", "i"):
            source[f"level{suffix}"] = self._attribute(f"level{suffix}", self._set_level(suffix))
            source[f"limit{suffix}"] = self._attribute(f"limit{suffix}", self._set_limit(suffix))
            source[f"range{suffix}"] = self._attribute(f"source{suffix}", self._set_range("source", suffix))
            measure[f"range{suffix}"] = self._attribute(f"measure{suffix}", self._set_range("measure", suffix))
        parts: dict[str, Part] = {
            "source": Thing(source),
            "measure": Thing(measure),
            "sense": self._attribute("sense", self._set_choice("sense", 0, 1)),
            "nvbuffer1": self.buffers[0].thing(),
            "nvbuffer2": self.buffers[1].thing(),
            "reset": self.reset,
        }
        constants: dict[str, Part] = {
            "OUTPUT_DCAMPS": 0.0,
            "OUTPUT_DCVOLTS": 1.0,
            "OUTPUT_OFF": 0.0,
            "OUTPUT_ON": 1.0,
            "SENSE_LOCAL": 0.0,
            "SENSE_REMOTE": 1.0,
            "AUTORANGE_OFF": 0.0,
            "AUTORANGE_ON": 1.0,
            "OE_NONE": 0.0,
            "OE_OUTPUT_OFF": 1.0,
        }
        return Thing(parts | constants)

    def _defaults(self) -> dict[str, float]:
        family = self._family
        return {
            "func": 1.0,
            "output": 0.0,
            "enableaction": 0.0,
            "delay": 0.0,
            "sense": 0.0,
            "nplc": 1.0,
            "levelv": 0.0,
            "leveli": 0.0,
            "limitv": family.limit_v,
            "limiti": family.limit_a,
            "sourceautov": 1.0,
            "sourceautoi": 1.0,
            "measureautov": 1.0,
            "measureautoi": 1.0,
            "sourcev": family.ranges_v[-1],
            "sourcei": family.ranges_a[-1],
            "measurev": family.ranges_v[-1],
            "measurei": family.ranges_a[-1],
        }

    def _attribute(self, key: str, put: Callable[[Value], None]) -> Attribute:
        return Attribute(lambda: self._settings[key], put)

    def _set_number(self, key: str, low: float, high: float) -> Callable[[Value], None]:
        def put(value: Value) -> None:
            self._settings[key] = number(value, low, high)

        return put

    def _set_choice(self, key: str, *choices: int) -> Callable[[Value], None]:
        def put(value: Value) -> None:
            chosen = number(value, min(choices), max(choices))
            if chosen not in choices:
                raise InstrumentError(-220, "Parameter error", key)
            self._settings[key] = chosen

        return put

    def _set_function(self, value: Value) -> None:
        self._set_choice("func", 0, 1)(value)
        self._changed(self)

    def _set_output(self, value: Value) -> None:
        wanted = float(flag(value))
        fault = self._blocked() if wanted else None
        if fault is not None:
            raise fault
        self._settings["output"] = wanted
        self._changed(self)

    def _blocked(self) -> InstrumentError | None:
        """Why the output may not be on now."""
        if self._enabled:
            return None
        if self._family.has_output_enable:
            acts = self._settings["enableaction"] == 1.0
            return InstrumentError(5041, "Output Enable not asserted", self.name) if acts else None
        return InstrumentError(802, "OUTPUT blocked by interlock", self.name)

    def _set_level(self, suffix: str) -> Callable[[Value], None]:
        def put(value: Value) -> None:
            largest = self._ranges(suffix)[-1] * 1.01
            level = number(value, -largest, largest)
            if not self._settings[f"sourceauto{suffix}"] and abs(level) > self._settings[f"source{suffix}"] * 1.01:
                raise InstrumentError(5005, "Value too big for range", str(value))
            self._settings[f"level{suffix}"] = level
            self._changed(self)

        return put

    def _set_limit(self, suffix: str) -> Callable[[Value], None]:
        def put(value: Value) -> None:
            self._settings[f"limit{suffix}"] = number(value, 1e-12, self._ranges(suffix)[-1] * 1.01)
            self._changed(self)

        return put

    def _set_range(self, side: str, suffix: str) -> Callable[[Value], None]:
        def put(value: Value) -> None:
            ranges = self._ranges(suffix)
            wanted = abs(number(value, -ranges[-1] * 1.01, ranges[-1] * 1.01))
            self._settings[f"{side}{suffix}"] = next((one for one in ranges if one * 1.01 >= wanted), ranges[-1])
            self._settings[f"{side}auto{suffix}"] = 0.0

        return put

    def _ranges(self, suffix: str) -> tuple[float, ...]:
        return self._family.ranges_v if suffix == "v" else self._family.ranges_a

    def _begin(self, *kinds: str) -> Callable[..., tuple[float, object]]:
        def begin(*buffers: str) -> tuple[float, object]:
            by_name = {buffer.name: buffer for buffer in self.buffers}
            if any(name not in by_name for name in buffers) or len(buffers) > len(kinds):
                raise InstrumentError(5033, "Reading buffer not found within device", str(buffers))
            duration_s = self.nplc / self._line_frequency_hz
            return duration_s, _Measurement(kinds, [by_name[name] for name in buffers], self._clock(), duration_s)

        return begin

    def _end(self, token: object) -> tuple[Value, ...]:
        assert isinstance(token, _Measurement)
        stop_s = self._clock()
        if stop_s == token.start_s:
            # A clock that does not move by itself: the reading took its nominal time.
            stop_s += token.duration_s
        terminals = self._terminals(token.start_s, stop_s)
        status = COMPLIANCE_STATUS * terminals.in_compliance + _FOUR_WIRE_STATUS * int(self._settings["sense"])
        values = {"v": _rounded(terminals.voltage_v), "i": _rounded(terminals.current_a)}
        for kind, buffer in zip(token.kinds, token.buffers, strict=False):
            buffer.add(values[kind], status, stop_s)
        return tuple(values[kind] for kind in token.kinds)

    def _in_compliance(self) -> bool:
        now_s = self._clock()
        return self._terminals(now_s, now_s).in_compliance

    def _terminals(self, start_s: float, stop_s: float) -> Terminals:
        settings = self._settings
        if not self.output_on:
            # Off, in the normal off mode: 0 V at the terminals.
            return Terminals(0.0, 0.0, in_compliance=False)
        if settings["func"] == 1.0:
            return at_voltage(self.load, settings["levelv"], settings["limiti"], start_s, stop_s)
        return at_current(self.load, settings["leveli"], settings["limitv"], start_s, stop_s)


@dataclass(frozen=True)
class _Measurement:
    kinds: tuple[str, ...]
    buffers: list[ReadingBuffer]
    start_s: float
    duration_s: float


def number(value: Value, low: float, high: float) -> float:
    """A number within a range.

    Raises:
        InstrumentError: -104 no number, 1101 too big, 1102 too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InstrumentError(-104, "Data type error", str(value))
    if value > high:
        raise InstrumentError(1101, "Parameter too big", str(value))
    # Written so that NaN is refused as well.
    if not value >= low:
        raise InstrumentError(1102, "Parameter too small", str(value))
    return float(value)


def flag(value: Value) -> bool:
    """0 or 1.

    Raises:
        InstrumentError: It is something else.
    """
    if number(value, 0, 1) not in {0.0, 1.0}:
        raise InstrumentError(-220, "Parameter error", str(value))
    return value == 1


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
