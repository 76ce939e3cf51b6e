"""The Keithley 2450 source-meter, in its own SCPI language (not TSP, and not the 2400's).

Commands: Model 2450 reference manual 2450-901-01 rev. B, section 6 (SCPI command reference) and appendix B (common
commands); for the trigger model's blocks also the 2461's, 2461-901-01 rev. A, section 6. Not yet run on an instrument.
The decisions that the manuals leave open:

- Compliance comes with each reading: bit 5 of the buffer element `SOURSTATus` ("the source function was limited"),
  stored when the reading was taken. `:ILIM:TRIP?` would tell about the moment of the question.
- Readings are fetched as text. A binary answer begins with `#0`, so nothing but a line end marks its end, and a line
  end may stand inside the data; nor may it carry `SOURSTATus` (error 1133).
- Sweeps use the instrument's lists of levels, but a trigger model of this driver: the one that `:SOUR:SWE` loads ends
  by switching the output off (unconfirmed by the manual's text; public drivers take it as the sign of the end), at
  whatever level the sweep has ended, without a ramp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal

from labrig_drivers.dialect_source_meter import DialectSourceMeter
from labrig_drivers.errors import InstrumentError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection
from labrig_drivers.links.base import Link
from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.scpi import ScpiChannel, format_float
from labrig_drivers.source_meter import SourceKind
from labrig_drivers.source_meter_dialect import (
    OTHER_KIND,
    SCPI_NAME,
    Abilities,
    RawReading,
    no_reading,
    scpi_kind,
    scpi_settings,
)
from labrig_drivers.source_meter_settings import ramp_of, reconnect_of, settings_of
from labrig_drivers.source_output import Ramp

# With auto-zero, a reading is three conversions (signal, zero, reference) of the reading and of the source readback.
# A list of levels holds 2,500 of them.
_ABILITIES: Final = Abilities(
    max_voltage_v=210.0, max_current_a=1.05, nplc_min=0.01, nplc_max=10.0, conversions_per_reading=6, sweep_points=2500
)
_LARGEST_RANGE: Final[dict[SourceKind, float]] = {"voltage": 200.0, "current": 1.0}
# The limit of the named quantity belongs to the source of the other one.
_LIMIT: Final[dict[SourceKind, str]] = {"current": ":SOUR:VOLT:ILIM", "voltage": ":SOUR:CURR:VLIM"}
_LIST_NAME: Final[dict[SourceKind, str]] = {"voltage": "Volt", "current": "Curr"}
_BUFFER: Final = '"defbuffer1"'
# Source value read back, reading, seconds since the buffer's first reading, source status.
_ELEMENTS: Final = "SOUR,READ,REL,SOURSTAT"
_ELEMENT_COUNT: Final = 4
_SOURCE_STATUS_LIMIT: Final = 1 << 5
_LIST_PIECE: Final = 100
# The shortest delay that a trigger model knows.
_SHORTEST_DELAY_S: Final = 167e-9
# How far, in steps, levels may be from even spacing to be called evenly spaced.
_EVEN: Final = 1e-9
_SETTINGS: Final = (
    "*LANG",
    ":SOUR:FUNC",
    *(
        f":SOUR:{quantity}{name}"
        for quantity in SCPI_NAME.values()
        for name in ("", ":RANG", ":RANG:AUTO", ":READ:BACK")
    ),
    *_LIMIT.values(),
    ":SENS:FUNC",
    *(f":SENS:{quantity}:{name}" for quantity in SCPI_NAME.values() for name in ("RANG", "RANG:AUTO", "NPLC", "RSEN")),
    ":OUTP",
)
_NO_PROTECTION: Final = HostLossProtection(None, "a Keithley 2450 keeps its output on when the host is gone")


class Keithley2450(DialectSourceMeter):
    """One Keithley 2450; keeps the `SourceMeter` contract, see `DialectSourceMeter`.

    `Reading.instrument_time_s` counts from the first reading after `configure()`; from a sweep's first reading where
    the instrument's buffer had to be emptied for the sweep.

    Args:
        link: Where the instrument is; this object owns it from now on.
        expected: Identity to insist on. Without a model, one that contains `2450` is insisted on.
        ramp_v_per_s: Fastest change of the level in V/s while the output is on.
        ramp_step_v: Largest single step of the level in V while the output is on.
        name: What messages call the instrument.
        timeout_s: Deadline in s of one exchange, readings and sweeps aside.
        reconnect: How idempotent queries are asked again after a link failed; None asks once.

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
        name: str = "keithley2450",
        timeout_s: float = 5.0,
        reconnect: Reconnect | None = None,
    ) -> None:
        super().__init__(
            Keithley2450Dialect(ScpiChannel(link, name, timeout_s=timeout_s, reconnect=reconnect)),
            expected=(expected or ExpectedIdentity()).or_model("2450"),
            ramp=Ramp(ramp_v_per_s, ramp_step_v),
            timeout_s=timeout_s,
        )

    @classmethod
    def from_settings(
        cls,
        link: Link,
        expected: ExpectedIdentity,
        name: str,
        *,
        settings: Mapping[str, object] | None = None,
        ramp_v_per_s: float | None = None,
    ) -> Keithley2450:
        """Makes the instrument that a rig file names; its one setting is `reconnect_attempts`.

        Raises:
            ConfigError: A setting is unknown or wrong; every fault.
        """
        table = settings_of(settings, name)
        reconnect = reconnect_of(table)
        table.finish()
        return cls(link, expected=expected, name=name, ramp_v_per_s=ramp_of(ramp_v_per_s), reconnect=reconnect)


