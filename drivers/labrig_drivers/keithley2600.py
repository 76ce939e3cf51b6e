"""The Keithley 2600 source-meters (2600, 2600A, 2600B), in TSP, which is Lua 5.0 inside the instrument.

Commands: Series 2600B reference manual 2600BS-901-01, "TSP command reference" and "Functions and features". Each of
the two channels is a source-meter of its own; both may be used over one link, see `SharedLink`. Never used here:
`reset()` and `*RST`, which would reset the other channel too.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final, Literal

from labrig_drivers.dialect_source_meter import DialectSourceMeter
from labrig_drivers.errors import ProtocolError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection
from labrig_drivers.links.base import Link
from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.scpi import format_float, parse_float
from labrig_drivers.source_meter import SourceKind
from labrig_drivers.source_meter_dialect import Abilities, RawReading, no_reading
from labrig_drivers.source_meter_settings import ramp_of, reconnect_of, settings_of
from labrig_drivers.source_output import Ramp
from labrig_drivers.tsp import TspChannel
from labrig_drivers.tsp_guard import GuardRule

ChannelName = Literal["a", "b"]

# Specifications of the 40 V family (2601, 2602, 2604), with 1 % beyond the largest range; a reading is several
# conversions of one integration time (zero and reference, and one more for every range that is tried).
_ABILITIES_40_V: Final = Abilities(
    max_voltage_v=40.4, max_current_a=3.03, nplc_min=0.001, nplc_max=25.0, conversions_per_reading=12, sweep_points=5000
)
_ABILITIES_200_V: Final = replace(_ABILITIES_40_V, max_voltage_v=202.0, max_current_a=1.515)
_SUFFIX: Final[dict[SourceKind, str]] = {"voltage": "v", "current": "i"}
_OTHER_SUFFIX: Final[dict[SourceKind, str]] = {"voltage": "i", "current": "v"}
_FUNCTION: Final[dict[SourceKind, str]] = {"voltage": "OUTPUT_DCVOLTS", "current": "OUTPUT_DCAMPS"}
# bufferVar.statuses: bit 6 is "source function in compliance".
_STATUS_COMPLIANCE: Final = 0x40
# status.measurement.instrument.smuX.condition: bit 11 is the interlock line (200 V models) or the output enable line
# (40 V models). That it is set while the line is asserted, which allows the output, is unconfirmed.
_CONDITION_INTERLOCK: Final = 1 << 11
_LEVELS_PER_LINE: Final = 10
_COLUMNS: Final = ("nvbuffer2.readings", "nvbuffer1.readings", "nvbuffer1.statuses", "nvbuffer1.timestamps")
_DOUBLE_BYTES: Final = 8
_SETTINGS: Final = (
    "source.func",
    "source.output",
    *(f"source.{name}{suffix}" for suffix in _SUFFIX.values() for name in ("level", "limit", "range", "autorange")),
    *(f"measure.{name}{suffix}" for suffix in _SUFFIX.values() for name in ("range", "autorange")),
    "measure.nplc",
    "sense",
)
_NOT_ARMED: Final = HostLossProtection(
    None,
    "a Keithley 2600 keeps its output on when the host is gone; `settings.host_loss_s` arms a script that ramps down",
)


class Keithley2600(DialectSourceMeter):
    """One channel of a Keithley 2600; keeps the `SourceMeter` contract, see `DialectSourceMeter`.

    With `host_loss_s`, a script inside the instrument ramps the output down and switches it off when the host was
    not heard for that long, see `tsp_guard`: this was run on the simulator only, never on a real instrument. The
    host is heard whenever it uses one of the instrument's channels, and by itself several times in that time, so
    choose it longer than this process's event loop may ever be blocked.

    Args:
        link: Where the instrument is; this object owns it from now on. A `SharedLink` may be given to both channels.
        channel: Which of the instrument's channels.
        expected: Identity to insist on. Without a model, one that contains `Model 26` is insisted on.
        ramp_v_per_s: Fastest change of the level in V/s while the output is on.
        ramp_step_v: Largest single step of the level in V while the output is on.
        host_loss_s: Time in s without the host after which the output is to be off; None guards nothing.
        name: What messages call the instrument.
        timeout_s: Deadline in s of one exchange, readings and sweeps aside.
        reconnect: How idempotent queries are asked again after a link failed; None asks once.

    Raises:
        ValueError: Ramp rate, ramp step or `host_loss_s` is not positive, or there is no such channel.
    """

    shares_link: ClassVar[bool] = True
    """Two of them may be given the same `SharedLink`, one for each channel."""

    def __init__(
        self,
        link: Link,
        *,
        channel: ChannelName = "a",
        expected: ExpectedIdentity | None = None,
        ramp_v_per_s: float = 1.0,
        ramp_step_v: float = 0.05,
        host_loss_s: float | None = None,
        name: str = "keithley2600",
        timeout_s: float = 5.0,
        reconnect: Reconnect | None = None,
    ) -> None:
        ramp = Ramp(ramp_v_per_s, ramp_step_v)
        tsp = TspChannel(link, name, timeout_s=timeout_s, reconnect=reconnect, patience_s=host_loss_s or 0.0)
        super().__init__(
            Keithley2600Dialect(tsp, channel, _guard_rule(host_loss_s, ramp)),
            expected=(expected or ExpectedIdentity()).or_model("Model 26"),
            ramp=ramp,
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
    ) -> Keithley2600:
        """Makes the instrument that a rig file names; its settings: `channel`, `host_loss_s`, `reconnect_attempts`.

        Raises:
            ConfigError: A setting is unknown or wrong; every fault.
        """
        table = settings_of(settings, name)
        channel: ChannelName = "b" if table.choice("channel", "a", ("a", "b")) == "b" else "a"
        host_loss_s = table.positive("host_loss_s", 1.0)
        silent = not table.has("host_loss_s")
        reconnect = reconnect_of(table)
        table.finish()
        return cls(
            link,
            channel=channel,
            expected=expected,
            ramp_v_per_s=ramp_of(ramp_v_per_s),
            host_loss_s=None if silent else host_loss_s,
            name=name,
            reconnect=reconnect,
        )


class Keithley2600Dialect:
    """The commands of one channel; keeps `Dialect`.

    Args:
        channel: The connection.
        smu: Which channel.
        guard: How the channel is guarded against the loss of the host while its output is on; None for not at all.
    """

    def __init__(self, channel: TspChannel, smu: ChannelName, guard: GuardRule | None) -> None:
        if smu not in {"a", "b"}:
            raise ValueError(f"channel {smu!r} is neither 'a' nor 'b'")
        self.channel = channel
        self._channel_name = smu
        self._smu = f"smu{smu}"
        self._guard = guard
        # The largest voltage that was set since the last reset: a guard's ramp may start there.
        self._highest_v = 0.0

    @property
    def abilities(self) -> Abilities:
        """Those of the model's family: 40 V or 200 V."""
        model = self.channel.identity.model.removeprefix("Model ")
        return _ABILITIES_40_V if model.startswith("260") else _ABILITIES_200_V

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What is armed right now."""
        if self._guard is None:
            return _NOT_ARMED
        if self._channel_name not in self.channel.guarded:
            return HostLossProtection(
                None, f"a script in the instrument is armed with the output ({self._guard.silence_s:g} s), not before"
            )
        off_after_s = self._guard.off_after_s(self._highest_v)
        return HostLossProtection(
            off_after_s,
            f"armed: a script in the instrument ramps down and switches off within {off_after_s:g} s of the host's "
            "last word, or of the end of a sweep under way; run on a simulator only",
        )

    @property
    def setting_queries(self) -> dict[str, str]:
        """What asks for each setting (2600BS-901-01, section 9)."""
        names = [f"{self._smu}.{name}" for name in _SETTINGS]
        return {name: f"print({name})" for name in names}

    async def prepare(self) -> None:
        """Checks that the model has this channel.

        Raises:
            StateError: It has not.
        """
        answer = await self.channel.query(f"print(localnode.model, {self._smu} ~= nil)")
        model, _, has_channel = answer.partition("\t")
        if has_channel != "true":
            raise StateError(f"{self.channel.name}: a {model} at {self.channel.address} has no channel {self._smu!r}")

    async def set_up(self, source: SourceKind, nplc: float, wires: Literal[2, 4]) -> None:
        """Resets this channel only and sets everything but limit, level and output."""
        smu, limited = self._smu, _OTHER_SUFFIX[source]
        await self.channel.write_all(
            [
                f"{smu}.reset()",
                f"{smu}.source.func = {smu}.{_FUNCTION[source]}",
                f"{smu}.source.autorange{_SUFFIX[source]} = {smu}.AUTORANGE_ON",
                f"{smu}.measure.autorange{limited} = {smu}.AUTORANGE_ON",
                f"{smu}.measure.nplc = {format_float(nplc)}",
                f"{smu}.sense = {smu}.{'SENSE_REMOTE' if wires == 4 else 'SENSE_LOCAL'}",
                # The format is the instrument's, not the channel's; both channels want the same.
                "format.asciiprecision = 16",
                "format.data = format.REAL64",
                "format.byteorder = format.LITTLEENDIAN",
            ]
        )
        self._highest_v = 0.0

    async def write_limit(self, limited: SourceKind, limit: float) -> None:
        """Sets the compliance limit."""
        await self.channel.write(f"{self._smu}.source.limit{_SUFFIX[limited]} = {format_float(limit)}")

    async def write_ranges(self, source: SourceKind, voltage_v: float | None, current_a: float | None) -> None:
        """Fixes source and measuring range, or makes them automatic."""
        wanted = {"v": voltage_v, "i": current_a}
        for subsystem, suffix in (("source", _SUFFIX[source]), ("measure", _OTHER_SUFFIX[source])):
            value = wanted[suffix]
            head = f"{self._smu}.{subsystem}"
            automatic = f"{head}.autorange{suffix} = {self._smu}.AUTORANGE_ON"
            fixed = "" if value is None else f"{head}.range{suffix} = {format_float(value)}"
            await self.channel.write(fixed or automatic)

    async def write_level(self, source: SourceKind, level: float) -> None:
        """Sets the level at once."""
        self._note_levels(source, [level])
        await self.channel.write(f"{self._smu}.source.level{_SUFFIX[source]} = {format_float(level)}")

    async def read_level(self, source: SourceKind) -> float:
        """Asks for the level."""
        text = f"print({self._smu}.source.level{_SUFFIX[source]})"
        (level,) = await self.channel.query_fields(text, count=1, idempotent=True)
        return level

    async def read_source(self) -> SourceKind:
        """Asks what is sourced."""
        in_volts = f"{self._smu}.source.func == {self._smu}.OUTPUT_DCVOLTS"
        return "voltage" if await self.channel.query_flag(in_volts, idempotent=True) else "current"

    async def switch(self, on: bool) -> None:
        """Switches the output; the guard is there before the output is on, and goes after it is off."""
        if on and self._guard is not None:
            await self.channel.guard(self._channel_name, self._guard)
        await self.channel.write(f"{self._smu}.source.output = {int(on)}")
        if not on and self._channel_name in self.channel.guarded:
            await self.channel.guard(self._channel_name, None)

    async def output_is_on(self) -> bool:
        """Asks for the state of the output."""
        return await self.channel.query_flag(f"{self._smu}.source.output", idempotent=True)

    async def interlock_closed(self) -> bool:
        """Asks for the interlock line of 200 V models, or the output enable line of 40 V models."""
        text = f"print(status.measurement.instrument.{self._smu}.condition)"
        (condition,) = await self.channel.query_fields(text, count=1, idempotent=True)
        if not condition.is_integer():
            raise ProtocolError(
                f"{self.channel.name}: the interlock register was answered {condition:g}, no whole number"
            )
        return bool(int(condition) & _CONDITION_INTERLOCK)

    async def read(self, timeout_s: float) -> RawReading:
        """Takes one reading, with the instrument's timer as its stamp."""
        values = await self.channel.query_fields(
            f"do local i, v = {self._smu}.measure.iv() "
            f"print(v, i, {self._smu}.source.compliance, timer.measure.t()) end",
            count=4,
            timeout_s=timeout_s,
        )
        voltage_v, current_a, in_compliance, time_s = values
        if in_compliance not in {0.0, 1.0}:
            raise no_reading(self.channel, values, "voltage, current, compliance and time")
        return RawReading(voltage_v, current_a, in_compliance == 1.0, time_s)

    async def run_sweep(
        self, source: SourceKind, levels: Sequence[float], settle_s: float, timeout_s: float
    ) -> list[RawReading]:
        """Runs a script over a table of levels into both buffers and fetches them as doubles."""
        channel, smu, points = self.channel, self._smu, len(levels)
        self._note_levels(source, levels)
        await channel.run_script(
            _sweep_script(smu, _SUFFIX[source], levels, settle_s), f"a sweep of {points} levels", timeout_s=timeout_s
        )
        taken, first_s = await channel.query_fields(f"print({smu}.nvbuffer1.n, labrig_first_s)", count=2)
        if taken != points:
            raise ProtocolError(f"{channel.name}: a sweep of {points} levels left {taken:g} readings in the buffer")
        columns = ", ".join(f"{smu}.{column}" for column in _COLUMNS)
        data_bytes = points * len(_COLUMNS) * _DOUBLE_BYTES
        data = await channel.fetch(f"printbuffer(1, {points}, {columns})", data_bytes=data_bytes, timeout_s=timeout_s)
        return [
            self._raw(voltage_v, current_a, status, first_s + time_s)
            for voltage_v, current_a, status, time_s in struct.iter_unpack("<4d", data)
        ]

    async def abandon_sweep(self, source: SourceKind, levels: Sequence[float]) -> None:  # noqa: ARG002
        """A link out of step is brought back by aborting the script; the level stays where the script left it."""
        await self.channel.drain_errors()

    def _note_levels(self, source: SourceKind, levels: Sequence[float]) -> None:
        if source == "voltage":
            self._highest_v = max(self._highest_v, *(abs(level) for level in levels))

    def _raw(self, voltage_v: float, current_a: float, status: float, time_s: float) -> RawReading:
        wrong = no_reading(self.channel, (voltage_v, current_a, status, time_s), "voltage, current, status and time")
        try:
            # Through the text, so that the reserved numbers mean the same as in text answers.
            voltage_v, current_a = parse_float(repr(voltage_v)), parse_float(repr(current_a))
        except ProtocolError:
            raise wrong from None
        if not status.is_integer():
            raise wrong
        return RawReading(voltage_v, current_a, bool(int(status) & _STATUS_COMPLIANCE), time_s)


