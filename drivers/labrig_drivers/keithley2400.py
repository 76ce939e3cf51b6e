"""The Keithley 2400 source-meter, in its own SCPI language.

Commands: 2400 Series SourceMeter User's Manual 2400S-900-01 rev. K, section 18. Never used here: `:MEAS?`, which
switches the output on by itself, and `:READ?` with the output off, which is not answered at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from labrig_drivers.dialect_source_meter import DialectSourceMeter
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection
from labrig_drivers.links.base import Link
from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.scpi import ScpiChannel, format_float
from labrig_drivers.source_meter import SourceKind
from labrig_drivers.source_meter_dialect import (
    SCPI_NAME,
    SCPI_OTHER_NAME,
    Abilities,
    RawReading,
    no_reading,
    scpi_kind,
    scpi_settings,
)
from labrig_drivers.source_meter_settings import ramp_of, reconnect_of, settings_of
from labrig_drivers.source_output import Ramp

# Specifications of the model 2400; other models of the series that can do less refuse by themselves. With auto-zero a
# reading is several conversions of both quantities. The buffer holds 2,500 readings.
_ABILITIES: Final = Abilities(
    max_voltage_v=210.0, max_current_a=1.05, nplc_min=0.01, nplc_max=10.0, conversions_per_reading=6, sweep_points=2500
)
# STAT element of a reading, bit 3: the source is in compliance.
_STAT_COMPLIANCE: Final = 1 << 3
# The most points of a list that one message may carry; the rest is appended.
_LIST_PIECE: Final = 100
_ELEMENTS: Final = "VOLT,CURR,TIME,STAT"
_ELEMENT_COUNT: Final = 4
_SETTINGS: Final = (
    ":SOUR:FUNC",
    ":SOUR:DEL",
    *(f":SOUR:{quantity}:{name}" for quantity in SCPI_NAME.values() for name in ("MODE", "LEV", "RANG", "RANG:AUTO")),
    ":SENS:FUNC",
    ":SENS:FUNC:CONC",
    *(f":SENS:{quantity}:{name}" for quantity in SCPI_NAME.values() for name in ("PROT", "RANG", "RANG:AUTO", "NPLC")),
    ":SYST:RSEN",
    ":OUTP",
    ":FORM:ELEM",
)
_NO_PROTECTION: Final = HostLossProtection(None, "a Keithley 2400 keeps its output on when the host is gone")


class Keithley2400(DialectSourceMeter):
    """One Keithley 2400; keeps the `SourceMeter` contract, see `DialectSourceMeter`.

    Args:
        link: Where the instrument is; this object owns it from now on.
        expected: Identity to insist on. Without a model, one that contains `2400` is insisted on.
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
        name: str = "keithley2400",
        timeout_s: float = 5.0,
        reconnect: Reconnect | None = None,
    ) -> None:
        super().__init__(
            Keithley2400Dialect(ScpiChannel(link, name, timeout_s=timeout_s, reconnect=reconnect)),
            expected=(expected or ExpectedIdentity()).or_model("2400"),
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
    ) -> Keithley2400:
        """Makes the instrument that a rig file names; its one setting is `reconnect_attempts`.

        Raises:
            ConfigError: A setting is unknown or wrong; every fault.
        """
        table = settings_of(settings, name)
        reconnect = reconnect_of(table)
        table.finish()
        return cls(link, expected=expected, name=name, ramp_v_per_s=ramp_of(ramp_v_per_s), reconnect=reconnect)


