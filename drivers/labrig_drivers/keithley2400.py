"""The Keithley 2400 source-meter, in its own SCPI language.

Commands: 2400 Series SourceMeter User's Manual 2400S-900-01 rev. K, section 18. Never used here: `:MEAS?`, which
switches the output on by itself, and `:READ?` with the output off, which is not answered at all.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from labrig_drivers.errors import ProtocolError, SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.keithley_output import KeithleyOutput, ScpiQuantity
from labrig_drivers.links.base import Link
from labrig_drivers.links.guard import settle
from labrig_drivers.scpi import ScpiChannel, format_float
from labrig_drivers.source_meter import Reading, SourceKind

# Largest output of a 2400 in either direction (specifications of the model 2400; other models of the series that
# can do less refuse by themselves).
_MAX_VOLTAGE_V = 210.0
_MAX_CURRENT_A = 1.05
_NPLC_MIN, _NPLC_MAX = 0.01, 10.0
# STAT element of a reading, bit 3: the source is in compliance.
_STAT_COMPLIANCE = 1 << 3
# With auto-zero a reading is several conversions of both quantities, and 50 Hz is the slower mains.
_CONVERSIONS_PER_READING = 6
_SLOWEST_LINE_HZ = 50.0
# A current has no ramp rate of its own: it is ramped in this many steps, at the time of one voltage step each.
_CURRENT_RAMP_STEPS = 20

_OFF_ATTEMPTS = 2

_SCPI_NAME: dict[SourceKind, ScpiQuantity] = {"voltage": "VOLT", "current": "CURR"}


class Keithley2400:
    """One Keithley 2400; keeps the `SourceMeter` contract.

    `open()` never changes an output, even one that was left on; `close()` switches off every output that this object
    switched on or whose level it changed. After an exchange that did not complete, the link is reopened and the
    identity confirmed before anything else is sent, and no setting is ever sent twice.

    Args:
        link: Where the instrument is; this object owns it from now on.
        expected: Identity to insist on. Without a model, one that contains `2400` is insisted on.
        ramp_v_per_s: Fastest change of the level in V/s while the output is on.
        ramp_step_v: Largest single step of the level in V while the output is on.
        name: What messages call the instrument.
        timeout_s: Deadline in s of one exchange, readings aside.

    Raises:
        ValueError: Ramp rate or step is not positive.
    """

    def __init__(
        self,
        link: Link,
        *,
        expected: ExpectedIdentity | None = None,
        ramp_v_per_s: float = 1.0,
        ramp_step_v: float = 0.05,
        name: str = "keithley2400",
        timeout_s: float = 5.0,
    ) -> None:
        wanted = expected or ExpectedIdentity()
        self._expected = ExpectedIdentity(model=wanted.model or "2400", serial=wanted.serial)
        self._channel = ScpiChannel(link, name, timeout_s=timeout_s)
        self._name = name
        self._timeout_s = timeout_s
        self._output = KeithleyOutput(self._channel, ramp_v_per_s=ramp_v_per_s, ramp_step_v=ramp_step_v)
        self._utc_offset_s = time.time() - time.monotonic()
        self._is_open = False
        self._source: SourceKind | None = None
        self._nplc = 1.0
        self._limit_is_set = False
        self._level_is_set = False
        # True from before the output may have been switched on, or its level changed, until it is known to be off.
        self._must_switch_off = False

    @classmethod
    def from_settings(cls, link: Link, expected: ExpectedIdentity, name: str) -> Keithley2400:
        """Makes the instrument that a rig file names."""
        return cls(link, expected=expected, name=name)

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is; `StateError` before `open()`."""
        return self._channel.identity

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects, checks the identity and empties the error queue; changes no setting and no output.

        Raises:
            IdentityError: Another instrument is there; the link is closed again.
            LinkError: It cannot be reached, or does not answer.
        """
        await self._channel.open()
        try:
            self._expected.check(await self._channel.identify(), self._channel.address)
            # Errors of an earlier session would be blamed on our first command.
            await self._channel.drain_errors()
        except BaseException:
            await self._channel.close()
            raise
        self._source, self._limit_is_set, self._level_is_set = None, False, False
        self._must_switch_off = False
        self._is_open = True

    async def close(self) -> None:
        """Makes the output safe if this object touched it, then disconnects; harmless when closed.

        Runs to its end even when the caller is cancelled meanwhile. A broken connection is opened once more for it.

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
        """Resets the instrument and sets it up; the output stays off. Limit and level have to be set again.

        Args:
            source: What is sourced.
            nplc: Integration time in power line cycles, 0.01 to 10.
            wires: 2 senses at the output terminals, 4 at the sense terminals.

        Raises:
            SafetyError: `nplc` is outside the instrument's range, or no such source or wiring; nothing was sent.
            StateError: The output is on.
        """
        faults = []
        if not _NPLC_MIN <= nplc <= _NPLC_MAX:
            faults.append(f"nplc {nplc} is outside {_NPLC_MIN:g} to {_NPLC_MAX:g}")
        if source not in _SCPI_NAME:
            faults.append(f"source {source!r} is neither 'voltage' nor 'current'")
        if wires not in {2, 4}:
            faults.append(f"{wires} wires: only 2 or 4 can be sensed")
        self._refuse(faults)
        sourced = _SCPI_NAME[source]
        limited = "CURR" if source == "voltage" else "VOLT"
        async with self._channel.exclusive():
            if await self.output_is_on():
                raise StateError(f"{self._name}: the output is on; switch it off before configuring")
            self._source, self._limit_is_set, self._level_is_set = None, False, False
            for command in (
                "*RST",
                f":SOUR:FUNC {sourced}",
                f":SOUR:{sourced}:MODE FIX",
                f":SOUR:{sourced}:RANG:AUTO 1",
                ":SENS:FUNC:CONC ON",
                ':SENS:FUNC "VOLT","CURR"',
                f":SENS:{limited}:RANG:AUTO 1",
                f":SENS:CURR:NPLC {format_float(nplc)}",
                f":SYST:RSEN {int(wires == 4)}",
                ":FORM:ELEM VOLT,CURR,STAT",
            ):
                await self._channel.write(command)
            self._source, self._nplc = source, nplc

    async def set_limit(self, *, current_a: float | None = None, voltage_v: float | None = None) -> None:
        """Sets the compliance limit of the quantity that is not sourced, as a magnitude.

        Raises:
            SafetyError: The limit is not positive or more than the instrument has; nothing was sent.
            StateError: Not configured, or the limit of the sourced quantity was given.
        """
        if self._configured() == "voltage":
            limit = self._only("limit", "current_a", current_a, voltage_v)
            maximum, limited = _MAX_CURRENT_A, "CURR"
        else:
            limit = self._only("limit", "voltage_v", voltage_v, current_a)
            maximum, limited = _MAX_VOLTAGE_V, "VOLT"
        self._refuse([] if 0.0 < limit <= maximum else [f"limit {limit} is not in 0 to {maximum}"])
        await self._channel.write(f":SENS:{limited}:PROT {format_float(limit)}")
        self._limit_is_set = True

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Sets the source level: at once while the output is off, as a ramp of small steps while it is on.

        Raises:
            SafetyError: The level is not finite or more than the instrument has; nothing was sent.
            StateError: No limit was set, or a level of the other quantity was given.
        """
        if self._configured() == "voltage":
            level, maximum = self._only("level", "voltage_v", voltage_v, current_a), _MAX_VOLTAGE_V
        else:
            level, maximum = self._only("level", "current_a", current_a, voltage_v), _MAX_CURRENT_A
        self._refuse([] if abs(level) <= maximum else [f"level {level} is not in -{maximum} to {maximum}"])
        if not self._limit_is_set:
            raise StateError(f"{self._name}: set the limit before the level")
        sourced = _SCPI_NAME[self._configured()]
        async with self._channel.exclusive():
            if await self.output_is_on():
                self._must_switch_off = True
                await self._output.ramp(sourced, level)
            else:
                await self._channel.write(f":SOUR:{sourced}:LEV {format_float(level)}")
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
            await self._channel.write(":OUTP 1")

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
        return await self._channel.query_flag(":OUTP?")

    async def measure(self) -> Reading:
        """Takes one reading of both quantities. A quantity beyond its range reads as infinite.

        Raises:
            StateError: Not configured, or the output is off.
            ProtocolError: The answer is no reading.
        """
        self._configured()
        async with self._channel.exclusive():
            if not await self.output_is_on():
                raise StateError(f"{self._name}: the output is off; switch it on before measuring")
            start_s = time.monotonic()
            longest_s = self._timeout_s + _CONVERSIONS_PER_READING * self._nplc / _SLOWEST_LINE_HZ
            values = await self._channel.query_floats(":READ?", count=3, timeout_s=longest_s)
            stop_s = time.monotonic()
        voltage_v, current_a, status = values
        if math.isnan(voltage_v) or math.isnan(current_a) or not status.is_integer():
            raise ProtocolError(f"{self._name}: {values} is no reading of voltage, current and status")
        return Reading(
            voltage_v=voltage_v,
            current_a=current_a,
            in_compliance=bool(int(status) & _STAT_COMPLIANCE),
            time_s=self._utc_offset_s + 0.5 * (start_s + stop_s),
        )

    async def set_ranges(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Not written yet."""
        raise NotImplementedError

    async def sweep(
        self, *, voltage_v: Sequence[float] | None = None, current_a: Sequence[float] | None = None
    ) -> list[Reading]:
        """Takes one reading at each level, in the given order, with ramps between the levels.

        Raises:
            SafetyError: A level is not finite or more than the instrument has; nothing was sent.
            StateError: Not configured to source voltage, no limit set, or the output is off.
        """
        if self._configured() != "voltage" or voltage_v is None:
            raise StateError(f"{self._name}: configured to source current; a voltage sweep is not possible")
        self._refuse(
            [
                f"level {level} V is not in -{_MAX_VOLTAGE_V} to {_MAX_VOLTAGE_V} V"
                for level in voltage_v
                if not abs(level) <= _MAX_VOLTAGE_V
            ]
        )
        readings = []
        for level in voltage_v:
            # Point by point, so that closing need not wait for the end of a long sweep.
            async with self._channel.exclusive():
                await self.set_level(voltage_v=level)
                readings.append(await self.measure())
        return readings

    async def errors(self) -> list[tuple[int, str]]:
        """Reads the instrument's error queue until it is empty: (code, text) pairs, oldest first."""
        self._require_open()
        return await self._channel.drain_errors()

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
            raise StateError(f"{self._name}: not open")

    def _configured(self) -> SourceKind:
        self._require_open()
        if self._source is None:
            raise StateError(f"{self._name}: configure it first")
        return self._source

    def _only(self, what: str, wanted: str, value: float | None, other: float | None) -> float:
        if value is None or other is not None:
            raise StateError(
                f"{self._name}: sourcing {self._source}, so the {what} is given as {wanted}, and only that"
            )
        return value

    def _refuse(self, faults: list[str]) -> None:
        if faults:
            raise SafetyError([f"{self._name}: {fault}" for fault in faults])