def _guard_rule(host_loss_s: float | None, ramp: Ramp) -> GuardRule | None:
    if host_loss_s is None:
        return None
    if not host_loss_s > 0.0:
        raise ValueError(f"host_loss_s of {host_loss_s} s must be positive")
    return GuardRule(host_loss_s, ramp.voltage_step_v, ramp.pause_s, ramp.current_steps)


def _sweep_script(smu: str, suffix: str, levels: Sequence[float], settle_s: float) -> list[str]:
    """Lines of Lua 5.0 that visit the levels and read current into buffer 1 and voltage into buffer 2."""
    pieces = [levels[start : start + _LEVELS_PER_LINE] for start in range(0, len(levels), _LEVELS_PER_LINE)]
    buffers = (f"{smu}.nvbuffer1", f"{smu}.nvbuffer2")
    return [
        "local levels = {",
        *(", ".join(format_float(level) for level in piece) + "," for piece in pieces),
        "}",
        *(f"{buffer}.clear()" for buffer in buffers),
        # Without it, each reading would throw away the ones before.
        *(f"{buffer}.appendmode = 1" for buffer in buffers),
        *(f"{buffer}.collecttimestamps = 1" for buffer in buffers),
        "for index, level in ipairs(levels) do",
        f"{smu}.source.level{suffix} = level",
        *([f"delay({format_float(settle_s)})"] if settle_s else []),
        f"{smu}.measure.iv({', '.join(buffers)})",
        # Stamps in the buffer count from its first reading; with this they count as those of single readings do.
        "if index == 1 then labrig_first_s = timer.measure.t() end",
        "end",
    ]
