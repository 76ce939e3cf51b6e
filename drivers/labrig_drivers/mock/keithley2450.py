"""A simulated Keithley 2450: its SCPI, in front of a `Keithley2450Unit`, without any input or output.

The subset of the commands that source-meter drivers need, after the reference manual 2450-901-01 rev. B, section 6.
Settings read back exactly, readings carry seven digits. What the instrument is known to do and drivers stumble over is
done here too: the trigger models of `:SOUR:SWE` switch the output off at their end, binary answers begin with `#0` and
refuse most elements (1133), errors carry their type and time, and another command set answers next to nothing.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock import trigger_model as model
from labrig_drivers.mock.keithley2450_unit import LONGEST_LIST, MAX_LEVEL, Keithley2450Unit, Sample
from labrig_drivers.mock.loads import Load
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.scpi_parser import Command, ErrorQueue, Run, ScpiParser, boolean, choice, number

_SMALLEST_LIMIT = {"VOLT": 0.02, "CURR": 1e-9}
_LIMIT_HEADER = {"VOLT": "SOURce:CURRent:VLIMit", "CURR": "SOURce:VOLTage:ILIMit"}
_KEYWORD = {"VOLT": "VOLTage", "CURR": "CURRent"}
_LIST_PIECE = 100
_LAST_BLOCK = 63
_SHORTEST_DELAY_S, _LONGEST_DELAY_S = 167e-9, 1e4
_MANY = 1_000_000
_ELEMENTS = ("READing", "RELative", "SOURce", "SOURSTATus", "STATus")
_BINARY_ELEMENTS = frozenset({"READ", "REL", "SOUR"})
_COMMON = ("*IDN?", "*LANG", "*OPC?", "*CLS")


class SimulatedKeithley2450:
    """The instrument behind the terminals and behind the socket.

    Args:
        load: What hangs at the terminals.
        serial: Serial number in `*IDN?`.
        model_name: Model in `*IDN?`.
        line_frequency_hz: Mains frequency in Hz; one power line cycle is its inverse.
        log: Called with every `OutputEvent`.
        clock: The server's clock in s.
        language: The command set that it was switched on with; in any but SCPI it answers common commands only.
    """

    def __init__(
        self,
        load: Load,
        *,
        serial: str = "04123456",
        model_name: str = "MODEL 2450",
        line_frequency_hz: float = 50.0,
        log: Callable[[OutputEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        language: str = "SCPI",
    ) -> None:
        self.unit = Keithley2450Unit(load, serial, line_frequency_hz, log, clock)
        self._identity = f"KEITHLEY INSTRUMENTS,{model_name},{serial},1.7.12b"
        self._language = language
        self._format, self._border, self._precision = "ASC", "SWAP", 0
        self._trigger = model.TriggerModel()
        self._operation: Run | None = None
        self.errors = ErrorQueue()
        commands = [*self._common(), *self._data(), *self._triggering()]
        for name in _KEYWORD:
            commands += [*self._source_quantity(name), *self._sense_quantity(name)]
        self._parser = ScpiParser(commands, self.errors)

    @property
    def output_on(self) -> bool:
        """State of the output."""
        return self.unit.settings.output_on

    @property
    def level_v(self) -> float:
        """Voltage level in V, also while the output is off."""
        return self.unit.settings.source["VOLT"].level

    @property
    def limit_a(self) -> float:
        """Current compliance limit in A."""
        return self.unit.settings.limit["CURR"]

    @property
    def interlock_closed(self) -> bool:
        """The interlock line, for a test to open."""
        return self.unit.interlock_closed

    @interlock_closed.setter
    def interlock_closed(self, closed: bool) -> None:
        self.unit.interlock_closed = closed

    def run(self, line: str) -> Run:
        """Runs one line of SCPI; yields the seconds that readings take, returns the answer or None."""
        if self._language != "SCPI" and not line.strip().upper().startswith(_COMMON):
            self.errors.add(-285, "TSP Syntax error")
            return None
        return (yield from self._parser.run(line))

    def take_operation(self) -> Run | None:
        """The trigger model that the last line started, if any."""
        operation, self._operation = self._operation, None
        return operation

    def is_abort(self, line: str) -> bool:
        """Whether this line ends a running trigger model."""
        return line.strip().upper().lstrip(":") in {"ABOR", "ABORT"}

    def _common(self) -> list[Command]:
        unit = self.unit
        return [
            Command("*IDN?", lambda _: self._identity),
            Command("*RST", lambda _: self._reset()),
            Command("*CLS", lambda _: self.errors.clear()),
            Command("*OPC?", lambda _: "1"),
            Command("*WAI", lambda _: None),
            Command("*ESR?", lambda _: self.errors.read_event_status()),
            # Another command set needs a power cycle, so what it answers stays what it was.
            Command("*LANG", _ignore),
            Command("*LANG?", lambda _: self._language),
            Command("SYSTem:ERRor[:NEXT]?", lambda _: self._next_error()),
            Command("OUTPut[:STATe]", lambda text: unit.switch_source(boolean(text))),
            Command("OUTPut[:STATe]?", lambda _: _flag(self.output_on)),
            Command("OUTPut:INTerlock:TRIPped?", lambda _: _flag(unit.interlock_closed)),
            Command("SOURce:FUNCtion[:MODE]", lambda text: unit.set_function(choice(text, "VOLTage", "CURRent"))),
            Command("SOURce:FUNCtion[:MODE]?", lambda _: unit.settings.function),
            Command("[SENSe]:FUNCtion[:ON]", self._set_measured),
            Command("[SENSe]:FUNCtion[:ON]?", lambda _: f'"{unit.settings.measured}:DC"'),
        ]

    def _source_quantity(self, name: str) -> list[Command]:
        unit, head, largest = self.unit, f"SOURce:{_KEYWORD[name]}", MAX_LEVEL[name]
        level, limit = f"{head}[:LEVel][:IMMediate][:AMPLitude]", f"{_LIMIT_HEADER[name]}[:LEVel]"
        custom, custom_name = f"SOURce:LIST:{_KEYWORD[name]}", f"{name.capitalize()}CustomSweepList"
        low = _SMALLEST_LIMIT[name]
        return [
            Command(level, lambda text: unit.set_level(name, number(text, -largest, largest))),
            Command(f"{level}?", lambda _: repr(unit.settings.source[name].level)),
            Command(f"{head}:RANGe", lambda text: unit.set_source_range(name, number(text, -largest, largest))),
            Command(f"{head}:RANGe?", lambda _: repr(unit.settings.source[name].range)),
            Command(f"{head}:RANGe:AUTO", lambda text: unit.set_source_autorange(name, boolean(text))),
            Command(f"{head}:RANGe:AUTO?", lambda _: _flag(unit.settings.source[name].autorange)),
            Command(f"{head}:READ:BACK", lambda text: unit.settings.readback.update({name: boolean(text)})),
            Command(f"{head}:READ:BACK?", lambda _: _flag(unit.settings.readback[name])),
            Command(limit, lambda text: unit.set_limit(name, number(text, low, largest))),
            Command(f"{limit}?", lambda _: repr(unit.settings.limit[name])),
            Command(f"{limit}:TRIPped?", lambda _: _flag(unit.is_tripped(name))),
            Command(custom, lambda text: self._store_list(name, text, [])),
            Command(f"{custom}:APPend", lambda text: self._store_list(name, text, unit.list_levels(custom_name))),
            Command(f"{custom}:POINts?", lambda _: str(len(unit.list_levels(custom_name)))),
            Command(f"SOURce:SWEep:{_KEYWORD[name]}:LINear", lambda text: self._linear_sweep(name, text)),
            Command(f"SOURce:SWEep:{_KEYWORD[name]}:LIST", lambda text: self._list_sweep(name, text)),
        ]

    def _sense_quantity(self, name: str) -> list[Command]:
        unit, head, largest = self.unit, f"[SENSe]:{_KEYWORD[name]}[:DC]", MAX_LEVEL[name]
        return [
            Command(f"{head}:NPLCycles", lambda text: unit.settings.nplc.update({name: number(text, 0.01, 10.0)})),
            Command(f"{head}:NPLCycles?", lambda _: repr(unit.settings.nplc[name])),
            Command(f"{head}:RANGe[:UPPer]", lambda text: unit.set_sense_range(name, number(text, 0.0, largest))),
            Command(f"{head}:RANGe[:UPPer]?", lambda _: repr(unit.settings.sense_range[name])),
            Command(f"{head}:RANGe:AUTO", lambda text: unit.settings.sense_autorange.update({name: boolean(text)})),
            Command(f"{head}:RANGe:AUTO?", lambda _: _flag(unit.settings.sense_autorange[name])),
            Command(f"{head}:RSENse", lambda text: unit.set_wiring(name, boolean(text))),
            Command(f"{head}:RSENse?", lambda _: _flag(unit.settings.four_wire[name])),
        ]

    def _data(self) -> list[Command]:
        return [
            Command("FORMat[:DATA]", lambda text: self._set(format=choice(text, "ASCii", "REAL", "SREal"))),
            Command("FORMat[:DATA]?", lambda _: self._format),
            Command("FORMat:BORDer", lambda text: self._set(border=choice(text, "NORMal", "SWAPped"))),
            Command("FORMat:BORDer?", lambda _: self._border),
            Command("FORMat:ASCii:PRECision", lambda text: self._set(precision=int(number(text, 0, 16)))),
            Command("FORMat:ASCii:PRECision?", lambda _: str(self._precision)),
            Command("TRACe:ACTual?", lambda text: str(len(self._samples(_fields(text), 0)))),
            Command("TRACe:CLEar", lambda text: self.unit.clear_buffer(self._buffer(_fields(text), 0))),
            Command("TRACe:POINts", self._set_capacity),
            Command("TRACe:POINts?", lambda text: str(self.unit.settings.capacity[self._buffer(_fields(text), 0)])),
            Command("TRACe:DATA?", self._buffered),
            Command("READ?", self._read),
        ]

    def _triggering(self) -> list[Command]:
        def recall(given: list[str]) -> model.Block:
            return model.Recall(self._defined(_at(given, 0)), _count(_at(given, 1, "1")))

        def measure(given: list[str]) -> model.Block:
            return model.Measure(self._buffer(given, 0), _count(_at(given, 1, "1")))

        head, block = "TRIGger:BLOCk", self._block
        return [
            Command("ABORt", _ignore),
            Command("INITiate[:IMMediate]", lambda _: self._initiate()),
            Command("TRIGger:LOAD", self._load_template),
            Command(f"{head}:BUFFer:CLEar", block(lambda given: model.ClearBuffer(self._buffer(given, 0)))),
            Command(f"{head}:CONFig:RECall", block(recall)),
            Command(f"{head}:CONFig:NEXT", block(lambda given: model.RecallNext(self._defined(_at(given, 0))))),
            Command(f"{head}:DELay:CONStant", block(lambda given: model.Delay(_delay_s(_at(given, 0))))),
            Command(f"{head}:MEASure", block(measure)),
            Command(
                f"{head}:BRANch:COUNter",
                block(lambda given: model.BranchCounter(_count(_at(given, 0)), _block_number(_at(given, 1)))),
            ),
            Command(f"{head}:BRANch:ALWays", block(lambda given: model.BranchAlways(_block_number(_at(given, 0))))),
            Command(f"{head}:SOURce:STATe", block(lambda given: model.SwitchSource(boolean(_at(given, 0))))),
        ]

    def _block(self, parse: Callable[[list[str]], model.Block]) -> Callable[[str], None]:
        """A handler that reads the number of a block, and the rest of its parameters with `parse`."""

        def handle(text: str) -> None:
            given = _fields(text)
            self._trigger.set_block(int(number(_at(given, 0), 1, _LAST_BLOCK)), parse(given[1:]))

        return handle

    def _set(self, *, format: str | None = None, border: str | None = None, precision: int | None = None) -> None:
        self._format = self._format if format is None else format
        self._border = self._border if border is None else border
        self._precision = self._precision if precision is None else precision

    def _reset(self) -> None:
        self._format, self._border, self._precision = "ASC", "SWAP", 0
        self._trigger.clear()
        self.unit.reset()

    def _next_error(self) -> str:
        code, _, text = self.errors.next().partition(",")
        if int(code) == 0:
            return '0,"No error;0;0 0"'
        stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime())
        return f'{int(code)},"{text[1:-1]};1;{stamp}.000"'

    def _set_measured(self, text: str) -> None:
        # One function at a time; the other quantity is the source's readback.
        self.unit.settings.measured = choice(text.strip("\"'").partition(":")[0], "VOLTage", "CURRent")

    def _store_list(self, name: str, text: str, before: list[float]) -> None:
        given = _fields(text)
        if len(given) > _LIST_PIECE or len(before) + len(given) > LONGEST_LIST:
            raise InstrumentError(-223, "Too much data", text)
        levels = before + [number(one, -MAX_LEVEL[name], MAX_LEVEL[name]) for one in given]
        autorange = self.unit.settings.source[name].autorange
        self.unit.store_list(f"{name.capitalize()}CustomSweepList", name, levels, autorange=autorange)

    def _linear_sweep(self, name: str, text: str) -> None:
        """`start,stop,points,delay,count,range type,fail abort,dual,buffer`; runs once only."""
        given = _fields(text)
        start, stop = (number(_at(given, index), -MAX_LEVEL[name], MAX_LEVEL[name]) for index in (0, 1))
        points = int(number(_at(given, 2), 2, _MANY))
        # -1, the default, is the automatic delay, which takes no time here.
        automatic_delay = number(_at(given, 3, "-1"), -1.0, _LONGEST_DELAY_S) == -1.0
        delay_s = 0.0 if automatic_delay else _delay_s(_at(given, 3))
        number(_at(given, 4, "1"), 1, 1)
        automatic = choice(_at(given, 5, "BEST"), "AUTO", "BEST", "FIXed") == "AUTO"
        levels = [*(start + (stop - start) * index / (points - 1) for index in range(points - 1)), stop]
        if boolean(_at(given, 7, "OFF")):
            levels += levels[-2::-1]
        list_name = f"{name.capitalize()}LinearSweepList"
        self.unit.store_list(list_name, name, levels, autorange=automatic)
        self._load_sweep(list_name, delay_s, self._buffer(given, 8))

    def _list_sweep(self, name: str, text: str) -> None:
        """`start index,delay,count,fail abort,buffer,list`; from the first level and once only."""
        given = _fields(text)
        list_name = self._defined(_at(given, 5, f"{name.capitalize()}CustomSweepList"))
        for index in (0, 2):
            number(_at(given, index, "1"), 1, 1)
        self._load_sweep(list_name, _delay_s(_at(given, 1, "0")), self._buffer(given, 4))

    def _load_sweep(self, list_name: str, delay_s: float, buffer: str) -> None:
        """The instrument's own sweep: output on at the first level, and off at the end."""
        self._trigger.load(
            [
                model.ClearBuffer(buffer),
                model.Recall(list_name, 1),
                model.SwitchSource(True),
                model.BranchAlways(6),
                model.RecallNext(list_name),
                model.Delay(delay_s),
                model.Measure(buffer, 1),
                model.BranchCounter(self.unit.list_size(list_name), 5),
                model.SwitchSource(False),
            ]
        )

    def _load_template(self, text: str) -> None:
        if text.strip("\"'").upper() != "EMPTY":
            raise InstrumentError(-224, "Illegal parameter value", text)
        self._trigger.clear()

    def _initiate(self) -> None:
        if self._trigger.is_empty:
            # The event number is the manual's for a trigger model that fails; the text is not confirmed.
            raise InstrumentError(2730, "Trigger model failed, no blocks", ":INIT")
        self._operation = self._run_trigger_model()

    def _run_trigger_model(self) -> Run:
        try:
            yield from self._trigger.run(self.unit)
        except InstrumentError as error:
            self.errors.add(error.code, error.text)
        return None

    def _set_capacity(self, text: str) -> None:
        given = _fields(text)
        buffer = self._buffer(given, 1)
        self.unit.settings.capacity[buffer] = int(number(_at(given, 0), 10, 5 * _MANY))
        self.unit.clear_buffer(buffer)

    def _read(self, text: str) -> Run:
        given = _fields(text)
        buffer, elements = self._buffer(given, 0), self._elements(given[1:])
        yield from self.unit.take_reading(buffer)
        samples = self.unit.settings.buffers[buffer]
        return self._answer(samples[0], samples[-1:], elements)

    def _buffered(self, text: str) -> str | bytes:
        given = _fields(text)
        samples, elements = self._samples(given, 2), self._elements(given[3:])
        first, last = (int(number(_at(given, index), 1, max(1, len(samples)))) for index in (0, 1))
        if not samples:
            raise InstrumentError(-230, "Data corrupt or stale", text)
        return self._answer(samples[0], samples[first - 1 : last], elements)

    def _elements(self, given: list[str]) -> list[str]:
        try:
            elements = [choice(one, *_ELEMENTS) for one in given] or ["READ"]
        except InstrumentError:
            elements = [""]
        if "" in elements or (self._format != "ASC" and not _BINARY_ELEMENTS.issuperset(elements)):
            raise InstrumentError(1133, "Parameter 4, Syntax error, expected valid name parameters", ",".join(given))
        return elements

    def _answer(self, zero: Sample, samples: list[Sample], elements: list[str]) -> str | bytes:
        values = [_element(zero, sample, name) for sample in samples for name in elements]
        if self._format == "ASC":
            texts = [str(one) if isinstance(one, int) else f"{one:.{(self._precision or 7) - 1}E}" for one in values]
            return ", ".join(texts)
        letter = "d" if self._format == "REAL" else "f"
        return b"#0" + struct.pack(f"{'<' if self._border == 'SWAP' else '>'}{len(values)}{letter}", *values)

    def _buffer(self, given: list[str], index: int) -> str:
        name = _at(given, index, "defbuffer1")
        if name not in self.unit.settings.buffers:
            raise InstrumentError(-224, "Illegal parameter value", name)
        return name

    def _samples(self, given: list[str], index: int) -> list[Sample]:
        return self.unit.settings.buffers[self._buffer(given, index)]

    def _defined(self, name: str) -> str:
        if name not in self.unit.settings.lists:
            raise InstrumentError(2790, "Configuration list, error, does not exist", name)
        return name


def _element(zero: Sample, sample: Sample, name: str) -> float | int:
    """One buffer element; times count from the buffer's first reading."""
    if name == "REL":
        return sample.time_s - zero.time_s
    if name == "STAT":
        return 0
    return {"READ": sample.reading, "SOUR": sample.source, "SOURSTAT": sample.source_status}[name]


def _fields(text: str) -> list[str]:
    """Parameters between commas, without blanks and quotation marks."""
    return [one.strip().strip("\"'") for one in text.split(",")] if text.strip() else []


def _at(given: list[str], index: int, default: str = "") -> str:
    return given[index] if index < len(given) else default


def _count(text: str) -> int:
    return int(number(text, 1, _MANY))


def _block_number(text: str) -> int:
    return int(number(text, 0, _LAST_BLOCK))


def _delay_s(text: str) -> float:
    delay_s = number(text, 0.0, _LONGEST_DELAY_S)
    if 0.0 < delay_s < _SHORTEST_DELAY_S:
        raise InstrumentError(-222, "Parameter data out of range", text)
    return delay_s


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _ignore(_: object) -> None:
    """Changes nothing that another command could see."""
