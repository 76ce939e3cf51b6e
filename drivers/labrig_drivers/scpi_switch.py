"""Relay matrices that speak the SCPI subsystem `ROUTe`, one driver for many mainframes.

What differs between them is the number that stands for a relay and the names of four commands. In a channel list such
as `(@1101,1102)` the number is `first_channel + (row - 1) * row_step + (column - 1)` on all of these:

| mainframe and card | first_channel | row_step | family | manual |
| --- | --- | --- | --- | --- |
| Keysight 34980A, 34931A to 34933A in slot s | s101 | 100 | agilent | 34931A-34933A User's Guide, page 11 |
| Keysight E5250A and B2200, card s | s0101 | 100 | femto | E5250A ed. 9, page 5-6; B2200 ed. 4, page 5-39 |
| Keysight E1465A to E1467A, card ss | ss0000 | 100 | agilent | Matrix Modules Command Reference, chapter 4 |
| Rigol M300, matrix module in slot s | s11 | 10 | agilent | M300 Programming Guide, page 2-106 |
| Keithley 2700, 2701, 2750 with 7709 in slot s | s01 | 8 | multiple | 2750-900-01, section 2; 7709, page 22 |

`CLOSe?` answers one 0 or 1 for each relay of the list. Several of these manuals say that it is a *software* readback
which "does not account for relay hardware failures": a welded contact is found only where the mainframe looks at it.
The Keithley 707B and 708B are not of this family: they speak TSP (`channel.close()`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from labrig_drivers.errors import ConfigError, InstrumentError, ProtocolError, StateError
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.links.base import Link
from labrig_drivers.scpi import ScpiChannel
from labrig_drivers.settings_table import SettingsTable
from labrig_drivers.settling import settle
from labrig_drivers.switch_matrix import Point, SwitchMatrixInfo, check_points

# The VXI cards answer for at most 127 relays at a time, and short lines fit into every input buffer.
_POINTS_PER_LINE: Final = 50
# SCPI-99 volume 2, section 21.8.10: "hardware error", a legal command that the hardware could not carry out.
_HARDWARE_ERROR: Final = -240


@dataclass(frozen=True)
class SwitchCommands:
    """The four commands that families name differently.

    Attributes:
        close: Closes the relays of a channel list.
        open: Opens the relays of a channel list.
        open_all: Opens every relay.
        state: Asks for one 0 (open) or 1 (closed) for each relay of a channel list.
    """

    close: str
    open: str
    open_all: str
    state: str


FAMILIES: Final[Mapping[str, SwitchCommands]] = {
    "agilent": SwitchCommands(":ROUT:CLOS", ":ROUT:OPEN", ":ROUT:OPEN:ALL", ":ROUT:CLOS?"),
    "femto": SwitchCommands(":ROUT:CLOS", ":ROUT:OPEN", ":ROUT:OPEN:CARD ALL", ":ROUT:CLOS?"),
    "multiple": SwitchCommands(":ROUT:MULT:CLOS", ":ROUT:MULT:OPEN", ":ROUT:OPEN:ALL", ":ROUT:MULT:CLOS:STAT?"),
}
"""The families of the table above by name."""


@dataclass(frozen=True)
class ChannelNumbers:
    """How a mainframe numbers the relays of one card.

    Attributes:
        first_channel: Number of row 1, column 1, with the slot in front.
        row_step: What one row adds.
    """

    first_channel: int
    row_step: int = 100

    def channel(self, point: Point) -> int:
        """The number of one relay."""
        row, column = point
        return self.first_channel + (row - 1) * self.row_step + (column - 1)


class ScpiSwitchMatrix:
    """One card of a relay matrix mainframe; keeps the `SwitchMatrix` contract.

    Args:
        link: Where the mainframe is; this object owns it from now on.
        info: Sizes and ratings of the card.
        numbers: How its relays are numbered.
        commands: The commands of its family; see `FAMILIES`.
        expected: Identity to insist on.
        name: What messages call the instrument.
        timeout_s: Deadline in s of one exchange; relays that are slow to move need their time in it.

    Raises:
        ValueError: The columns of a row do not fit between two rows' numbers.
    """

    def __init__(
        self,
        link: Link,
        info: SwitchMatrixInfo,
        numbers: ChannelNumbers,
        *,
        commands: SwitchCommands = FAMILIES["agilent"],
        expected: ExpectedIdentity | None = None,
        name: str = "switch-matrix",
        timeout_s: float = 5.0,
    ) -> None:
        if info.rows > 1 and info.columns > numbers.row_step:
            raise ValueError(
                f"{info.columns} columns do not fit into steps of {numbers.row_step} between the rows' channel numbers"
            )
        self._channel = ScpiChannel(link, name, timeout_s=timeout_s)
        self._info = info
        self._numbers = numbers
        self._commands = commands
        self._expected = expected or ExpectedIdentity()
        self._name = name
        self._is_open = False
        # What may be closed because of this object: noted before the command goes out.
        self._ours: frozenset[Point] = frozenset()

    @classmethod
    def from_settings(
        cls, link: Link, expected: ExpectedIdentity, name: str, settings: Mapping[str, object] | None = None
    ) -> ScpiSwitchMatrix:
        """Makes the matrix that a rig file describes.

        Settings: `rows`, `columns`, `first_channel`, and optionally `row_step` (100), `family` (`agilent`),
        `voltage_v` (100), `current_a` (0.5), `settle_s` (0.01).

        Raises:
            ConfigError: A key is missing, unknown or has a wrong value; every fault at once.
        """
        table = SettingsTable(settings or {}, f"{name}.settings")
        info = SwitchMatrixInfo(
            rows=table.whole("rows", low=1),
            columns=table.whole("columns", low=1),
            voltage_v=table.positive("voltage_v", 100.0),
            current_a=table.positive("current_a", 0.5),
            settle_s=table.positive("settle_s", 0.01),
        )
        numbers = ChannelNumbers(table.whole("first_channel", low=0), table.whole("row_step", 100, low=1))
        family = table.choice("family", "agilent", FAMILIES)
        table.finish()
        try:
            return cls(link, info, numbers, commands=FAMILIES[family], expected=expected, name=name)
        except ValueError as error:
            raise ConfigError(f"{name}.settings.row_step: {error}") from error

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is; `StateError` before `open()`."""
        return self._channel.identity

    @property
    def info(self) -> SwitchMatrixInfo:
        """Sizes and ratings; `StateError` before `open()`."""
        self._require_open()
        return self._info

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects, checks the identity and empties the error queue; changes no relay.

        Raises:
            IdentityError: Another instrument is there; the link is closed again.
            LinkError: It cannot be reached, or does not answer.
            StateError: Open already.
        """
        if self._is_open:
            raise StateError(f"{self._name}: open already")
        await self._channel.open()
        try:
            self._expected.check(await self._channel.identify(), self._channel.address)
            # Errors of an earlier session would be blamed on our first command.
            await self._channel.drain_errors()
        except BaseException:
            await self._channel.close()
            raise
        self._ours = frozenset()
        self._is_open = True

    async def close(self) -> None:
        """Opens every relay that this object closed and disconnects; harmless when closed, also when cancelled.

        Raises:
            InstrumentError: A relay did not open.
            LinkError: The instrument does not answer, not even over a new connection; the relays stay as they are.
        """
        if not self._is_open:
            return
        ending = asyncio.ensure_future(self._end())
        cancelled = await settle(ending)
        ending.result()
        if cancelled is not None:
            raise cancelled

    async def close_points(self, points: Collection[Point]) -> None:
        """Closes relays and reads them back; see `SwitchMatrix.close_points`."""
        self._require_open()
        wanted = check_points(self._info, points, self._name)
        async with self._channel.exclusive():
            await self._switch(self._commands.close, wanted)
            self._verify(await self._states(wanted), wanted, self._commands.close)

    async def open_points(self, points: Collection[Point]) -> None:
        """Opens relays and reads them back; see `SwitchMatrix.open_points`."""
        self._require_open()
        unwanted = check_points(self._info, points, self._name)
        async with self._channel.exclusive():
            await self._switch(self._commands.open, unwanted)
            self._verify(await self._states(unwanted), frozenset(), self._commands.open)
            self._ours -= unwanted

    async def open_all(self) -> None:
        """Opens every relay and reads all of them back; see `SwitchMatrix.open_all`."""
        self._require_open()
        async with self._channel.exclusive():
            await self._channel.write(self._commands.open_all)
            await asyncio.sleep(self._info.settle_s)
            self._verify(await self._states(self._all()), frozenset(), self._commands.open_all)
            self._ours = frozenset()

    async def closed_points(self) -> frozenset[Point]:
        """Asks the instrument for the state of every relay of the card."""
        self._require_open()
        return _closed(await self._states(self._all()))

    async def connect(self, points: Collection[Point]) -> None:
        """Opens what must open, then closes what must close, then reads every relay; see `SwitchMatrix.connect`."""
        self._require_open()
        wanted = check_points(self._info, points, self._name)
        async with self._channel.exclusive():
            before = _closed(await self._states(self._all()))
            unwanted = before - wanted
            await self._switch(self._commands.open, unwanted)
            if unwanted:
                # Break before make: nothing closes while a contact that had to open may still be closed.
                self._verify(await self._states(unwanted), frozenset(), self._commands.open)
            await self._switch(self._commands.close, wanted - before)
            self._verify(await self._states(self._all()), wanted, self._commands.close)
            self._ours &= wanted

    async def errors(self) -> list[tuple[int, str]]:
        """Reads the instrument's error queue until it is empty: (code, text) pairs, oldest first."""
        self._require_open()
        return await self._channel.drain_errors()

    async def _switch(self, command: str, points: frozenset[Point]) -> None:
        if not points:
            return
        if command == self._commands.close:
            self._ours |= points
        for piece in _pieces(sorted(points)):
            await self._channel.write(f"{command} {self._list(piece)}")
        await asyncio.sleep(self._info.settle_s)

    async def _states(self, points: Collection[Point]) -> dict[Point, bool]:
        states: dict[Point, bool] = {}
        for piece in _pieces(sorted(points)):
            query = f"{self._commands.state} {self._list(piece)}"
            flags = await self._channel.query_floats(query, count=len(piece))
            if any(flag not in {0.0, 1.0} for flag in flags):
                raise ProtocolError(f"{self._name}: {query!r} was answered {flags}, expected only 0 and 1")
            states |= {point: flag == 1.0 for point, flag in zip(piece, flags, strict=True)}
        return states

    def _verify(self, states: Mapping[Point, bool], closed: frozenset[Point], command: str) -> None:
        stuck_open = sorted(point for point, is_closed in states.items() if not is_closed and point in closed)
        stuck_closed = sorted(point for point, is_closed in states.items() if is_closed and point not in closed)
        faults = [
            f"the relays at row, column {', '.join(map(str, points))} are {state} and should not be"
            for points, state in ((stuck_open, "open"), (stuck_closed, "closed"))
            if points
        ]
        if faults:
            text = f"{'; '.join(faults)}; switch the sources off, run the card's self-test and replace the relay"
            raise InstrumentError(_HARDWARE_ERROR, text, command, self._name)

    async def _end(self) -> None:
        try:
            if self._ours:
                # Opening a relay twice does no harm, so a connection that the peer closed is opened once more for it.
                await self._channel.recover_if_lost()
                await self.open_points(self._ours)
        finally:
            self._is_open = False
            await self._channel.close()

    def _list(self, points: Sequence[Point]) -> str:
        return f"(@{','.join(str(self._numbers.channel(point)) for point in points)})"

    def _all(self) -> list[Point]:
        return [(row, column) for row in range(1, self._info.rows + 1) for column in range(1, self._info.columns + 1)]

    def _require_open(self) -> None:
        if not self._is_open:
            raise StateError(f"{self._name}: not open; use `async with` or call open() first")


def _pieces(points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    return (points[start : start + _POINTS_PER_LINE] for start in range(0, len(points), _POINTS_PER_LINE))


def _closed(states: Mapping[Point, bool]) -> frozenset[Point]:
    return frozenset(point for point, is_closed in states.items() if is_closed)
