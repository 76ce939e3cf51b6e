"""`DialectSourceMeter`: the promises of a source-meter, kept the same way for every model.

Order (limit before level before output), ramps, off whatever happens, one task at a time and readings with the host's
time are here; what a model says on the wire is its `Dialect`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal, Self

from labrig_drivers.errors import LinkError, ProtocolError, SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection, Identity
from labrig_drivers.settling import settle
from labrig_drivers.source_meter import Reading, SourceKind
from labrig_drivers.source_meter_dialect import OTHER_KIND, Dialect, RawReading
from labrig_drivers.source_output import Ramp, SourceOutput
from labrig_drivers.wording import beyond

_SLOWEST_LINE_HZ: Final = 50.0
_UNITS: Final[dict[SourceKind, str]] = {"voltage": "V", "current": "A"}
# A sweep goes to the instrument in parts of about this length, so that progress, Ctrl-C and deadlines stay human.
_SWEEP_PART_S: Final = 5.0


class DialectSourceMeter:
    """A source-meter that speaks `dialect`; keeps the `SourceMeter` contract.

    `open()` never changes an output, even one that was left on; `close()` switches off every output that this object
    switched on or whose level it changed. After an exchange that did not complete, the link is reopened and the
    identity confirmed before anything else is sent, and no setting is ever sent twice.

    Args:
        dialect: The model's commands, on a connection that this object owns from now on.
        expected: Identity to insist on; its model is one that the dialect understands.
        ramp: How fast an output that is on may move.
        timeout_s: Deadline in s of one exchange, readings and sweeps aside.
    """

    def __init__(self, dialect: Dialect, *, expected: ExpectedIdentity, ramp: Ramp, timeout_s: float) -> None:
        self._dialect = dialect
        self._channel = dialect.channel
        self._name = dialect.channel.name
        self._expected = expected
        self._timeout_s = timeout_s
        self._output = SourceOutput(dialect, ramp)
        self._utc_offset_s = time.time() - time.monotonic()
        self._is_open = False
        self._source: SourceKind | None = None
        self._nplc = 1.0
        self._limit_is_set = False
        self._level_is_set = False
        # True from before the output may have been switched on, or its level changed, until it is known to be off.
        self._must_switch_off = False

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is; `StateError` before `open()`."""
        return self._channel.identity

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What switches the output off when the host is gone; `StateError` before `open()`."""
        self._require_open()
        return self._dialect.host_loss_protection

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects, checks identity and language and empties the error queue; changes no setting and no output.

        Raises:
            IdentityError: Another instrument is there; the link is closed again.
            LinkError: It cannot be reached, or does not answer.
            StateError: It is open already, or set to another command language.
        """
        if self._is_open:
            raise StateError(f"{self._name}: open already")
        await self._channel.open()
        try:
            self._expected.check(await self._channel.identify(), self._channel.address)
            await self._dialect.prepare()
            # Errors of before are nobody's here; left in the queue they would be blamed on our first command.
            await self._channel.drain_errors()
        except BaseException:
            await self._channel.close()
            raise
        self._source, self._limit_is_set, self._level_is_set = None, False, False
        self._is_open = True

    async def close(self) -> None:
        """Switches off, by a ramp, what this object switched on or moved, then disconnects; harmless when closed.

        Cancelling the caller does not interrupt it; the cancellation is raised afterwards.

        Raises:
            StateError: The output could not be switched off, or not seen to be off: a person must do it.
        """
        if not self._is_open:
            return
        shutdown = asyncio.ensure_future(self._shut_down())
        cancelled = await settle(shutdown)
        # An output that may still be on is worse news than the cancellation.
        shutdown.result()
        if cancelled is not None:
            raise cancelled

    async def configure(self, *, source: SourceKind, nplc: float = 1.0, wires: Literal[2, 4] = 2) -> None:
        """Resets the instrument and sets it up; the output stays off, ranges are automatic.

        Limit and level have to be set again.

        Args:
            source: What is sourced.
            nplc: Integration time in power line cycles.
            wires: 2 senses at the output terminals, 4 at the sense terminals.

        Raises:
            SafetyError: `nplc` is outside the instrument's range, or no such source or wiring; nothing was sent.
            StateError: The output is on.
        """
        self._require_open()
        able = self._dialect.abilities
        faults = []
        if not able.nplc_min <= nplc <= able.nplc_max:
            faults.append(f"nplc {nplc:g} is outside {able.nplc_min:g} to {able.nplc_max:g}")
        if source not in OTHER_KIND:
            faults.append(f"source {source!r} is neither 'voltage' nor 'current'")
        if wires not in {2, 4}:
            faults.append(f"{wires} wires: only 2 or 4 can be sensed")
        self._refuse(faults)
        async with self._channel.exclusive():
            if await self._dialect.output_is_on():
                raise StateError(f"{self._name}: the output is on; switch it off before configuring")
            self._source, self._limit_is_set, self._level_is_set = None, False, False
            await self._dialect.set_up(source, nplc, wires)
            self._source, self._nplc = source, nplc

    async def set_limit(self, *, current_a: float | None = None, voltage_v: float | None = None) -> None:
        """Sets the compliance limit of the quantity that is not sourced, as a magnitude.

        Raises:
            SafetyError: The limit is not positive or more than the instrument has; nothing was sent.
            StateError: Not configured, or the limit of the sourced quantity was given.
        """
        limited = OTHER_KIND[self._configured()]
        limit = self._only("limit", limited, voltage_v, current_a)
        maximum, unit = self._maximum(limited), _UNITS[limited]
        self._refuse([] if 0.0 < limit <= maximum else [f"limit {limit:g} {unit} is not in 0 to {maximum:g} {unit}"])
        async with self._channel.exclusive():
            await self._dialect.write_limit(limited, limit)
        self._limit_is_set = True

    async def set_ranges(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Fixes the ranges: of the source for the sourced quantity, of the meter for the other; None is automatic.

        A range is named by the largest magnitude that it has to hold; the instrument takes the next larger one.

        Raises:
            SafetyError: A range is not positive or more than the instrument has; nothing was sent.
            StateError: Not configured, or the output is on: changing ranges can glitch.
        """
        self._configured()
        faults = []
        wanted: dict[SourceKind, float | None] = {"voltage": voltage_v, "current": current_a}
        for kind, value in wanted.items():
            maximum, unit = self._maximum(kind), _UNITS[kind]
            if value is not None and not 0.0 < value <= maximum:
                faults.append(f"{kind} range {value:g} {unit} is not in 0 to {maximum:g} {unit}")
        self._refuse(faults)
        async with self._channel.exclusive():
            if await self._dialect.output_is_on():
                raise StateError(f"{self._name}: the output is on; switch it off before changing ranges")
            await self._dialect.write_ranges(self._configured(), voltage_v, current_a)

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Sets the source level: at once while the output is off, as a ramp of small steps while it is on.

        Raises:
            SafetyError: The level is not finite or more than the instrument has; nothing was sent.
            StateError: No limit was set, or a level of the other quantity was given.
        """
        source = self._configured()
        level = self._only("level", source, voltage_v, current_a)
        self._refuse(self._level_faults(source, [level]))
        if not self._limit_is_set:
            raise StateError(f"{self._name}: set the limit before the level")
        async with self._channel.exclusive():
            if await self._dialect.output_is_on():
                self._must_switch_off = True
                await self._output.ramp(source, level)
            else:
                await self._dialect.write_level(source, level)
        self._level_is_set = True

    async def output_on(self) -> None:
        """Switches the output on; the level that was set appears at once.

        Raises:
            StateError: Limit or level were not set since `configure()` or since the output was last switched off.
            InstrumentError: The instrument refused.
        """
        self._configured()
        if not (self._limit_is_set and self._level_is_set):
            raise StateError(f"{self._name}: set limit and level before switching the output on")
        async with self._channel.exclusive():
            self._must_switch_off = True
            await self._dialect.switch(True)

    async def output_off(self) -> None:
        """Ramps to zero, switches the output off and reads the state back. The level has to be set again after it.

        Raises:
            StateError: Not open; or the output could not be switched off, or not seen to be off: a person must.
        """
        self._require_open()
        async with self._channel.exclusive():
            await self._switch_off()

    async def output_is_on(self) -> bool:
        """Asks the instrument for the state of its output."""
        self._require_open()
        async with self._channel.exclusive():
            return await self._dialect.output_is_on()

    async def interlock_closed(self) -> bool:
        """Asks whether the interlock (output enable) line allows the output.

        Raises:
            CapabilityError: The model has no such line, or cannot tell.
        """
        self._require_open()
        async with self._channel.exclusive():
            return await self._dialect.interlock_closed()

    async def measure(self) -> Reading:
        """Takes one reading of both quantities. A quantity beyond its range reads as infinite.

        Raises:
            StateError: Not configured, or the output is off.
            ProtocolError: The answer is no reading.
        """
        self._configured()
        async with self._channel.exclusive():
            await self._output.end_sweep()
            if not await self._dialect.output_is_on():
                raise StateError(f"{self._name}: the output is off; switch it on before measuring")
            start_s = time.monotonic()
            raw = await self._dialect.read(self._timeout_s + self._reading_s())
            stop_s = time.monotonic()
        return self._reading(raw, 0.5 * (start_s + stop_s))

    async def sweep(
        self, *, voltage_v: Sequence[float] | None = None, current_a: Sequence[float] | None = None
    ) -> list[Reading]:
        """Takes one reading at each level of the sourced quantity, in the given order; the last level stays.

        The instrument runs the sweep by itself where it can and where the steps are within the ramp's step (it then
        waits at each level as long as the ramp demands); otherwise the levels are set and read one by one, with
        ramps between them. Times of readings that the instrument took by itself are spread evenly over the sweep.

        Raises:
            SafetyError: A level is not finite or more than the instrument has; nothing was sent.
            StateError: Levels of the other quantity were given, no limit was set, or the output is off.
        """
        source = self._configured()
        levels = self._only_levels(source, voltage_v, current_a)
        self._refuse(self._level_faults(source, levels))
        settle_s = self._output.ramp_rule.settle_s(source, levels) if len(levels) > 1 else None
        readings: list[Reading] = []
        for part in self._parts(levels, settle_s):
            # In parts, so that closing need not wait for the end of a long sweep.
            async with self._channel.exclusive():
                await (self.set_level(voltage_v=part[0]) if source == "voltage" else self.set_level(current_a=part[0]))
                if settle_s is None or len(part) < 2:
                    readings.append(await self.measure())
                else:
                    readings += await self._sweep_inside(source, part, settle_s)
        return readings

    async def errors(self) -> list[tuple[int, str]]:
        """Reads the instrument's error queue until it is empty: (code, text) pairs, oldest first."""
        self._require_open()
        return await self._channel.drain_errors()

    async def read_settings(self) -> dict[str, str]:
        """Asks how the instrument is set, channel and all; see `ReportsSettings`."""
        self._require_open()
        queries = self._dialect.setting_queries
        async with self._channel.exclusive():
            try:
                return {
                    name: (await self._channel.query(text, idempotent=True)).strip() for name, text in queries.items()
                }
            except (LinkError, ProtocolError):
                # A firmware that does not know a question leaves an error that the next command would be blamed for.
                await self._channel.drain_errors()
                raise

    async def _sweep_inside(self, source: SourceKind, levels: Sequence[float], settle_s: float) -> list[Reading]:
        if not await self._dialect.output_is_on():
            raise StateError(f"{self._name}: the output is off; switch it on before sweeping")
        duration_s = len(levels) * (settle_s + self._reading_s())
        self._output.sweep_began(source, levels)
        start_s = time.monotonic()
        raws = await self._dialect.run_sweep(source, levels, settle_s, self._timeout_s + duration_s)
        step_s = (time.monotonic() - start_s) / len(levels)
        self._output.sweep_ended()
        if len(raws) != len(levels):
            raise ProtocolError(f"{self._name}: a sweep of {len(levels)} levels gave {len(raws)} readings")
        return [self._reading(raw, start_s + (index + 0.5) * step_s) for index, raw in enumerate(raws)]

    def _parts(self, levels: Sequence[float], settle_s: float | None) -> list[Sequence[float]]:
        """The levels in pieces that are swept, or measured, in one go."""
        count = 1
        if settle_s is not None and self._dialect.abilities.sweep_points > 1:
            count = max(2, int(_SWEEP_PART_S / (settle_s + self._reading_s())))
            count = min(count, self._dialect.abilities.sweep_points)
        return [levels[start : start + count] for start in range(0, len(levels), count)]

    def _reading(self, raw: RawReading, time_s: float) -> Reading:
        if math.isnan(raw.voltage_v) or math.isnan(raw.current_a):
            values = f"voltage {raw.voltage_v:g} V, current {raw.current_a:g} A"
            raise ProtocolError(f"{self._name}: {values} is no reading of both")
        return Reading(
            voltage_v=raw.voltage_v,
            current_a=raw.current_a,
            in_compliance=raw.in_compliance,
            time_s=self._utc_offset_s + time_s,
            instrument_time_s=raw.instrument_time_s,
        )

    def _reading_s(self) -> float:
        """Longest time in s that one reading can take by its integration time."""
        return self._dialect.abilities.conversions_per_reading * self._nplc / _SLOWEST_LINE_HZ

    async def _shut_down(self) -> None:
        try:
            async with self._channel.exclusive():
                if self._must_switch_off:
                    await self._switch_off()
        finally:
            self._is_open = False
            await self._channel.close()

    async def _switch_off(self) -> None:
        self._must_switch_off = True
        await self._output.switch_off()
        self._must_switch_off = False
        self._level_is_set = False

    def _require_open(self) -> None:
        if not self._is_open:
            raise StateError(f"{self._name}: not open; use `async with` or call open() first")

    def _configured(self) -> SourceKind:
        self._require_open()
        if self._source is None:
            raise StateError(f"{self._name}: configure it first")
        return self._source

    def _maximum(self, kind: SourceKind) -> float:
        able = self._dialect.abilities
        return able.max_voltage_v if kind == "voltage" else able.max_current_a

    def _level_faults(self, source: SourceKind, levels: Sequence[float]) -> list[str]:
        return beyond("level", levels, self._maximum(source), _UNITS[source])

    def _only(self, what: str, kind: SourceKind, voltage_v: float | None, current_a: float | None) -> float:
        value, other = (voltage_v, current_a) if kind == "voltage" else (current_a, voltage_v)
        if value is None or other is not None:
            raise self._wrong_quantity(what, kind)
        return value

    def _only_levels(
        self, kind: SourceKind, voltage_v: Sequence[float] | None, current_a: Sequence[float] | None
    ) -> Sequence[float]:
        values, other = (voltage_v, current_a) if kind == "voltage" else (current_a, voltage_v)
        if values is None or other is not None:
            raise self._wrong_quantity("sweep", kind)
        return values

    def _wrong_quantity(self, what: str, kind: SourceKind) -> StateError:
        wanted = "voltage_v" if kind == "voltage" else "current_a"
        return StateError(f"{self._name}: sourcing {self._source}, so the {what} is given as {wanted}, and only that")

    def _refuse(self, faults: list[str]) -> None:
        if faults:
            raise SafetyError([f"{self._name}: {fault}" for fault in faults])
