"""The Keysight (Agilent) B2900 source-meters, one channel each: B2901A/B, B2902A/B, B2911A/B, B2912A/B and B2910BL.

Commands: B2900 Series SCPI Command Reference B2910-90030, sections 1 ("Data Output Format"), 2 and 4; where a page of
it could not be read, the B2961A/B2962A SCPI Command Reference B2961-90030 (same language), and what public drivers
send. The decisions that the manuals leave open:

- No `*RST`: it would reset, and switch off without a ramp, the other channel of a two-channel model, which another
  object may be using. `set_up` sets instead, one by one, everything of its own channel that could change a reading
  or an output behind our back.
- Results always come as big-endian doubles in an IEEE 488.2 block (`:FORM:DATA REAL,64`), single readings too: this
  setting belongs to both channels, so it never changes, and text would carry seven digits only.
- Every sweep is a list (`MODE LIST`), also an evenly spaced one: its levels are then exactly those that were asked for.
- With a fixed source range a sweep keeps it (`:SWE:RANG FIX`); otherwise the instrument finds one for all levels.
"""

from __future__ import annotations

import asyncio
import math
import re
import struct
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

from labrig_drivers.dialect_source_meter import DialectSourceMeter
from labrig_drivers.errors import IdentityError, LinkTimeoutError, ProtocolError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection
from labrig_drivers.links.base import Link
from labrig_drivers.links.link_user import LinkUser
from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.links.shared import SharedLink
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
from labrig_drivers.wording import counted

# DC limits of the series. The integration time is what mains of 50 Hz and of 60 Hz both allow; the instrument does not
# refuse others but takes the nearest it has. A reading converts voltage and current, again after a change of range.
_ABILITIES: Final = Abilities(
    max_voltage_v=210.0,
    max_current_a=3.03,
    nplc_min=4.8e-4,
    nplc_max=100.0,
    conversions_per_reading=6,
    sweep_points=2500,
)
# B2901A to B2912B and B2910BL; not the B2960 (sources that do not measure alike) nor the B2980 (electrometers).
_MODEL: Final = re.compile(r"B29[01](\d)\w*")
# The answer's order is the instrument's, whatever order is asked for.
_ELEMENTS: Final = "VOLT,CURR,TIME,STAT"
_ELEMENT_COUNT: Final = 4
# Status of a reading (table 1-2): bits 1 and 2 are zero when it was not in compliance.
_STATUS_COMPLIANCE: Final = 0b110
_LIST_PIECE: Final = 100
_POLL_S: Final = 0.02
_NAN: Final = 9.91e37
_OVERFLOW: Final = 9.9e37
_SETTINGS: Final = (
    ("SOUR", "FUNC:MODE"),
    ("SOUR", "FUNC:SHAP"),
    ("SOUR", "FUNC:TRIG:CONT"),
    *(
        ("SOUR", f"{quantity}{name}")
        for quantity in SCPI_NAME.values()
        for name in (":MODE", "", ":RANG", ":RANG:AUTO")
    ),
    ("SENS", "FUNC"),
    ("SENS", "REM"),
    *(
        ("SENS", f"{quantity}:{name}")
        for quantity in SCPI_NAME.values()
        for name in ("PROT", "RANG", "RANG:AUTO", "NPLC")
    ),
    ("OUTP", "STAT"),
    ("OUTP", "PROT"),
)
_NO_PROTECTION: Final = HostLossProtection(None, "a Keysight B2900 keeps its output on when the host is gone")


