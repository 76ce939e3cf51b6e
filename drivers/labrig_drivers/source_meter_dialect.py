"""What one model of source-meter says and hears: everything in which source-meters differ.

`DialectSourceMeter` keeps the promises that are the same for all of them (order, ramps, off whatever happens); a
dialect turns each step into the model's own commands. A dialect is called by one task at a time, inside the
channel's `exclusive()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from labrig_drivers.errors import ProtocolError
from labrig_drivers.instrument import HostLossProtection, Identity
from labrig_drivers.source_meter import SourceKind

OTHER_KIND: Final[dict[SourceKind, SourceKind]] = {"voltage": "current", "current": "voltage"}
"""The quantity that is limited and measured, by the one that is sourced."""
SCPI_NAME: Final[dict[SourceKind, str]] = {"voltage": "VOLT", "current": "CURR"}
"""What SCPI calls each quantity, in its short form."""
SCPI_OTHER_NAME: Final = {kind: SCPI_NAME[other] for kind, other in OTHER_KIND.items()}
"""What SCPI calls the quantity that is limited and measured, by the one that is sourced."""


def scpi_kind(answer: str) -> SourceKind:
    """The quantity that SCPI names in an answer, in short or long form."""
    return "current" if answer.strip().upper().startswith("CURR") else "voltage"


def no_reading(channel: Channel, values: Sequence[float], wanted: str) -> ProtocolError:
    """The error for numbers that make no reading.

    Args:
        channel: Where they came from.
        values: The numbers, in the order of the answer.
        wanted: What they should have been, in that order.
    """
    numbers = ", ".join(f"{value:g}" for value in values)
    return ProtocolError(f"{channel.name} at {channel.address}: {numbers} is no reading of {wanted}")


def scpi_settings(headers: Sequence[str]) -> dict[str, str]:
    """What asks for each setting of SCPI, by its header."""
    return {header: f"{header}?" for header in headers}


@dataclass(frozen=True)
class Abilities:
    """What a model can do at most; requests beyond it are refused before anything is sent.

    Attributes:
        max_voltage_v: Largest source level and limit in V, either sign.
        max_current_a: Largest source level and limit in A, either sign.
        nplc_min: Shortest integration time in power line cycles.
        nplc_max: Longest integration time in power line cycles.
        conversions_per_reading: Conversions of `nplc` that one reading takes at most, for deadlines.
        sweep_points: Longest sweep that the instrument runs by itself; 0 for none.
    """

    max_voltage_v: float
    max_current_a: float
    nplc_min: float
    nplc_max: float
    conversions_per_reading: int
    sweep_points: int


@dataclass(frozen=True)
class RawReading:
    """One reading as the instrument gives it; the fields are those of `Reading` without the host's time.

    Attributes:
        voltage_v: Voltage at the output in V.
        current_a: Current out of the instrument in A.
        in_compliance: True when the limit, not the level, determines the output.
        instrument_time_s: The instrument's own stamp in s; None where it gives none.
    """

    voltage_v: float
    current_a: float
    in_compliance: bool
    instrument_time_s: float | None = None


class Channel(Protocol):
    """What a source-meter needs of its connection; `ScpiChannel` and `TspChannel` are two."""

    @property
    def name(self) -> str:
        """What messages call the instrument."""
        ...

    @property
    def address(self) -> str:
        """Where the link goes."""
        ...

    @property
    def identity(self) -> Identity:
        """What the instrument answered to `identify()`; `StateError` before."""
        ...

    async def open(self) -> None:
        """Opens the link."""
        ...

    async def close(self) -> None:
        """Closes the link; harmless when closed."""
        ...

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Keeps other tasks out for several calls; may be nested inside one task."""
        ...

    async def query(self, text: str, *, timeout_s: float | None = None, idempotent: bool = False) -> str:
        """Sends one query and returns its answer without the line end.

        Args:
            text: The query, without its line end.
            timeout_s: Longest wait in s; None takes the channel's own.
            idempotent: Asking twice gives the same answer, so that it may be asked again after a fault.
        """
        ...

    async def identify(self) -> Identity:
        """Asks who the instrument is."""
        ...

    async def drain_errors(self) -> list[tuple[int, str]]:
        """Reads the error queue until it is empty."""
        ...

    async def recover_if_lost(self) -> None:
        """Connects anew when the peer closed the connection."""
        ...