class Keithley2400Dialect:
    """The 2400's commands; keeps `Dialect`.

    Args:
        channel: The connection.
    """

    abilities = _ABILITIES
    host_loss_protection = _NO_PROTECTION

    def __init__(self, channel: ScpiChannel) -> None:
        self.channel = channel

    @property
    def setting_queries(self) -> dict[str, str]:
        """What asks for each setting (2400S-900-01, section 18)."""
        return scpi_settings(_SETTINGS)

    async def prepare(self) -> None:
        """The 2400 has one language only."""

    async def set_up(self, source: SourceKind, nplc: float, wires: Literal[2, 4]) -> None:
        """Resets and sets everything but limit, level and output."""
        sourced, limited = SCPI_NAME[source], SCPI_OTHER_NAME[source]
        await self.channel.write_all(
            [
                "*RST",
                f":SOUR:FUNC {sourced}",
                f":SOUR:{sourced}:MODE FIX",
                f":SOUR:{sourced}:RANG:AUTO 1",
                ":SENS:FUNC:CONC ON",
                ':SENS:FUNC "VOLT","CURR"',
                f":SENS:{limited}:RANG:AUTO 1",
                f":SENS:CURR:NPLC {format_float(nplc)}",
                f":SYST:RSEN {int(wires == 4)}",
                f":FORM:ELEM {_ELEMENTS}",
            ]
        )

    async def write_limit(self, limited: SourceKind, limit: float) -> None:
        """Sets the compliance limit."""
        await self.channel.write(f":SENS:{SCPI_NAME[limited]}:PROT {format_float(limit)}")

    async def write_ranges(self, source: SourceKind, voltage_v: float | None, current_a: float | None) -> None:
        """Fixes source and measuring range, or makes them automatic."""
        wanted = {"VOLT": voltage_v, "CURR": current_a}
        for subsystem, quantity in (("SOUR", SCPI_NAME[source]), ("SENS", SCPI_OTHER_NAME[source])):
            value = wanted[quantity]
            text = "RANG:AUTO 1" if value is None else f"RANG {format_float(value)}"
            await self.channel.write(f":{subsystem}:{quantity}:{text}")

    async def write_level(self, source: SourceKind, level: float) -> None:
        """Sets the level at once."""
        await self.channel.write(f":SOUR:{SCPI_NAME[source]}:LEV {format_float(level)}")

    async def read_level(self, source: SourceKind) -> float:
        """Asks for the level."""
        (level,) = await self.channel.query_floats(f":SOUR:{SCPI_NAME[source]}:LEV?", count=1, idempotent=True)
        return level

    async def read_source(self) -> SourceKind:
        """Asks what is sourced; ends a sweep that a program left behind, so that the level says what is put out."""
        source = scpi_kind(await self.channel.query(":SOUR:FUNC?", idempotent=True))
        mode = await self.channel.query(f":SOUR:{SCPI_NAME[source]}:MODE?", idempotent=True)
        if not mode.strip().upper().startswith("FIX"):
            await self._end_foreign_sweep(source)
        return source

    async def switch(self, on: bool) -> None:
        """Switches the output."""
        await self.channel.write(f":OUTP {int(on)}")

    async def output_is_on(self) -> bool:
        """Asks for the state of the output."""
        return await self.channel.query_flag(":OUTP?", idempotent=True)

    async def interlock_closed(self) -> bool:
        """Asks whether the output enable line is pulled low (pin 8 of OUTPUT ENABLE): 1 when the source may be on."""
        return await self.channel.query_flag(":OUTP:ENAB:TRIP?", idempotent=True)

    async def read(self, timeout_s: float) -> RawReading:
        """Takes one reading."""
        return self._raw(await self.channel.query_floats(":READ?", count=_ELEMENT_COUNT, timeout_s=timeout_s))

    async def run_sweep(
        self, source: SourceKind, levels: Sequence[float], settle_s: float, timeout_s: float
    ) -> list[RawReading]:
        """Runs a list sweep through the trigger model into the buffer and fetches the buffer.

        Binary fetch exists on GPIB only, so the buffer comes as text.
        """
        channel, sourced, count = self.channel, SCPI_NAME[source], len(levels)
        channel.recovery_command = ":ABOR"
        pieces = [levels[start : start + _LIST_PIECE] for start in range(0, count, _LIST_PIECE)]
        heads = [f":SOUR:LIST:{sourced}", *[f":SOUR:LIST:{sourced}:APP"] * (len(pieces) - 1)]
        await channel.write_all(
            [
                *(
                    f"{head} {','.join(format_float(level) for level in piece)}"
                    for head, piece in zip(heads, pieces, strict=True)
                ),
                f":SOUR:DEL {format_float(settle_s)}",
                ":ARM:COUN 1",
                f":TRIG:COUN {count}",
                ":TRAC:CLE",
                f":TRAC:POIN {count}",
                ":TRAC:FEED SENS",
                ":TRAC:FEED:CONT NEXT",
                f":SOUR:{sourced}:MODE LIST",
            ]
        )
        await channel.write(":INIT", answered_by="*OPC?", timeout_s=timeout_s)
        values = await channel.query_floats(":TRAC:DATA?", count=_ELEMENT_COUNT * count, timeout_s=timeout_s)
        await self._back_to_fixed(source, levels[-1])
        return [self._raw(values[start : start + _ELEMENT_COUNT]) for start in range(0, len(values), _ELEMENT_COUNT)]

    async def abandon_sweep(self, source: SourceKind, levels: Sequence[float]) -> None:
        """Aborts; the number of readings in the buffer tells at which level the source stands."""
        self.channel.recovery_command = ":ABOR"
        await self.channel.write(":ABOR")
        (taken,) = await self.channel.query_floats(":TRAC:POIN:ACT?", count=1)
        await self._back_to_fixed(source, levels[min(int(taken), len(levels) - 1)])

    async def _end_foreign_sweep(self, source: SourceKind) -> None:
        """Ends a sweep of which only the instrument knows; its last reading tells where the source stands."""
        await self.channel.write_all([":ABOR", f":FORM:ELEM {_ELEMENTS}"])
        (taken,) = await self.channel.query_floats(":TRAC:POIN:ACT?", count=1)
        level = await self.read_level(source)
        if taken:
            values = await self.channel.query_floats(":TRAC:DATA?", count=_ELEMENT_COUNT * int(taken))
            voltage_v, current_a = values[-_ELEMENT_COUNT], values[1 - _ELEMENT_COUNT]
            level = voltage_v if source == "voltage" else current_a
        await self._back_to_fixed(source, level)

    async def _back_to_fixed(self, source: SourceKind, level: float) -> None:
        # The fixed level first: it appears as soon as the mode is fixed again. A count of 1 is what `:READ?` needs.
        await self.write_level(source, level)
        fixed = f":SOUR:{SCPI_NAME[source]}:MODE FIX"
        await self.channel.write_all([fixed, ":SOUR:DEL:AUTO 1", ":TRIG:COUN 1", ":TRAC:FEED:CONT NEV"])
        self.channel.recovery_command = None

    def _raw(self, values: Sequence[float]) -> RawReading:
        voltage_v, current_a, stamp_s, status = values
        if not status.is_integer():
            raise no_reading(self.channel, values, "voltage, current, time and status")
        return RawReading(voltage_v, current_a, bool(int(status) & _STAT_COMPLIANCE), stamp_s)