class KeysightB2900(DialectSourceMeter):
    """One channel of a Keysight B2900; keeps the `SourceMeter` contract, see `DialectSourceMeter`.

    Two channels of one instrument are two objects on one connection: give both the same `SharedLink`. Their settings
    are their own; error queue, number format and time stamp are the instrument's. While one channel sweeps, the other
    one waits.

    `configure()` switches off what would move the output by itself: the automatic switching on at a measurement
    (`:OUTP:ON:AUTO`), off after it (`:OUTP:OFF:AUTO`), and off at compliance (`:OUTP:PROT`; the limit still limits).
    Low terminal, off mode, output filter and high-capacitance mode stay as they were set by hand.

    `Reading.instrument_time_s` counts from the instrument's power-on, or from when somebody last reset its timer.

    Args:
        link: Where the instrument is; this object owns it from now on, or shares a `SharedLink` with the other channel.
        channel: 1, or 2 of a two-channel model.
        expected: Identity to insist on; whatever it says, only a model of the series is accepted.
        ramp_v_per_s: Fastest change of the level in V/s while the output is on.
        ramp_step_v: Largest single step of the level in V while the output is on.
        name: What messages call the instrument.
        timeout_s: Deadline in s of one exchange, readings and sweeps aside.
        reconnect: How idempotent queries are asked again after a link failed; None asks once.

    Raises:
        ValueError: There is no such channel; ramp rate or step is not positive.
    """

    shares_link: ClassVar[bool] = True

    def __init__(
        self,
        link: Link,
        *,
        channel: int = 1,
        expected: ExpectedIdentity | None = None,
        ramp_v_per_s: float = 1.0,
        ramp_step_v: float = 0.05,
        name: str = "keysight-b2900",
        timeout_s: float = 5.0,
        reconnect: Reconnect | None = None,
    ) -> None:
        if channel not in {1, 2}:
            raise ValueError(f"{name}: channel {channel}: a Keysight B2900 has channels 1 and 2")
        own = LinkUser(link) if isinstance(link, SharedLink) else link
        super().__init__(
            KeysightB2900Dialect(ScpiChannel(own, name, timeout_s=timeout_s, reconnect=reconnect), channel),
            expected=(expected or ExpectedIdentity()).or_model("B29"),
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
    ) -> KeysightB2900:
        """Makes the instrument that a rig file names; its settings: `channel` (1 or 2), `reconnect_attempts`.

        Raises:
            ConfigError: A setting is unknown or wrong; every fault.
        """
        table = settings_of(settings, name)
        channel = table.whole("channel", 1, low=1)
        if channel > 2:
            table.faults.append(f"{table.where}.channel: {channel} is neither 1 nor 2")
        reconnect = reconnect_of(table)
        table.finish()
        return cls(
            link, channel=channel, expected=expected, name=name, ramp_v_per_s=ramp_of(ramp_v_per_s), reconnect=reconnect
        )


