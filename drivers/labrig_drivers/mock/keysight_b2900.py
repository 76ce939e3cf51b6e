"""A simulated Keysight B2900 with one channel or two: commands and answers, without any input or output.

The subset of its SCPI that source-meter drivers need, by the SCPI Command Reference B2910-90030, sections 1, 2 and 4.
Settings read back exactly, readings carry seven digits in text and in binary, as on the instrument. A channel
switches itself on at a measurement unless `:OUTP:ON:AUTO 0` was sent, returns to the level of before at the end of a
sweep unless `:FUNC:TRIG:CONT 1` was sent, and `*RST` resets both channels. While a sweep runs, only `:ABOR` is taken;
everything else waits (the instrument itself would answer some of it).
"""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Callable, Generator, Sequence

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock.keysight_b2900_channel import Sample, SourceChannel
from labrig_drivers.mock.keysight_b2900_commands import channel_commands
from labrig_drivers.mock.loads import Load
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.scpi_parser import Command, ErrorQueue, Run, ScpiParser, boolean, choice

_ELEMENTS = ("VOLT", "CURR", "RES", "TIME", "STAT", "SOUR")
_ELEMENT_KEYWORDS = ("VOLTage", "CURRent", "RESistance", "TIME", "STATus", "SOURce")
# Keywords that carry the number of a channel, where they begin a command.
_CHANNEL_KEYWORD = re.compile(
    r"(?:^|(?<=;))\s*:?(OUTP(?:UT)?|SOUR(?:CE)?|SENS(?:E)?|ARM|TRIG(?:GER)?|IDLE)(\d+)(?=[:?;\s]|$)", re.IGNORECASE
)
_CHANNEL_LIST = re.compile(r"\(@\s*([12])\s*(?:[,:]\s*([12])\s*)?\)")
_ABORT = re.compile(r"\s*:?ABOR(?:T)?(?::ALL)?\s*(\(.*\))?\s*", re.IGNORECASE)