class Keithley2450Dialect:
    """The 2450's commands; keeps `Dialect`.

    Args:
        channel: The connection.
    """

    abilities = _ABILITIES
    host_loss_protection = _NO_PROTECTION

    def __init__(self, channel: ScpiChannel) -> None:
        self.channel = channel
        # What is sourced; readings name their columns by role, not by quantity.
        self._source: SourceKind = "voltage"
        # The last limit that was written, as a command; a change of ranges may change it.
        self._limit_command: str | None = None

    @property
    def setting_queries(self) -> dict[str, str]:
        """What asks for each setting (2450-901-01, section 6)."""
        return scpi_settings(_SETTINGS)

    async def prepare(self) -> None:
        """Refuses an instrument that speaks TSP or imitates a 2400.

        Raises:
            StateError: Its command set is another one.
        """
        language = (await self.channel.query("*LANG?", idempotent=True)).strip().upper()
        if language != "SCPI":
            raise StateError(
                f"{self.channel.name} at {self.channel.address}: its command set is {language}, not SCPI; "
                "send it '*LANG SCPI' or choose SCPI in its system settings, then switch it off and on"
            )

    async def set_up(self, source: SourceKind, nplc: float, wires: Literal[2, 4]) -> None:
        """Resets and sets everything but limit, level and output."""
        sourced, measured = SCPI_NAME[source], SCPI_NAME[OTHER_KIND[source]]
        self._limit_command = None
        await self.channel.write_all(
            [
                "*RST",
                f":SOUR:FUNC {sourced}",
                f":SOUR:{sourced}:RANG:AUTO 1",
                f":SOUR:{sourced}:READ:BACK 1",
                f':SENS:FUNC "{measured}"',
                f":SENS:{measured}:RANG:AUTO 1",
                f":SENS:{measured}:NPLC {format_float(nplc)}",
                f":SENS:{measured}:RSEN {int(wires == 4)}",
                ":FORM:DATA ASC",
                # Seven digits, the automatic choice, would cost stamps their milliseconds after an hour.
                ":FORM:ASC:PREC 16",
                f":TRAC:CLE {_BUFFER}",
            ]
        )
        self._source = source

    async def write_limit(self, limited: SourceKind, limit: float) -> None:
        """Sets the compliance limit."""
        self._limit_command = f"{_LIMIT[limited]} {format_float(limit)}"
        await self.channel.write(self._limit_command)

    async def write_ranges(self, source: SourceKind, voltage_v: float | None, current_a: float | None) -> None:
        """Fixes source and measuring range, or makes them automatic, and sets the limit again.

        Raises:
            InstrumentError: The limit does not go with the ranges, such as less than 0.1 % of the measuring range.
        """
        wanted: dict[SourceKind, float | None] = {"voltage": voltage_v, "current": current_a}
        ranged: tuple[tuple[str, SourceKind], ...] = (("SOUR", source), ("SENS", OTHER_KIND[source]))
        for subsystem, kind in ranged:
            value = wanted[kind]
            # Ranges hold 5 % more than their names say.
            text = "RANG:AUTO 1" if value is None else f"RANG {format_float(min(value, _LARGEST_RANGE[kind]))}"
            await self.channel.write(f":{subsystem}:{SCPI_NAME[kind]}:{text}")
        if self._limit_command is not None:
            # The instrument changes a limit that does not suit a new range, and logs only a warning.
            await self.channel.write(self._limit_command)

    async def write_level(self, source: SourceKind, level: float) -> None:
        """Sets the level at once."""
        await self.channel.write(f":SOUR:{SCPI_NAME[source]} {format_float(level)}")

    async def read_level(self, source: SourceKind) -> float:
        """Asks for the level; a sweep sets it too."""
        (level,) = await self.channel.query_floats(f":SOUR:{SCPI_NAME[source]}?", count=1, idempotent=True)
        return level

    async def read_source(self) -> SourceKind:
        """Asks what is sourced."""
        return scpi_kind(await self.channel.query(":SOUR:FUNC?", idempotent=True))

    async def switch(self, on: bool) -> None:
        """Switches the output."""
        await self.channel.write(f":OUTP {int(on)}")

    async def output_is_on(self) -> bool:
        """Asks for the state of the output."""
        return await self.channel.query_flag(":OUTP?", idempotent=True)

    async def interlock_closed(self) -> bool:
        """Asks whether the interlock is asserted; open, the instrument refuses more than about 20 V."""
        return await self.channel.query_flag(":OUTP:INT:TRIP?", idempotent=True)

    async def read(self, timeout_s: float) -> RawReading:
        """Takes one reading."""
        values = await self.channel.query_floats(
            f":READ? {_BUFFER},{_ELEMENTS}", count=_ELEMENT_COUNT, timeout_s=timeout_s
        )
        return self._raw(self._source, values)

    async def run_sweep(
        self, source: SourceKind, levels: Sequence[float], settle_s: float, timeout_s: float
    ) -> list[RawReading]:
        """Runs a list of levels through the trigger model and fetches the readings from the buffer.

        Raises:
            StateError: The output was off when the sweep had ended.
        """
        channel, count = self.channel, len(levels)
        channel.recovery_command = ":ABOR"
        list_name = await self._store_levels(source, levels)
        await channel.write_all(_trigger_model(list_name, count, settle_s))
        first = await self._room_in_buffer(count)
        await channel.write(":INIT", answered_by="*OPC?", timeout_s=timeout_s)
        channel.recovery_command = None
        # The manual counts the state of the output among what lists of levels store; so it is asked, not assumed.
        if not await self.output_is_on():
            raise StateError(f"{channel.name}: the output was off at the end of the sweep; its readings are not used")
        values = await channel.query_floats(
            f":TRAC:DATA? {first},{first + count - 1},{_BUFFER},{_ELEMENTS}",
            count=_ELEMENT_COUNT * count,
            timeout_s=timeout_s,
        )
        starts = range(0, len(values), _ELEMENT_COUNT)
        return [self._raw(source, values[start : start + _ELEMENT_COUNT]) for start in starts]

    async def abandon_sweep(self, source: SourceKind, levels: Sequence[float]) -> None:  # noqa: ARG002 - the contract
        """Aborts the trigger model; the level stays where the sweep left it, and the instrument knows it."""
        self.channel.recovery_command = ":ABOR"
        # An instrument may log that there was nothing to abort; whether the abort helped shows in the next exchange.
        with suppress(InstrumentError):
            await self.channel.write(":ABOR")
        self.channel.recovery_command = None

    async def _store_levels(self, source: SourceKind, levels: Sequence[float]) -> str:
        """Makes the instrument's configuration list of the levels and returns its name."""
        sourced, prefix = SCPI_NAME[source], _LIST_NAME[source]
        if _evenly_spaced(levels):
            automatic = await self.channel.query_flag(f":SOUR:{sourced}:RANG:AUTO?")
            start, stop = format_float(levels[0]), format_float(levels[-1])
            # The range type becomes a setting of each level; BEST would leave a fixed range behind.
            options = f"0,1,{'AUTO' if automatic else 'FIX'},OFF,OFF,{_BUFFER}"
            await self.channel.write(f":SOUR:SWE:{sourced}:LIN {start},{stop},{len(levels)},{options}")
            return f"{prefix}LinearSweepList"
        for start_index in range(0, len(levels), _LIST_PIECE):
            piece = levels[start_index : start_index + _LIST_PIECE]
            head = f":SOUR:LIST:{sourced}{':APP' if start_index else ''}"
            await self.channel.write(f"{head} {','.join(format_float(level) for level in piece)}")
        return f"{prefix}CustomSweepList"

    async def _room_in_buffer(self, count: int) -> int:
        """Makes sure that the buffer takes `count` more readings and returns the index of the first."""
        (taken,) = await self.channel.query_floats(f":TRAC:ACT? {_BUFFER}", count=1)
        (capacity,) = await self.channel.query_floats(f":TRAC:POIN? {_BUFFER}", count=1)
        if taken + count <= capacity:
            return int(taken) + 1
        # A buffer that is full overwrites its oldest readings, and indexes no longer tell which one is which.
        await self.channel.write(f":TRAC:CLE {_BUFFER}")
        return 1

    def _raw(self, source: SourceKind, values: Sequence[float]) -> RawReading:
        sourced, measured, stamp_s, status = values
        if not status.is_integer():
            raise no_reading(self.channel, values, "source, measurement, time and source status")
        voltage_v, current_a = (sourced, measured) if source == "voltage" else (measured, sourced)
        return RawReading(voltage_v, current_a, bool(int(status) & _SOURCE_STATUS_LIMIT), stamp_s)


def _trigger_model(list_name: str, count: int, settle_s: float) -> list[str]:
    """Commands that load: recall the first level; wait, measure; recall the next and again, `count` times in all."""
    delay_s = max(settle_s, _SHORTEST_DELAY_S) if settle_s else 0.0
    return [
        ':TRIG:LOAD "Empty"',
        f':TRIG:BLOC:CONF:REC 1,"{list_name}",1',
        ":TRIG:BLOC:BRAN:ALW 2,4",
        f':TRIG:BLOC:CONF:NEXT 3,"{list_name}"',
        f":TRIG:BLOC:DEL:CONS 4,{format_float(delay_s)}",
        f":TRIG:BLOC:MEAS 5,{_BUFFER},1",
        f":TRIG:BLOC:BRAN:COUN 6,{count},3",
    ]


def _evenly_spaced(levels: Sequence[float]) -> bool:
    """Whether the instrument can make three levels or more out of the first, the last and their number."""
    start, stop, last = levels[0], levels[-1], len(levels) - 1
    step = (stop - start) / last
    return (
        last > 1
        and step != 0.0
        and all(abs(level - (start + index * step)) <= _EVEN * abs(step) for index, level in enumerate(levels))
    )