class KeysightB2900Dialect:
    """The commands of one channel; keeps `Dialect`.

    Args:
        channel: The connection.
        number: Which channel of the instrument: 1 or 2.
    """

    abilities = _ABILITIES
    host_loss_protection = _NO_PROTECTION

    def __init__(self, channel: ScpiChannel, number: int) -> None:
        self.channel = channel
        self._number = number
        self._abort = f":ABOR:ALL (@{number})"

    @property
    def setting_queries(self) -> dict[str, str]:
        """What asks for each setting (B2910-90030, section 4)."""
        return scpi_settings([self._own(subsystem, header) for subsystem, header in _SETTINGS])

    async def prepare(self) -> None:
        """Checks that it is a B2900, has this channel and speaks its own language, not the 2400's.

        Raises:
            IdentityError: It is another model, or has no such channel.
            StateError: It does not understand its own commands.
        """
        identity, address = self.channel.identity, self.channel.address
        match = _MODEL.fullmatch(identity.model)
        if match is None or (self._number == 2 and match[1] != "2"):
            wanted = "a B2900 with two channels (B2902, B2912)" if self._number == 2 else "a B2900 source-meter"
            raise IdentityError(wanted, f"model {identity.model!r}", address)
        try:
            # Older firmware does not know the question for the language, but all know this one, in their own language.
            await self.channel.query_flag(self._own("OUTP", "ON:AUTO?"))
        except LinkTimeoutError as error:
            raise StateError(
                f"{self.channel.name} at {address}: it does not answer {self._own('OUTP', 'ON:AUTO?')!r}, as one that "
                "imitates a 2400 would not; set its language to the default in its system settings, then open it again"
            ) from error

    async def set_up(self, source: SourceKind, nplc: float, wires: Literal[2, 4]) -> None:
        """Sets everything of this channel but limit and output; both levels become zero."""
        sourced, limited, own = SCPI_NAME[source], SCPI_OTHER_NAME[source], self._own
        await self.channel.write_all(
            [
                # First what would switch the output on at the first trigger.
                own("OUTP", "ON:AUTO 0"),
                self._abort,
                own("OUTP", "OFF:AUTO 0"),
                own("OUTP", "PROT 0"),
                own("SOUR", f"FUNC:MODE {sourced}"),
                own("SOUR", "FUNC:SHAP DC"),
                # Else the output returns to the level of before at the end of a sweep, in one step.
                own("SOUR", "FUNC:TRIG:CONT 1"),
                own("SOUR", f"{sourced}:MODE FIX"),
                own("SOUR", f"{sourced}:RANG:AUTO 1"),
                own("SOUR", "SWE:RANG BEST"),
                own("SOUR", "SWE:DIR UP"),
                own("SOUR", "VOLT 0.0"),
                own("SOUR", "CURR 0.0"),
                own("ARM", "ALL:SOUR AINT"),
                own("ARM", "ALL:COUN 1"),
                own("ARM", "ALL:DEL 0.0"),
                own("TRIG", "ALL:SOUR AINT"),
                own("TRIG", "ALL:COUN 1"),
                own("TRIG", "ALL:DEL 0.0"),
                # A resistance measurement in automatic mode would choose source and level itself.
                own("SENS", "FUNC:OFF:ALL"),
                own("SENS", 'FUNC "VOLT","CURR"'),
                own("SENS", f"{limited}:RANG:AUTO 1"),
                own("SENS", "CURR:NPLC:AUTO 0"),
                own("SENS", f"CURR:NPLC {format_float(nplc)}"),
                own("SENS", f"REM {int(wires == 4)}"),
                f":FORM:ELEM:SENS {_ELEMENTS}",
                ":FORM:DATA REAL,64",
                ":FORM:BORD NORM",
                # One zero for all stamps, not a new one at each measurement.
                ":SYST:TIME:TIM:COUN:RES:AUTO 0",
            ]
        )

    async def write_limit(self, limited: SourceKind, limit: float) -> None:
        """Sets the compliance limit, for both polarities."""
        await self.channel.write(self._own("SENS", f"{SCPI_NAME[limited]}:PROT {format_float(limit)}"))

    async def write_ranges(self, source: SourceKind, voltage_v: float | None, current_a: float | None) -> None:
        """Fixes source and measuring range, or makes them automatic."""
        wanted = {"VOLT": voltage_v, "CURR": current_a}
        for subsystem, quantity in (("SOUR", SCPI_NAME[source]), ("SENS", SCPI_OTHER_NAME[source])):
            value = wanted[quantity]
            # A range takes effect only while the automatic choice is off.
            await self.channel.write(self._own(subsystem, f"{quantity}:RANG:AUTO {int(value is None)}"))
            if value is not None:
                await self.channel.write(self._own(subsystem, f"{quantity}:RANG {format_float(value)}"))
        ranging = "BEST" if wanted[SCPI_NAME[source]] is None else "FIX"
        await self.channel.write(self._own("SOUR", f"SWE:RANG {ranging}"))

    async def write_level(self, source: SourceKind, level: float) -> None:
        """Sets the level at once."""
        await self.channel.write(self._own("SOUR", f"{SCPI_NAME[source]} {format_float(level)}"))

    async def read_level(self, source: SourceKind) -> float:
        """Asks for the level; a sweep does not set it."""
        query = self._own("SOUR", f"{SCPI_NAME[source]}?")
        (level,) = await self.channel.query_floats(query, count=1, idempotent=True)
        return level

    async def read_source(self) -> SourceKind:
        """Asks what is sourced; ends a sweep that a program left behind, so that the level says what is put out."""
        source = scpi_kind(await self.channel.query(self._own("SOUR", "FUNC:MODE?"), idempotent=True))
        await self._end_sweep(source)
        return source

    async def switch(self, on: bool) -> None:
        """Switches the output."""
        await self.channel.write(f":OUTP{self._number} {int(on)}")

    async def output_is_on(self) -> bool:
        """Asks for the state of the output."""
        return await self.channel.query_flag(f":OUTP{self._number}?", idempotent=True)

    async def interlock_closed(self) -> bool:
        """Asks whether the interlock circuit is closed; open, the instrument gives no more than 42 V.

        The answer is 0 for closed: as public drivers have it; the manual's own page could not be read.
        """
        return not await self.channel.query_flag(":SYST:INT:TRIP?", idempotent=True)

    async def read(self, timeout_s: float) -> RawReading:
        """Takes one reading."""
        (reading,) = self._readings(await self._query_doubles(f":MEAS? (@{self._number})", timeout_s), 1)
        return reading

    async def run_sweep(
        self, source: SourceKind, levels: Sequence[float], settle_s: float, timeout_s: float
    ) -> list[RawReading]:
        """Runs a list sweep and fetches its readings in one block: voltage, current, time, status of each level.

        Raises:
            ProtocolError: The instrument gave another number of readings, or did not end.
        """
        channel, own, sourced, count = self.channel, self._own, SCPI_NAME[source], len(levels)
        channel.recovery_command = self._abort
        commands = []
        for start in range(0, count, _LIST_PIECE):
            piece = ",".join(format_float(level) for level in levels[start : start + _LIST_PIECE])
            commands.append(own("SOUR", f"LIST:{sourced}{':APP' if start else ''} {piece}"))
        await channel.write_all(
            [
                *commands,
                # What is in the memory tells an interrupted sweep how far it came: nothing yet.
                own("SENS", "DATA:CLE"),
                own("TRIG", f"ALL:COUN {count}"),
                own("TRIG", f"ACQ:DEL {format_float(settle_s)}"),
                own("SOUR", f"{sourced}:MODE LIST"),
            ]
        )
        await channel.write(f":INIT (@{self._number})", answered_by="*OPC?", timeout_s=timeout_s)
        # Counted from here: on a slow line or machine, sending the list may take as long as the sweep.
        await self._wait_until_idle(time.monotonic() + timeout_s)
        values = await self._query_doubles(f":FETC:ARR? (@{self._number})", timeout_s)
        await self._back_to_fixed(source, levels[-1])
        return self._readings(values, count)

    async def abandon_sweep(self, source: SourceKind, levels: Sequence[float]) -> None:  # noqa: ARG002 - the contract
        """Aborts; the last reading in the memory tells at which level the source stands."""
        await self._end_sweep(source)

    async def _end_sweep(self, source: SourceKind) -> None:
        """Ends whatever sweep the channel is in; the level becomes that of the sweep's last reading."""
        mode = (await self.channel.query(self._own("SOUR", f"{SCPI_NAME[source]}:MODE?"), idempotent=True)).strip()
        if mode.upper().startswith("FIX"):
            self.channel.recovery_command = None
            return
        self.channel.recovery_command = self._abort
        # The format may be another program's.
        await self.channel.write_all([self._abort, ":FORM:DATA REAL,64", ":FORM:BORD NORM"])
        answer = await self._query_doubles(f":FETC:ARR:SOUR? (@{self._number})", None)
        taken = [level for level in answer if math.isfinite(level)]
        # Unconfirmed: that an aborted sweep, like one that has ended, leaves its last level at the output.
        await self._back_to_fixed(source, taken[-1] if taken else await self.read_level(source))

    async def _back_to_fixed(self, source: SourceKind, level: float) -> None:
        # The fixed level first: it appears as soon as the mode is fixed again.
        await self.write_level(source, level)
        settings = (("SOUR", f"{SCPI_NAME[source]}:MODE FIX"), ("TRIG", "ACQ:DEL 0.0"), ("TRIG", "ALL:COUN 1"))
        await self.channel.write_all([self._own(*setting) for setting in settings])
        self.channel.recovery_command = None

    async def _wait_until_idle(self, deadline_s: float) -> None:
        """Asks until the channel is idle: it is not certain that `*OPC?` waits for measurements."""
        query = f":IDLE{self._number}:ALL?"
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0.0:
                raise ProtocolError(f"{self.channel.name} at {self.channel.address}: its sweep does not end")
            # The instrument may also keep the answer back until it is idle.
            if (await self.channel.query(query, timeout_s=left_s)).strip().lstrip("+") == "1":
                return
            await asyncio.sleep(_POLL_S)

    async def _query_doubles(self, query: str, timeout_s: float | None) -> list[float]:
        data = await self.channel.query_block(query, timeout_s=timeout_s)
        if len(data) % 8:
            raise self.channel.distrust(f"{query!r} was answered with {len(data)} bytes, not with doubles")
        return [_number(value) for (value,) in struct.iter_unpack(">d", data)]

    def _readings(self, values: Sequence[float], count: int) -> list[RawReading]:
        if len(values) != _ELEMENT_COUNT * count:
            wanted = f"{_ELEMENT_COUNT} for each of {counted(count, 'reading')}"
            raise ProtocolError(f"{self.channel.name}: {len(values)} numbers came, not {wanted}")
        groups = (values[start : start + _ELEMENT_COUNT] for start in range(0, len(values), _ELEMENT_COUNT))
        return [self._raw(group) for group in groups]

    def _raw(self, values: Sequence[float]) -> RawReading:
        voltage_v, current_a, stamp_s, status = values
        if not (math.isfinite(stamp_s) and status.is_integer()):
            raise no_reading(self.channel, values, "voltage, current, time, status")
        return RawReading(voltage_v, current_a, bool(int(status) & _STATUS_COMPLIANCE), stamp_s)

    def _own(self, subsystem: str, rest: str) -> str:
        """A command of this channel."""
        return f":{subsystem}{self._number}:{rest}"


def _number(value: float) -> float:
    """9.91e37 becomes NaN, plus or minus 9.9e37 infinite: blocks may hold SCPI's numbers as well as IEEE's own."""
    if value == _NAN:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) == _OVERFLOW else value
