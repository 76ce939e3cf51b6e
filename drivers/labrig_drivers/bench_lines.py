"""`BenchLines`: the lines of a crossbar behind a switch matrix, driven by source-meters and never switched hot.

Hot switching can weld reed relays "such that they will always be on" (707B and 708B Reference Manual, 707B-901-01
rev. A, page 2-87), and an output at a level that meets a new line is a pulse that nobody asked for. So every relay
moves only while every source-meter is off, or on at 0 V.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from labrig_drivers.bench_settings import BenchGeometry
from labrig_drivers.errors import InstrumentError, LabrigError, SafetyError, StateError
from labrig_drivers.instrument import HostLossProtection, Instrument, ProtectsItself
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading, SourceMeter
from labrig_drivers.switch_matrix import Point, SwitchMatrix
from labrig_drivers.wording import beyond

T = TypeVar("T")


@dataclass
class _Meter:
    """One source-meter and what is known of its output.

    `level_v` is None while the output may be at any level.
    """

    meter: SourceMeter
    what: str
    level_v: float | None = 0.0


class BenchLines:
    """The instruments of a bench crossbar as one thing: lines that are selected, driven and read.

    A cancelled call waits for the exchange in flight before it raises: cut in two, an exchange would leave a link
    that cannot switch off.

    Args:
        word_source: Drives word lines; not open yet, and owned by this object from now on.
        bit_meters: Measure bit lines, in the order of `geometry.meter_rows`.
        gate_source: Drives select gates; None for a passive crossbar.
        matrix: The relays between instruments and lines.
        geometry: The wiring.
        name: What messages call the bench.
    """

    def __init__(
        self,
        word_source: SourceMeter,
        bit_meters: Sequence[SourceMeter],
        gate_source: SourceMeter | None,
        matrix: SwitchMatrix,
        geometry: BenchGeometry,
        name: str,
    ) -> None:
        self._word = _Meter(word_source, "word source")
        self._bits = [_Meter(meter, f"bit meter {index}") for index, meter in enumerate(bit_meters)]
        self._gate = None if gate_source is None else _Meter(gate_source, "gate source")
        self._matrix = matrix
        self._geometry = geometry
        self._name = name
        self._highest_v = 0.0
        self._gate_v = 0.0
        # Bit lines of the present connection, in the order of the meters.
        self._selected: tuple[int, ...] = ()
        self._dirty = False

    @property
    def name(self) -> str:
        """What messages call the bench."""
        return self._name

    @property
    def matrix(self) -> SwitchMatrix:
        """The relays."""
        return self._matrix

    @property
    def _meters(self) -> list[_Meter]:
        return [self._word, *self._bits, *([self._gate] if self._gate is not None else [])]

    @property
    def selected(self) -> tuple[int, ...]:
        """Bit lines of the present connection, in the order of the meters."""
        return self._selected

    def instruments(self) -> list[Instrument]:
        """Every instrument: the word source, the bit meters, the gate source where there is one, the matrix."""
        return [*(one.meter for one in self._meters), self._matrix]

    def protection(self, bench: str) -> HostLossProtection:
        """What happens when the host is gone: as good as the weakest of the open source-meters."""
        silences_s = []
        for one in self._meters:
            protected = one.meter
            silence_s = protected.host_loss_protection.silence_s if isinstance(protected, ProtectsItself) else None
            if silence_s is None:
                return HostLossProtection(None, f"{bench}: the {one.what} keeps its output on when the host is gone")
            silences_s.append(silence_s)
        return HostLossProtection(max(silences_s), f"{bench}: every source-meter switches itself off")

    async def open(self) -> None:
        """Opens all instruments at the same time; touches no output and no relay.

        Raises:
            LabrigError: An instrument failed; the others were closed again.
        """
        instruments = self.instruments()
        try:
            await _all(one.open() for one in instruments)
        except BaseException:
            await undivided(_close_quietly(instruments))
            raise
        self._dirty = False

    async def close(self) -> None:
        """Makes the source-meters safe, opens the relays, disconnects; also when cancelled.

        Raises:
            StateError: An output could not be made safe; the relays were left as they are, and closing again once
                a person has switched the output off opens them.
            InstrumentError: A relay did not open.
        """
        await undivided(self._end())

    @asynccontextmanager
    async def session(
        self,
        *,
        limit_a: float,
        highest_v: float,
        gate_v: float,
        nplc: float,
        word_limit_a: float | None = None,
        bit_limit_a: float | None = None,
    ) -> AsyncIterator[None]:
        """Every output on at 0 V for the length of the block; after it, however it ends, off and all relays open.

        Args:
            limit_a: Compliance limit in A of every source-meter.
            highest_v: No line is driven beyond this voltage in V.
            gate_v: Voltage in V of the selected gates.
            nplc: Integration time in power line cycles.
            word_limit_a: Compliance limit in A of the word source, where it is another one.
            bit_limit_a: Compliance limit in A of the bit meters, where it is another one.
        """
        limits_a = {one.what: bit_limit_a for one in self._bits} | {self._word.what: word_limit_a}
        self._highest_v, self._gate_v = highest_v, gate_v
        self._dirty = True
        try:
            await undivided(_all(self._switch_on(one, limits_a.get(one.what) or limit_a, nplc) for one in self._meters))
            yield
        finally:
            # What this raises is worse news than whatever ended the block: an output may still be on.
            await self.safe_now()

    async def select(self, word: int, bits: Sequence[int]) -> None:
        """Connects one word line to the source and some bit lines to the meters; all other lines are grounded.

        Args:
            word: Word line, from 0.
            bits: Bit lines, from 0, at most one for each meter.

        Raises:
            InstrumentError: A relay is not in the state that was asked for.
        """
        await self._to_zero()
        # The relays may move from here on although the connection is not known yet.
        self._selected = ()
        await undivided(self._matrix.connect(self._points(word, bits)))
        self._selected = tuple(bits)
        if self._gate is not None:
            await self._drive([(self._gate, self._gate_v)])

    async def drive(self, word_v: float, bit_v: float = 0.0) -> None:
        """Drives the selected word line and the first selected bit line; the other meters stay at 0 V.

        Raises:
            SafetyError: A voltage is beyond what the session allows; nothing was sent.
        """
        self._demand((word_v, bit_v, word_v - bit_v))
        await self._drive([(self._word, word_v), (self._bits[0], bit_v)])

    async def sweep_word(self, voltage_v: Sequence[float]) -> list[Reading]:
        """Takes the word line through levels, one reading of the word source at each; inside it where it can.

        Raises:
            SafetyError: A voltage is beyond what the session allows; nothing was sent.
        """
        self._demand(voltage_v)
        self._word.level_v = None
        readings = await undivided(self._word.meter.sweep(voltage_v=voltage_v))
        self._word.level_v = voltage_v[-1]
        return readings

    async def read(self) -> list[Reading]:
        """One reading of each selected bit line, all meters at the same time; in the order of the selection."""
        return await undivided(_all(one.meter.measure() for one in self._bits[: len(self._selected)]))

    async def read_cell(self) -> tuple[Reading, Reading]:
        """One reading of the word source and one of the first selected bit line's meter, at the same time."""
        word, bit = await undivided(_all(one.meter.measure() for one in (self._word, self._bits[0])))
        return word, bit

    async def check_source(self) -> None:
        """Makes sure that the word source holds its level.

        Raises:
            InstrumentError: It is in compliance: the lines are not at the voltages that were asked for.
        """
        reading = await undivided(self._word.meter.measure())
        if reading.in_compliance:
            text = (
                f"the word source is in compliance at {reading.voltage_v:g} V, {reading.current_a:g} A where "
                f"{self._word.level_v or 0.0:g} V was asked for: a cell is shorted, or the limit is too low"
            )
            raise InstrumentError(0, text, "measure", self._name)

    async def safe_now(self) -> None:
        """Ramps every output to zero, switches it off, then opens every relay; also when cancelled meanwhile.

        Raises:
            StateError: An output could not be made safe; the relays were left as they are, not to be switched hot.
            InstrumentError: A relay did not open.
        """
        await undivided(self._make_safe())

    def _points(self, word: int, bits: Sequence[int]) -> frozenset[Point]:
        """Where every line goes: nothing floats."""
        geometry = self._geometry
        rows = dict.fromkeys((*geometry.word_columns, *geometry.bit_columns), geometry.ground_row)
        rows[geometry.word_columns[word]] = geometry.source_row
        for bit, meter_row in zip(bits, geometry.meter_rows, strict=False):
            rows[geometry.bit_columns[bit]] = meter_row
        for index, column in enumerate(geometry.gate_columns):
            rows[column] = geometry.gate_row if index == word and geometry.gate_row else geometry.ground_row
        return frozenset((row, column) for column, row in rows.items())

    async def _make_safe(self) -> None:
        results = await asyncio.gather(*(self._switch_off(one) for one in self._meters), return_exceptions=True)
        failures = [
            f"{one.what}: {result}"
            for one, result in zip(self._meters, results, strict=True)
            if isinstance(result, BaseException)
        ]
        if failures:
            raise StateError(
                f"{self._name}: outputs may still be on, so the relays were left as they are; press OUTPUT OFF on the "
                f"source-meters now, then open the relays: {'; '.join(failures)}"
            )
        await self._matrix.open_all()
        self._selected = ()
        self._dirty = False

    async def _switch_on(self, one: _Meter, limit_a: float, nplc: float) -> None:
        one.level_v = None
        if await one.meter.output_is_on():
            # Left on by somebody else, at a level that nobody here has chosen.
            await one.meter.output_off()
        await one.meter.configure(source="voltage", nplc=nplc)
        await one.meter.set_limit(current_a=limit_a)
        await one.meter.set_level(voltage_v=0.0)
        await one.meter.output_on()
        one.level_v = 0.0

    async def _switch_off(self, one: _Meter) -> None:
        one.level_v = None
        await one.meter.output_off()
        one.level_v = 0.0

    def _demand(self, voltage_v: Sequence[float]) -> None:
        if reasons := beyond("voltage", voltage_v, self._highest_v * (1 + 1e-9), "V"):
            raise SafetyError([f"{self._name}: {reason}" for reason in reasons])

    async def _to_zero(self) -> None:
        await self._drive([(one, 0.0) for one in self._meters])

    async def _drive(self, levels: Sequence[tuple[_Meter, float]]) -> None:
        changes = [(one, level_v) for one, level_v in levels if one.level_v != level_v]
        if changes:
            await undivided(_all(self._set(one, level_v) for one, level_v in changes))

    async def _set(self, one: _Meter, level_v: float) -> None:
        one.level_v = None
        await one.meter.set_level(voltage_v=level_v)
        one.level_v = level_v

    async def _end(self) -> None:
        problem: LabrigError | None = None
        if self._dirty:
            try:
                await self._make_safe()
            except LabrigError as error:
                problem = error
        self._dirty = False
        try:
            # Tries once more to switch off what would not; raises where that fails again.
            await _close_all([one.meter for one in self._meters])
        except LabrigError as error:
            raise StateError(
                f"{self._name}: a source-meter could not be made safe, so the relays were left as they are and the "
                f"switch matrix connected; press OUTPUT OFF on the source-meters, then close the bench again: {error}"
            ) from (problem or error)
        await self._matrix.close()
        if isinstance(problem, InstrumentError):
            # A relay that does not open is still closed, whoever closed it.
            raise problem


def compliance_at_zero(limited: Sequence[str]) -> str:
    """What to say of source-meters that are in compliance with all lines at 0 V."""
    some = f"{', '.join(limited)} {'is' if len(limited) == 1 else 'are'} in compliance with all lines at 0 V"
    return f"{some}: look for another voltage at their lines, and for limit_a that is too low"


async def _close_all(instruments: Sequence[Instrument]) -> None:
    await _all(one.close() for one in instruments)


async def _close_quietly(instruments: Sequence[Instrument]) -> None:
    """Closes what was only opened; why the opening failed is the message."""
    await asyncio.gather(*(one.close() for one in instruments), return_exceptions=True)


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Runs calls at the same time and waits for every one, also when one fails; then raises the first failure."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    values: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values
