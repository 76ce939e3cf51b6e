"""What a fault campaign drives: a driver and questions with known answers, no two of them equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from labrig.testing.echo import marked_codes, marked_voltages
from labrig_drivers.axis import Axis
from labrig_drivers.crossbar import CrossbarBoard
from labrig_drivers.scpi import ScpiChannel
from labrig_drivers.source_meter import Reading, SourceMeter

# One recovery is three attempts of three exchanges; the exchange itself comes on top.
_CHANNEL_TIMEOUTS = 10
_LEVEL_STEP_V = 1e-3
_LOWEST_V, _LEVELS = 0.1, 4000
# A reading has seven digits; two levels differ by at least 2e-4 of themselves.
_TOLERANCE = 1e-5


class WrongAnswerError(Exception):
    """A driver returned a value that is not the answer to its question: what must never happen."""


class Subject(Protocol):
    """A driver under test. Every method may raise a `LabrigError`, and nothing else but `WrongAnswerError`.

    Attributes:
        name: How the table calls it.
        deadline_s: Longest time in s that a question may take by what the driver promises.
        opening_s: Longest time in s that opening or closing may take, likewise.
        period: Questions of the same kind have numbers that differ by a multiple of this.
    """

    name: str
    deadline_s: float
    opening_s: float
    period: int

    async def open(self) -> None:
        """Opens the driver and brings it to where questions can be asked; a half-opened one is closed again."""
        ...

    async def ask(self, number: int) -> None:
        """Asks one question, whose answer differs from that to any other number nearby.

        Raises:
            WrongAnswerError: The driver returned another answer.
        """
        ...

    async def close(self) -> None:
        """Closes the driver; harmless when closed."""
        ...


class ChannelSubject:
    """A `ScpiChannel` to an `EchoInstrument`; keeps `Subject`.

    Args:
        make_channel: Makes a new, closed channel each time.
        timeout_s: The channel's deadline of one exchange in s.
        name: How the table calls it.
    """

    period = 1

    def __init__(self, make_channel: Callable[[], ScpiChannel], *, timeout_s: float, name: str = "scpi") -> None:
        self.name = name
        self.deadline_s = self.opening_s = _CHANNEL_TIMEOUTS * timeout_s
        self._make_channel = make_channel
        self._channel: ScpiChannel | None = None

    async def open(self) -> None:
        """Connects and asks for the identity."""
        channel = self._make_channel()
        try:
            await channel.open()
            await channel.identify()
        except BaseException:
            await channel.close()
            raise
        self._channel = channel

    async def ask(self, number: int) -> None:
        """Has the instrument say the number."""
        assert self._channel is not None  # opened
        answer = await self._channel.query(f"SAY {number}")
        if answer != str(number):
            raise WrongAnswerError(f"asked to say {number}, it said {answer!r}")

    async def close(self) -> None:
        """Disconnects."""
        if self._channel is not None:
            await self._channel.close()


class SourceMeterSubject:
    """A source-meter with a resistor at its terminals: each question sets a level of its own and measures it.

    Args:
        make_meter: Makes a new, closed driver each time; its ramp should reach any level in one or two steps.
        resistance_ohm: What is connected.
        timeout_s: The driver's deadline of one exchange in s.
        name: How the table calls it.
        sweep: True asks by `sweep()` over three levels instead of `set_level()` and `measure()`.
    """

    period = 1

    def __init__(
        self,
        make_meter: Callable[[], SourceMeter],
        *,
        resistance_ohm: float,
        timeout_s: float,
        name: str,
        sweep: bool = False,
    ) -> None:
        self.name = name
        # Setting and measuring are about ten exchanges, of which the first may have to recover; opening is about
        # thirty, and closing tries several times.
        self.deadline_s = 2 * _CHANNEL_TIMEOUTS * timeout_s
        self.opening_s = 4 * _CHANNEL_TIMEOUTS * timeout_s
        self._make_meter = make_meter
        self._resistance_ohm = resistance_ohm
        self._sweep = sweep
        self._meter: SourceMeter | None = None

    async def open(self) -> None:
        """Opens, switches off what an earlier object could not, configures and switches on."""
        meter = self._make_meter()
        await meter.open()
        self._meter = meter
        if await meter.output_is_on():
            await meter.output_off()
        await meter.configure(source="voltage", nplc=0.01)
        await meter.set_limit(current_a=10.0 / self._resistance_ohm)
        await meter.set_level(voltage_v=0.0)
        await meter.output_on()

    async def ask(self, number: int) -> None:
        """Sets a level, or sweeps over three, and compares what is measured."""
        assert self._meter is not None  # opened
        level_v = _LOWEST_V + _LEVEL_STEP_V * (number % _LEVELS)
        if self._sweep:
            levels_v = [level_v, level_v + 2e-4, level_v + 4e-4]
            readings = await self._meter.sweep(voltage_v=levels_v)
        else:
            levels_v = [level_v]
            await self._meter.set_level(voltage_v=level_v)
            readings = [await self._meter.measure()]
        if len(readings) != len(levels_v) or not all(map(self._is_right, readings, levels_v)):
            found = [(reading.voltage_v, reading.current_a) for reading in readings]
            raise WrongAnswerError(f"at {levels_v} V on {self._resistance_ohm:g} ohm it measured {found}")

    async def close(self) -> None:
        """Switches off and disconnects."""
        if self._meter is not None:
            await self._meter.close()

    def _is_right(self, reading: Reading, level_v: float) -> bool:
        current_a = level_v / self._resistance_ohm
        return (
            abs(reading.voltage_v - level_v) <= _TOLERANCE * level_v
            and abs(reading.current_a - current_a) <= _TOLERANCE * current_a
            and not reading.in_compliance
        )


class AxisSubject:
    """An axis that follows its set point at once and without noise: each question sets a value of its own and reads it.

    Args:
        make_axis: Makes a new, closed driver each time, of an axis without a hold time.
        timeout_s: The driver's deadline of one exchange in s, and of an arrival.
        name: How the table calls it.
    """

    period = 1

    def __init__(self, make_axis: Callable[[], Axis], *, timeout_s: float, name: str = "axis") -> None:
        self.name = name
        # A set point, its look into the error queue and readings until it has arrived; the first may have to recover.
        self.deadline_s = 2 * _CHANNEL_TIMEOUTS * timeout_s
        self.opening_s = 2 * _CHANNEL_TIMEOUTS * timeout_s
        self._make_axis = make_axis
        self._axis: Axis | None = None

    async def open(self) -> None:
        """Connects and asks for the identity."""
        axis = self._make_axis()
        await axis.open()
        self._axis = axis

    async def ask(self, number: int) -> None:
        """Moves to a value and compares what is read."""
        assert self._axis is not None  # opened
        target = self._axis.low + (self._axis.high - self._axis.low) * (number % _LEVELS) / _LEVELS
        await self._axis.move_to(target)
        found = (await self._axis.read()).value
        if abs(found - target) > _TOLERANCE * max(abs(target), 1.0):
            raise WrongAnswerError(f"at {target} {self._axis.unit} it read {found}")

    async def close(self) -> None:
        """Goes to the safe value and disconnects."""
        if self._axis is not None:
            await self._axis.close()


class BoardSubject:
    """A driver of a board at whose other end is an `EchoBoard`; every seventh question programs and reads back.

    Args:
        make_board: Makes a new, closed driver each time.
        timeout_s: The driver's deadline of one exchange in s.
        opening_s: Longest time in s that it may take to open or to close.
        batch: Vectors in two of four questions in turn; the other two have two vectors, which fit into one frame.
        name: How the table calls it.
    """

    period = 7

    def __init__(
        self,
        make_board: Callable[[], CrossbarBoard],
        *,
        timeout_s: float,
        opening_s: float,
        batch: int = 5,
        name: str = "wire-board",
    ) -> None:
        self.name = name
        # Reopening and greeting come before the exchanges of a batch, of which there is one for each vector at worst.
        self.deadline_s = (4 + batch) * timeout_s
        self.opening_s = opening_s
        self._make_board = make_board
        self._batch = batch
        self._board: CrossbarBoard | None = None

    async def open(self) -> None:
        """Connects and greets."""
        board = self._make_board()
        await board.open()
        self._board = board

    async def ask(self, number: int) -> None:
        """Multiplies marked vectors, or programs a marked array and reads it back."""
        assert self._board is not None  # opened
        info = self._board.info
        mark = number % 4000
        if number % self.period == 3:
            target_s = np.full((info.rows, info.columns), (mark + 1) / 4096.0)
            await self._board.program(0, target_s)
            found_s = await self._board.read_conductance(0)
            if not np.array_equal(found_s, target_s):
                raise WrongAnswerError(f"programmed to {target_s[0, 0]} S, the cells read {found_s.tolist()}")
            return
        marks = [7 * mark + index for index in range(self._batch if number // 2 % 2 else 2)]
        result = await self._board.mvm(0, marked_voltages(marks, info.rows))
        if result.code.tolist() != marked_codes(marks, info.columns):
            raise WrongAnswerError(f"asked for {marks}, it answered {result.code.tolist()}")

    async def close(self) -> None:
        """Grounds the lines and disconnects."""
        if self._board is not None:
            await self._board.close()
