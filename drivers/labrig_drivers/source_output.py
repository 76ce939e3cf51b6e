"""Level and output of a source-meter while it is on: changed in ramps, and switched off whatever goes wrong."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from labrig_drivers.errors import InstrumentError, LabrigError, ProtocolError, StateError
from labrig_drivers.source_meter import SourceKind
from labrig_drivers.source_meter_dialect import Dialect

_OFF_ATTEMPTS = 2
# A hair, so that rounding does not make eleven steps out of ten.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Ramp:
    """How fast an output that is on may move.

    Attributes:
        voltage_v_per_s: Fastest change of a voltage level in V/s.
        voltage_step_v: Largest single step of a voltage level in V.
        current_steps: A current has no natural rate: every change of it is made in this many steps, each as long as
            a full step of a voltage.

    Raises:
        ValueError: One of them is not positive.
    """

    voltage_v_per_s: float = 1.0
    voltage_step_v: float = 0.05
    current_steps: int = 20

    def __post_init__(self) -> None:
        if not (self.voltage_v_per_s > 0.0 and self.voltage_step_v > 0.0 and self.current_steps > 0):
            raise ValueError(
                f"ramp of {self.voltage_v_per_s} V/s in steps of {self.voltage_step_v} V "
                f"({self.current_steps} steps for a current): all must be positive"
            )

    @property
    def pause_s(self) -> float:
        """Time in s that a full step takes."""
        return self.voltage_step_v / self.voltage_v_per_s

    def steps(self, source: SourceKind, change: float) -> int:
        """Number of steps that a change of the level in V or A is made in."""
        if not change:
            return 0
        if source == "current":
            return self.current_steps
        return max(1, math.ceil(abs(change) / self.voltage_step_v - _ROUNDING))

    def settle_s(self, source: SourceKind, levels: Sequence[float]) -> float | None:
        """Wait in s at each level with which a sweep keeps the ramp; None when its steps are too large for that."""
        changes = [abs(after - before) for before, after in pairwise(levels)]
        span = max(levels) - min(levels)
        largest_step = self.voltage_step_v if source == "voltage" else span / self.current_steps
        if max(changes, default=0.0) > largest_step * (1.0 + _ROUNDING):
            return None
        return self.pause_s * max(changes, default=0.0) / largest_step if largest_step else 0.0


class SourceOutput:
    """Ramps the level, runs sweeps and switches the output off; the caller holds the channel exclusively.

    Args:
        dialect: The instrument.
        ramp: How fast the output may move.
    """

    def __init__(self, dialect: Dialect, ramp: Ramp) -> None:
        self._dialect = dialect
        self._channel = dialect.channel
        self.ramp_rule = ramp
        self._next_step_s = -math.inf
        # What was asked of the instrument and not seen to end.
        self._open_sweep: tuple[SourceKind, tuple[float, ...]] | None = None

    async def ramp(self, source: SourceKind, level: float) -> None:
        """Goes from the instrument's own level to `level` in V or A, never faster than the ramp.

        Raises:
            ProtocolError: The instrument's level makes no sense.
            InstrumentError: A step was refused; the level stays where it is.
            LinkError: An exchange failed.
        """
        await self.end_sweep()
        present = await self._dialect.read_level(source)
        if not math.isfinite(present):
            raise ProtocolError(f"{self._channel.name}: {present} is no source level")
        change = level - present
        steps = self.ramp_rule.steps(source, change)
        full = self.ramp_rule.voltage_step_v * steps if source == "voltage" else abs(change)
        for index in range(1, steps + 1):
            await asyncio.sleep(max(0.0, self._next_step_s - time.monotonic()))
            await self._dialect.write_level(source, level if index == steps else present + change * index / steps)
            self._next_step_s = time.monotonic() + self.ramp_rule.pause_s * abs(change) / full

    async def end_sweep(self) -> None:
        """Ends a sweep that was interrupted; nothing otherwise."""
        if self._open_sweep is not None:
            await self._dialect.abandon_sweep(*self._open_sweep)
            self.sweep_ended()

    def sweep_began(self, source: SourceKind, levels: Sequence[float]) -> None:
        """Notes that from now on the level may be anywhere on the way."""
        self._open_sweep = (source, tuple(levels))

    def sweep_ended(self) -> None:
        """Notes that the sweep is over and the level known again, and that its last step is a moment old."""
        self._open_sweep = None
        self._next_step_s = time.monotonic() + self.ramp_rule.pause_s

    async def switch_off(self) -> None:
        """Ramps to zero, switches off and asks whether it is off; each step is tried even when one failed.

        Raises:
            StateError: The output is still on, or cannot be asked: a person must switch it off.
        """
        for _ in range(_OFF_ATTEMPTS):
            # Not the same steps again: a new ramp from the level that the instrument is found at.
            if await self._ramp_down():
                break
        # Off is the one setting that may be sent again: it cannot do harm twice.
        for _ in range(_OFF_ATTEMPTS):
            if not await self._is_on_after_off():
                return
        raise StateError(self._press_off("the output is still on"))

    async def _is_on_after_off(self) -> bool:
        """Switches off once and returns whether the output is on after it."""
        try:
            await self._dialect.switch(False)
        except LabrigError:
            # Neither an error in the queue nor a lost exchange says whether it is off: the instrument is asked.
            await self._recover_if_lost()
        try:
            return await self._dialect.output_is_on()
        except LabrigError as error:
            raise StateError(self._press_off(f"it cannot be asked whether the output is off ({error})")) from error

    async def _recover_if_lost(self) -> None:
        """Connects anew when the peer closed the connection; the channel itself recovers from everything else."""
        try:
            await self._channel.recover_if_lost()
        except LabrigError:
            # The next exchange meets the same fault and reports it, with what it means for the output.
            return

    async def _ramp_down(self) -> bool:
        """Ramps to zero if the output is on; returns whether trying again would be no use."""
        try:
            await self.end_sweep()
            # The instrument knows what is at its terminals; what was sent to it may have been lost.
            if await self._dialect.output_is_on():
                await self.ramp(await self._dialect.read_source(), 0.0)
        except InstrumentError:
            # It refuses the level; off without a ramp is what is left.
            return True
        except LabrigError:
            await self._recover_if_lost()
            return False
        return True

    def _press_off(self, why: str) -> str:
        where = f"{self._channel.name} at {self._channel.address}"
        return f"{where}: {why}; press OUTPUT OFF on its front panel now"
