"""`RemoteSourceMeter`: a source-meter of a rig that `labrig serve` offers, behind the contract of a source-meter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np

from labrig.boards.remote_instrument import RemoteInstrument
from labrig.boards.remote_settings import remote_session
from labrig.remote.envelope import Arrays
from labrig.remote.messages import Answer, Values
from labrig.remote.results import numbers, readings_from, texts
from labrig.remote.session import RemoteSession
from labrig_drivers.errors import ProtocolError, SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection, Identity
from labrig_drivers.settings_table import SettingsTable
from labrig_drivers.source_meter import Reading, SourceKind

# Longest in s for a ramp or a sweep, which only the rig knows the length of.
_RAMP_S: Final = 300.0
_SWEEP_S: Final = 3600.0


class RemoteSourceMeter:
    """A source-meter on another machine; keeps `SourceMeter`, `ReportsSettings` and `ProtectsItself`.

    The envelope and the ramps of the rig's own file hold there, whatever is asked for here. When this program or its
    network is gone, the rig ramps down and switches off as soon as the lease has run out.

    Args:
        session: Connection and lease; may be shared with the board of the same rig.
        instrument: What the rig calls it.
        expected: Identity that `open()` demands.
        name: How messages call it.
    """

    make_link = staticmethod(remote_session)

    def __init__(
        self,
        session: RemoteSession,
        instrument: str,
        *,
        expected: ExpectedIdentity | None = None,
        name: str | None = None,
    ) -> None:
        self._remote = RemoteInstrument(session, instrument, expected or ExpectedIdentity(), name or instrument)
        self._perhaps_on = False

    @classmethod
    def from_settings(
        cls, link: RemoteSession, expected: ExpectedIdentity, name: str, settings: Mapping[str, object]
    ) -> RemoteSourceMeter:
        """Makes the source-meter from what a rig file gives.

        Its only setting is `instrument`, what the rig calls it; the name in this file when absent. Account and
        certificates are those of the board.

        Raises:
            ConfigError: Another setting, or no text.
        """
        table = SettingsTable(settings, f"source_meters.{name}.settings")
        instrument = table.text("instrument", name)
        table.finish()
        return cls(link, instrument, expected=expected, name=name)

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is; `StateError` before `open()`."""
        return self._remote.identity

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What the rig does when this program or its network is gone; `StateError` before `open()`."""
        return self._remote.host_loss_protection

    async def open(self) -> None:
        """Connects, gets the rig's lease and checks who the instrument is; its output stays as it is.

        Raises:
            IdentityError: Another instrument than the rig file names.
            LabrigError: See `RemoteBoard.open`.
        """
        await self._remote.open()

    async def close(self) -> None:
        """Has the output ramped down and switched off, and gives the rig back.

        Raises:
            LinkError: The rig could not be told while the output was perhaps on; it is, until the lease ends.
        """
        perhaps_on, self._perhaps_on = self._perhaps_on, False
        await self._remote.close(must_arrive=perhaps_on)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def configure(self, *, source: SourceKind, nplc: float = 1.0, wires: Literal[2, 4] = 2) -> None:
        """Sets source function, integration time and sense wiring; see `SourceMeter.configure`."""
        await self._ask("configure", {"source": source, "nplc": nplc, "wires": wires})

    async def set_limit(self, *, current_a: float | None = None, voltage_v: float | None = None) -> None:
        """Sets the compliance limit; see `SourceMeter.set_limit`."""
        await self._ask("set-limit", {"current_a": current_a, "voltage_v": voltage_v})

    async def set_ranges(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Fixes the ranges; see `SourceMeter.set_ranges`."""
        await self._ask("set-ranges", {"current_a": current_a, "voltage_v": voltage_v})

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Sets the level; see `SourceMeter.set_level`."""
        await self._ask("set-level", {"current_a": current_a, "voltage_v": voltage_v}, takes_s=_RAMP_S)

    async def output_on(self) -> None:
        """Switches the output on; see `SourceMeter.output_on`."""
        # Before the request: one without an answer may have switched it on.
        self._perhaps_on = self._remote.is_open
        await self._ask("output-on", takes_s=_RAMP_S)

    async def output_off(self) -> None:
        """Ramps to zero, switches the output off and reads the state back."""
        await self._ask("output-off", takes_s=_RAMP_S)
        self._perhaps_on = False

    async def output_is_on(self) -> bool:
        """Asks the instrument for the state of its output."""
        on = (await self._ask("output-is-on")).values.get("on")
        if not isinstance(on, bool):
            raise ProtocolError(f"{self._remote.where}: the state of the output is missing")
        return on

    async def measure(self) -> Reading:
        """Takes one reading; see `SourceMeter.measure`."""
        readings = readings_from((await self._ask("measure", takes_s=_RAMP_S)).arrays)
        if len(readings) != 1:
            raise ProtocolError(f"{self._remote.where}: {len(readings)} readings in place of one")
        return readings[0]

    async def sweep(
        self, *, voltage_v: Sequence[float] | None = None, current_a: Sequence[float] | None = None
    ) -> list[Reading]:
        """Takes one reading at each level, in the instrument where it can; see `SourceMeter.sweep`."""
        levels = {"voltage_v": voltage_v, "current_a": current_a}
        arrays = {name: np.asarray(one, dtype=np.float64) for name, one in levels.items() if one is not None}
        return readings_from((await self._ask("sweep", arrays=arrays, takes_s=_SWEEP_S)).arrays)

    async def errors(self) -> list[tuple[int, str]]:
        """Reads the instrument's error queue until it is empty; see `SourceMeter.errors`."""
        values = (await self._ask("errors")).values
        found = values.get("texts")
        if not isinstance(found, list):
            raise ProtocolError(f"{self._remote.where}: the texts of errors are missing")
        codes = numbers(values, "codes", len(found))
        return [(int(code), str(text)) for code, text in zip(codes, found, strict=True)]

    async def read_settings(self) -> dict[str, str]:
        """Asks how the instrument is set, where it can be asked; see `ReportsSettings`."""
        return texts((await self._ask("read-settings")).values, "settings")

    async def _ask(
        self, verb: str, values: Values | None = None, arrays: Arrays | None = None, *, takes_s: float = 0.0
    ) -> Answer:
        if not self._remote.is_open:
            raise StateError(f"{self._remote.where} is not open; use `async with` or call open() first")
        # JSON has no such numbers, and no instrument should be asked for one.
        wild = [name for name, one in (values or {}).items() if isinstance(one, float) and not math.isfinite(one)]
        if wild:
            raise SafetyError([f"{self._remote.where}: {name} is not finite" for name in wild])
        return await self._remote.session.ask(verb, self._remote.instrument, values, arrays, takes_s=takes_s)
