"""A simulated Keithley 2600: one or two channels behind a TSP interpreter, without any input or output.

The subset of the instrument that source-meter drivers and their scripts need, after the Series 2600B reference manual
2600BS-901-01. The simulator runs real Lua (see `tsp_interpreter`), so a script that it takes is a script, not a guess.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock.keithley2600_smu import (
    COLUMN_NAMES,
    FAMILY_40_V,
    FAMILY_200_V,
    ReadingBuffer,
    SimulatedSmu,
    number,
)
from labrig_drivers.mock.loads import Load, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.scpi_parser import Run
from labrig_drivers.mock.tsp_interpreter import Attribute, Part, Thing, Timed, TspInterpreter, Value

_QUEUE_LENGTH: Final = 100
_RECOVERABLE: Final = 20.0
_NODE: Final = 1.0
_ASCII, _REAL32, _REAL64 = 1.0, 2.0, 3.0
_LITTLE_ENDIAN: Final = 1.0
_OPEN_OHM: Final = 1e12


class TspErrorQueue:
    """First in, first out; when full, the newest entry becomes -350 and the rest is lost."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, str]] = deque()

    def add(self, code: int, text: str) -> None:
        """Notes an error."""
        if len(self._entries) < _QUEUE_LENGTH:
            self._entries.append((code, text))
        else:
            self._entries[-1] = (-350, "Queue overflow")

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()

    def thing(self) -> Thing:
        """`errorqueue`, as scripts see it."""
        return Thing({"count": Attribute(lambda: float(len(self._entries))), "next": self._next, "clear": self.clear})

    def _next(self) -> tuple[Value, ...]:
        if not self._entries:
            return 0.0, "Queue Is Empty", 0.0, _NODE
        code, text = self._entries.popleft()
        return float(code), text, _RECOVERABLE, _NODE