class Dialect(Protocol):
    """One model's commands. Every write reads the error queue after it and raises `InstrumentError`."""

    @property
    def abilities(self) -> Abilities:
        """What the model can do."""
        ...

    @property
    def channel(self) -> Channel:
        """The connection; the same object for the dialect's whole life."""
        ...

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What switches the output off when the host is gone."""
        ...

    @property
    def setting_queries(self) -> Mapping[str, str]:
        """What asks for each setting, by the model's name for it."""
        ...

    async def prepare(self) -> None:
        """Called once after the identity was found right: checks the language, changes no output and no setting.

        Raises:
            StateError: The instrument is set to another language; the message says what to do.
        """
        ...

    async def set_up(self, source: SourceKind, nplc: float, wires: Literal[2, 4]) -> None:
        """Resets the instrument and sets everything but limit, level and output; ranges are automatic after it.

        Args:
            source: The quantity that is sourced.
            nplc: Integration time in power line cycles.
            wires: Sense wiring: 2 or 4.
        """
        ...

    async def write_limit(self, limited: SourceKind, limit: float) -> None:
        """Sets the compliance limit in V or A of the quantity that is not sourced.

        Args:
            limited: The quantity that is limited.
            limit: The limit in V or A, a magnitude.
        """
        ...

    async def write_ranges(self, source: SourceKind, voltage_v: float | None, current_a: float | None) -> None:
        """Fixes the source's range (of `source`) and the meter's (of the other quantity); None is automatic.

        Args:
            source: The quantity that is sourced.
            voltage_v: Range of voltage in V.
            current_a: Range of current in A.
        """
        ...

    async def write_level(self, source: SourceKind, level: float) -> None:
        """Sets the source level in V or A, at once.

        Args:
            source: The quantity that is sourced.
            level: The level in V or A.
        """
        ...

    async def read_level(self, source: SourceKind) -> float:
        """Asks for the source level in V or A.

        Args:
            source: The quantity that is sourced.
        """
        ...

    async def read_source(self) -> SourceKind:
        """Asks what the instrument sources, configured by whomever."""
        ...

    async def switch(self, on: bool) -> None:
        """Switches the output, nothing else.

        Args:
            on: Whether it shall be on.
        """
        ...

    async def output_is_on(self) -> bool:
        """Asks for the state of the output."""
        ...

    async def interlock_closed(self) -> bool:
        """Asks whether the interlock (output enable) line allows the output.

        Raises:
            CapabilityError: The model has no such line, or cannot tell.
        """
        ...

    async def read(self, timeout_s: float) -> RawReading:
        """Takes one reading of both quantities; the output is on.

        Args:
            timeout_s: Longest wait in s.
        """
        ...

    async def run_sweep(
        self, source: SourceKind, levels: Sequence[float], settle_s: float, timeout_s: float
    ) -> list[RawReading]:
        """Takes one reading at each level inside the instrument, waiting `settle_s` at each; the last level stays.

        The output is on, at the first level. Called only for `2 <= len(levels) <= abilities.sweep_points`.

        Args:
            source: The quantity that is sourced.
            levels: Levels in V or A.
            settle_s: Time in s before each reading.
            timeout_s: Longest wait in s for all of them.
        """
        ...

    async def abandon_sweep(self, source: SourceKind, levels: Sequence[float]) -> None:
        """Ends a sweep that was interrupted; the output stays within one step of where it is.

        Called also when the sweep never began, or has ended meanwhile.

        Args:
            source: The quantity that is sourced.
            levels: Those of the sweep, in V or A.
        """
        ...
