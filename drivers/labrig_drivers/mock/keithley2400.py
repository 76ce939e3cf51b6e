"""A simulated Keithley 2400: state, commands and physics, without any input or output.

The subset of the instrument's SCPI that source-meter drivers need; the commands are those of the 2400 Series manual
2400S-900-01 rev. K, section 18. Settings read back exactly, readings carry seven digits, as on the instrument. While
a sweep runs, only `:ABOR` is taken; everything else waits. After a sweep, ended or aborted, the source stands where
the sweep left it until its mode is `FIX` again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock.loads import Load, Terminals, at_current, at_voltage
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.scpi_parser import Command, ErrorQueue, Run, ScpiParser, boolean, choice, number

_BUFFER_SIZE = 2500
_LIST_PIECE = 100
_MAX = {"VOLT": 210.0, "CURR": 1.05}
_STAT_COMPLIANCE = 1 << 3
_ELEMENTS = ("VOLT", "CURR", "RES", "TIME", "STAT")
_NAN_TEXT = "+9.910000E+37"


class _Settings:
    """Everything that `*RST` resets."""

    def __init__(self) -> None:
        self.source = "VOLT"
        self.level = {"VOLT": 0.0, "CURR": 0.0}
        self.source_range = dict(_MAX)
        self.source_autorange = {"VOLT": True, "CURR": True}
        self.sense_range = dict(_MAX)
        self.sense_autorange = {"VOLT": True, "CURR": True}
        self.limit = {"VOLT": 21.0, "CURR": 1.05e-4}
        self.nplc = 1.0
        self.concurrent = True
        self.functions = '"VOLT","CURR"'
        self.remote_sense = False
        self.elements: tuple[str, ...] = _ELEMENTS
        self.output_on = False
        self.mode = {"VOLT": "FIX", "CURR": "FIX"}
        self.list = {"VOLT": [0.0], "CURR": [0.0]}
        self.delay_s = 0.0
        self.trigger_count = 1
        self.feeds_buffer = False


class SimulatedKeithley2400:
    """The instrument behind the terminals and behind the socket.

    Args:
        load: What hangs at the terminals.
        serial: Serial number in `*IDN?`.
        model: Model in `*IDN?`.
        line_frequency_hz: Mains frequency in Hz; one power line cycle is its inverse.
        log: Called with every `OutputEvent`.
        clock: The server's clock in s.
    """

    def __init__(
        self,
        load: Load,
        *,
        serial: str = "1234567",
        model: str = "MODEL 2400",
        line_frequency_hz: float = 50.0,
        log: Callable[[OutputEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._serial = serial
        self._identity = f"KEITHLEY INSTRUMENTS INC.,{model},{serial},C30   Mar 17 2006 09:29:29/A02  /K/J"
        self._line_frequency_hz = line_frequency_hz
        self._log = log
        self._clock = clock
        self._started_s = clock()
        self._settings = _Settings()
        self.interlock_closed = True
        self._buffer: list[str] = []
        self._buffer_size = 100
        # Where a sweep left the source; None while the fixed level rules.
        self._swept: float | None = None
        self._operation: Run | None = None
        self.errors = ErrorQueue()
        commands = [*self._common(), *self._source(), *self._sense(), *self._trigger(), *self._rest()]
        self._parser = ScpiParser(commands, self.errors)

    @property
    def output_on(self) -> bool:
        """State of the output."""
        return self._settings.output_on

    @property
    def level_v(self) -> float:
        """Voltage in V that the source puts out, or would if it were on."""
        return self._present_level("VOLT")

    @property
    def limit_a(self) -> float:
        """Current compliance limit in A."""
        return self._settings.limit["CURR"]

    def run(self, line: str) -> Run:
        """Runs one line of SCPI; yields the seconds that readings take, returns the answer or None."""
        return self._parser.run(line)

    def take_operation(self) -> Run | None:
        """The sweep that the last line started, if any."""
        operation, self._operation = self._operation, None
        return operation

    def is_abort(self, line: str) -> bool:
        """Whether this line ends a running sweep."""
        return line.strip().upper().lstrip(":") in {"ABOR", "ABORT"}

    def _common(self) -> list[Command]:
        return [
            Command("*IDN?", lambda _: self._identity),
            Command("*RST", lambda _: self._reset()),
            Command("*CLS", lambda _: self.errors.clear()),
            Command("*OPC?", lambda _: "1"),
            Command("*ESR?", lambda _: self.errors.read_event_status()),
            Command("SYSTem:ERRor[:NEXT]?", lambda _: self.errors.next()),
        ]

    def _source(self) -> list[Command]:
        commands = [
            Command("SOURce:FUNCtion[:MODE]", self._set_source),
            Command("SOURce:FUNCtion[:MODE]?", lambda _: self._settings.source),
            Command("OUTPut[:STATe]", lambda text: self._switch(boolean(text))),
            Command("OUTPut[:STATe]?", lambda _: _flag(self._settings.output_on)),
            Command("OUTPut:ENABle:TRIPped?", lambda _: _flag(self.interlock_closed)),
            Command("SOURce:DELay", lambda text: self._set("delay_s", number(text, 0.0, 9999.999))),
            Command("SOURce:DELay?", lambda _: repr(self._settings.delay_s)),
            Command("SOURce:DELay:AUTO", lambda text: self._set("delay_s", 0.0) if boolean(text) else None),
        ]
        for keyword in ("VOLTage", "CURRent"):
            commands += self._source_quantity(keyword)
        return commands

    def _source_quantity(self, keyword: str) -> list[Command]:
        head, name = f"SOURce:{keyword}", keyword[:4].upper()
        return [
            Command(f"{head}:MODE", lambda text: self._set_mode(name, choice(text, "FIXed", "LIST"))),
            Command(f"{head}:MODE?", lambda _: self._settings.mode[name]),
            Command(f"SOURce:LIST:{keyword}", lambda text: self._set_list(name, text, [])),
            Command(
                f"SOURce:LIST:{keyword}:APPend", lambda text: self._set_list(name, text, self._settings.list[name])
            ),
            Command(f"SOURce:LIST:{keyword}:POINts?", lambda _: str(len(self._settings.list[name]))),
            Command(f"{head}:RANGe", lambda text: self._set_source_range(name, text)),
            Command(f"{head}:RANGe?", lambda _: repr(self._settings.source_range[name])),
            Command(f"{head}:RANGe:AUTO", lambda text: self._settings.source_autorange.update({name: boolean(text)})),
            Command(f"{head}:RANGe:AUTO?", lambda _: _flag(self._settings.source_autorange[name])),
            Command(f"{head}[:LEVel][:IMMediate][:AMPLitude]", lambda text: self._set_level(name, text)),
            Command(f"{head}[:LEVel][:IMMediate][:AMPLitude]?", lambda _: repr(self._settings.level[name])),
        ]

    def _sense(self) -> list[Command]:
        commands = [
            Command("SENSe:FUNCtion:CONCurrent", lambda text: self._set("concurrent", boolean(text))),
            Command("SENSe:FUNCtion:CONCurrent?", lambda _: _flag(self._settings.concurrent)),
            Command("SENSe:FUNCtion[:ON]", self._set_functions),
            Command("SENSe:FUNCtion[:ON]?", lambda _: self._settings.functions),
        ]
        for keyword in ("VOLTage", "CURRent"):
            commands += self._sense_quantity(f"SENSe:{keyword}[:DC]", keyword[:4])
        return commands

    def _sense_quantity(self, head: str, name: str) -> list[Command]:
        return [
            Command(f"{head}:NPLCycles", lambda text: self._set("nplc", number(text, 0.01, 10.0))),
            Command(f"{head}:NPLCycles?", lambda _: repr(self._settings.nplc)),
            Command(f"{head}:PROTection[:LEVel]", lambda text: self._set_limit(name, text)),
            Command(f"{head}:PROTection[:LEVel]?", lambda _: repr(self._settings.limit[name])),
            Command(f"{head}:PROTection:TRIPped?", lambda _: _flag(self._is_tripped(name))),
            Command(f"{head}:RANGe[:UPPer]", lambda text: self._set_sense_range(name, text)),
            Command(f"{head}:RANGe[:UPPer]?", lambda _: repr(self._settings.sense_range[name])),
            Command(f"{head}:RANGe:AUTO", lambda text: self._settings.sense_autorange.update({name: boolean(text)})),
            Command(f"{head}:RANGe:AUTO?", lambda _: _flag(self._settings.sense_autorange[name])),
        ]

    def _trigger(self) -> list[Command]:
        return [
            Command("ABORt", lambda _: None),
            Command("INITiate[:IMMediate]", lambda _: self._initiate()),
            Command("ARM:COUNt", lambda text: _ignore(number(text, 1, 1))),
            Command("TRIGger:COUNt", lambda text: self._set("trigger_count", int(number(text, 1, _BUFFER_SIZE)))),
            Command("TRIGger:COUNt?", lambda _: str(self._settings.trigger_count)),
            Command("TRACe:CLEar", lambda _: self._buffer.clear()),
            Command("TRACe:POINts", self._set_buffer_size),
            Command("TRACe:POINts?", lambda _: str(self._buffer_size)),
            Command("TRACe:POINts:ACTual?", lambda _: str(len(self._buffer))),
            Command("TRACe:FEED", lambda text: _ignore(choice(text, "SENSe"))),
            Command("TRACe:FEED:CONTrol", self._set_feed),
            Command("TRACe:DATA?", lambda _: self._buffered()),
        ]

    def _rest(self) -> list[Command]:
        return [
            Command("SYSTem:RSENse", lambda text: self._set("remote_sense", boolean(text))),
            Command("SYSTem:RSENse?", lambda _: _flag(self._settings.remote_sense)),
            Command("FORMat:ELEMents", self._set_elements),
            Command("FORMat:ELEMents?", lambda _: ",".join(self._settings.elements)),
            Command("READ?", lambda _: self._read()),
        ]

    def _set(self, name: str, value: object) -> None:
        setattr(self._settings, name, value)

    def _reset(self) -> None:
        self._settings = _Settings()
        self._swept = None
        self._output_changed()

    def _set_source(self, text: str) -> None:
        source = choice(text, "VOLTage", "CURRent")
        if source != self._settings.source:
            # The instrument never carries an output over to another quantity.
            self._settings.output_on = False
            self._settings.source = source
            self._swept = None
            self._output_changed()

    def _set_source_range(self, name: str, text: str) -> None:
        self._settings.source_range[name] = abs(number(text, -_MAX[name], _MAX[name]))
        self._settings.source_autorange[name] = False

    def _set_sense_range(self, name: str, text: str) -> None:
        self._settings.sense_range[name] = abs(number(text, -_MAX[name], _MAX[name]))
        self._settings.sense_autorange[name] = False

    def _set_level(self, name: str, text: str) -> None:
        fixed = not self._settings.source_autorange[name]
        maximum = self._settings.source_range[name] * 1.05 if fixed else _MAX[name]
        self._settings.level[name] = number(text, -maximum, maximum)
        self._output_changed()

    def _set_limit(self, name: str, text: str) -> None:
        limit = abs(number(text, -_MAX[name], _MAX[name]))
        if limit == 0.0:
            raise InstrumentError(-222, "Parameter data out of range", text)
        self._settings.limit[name] = limit
        self._output_changed()

    def _set_functions(self, text: str) -> None:
        names = [choice(field.strip(" \"'").split(":")[0], "VOLTage", "CURRent") for field in text.split(",")]
        self._settings.functions = ",".join(f'"{name}"' for name in names)

    def _set_elements(self, text: str) -> None:
        wanted = {
            choice(field.strip(), "VOLTage", "CURRent", "RESistance", "TIME", "STATus") for field in text.split(",")
        }
        self._settings.elements = tuple(name for name in _ELEMENTS if name in wanted)

    def _switch(self, on: bool) -> None:
        self._settings.output_on = on
        self._output_changed()

    def _set_mode(self, name: str, mode: str) -> None:
        self._settings.mode[name] = mode
        if mode == "FIX":
            self._swept = None
            self._output_changed()

    def _set_list(self, name: str, text: str, before: list[float]) -> None:
        fields = text.split(",")
        if len(fields) > _LIST_PIECE or len(before) + len(fields) > _BUFFER_SIZE:
            raise InstrumentError(-223, "Too much data", text)
        self._settings.list[name] = before + [number(field.strip(), -_MAX[name], _MAX[name]) for field in fields]

    def _set_buffer_size(self, text: str) -> None:
        self._buffer_size = int(number(text, 1, _BUFFER_SIZE))
        self._buffer.clear()

    def _set_feed(self, text: str) -> None:
        self._settings.feeds_buffer = choice(text, "NEXT", "NEVer") == "NEXT"

    def _buffered(self) -> str:
        if not self._buffer:
            raise InstrumentError(-230, "Data corrupt or stale", ":TRAC:DATA?")
        return ",".join(self._buffer)

    def _read(self) -> Run:
        self._demand_output(":READ?")
        readings = []
        for index in range(self._settings.trigger_count):
            reading = yield from self._one_reading(index)
            readings += [reading]
        return ",".join(readings)

    def _initiate(self) -> None:
        self._demand_output(":INIT")
        self._operation = self._sweep()

    def _sweep(self) -> Run:
        for index in range(self._settings.trigger_count):
            reading = yield from self._one_reading(index)
            if self._settings.feeds_buffer and len(self._buffer) < self._buffer_size:
                self._buffer.append(reading)
        return None

    def _demand_output(self, command: str) -> None:
        if not self._settings.output_on:
            raise InstrumentError(803, "Not permitted with OUTPUT off", command)

    def _one_reading(self, index: int) -> Generator[float, None, str]:
        """Source, delay, measure: one pass of the trigger layer."""
        settings = self._settings
        if settings.mode[settings.source] == "LIST":
            levels = settings.list[settings.source]
            self._swept = levels[index % len(levels)]
            self._output_changed()
        if settings.delay_s:
            yield settings.delay_s
        start_s = self._clock()
        duration_s = settings.nplc / self._line_frequency_hz
        yield duration_s
        stop_s = self._clock()
        if stop_s == start_s:
            # A clock that does not move by itself: the reading took its nominal time.
            stop_s = start_s + duration_s
        terminals = self._terminals(start_s, stop_s)
        values = {
            "VOLT": f"{terminals.voltage_v:+.6E}",
            "CURR": f"{terminals.current_a:+.6E}",
            "RES": _NAN_TEXT,
            "TIME": f"{stop_s - self._started_s:+.6E}",
            "STAT": f"{_STAT_COMPLIANCE if terminals.in_compliance else 0:+.6E}",
        }
        return ",".join(values[name] for name in settings.elements)

    def _present_level(self, name: str) -> float:
        """What the source puts out, or would if it were on."""
        swept = self._swept if name == self._settings.source else None
        return self._settings.level[name] if swept is None else swept

    def _is_tripped(self, limited: str) -> bool:
        now_s = self._clock()
        if not self._settings.output_on or limited == self._settings.source:
            return False
        return self._terminals(now_s, now_s).in_compliance

    def _terminals(self, start_s: float, stop_s: float) -> Terminals:
        settings = self._settings
        if settings.source == "VOLT":
            return at_voltage(self._load, self._present_level("VOLT"), settings.limit["CURR"], start_s, stop_s)
        return at_current(self._load, self._present_level("CURR"), settings.limit["VOLT"], start_s, stop_s)

    def _output_changed(self) -> None:
        """Tells load and log what the source does now."""
        settings, now_s = self._settings, self._clock()
        voltage_v, limit_a = self._present_level("VOLT"), settings.limit["CURR"]
        if settings.source == "CURR":
            limit_a = abs(self._present_level("CURR"))
            voltage_v = self._terminals(now_s, now_s).voltage_v if settings.output_on else 0.0
        self._load.supply_changed(voltage_v if settings.output_on else 0.0, now_s)
        if self._log is not None:
            self._log(OutputEvent(now_s, self._serial, settings.output_on, voltage_v, limit_a))


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _ignore(_: object) -> None:
    """The only value there is needs no state."""