class SimulatedKeithley2600:
    """The instrument behind the terminals and behind the socket.

    Args:
        load: What hangs at the terminals of channel a.
        load_b: What hangs at those of channel b; nothing when None.
        serial: Serial number in `*IDN?`.
        model: Model, such as `2602B`; an odd fourth digit has one channel, and `260x` are the 40 V models.
        line_frequency_hz: Mains frequency in Hz; one power line cycle is its inverse.
        log: Called with every `OutputEvent`; its instrument is the serial number and the channel, `1234567:a`.
        clock: The server's clock in s.

    Raises:
        ConfigError: The package `lupa` is not installed.
    """

    def __init__(
        self,
        load: Load,
        *,
        load_b: Load | None = None,
        serial: str = "1234567",
        model: str = "2602B",
        line_frequency_hz: float = 50.0,
        log: Callable[[OutputEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._serial = serial
        self._model = model
        self._line_frequency_hz = line_frequency_hz
        self._log = log
        self._clock = clock
        self._timer_zero_s = clock()
        self._format = {"data": _ASCII, "asciiprecision": 6.0, "byteorder": _LITTLE_ENDIAN}
        self.errors = TspErrorQueue()
        loads = {"a": load} if int(model[3]) % 2 else {"a": load, "b": load_b or ResistorLoad(_OPEN_OHM)}
        family = FAMILY_40_V if model.startswith("260") else FAMILY_200_V
        self.channels = {
            name: SimulatedSmu(f"smu{name}", one, family, line_frequency_hz, clock, self._output_changed)
            for name, one in loads.items()
        }
        common: dict[str, Callable[[], str | None]] = {
            "*IDN?": lambda: f"Keithley Instruments Inc., Model {model}, {serial}, 3.4.2",
            "*RST": self._reset,
            "*CLS": self.errors.clear,
            "*OPC?": lambda: "1",
            "*WAI": lambda: None,
        }
        self._interpreter = TspInterpreter(self._world(), common, self.errors, self._number)

    @property
    def output_on(self) -> bool:
        """State of channel a's output."""
        return self.channels["a"].output_on

    @property
    def level_v(self) -> float:
        """Voltage level of channel a in V."""
        return self.channels["a"].level_v

    @property
    def limit_a(self) -> float:
        """Current limit of channel a in A."""
        return self.channels["a"].limit_a

    @property
    def interlock_closed(self) -> bool:
        """Whether interlock or output enable line are asserted, for all channels."""
        return self.channels["a"].enabled

    @interlock_closed.setter
    def interlock_closed(self, value: bool) -> None:
        for channel in self.channels.values():
            channel.enabled = value

    def run(self, line: str) -> Run:
        """Runs one line; yields the seconds that it takes and returns what it printed."""
        return self._interpreter.run(line)

    def take_operation(self) -> Run | None:
        """The script that the last line left running, if any."""
        return self._interpreter.take_operation()

    def is_abort(self, line: str) -> bool:
        """Whether this line ends a running script."""
        return self._interpreter.is_abort(line)

    def _world(self) -> dict[str, Part]:
        conditions: dict[str, Part] = {
            smu.name: Thing({"condition": Attribute(smu.condition)}) for smu in self.channels.values()
        }
        local_node: dict[str, Part] = {
            "model": self._model,
            "serialno": self._serial,
            "linefreq": Attribute(lambda: self._line_frequency_hz),
        }
        world: dict[str, Part] = {
            "errorqueue": self.errors.thing(),
            "format": self._format_thing(),
            "localnode": Thing(local_node),
            "status": Thing({"measurement": Thing({"instrument": Thing(conditions)})}),
            "timer": Thing({"reset": self._reset_timer, "measure": Thing({"t": self._timer_s})}),
            "beeper": Thing({"beep": Timed(_begin_beep, _no_values)}),
            "delay": Timed(_begin_delay, _no_values),
            "reset": self._reset,
            "printnumber": self._print_numbers,
            "printbuffer": self._print_buffers,
        }
        return world | {smu.name: smu.thing() for smu in self.channels.values()}

    def _format_thing(self) -> Thing:
        constants: dict[str, Part] = {
            "ASCII": _ASCII,
            "SREAL": _REAL32,
            "REAL32": _REAL32,
            "REAL": _REAL64,
            "REAL64": _REAL64,
            "DREAL": _REAL64,
            "LITTLEENDIAN": _LITTLE_ENDIAN,
            "BIGENDIAN": 0.0,
        }
        attributes: dict[str, Part] = {
            "data": self._format_attribute("data", 1, 3),
            "asciiprecision": self._format_attribute("asciiprecision", 1, 16),
            "byteorder": self._format_attribute("byteorder", 0, 1),
        }
        return Thing(constants | attributes)

    def _format_attribute(self, key: str, low: float, high: float) -> Attribute:
        def put(value: Value) -> None:
            self._format[key] = number(value, low, high)

        return Attribute(lambda: self._format[key], put)

    def _reset(self) -> None:
        for smu in self.channels.values():
            smu.reset()
        self._format.update(data=_ASCII, asciiprecision=6.0, byteorder=_LITTLE_ENDIAN)

    def _reset_timer(self) -> None:
        self._timer_zero_s = self._clock()

    def _timer_s(self) -> float:
        return self._clock() - self._timer_zero_s

    def _number(self, value: float) -> str:
        return f"{value:.{int(self._format['asciiprecision']) - 1}e}"

    def _print_numbers(self, *values: float) -> None:
        if self._format["data"] == _ASCII:
            self._interpreter.emit(", ".join(self._number(value) for value in values).encode() + b"\n")
            return
        order = "<" if self._format["byteorder"] == _LITTLE_ENDIAN else ">"
        kind = "f" if self._format["data"] == _REAL32 else "d"
        self._interpreter.emit(b"#0" + struct.pack(f"{order}{len(values)}{kind}", *values) + b"\n")

    def _print_buffers(self, first: float, last: float, *columns: str) -> None:
        chosen = [self._column(one) for one in columns]
        shortest = min((len(one) for one in chosen), default=0)
        if not 1 <= first <= last <= shortest:
            raise InstrumentError(4900, f"Reading buffer index {last:g} is invalid", "printbuffer")
        rows = zip(*(one[int(first) - 1 : int(last)] for one in chosen), strict=True)
        self._print_numbers(*(value for row in rows for value in row))

    def _column(self, handle: str) -> list[float]:
        """The numbers that a script names by a buffer, or by a column of it."""
        for buffer in self._buffers():
            if handle == buffer.name:
                return buffer.readings
            for name in COLUMN_NAMES:
                if handle == f"{buffer.name}.{name}":
                    return buffer.column(name)
        raise InstrumentError(5033, "Reading buffer not found within device", str(handle))

    def _buffers(self) -> list[ReadingBuffer]:
        return [buffer for smu in self.channels.values() for buffer in smu.buffers]

    def _output_changed(self, smu: SimulatedSmu) -> None:
        """Tells load and log what a channel does now."""
        now_s, voltage_v = self._clock(), smu.level_v
        smu.load.supply_changed(voltage_v if smu.output_on else 0.0, now_s)
        if self._log is not None:
            instrument = f"{self._serial}:{smu.name[-1]}"
            self._log(OutputEvent(now_s, instrument, smu.output_on, voltage_v, smu.limit_a))


def _begin_delay(seconds: float) -> tuple[float, object]:
    return number(seconds, 0.0, 100_000.0), None


def _begin_beep(seconds: float, _frequency_hz: float) -> tuple[float, object]:
    return number(seconds, 0.001, 100.0), None


def _no_values(_token: object) -> tuple[Value, ...]:
    return ()
