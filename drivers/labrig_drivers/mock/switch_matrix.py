"""A simulated relay matrix mainframe with one card: relays that take time, wear and can stick.

It understands the three families of `scpi_switch` with plain and `MULTiple` commands, and `:DIAG:REL:CYCL?` for the
life counters (34980A and M300 Programming Guides). A list with one bad channel is refused as a whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.scpi_parser import Command, ErrorQueue, Run, ScpiParser
from labrig_drivers.scpi_switch import ChannelNumbers
from labrig_drivers.switch_matrix import Point

_LIST = re.compile(r"\(@\s*(.*?)\s*\)")


@dataclass(frozen=True)
class SwitchEvent:
    """One relay of a simulated matrix that moved.

    Attributes:
        time_s: The server's clock in s.
        instrument: Serial number of the mainframe.
        row: Row of the relay, from 1.
        column: Column of the relay, from 1.
        closed: Its state after the change.
        cycles: How many times it has closed in its life.
    """

    time_s: float
    instrument: str
    row: int
    column: int
    closed: bool
    cycles: int


class SimulatedSwitchMatrix:
    """The mainframe: state, commands and relays, without any input or output.

    Args:
        rows: Rows of the card.
        columns: Columns of the card.
        numbers: How the relays are numbered.
        serial: Serial number in `*IDN?`.
        model: Model in `*IDN?`.
        operate_s: Time in s that the relays of one command take to move; they carry current only after it.
        reads_contacts: True where `CLOSe?` looks at the contacts, False where it tells what was commanded last.
        log: Called with every relay that moves.
        clock: The server's clock in s.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        numbers: ChannelNumbers | None = None,
        serial: str = "MY53150000",
        model: str = "34980A",
        operate_s: float = 4e-3,
        reads_contacts: bool = True,
        log: Callable[[SwitchEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        numbers = numbers or ChannelNumbers(1101)
        self._points = {
            numbers.channel((row, column)): (row, column)
            for row in range(1, rows + 1)
            for column in range(1, columns + 1)
        }
        self._serial = serial
        self._identity = f"Agilent Technologies,{model},{serial},2.51-2.43-2.00-1.01"
        self._operate_s = operate_s
        self._reads_contacts = reads_contacts
        self._log = log
        self._clock = clock
        self._commanded: set[Point] = set()
        self._closed: set[Point] = set()
        self._stuck: dict[Point, bool] = {}
        self._cycles = dict.fromkeys(self._points.values(), 0)
        self.errors = ErrorQueue()
        self._parser = ScpiParser(self._commands(), self.errors)

    @property
    def closed(self) -> frozenset[Point]:
        """The contacts that are really closed."""
        return frozenset(self._closed)

    @property
    def cycles(self) -> dict[Point, int]:
        """How many times each relay has closed."""
        return dict(self._cycles)

    def stick(self, point: Point, *, closed: bool) -> None:
        """Breaks one relay: from now on its contact stays as it is told here, whatever is commanded."""
        self._move({point: closed})
        self._stuck[point] = closed

    def run(self, line: str) -> Run:
        """Runs one line of SCPI; yields the seconds that relays take, returns the answer or None."""
        return self._parser.run(line)

    def take_operation(self) -> Run | None:
        """A matrix does everything in turn."""
        return None

    def is_abort(self, line: str) -> bool:  # noqa: ARG002 - the server asks every instrument
        """There is nothing to abort."""
        return False

    def _commands(self) -> list[Command]:
        return [
            Command("*IDN?", lambda _: self._identity),
            Command("*RST", lambda _: self._open_all()),
            Command("*CLS", lambda _: self.errors.clear()),
            Command("*OPC?", lambda _: "1"),
            Command("*ESR?", lambda _: self.errors.read_event_status()),
            Command("SYSTem:ERRor[:NEXT]?", lambda _: self.errors.next()),
            Command("ROUTe[:MULTiple]:CLOSe", lambda text: self._switch(text, closed=True)),
            Command("ROUTe[:MULTiple]:OPEN", lambda text: self._switch(text, closed=False)),
            Command("ROUTe[:MULTiple]:CLOSe[:STATe]?", self._states),
            Command("ROUTe:OPEN:ALL", lambda _: self._open_all()),
            Command("ROUTe:OPEN:CARD", lambda _: self._open_all()),
            Command("DIAGnostic:RELay:CYCLes?", self._life),
        ]

    def _switch(self, text: str, *, closed: bool) -> Run:
        wanted = dict.fromkeys(self._parse(text), closed)
        yield self._operate_s
        self._command(wanted)
        return None

    def _open_all(self) -> Run:
        yield self._operate_s
        self._command(dict.fromkeys(self._points.values(), False))
        return None

    def _states(self, text: str) -> str:
        shown = self._closed if self._reads_contacts else self._commanded
        return ",".join("1" if point in shown else "0" for point in self._parse(text))

    def _life(self, text: str) -> str:
        return ",".join(f"{self._cycles[point]:+d}" for point in self._parse(text))

    def _command(self, wanted: dict[Point, bool]) -> None:
        for point, closed in wanted.items():
            (self._commanded.add if closed else self._commanded.discard)(point)
        self._move({point: closed for point, closed in wanted.items() if point not in self._stuck})

    def _move(self, wanted: dict[Point, bool]) -> None:
        for point, closed in wanted.items():
            if closed == (point in self._closed):
                continue
            (self._closed.add if closed else self._closed.discard)(point)
            self._cycles[point] += int(closed)
            if self._log is not None:
                self._log(SwitchEvent(self._clock(), self._serial, *point, closed, self._cycles[point]))

    def _parse(self, text: str) -> list[Point]:
        """The points of a channel list; ranges go by channel number.

        Raises:
            InstrumentError: -109 missing, -171 no list, -222 a channel that the card does not have.
        """
        if not text:
            raise InstrumentError(-109, "Missing parameter", text)
        match = _LIST.fullmatch(text)
        if match is None:
            raise InstrumentError(-171, "Invalid expression", text)
        points: list[Point] = []
        for field in match[1].split(","):
            ends = [end.strip() for end in field.split(":")]
            if len(ends) > 2 or not all(end.isdecimal() and end.isascii() and len(end) < 8 for end in ends):
                raise InstrumentError(-171, "Invalid expression", text)
            first, last = int(ends[0]), int(ends[-1])
            if first not in self._points or last not in self._points or last < first:
                raise InstrumentError(-222, "Parameter data out of range", text)
            points += [point for channel, point in sorted(self._points.items()) if first <= channel <= last]
        return points


class SwitchMatrixServer(InstrumentServer[SimulatedSwitchMatrix]):
    """A simulated matrix on a real socket; see `InstrumentServer`."""