class SimulatedKeysightB2900:
    """The instrument behind the terminals and behind the socket.

    Args:
        load: What hangs at the terminals of channel 1.
        second_load: What hangs at those of channel 2; None makes a model with one channel.
        serial: Serial number in `*IDN?`.
        model: Model in `*IDN?`; None takes one that fits.
        line_frequency_hz: Mains frequency in Hz; one power line cycle is its inverse.
        log: Called with every `OutputEvent`; of two channels, each has its number after the serial number.
        clock: The server's clock in s.
    """

    def __init__(
        self,
        load: Load,
        second_load: Load | None = None,
        *,
        serial: str = "MY51140001",
        model: str | None = None,
        line_frequency_hz: float = 50.0,
        log: Callable[[OutputEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        loads = [load] if second_load is None else [load, second_load]
        self._identity = f"Keysight Technologies,{model or f'B290{len(loads)}A'},{serial},3.4.2011.5100"
        self._clock = clock
        self._zero_s = clock()
        self._resets_time = True
        self._format = "ASC"
        self._swapped = False
        self._elements: tuple[str, ...] = _ELEMENTS
        self._operation: Run | None = None
        self.interlock_closed = True
        self.errors = ErrorQueue()
        self.channels = {
            index: SourceChannel(
                serial if len(loads) == 1 else f"{serial}:{index}",
                one,
                line_frequency_hz,
                log,
                clock,
                lambda: self.interlock_closed,
            )
            for index, one in enumerate(loads, start=1)
        }
        commands = [*self._common(), *self._format_commands(), *self._measurement()]
        for index, channel in self.channels.items():
            commands += channel_commands("" if index == 1 else "B", channel)
        self._parser = ScpiParser(commands, self.errors)

    @property
    def output_on(self) -> bool:
        """State of the output of channel 1."""
        return self.channels[1].settings.output_on

    @property
    def level_v(self) -> float:
        """Voltage in V that channel 1 puts out, or would if it were on."""
        return self.channels[1].present_level("VOLT")

    @property
    def limit_a(self) -> float:
        """Current compliance limit of channel 1 in A."""
        return self.channels[1].settings.limit["CURR"]

    def run(self, line: str) -> Run:
        """Runs one line of SCPI; yields the seconds that readings take, returns the answer or None."""
        suffixes = {int(match[2]) for match in _CHANNEL_KEYWORD.finditer(line)}
        if suffixes - set(self.channels):
            self.errors.add(-114, "Header suffix out of range")
            return None
        # The parser knows no channels: those of channel 2 become keywords of their own.
        renamed = _CHANNEL_KEYWORD.sub(lambda match: f":{'' if int(match[2]) == 1 else 'B'}{match[1]}", line)
        return (yield from self._parser.run(renamed))

    def take_operation(self) -> Run | None:
        """The sweep that the last line started, if any."""
        operation, self._operation = self._operation, None
        return operation

    def is_abort(self, line: str) -> bool:
        """Whether this line ends a running sweep."""
        match = _ABORT.fullmatch(line)
        if match is None:
            return False
        try:
            return any(not channel.is_idle for channel in self._channels(match[1] or ""))
        except InstrumentError:
            return False

    def _common(self) -> list[Command]:
        return [
            Command("*IDN?", lambda _: self._identity),
            Command("*RST", lambda _: self._reset()),
            Command("*CLS", lambda _: self.errors.clear()),
            Command("*OPC?", lambda _: "1"),
            Command("*ESR?", lambda _: self.errors.read_event_status()),
            Command("SYSTem:ERRor[:NEXT]?", lambda _: _signed(self.errors.next())),
            Command("SYSTem:INTerlock:TRIPped?", lambda _: _flag(not self.interlock_closed)),
            Command("SYSTem:TIME:TIMer:COUNt:RESet:AUTO", self._set_time_reset),
            Command("SYSTem:TIME:TIMer:COUNt:RESet:AUTO?", lambda _: _flag(self._resets_time)),
            Command("SYSTem:TIME:TIMer:COUNt:RESet[:IMMediate]", lambda _: self._reset_time()),
        ]

    def _format_commands(self) -> list[Command]:
        return [
            Command("FORMat[:DATA]", self._set_format),
            Command("FORMat[:DATA]?", lambda _: self._format),
            Command("FORMat:BORDer", self._set_order),
            Command("FORMat:BORDer?", lambda _: "SWAP" if self._swapped else "NORM"),
            Command("FORMat:ELEMents:SENSe", self._set_elements),
            Command("FORMat:ELEMents:SENSe?", lambda _: ",".join(self._elements)),
        ]

    def _measurement(self) -> list[Command]:
        commands = [
            Command("MEASure?", self._measure),
            Command("INITiate[:IMMediate][:ALL]", self._initiate),
            Command("ABORt[:ALL]", lambda text: _nothing(self._channels(text))),
            Command("READ[:SCALar]?", lambda text: self._read(text, latest=True)),
            Command("READ:ARRay?", lambda text: self._read(text, latest=False)),
            Command("FETCh[:SCALar]?", lambda text: self._fetch(text, self._elements, latest=True)),
            Command("FETCh:ARRay?", lambda text: self._fetch(text, self._elements, latest=False)),
        ]
        for keyword, element in zip(_ELEMENT_KEYWORDS, _ELEMENTS, strict=True):
            commands.append(Command(f"FETCh:ARRay:{keyword}?", self._fetch_one(element)))
        return commands

    def _fetch_one(self, element: str) -> Callable[[str], str | bytes]:
        return lambda text: self._fetch(text, (element,), latest=False)

    def _reset(self) -> None:
        for channel in self.channels.values():
            channel.reset()
        self._format, self._swapped, self._elements, self._resets_time = "ASC", False, _ELEMENTS, True

    def _set_time_reset(self, text: str) -> None:
        self._resets_time = boolean(text)

    def _reset_time(self) -> None:
        self._zero_s = self._clock()

    def _set_format(self, text: str) -> None:
        kind, _, length = text.partition(",")
        if choice(kind.strip(), "ASCii", "REAL") == "ASC":
            self._format = "ASC"
        elif length.strip() in {"32", "64"}:
            self._format = f"REAL,{length.strip()}"
        else:
            raise InstrumentError(-224, "Illegal parameter value", text)

    def _set_order(self, text: str) -> None:
        self._swapped = choice(text, "NORMal", "SWAPped") == "SWAP"

    def _set_elements(self, text: str) -> None:
        wanted = {choice(field.strip(), *_ELEMENT_KEYWORDS) for field in text.split(",")}
        self._elements = tuple(name for name in _ELEMENTS if name in wanted)

    def _channels(self, text: str) -> list[SourceChannel]:
        match = _CHANNEL_LIST.fullmatch(text.strip() or "(@1)")
        numbers = sorted({int(one) for one in match.groups() if one}) if match else []
        if not numbers or not set(numbers) <= set(self.channels):
            raise InstrumentError(-224, "Illegal parameter value", text)
        return [self.channels[one] for one in numbers]

    def _measure(self, text: str) -> Run:
        channels = self._channels(text)
        self._begin()
        for channel in channels:
            yield from channel.measure()
        return self._fetch(text, self._elements, latest=True)

    def _read(self, text: str, *, latest: bool) -> Run:
        channels = self._channels(text)
        self._begin()
        yield from _sweeps(channels)
        return self._fetch(text, self._elements, latest=latest)

    def _initiate(self, text: str) -> None:
        channels = self._channels(text)
        self._begin()
        self._operation = _sweeps(channels)

    def _begin(self) -> None:
        if self._resets_time:
            self._reset_time()

    def _fetch(self, text: str, elements: Sequence[str], *, latest: bool) -> str | bytes:
        columns = [channel.samples[-1:] if latest else channel.samples for channel in self._channels(text)]
        rows = max(1, *(len(column) for column in columns)) if len(columns) > 1 else max(1, len(columns[0]))
        values: list[float] = []
        for row in range(rows):
            for column in columns:
                sample = column[row] if row < len(column) else None
                values += [math.nan if sample is None else self._element(sample, name) for name in elements]
        return self._encode(values)

    def _element(self, sample: Sample, name: str) -> float:
        values = {
            "VOLT": sample.voltage_v,
            "CURR": sample.current_a,
            "RES": sample.resistance_ohm,
            "TIME": round(sample.time_s - self._zero_s, 6),
            "STAT": float(sample.status),
            "SOUR": sample.source,
        }
        return values[name]

    def _encode(self, values: Sequence[float]) -> str | bytes:
        if self._format == "ASC":
            return ",".join(_text(value) for value in values)
        code = f"{'<' if self._swapped else '>'}{len(values)}{'d' if self._format.endswith('64') else 'f'}"
        data = struct.pack(code, *values)
        length = str(len(data))
        return b"#%d%s%s" % (len(length), length.encode(), data)


def _sweeps(channels: Sequence[SourceChannel]) -> Generator[float, None, None]:
    """One after the other; the instrument would sweep its channels together."""
    for channel in channels:
        yield from channel.sweep()


def _text(value: float) -> str:
    if math.isnan(value):
        return "+9.910000E+37"
    return f"{math.copysign(9.9e37, value) if math.isinf(value) else value:+.6E}"


def _signed(entry: str) -> str:
    """This instrument writes a sign before the zero of "no error" too."""
    return f"+{entry}" if entry.startswith("0,") else entry


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _nothing(_: object) -> None:
    """What was to end has ended already: the server did it."""
