"""A source-meter whose every request is held against the envelope, and whose output moves by a ramp."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Literal, Self

from labrig.safety import SourceEnvelope
from labrig_drivers.errors import SafetyError
from labrig_drivers.instrument import Identity, ReportsSettings
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading, SourceKind, SourceMeter

# An output that is on moves in steps of about this duration.
RAMP_STEP_S = 0.01
# A current without a ramp of its own in the rig file moves in this many steps.
CURRENT_RAMP_STEPS = 20
_HAIR = 1e-9

Hook = Callable[[], Awaitable[None]]


class GuardedSourceMeter:
    """Keeps the contract of the source-meter inside, so nothing above knows that the guard is there.

    A cancellation waits for the exchange in flight: cut in two, it would leave a link that cannot switch off.

    Args:
        inner: The instrument.
        envelope: What it must keep.
        before_on: Awaited before the output is switched on; what it raises keeps the output off.
        after_off: Awaited when the output was seen to be off.
    """

    def __init__(
        self,
        inner: SourceMeter,
        envelope: SourceEnvelope,
        *,
        before_on: Hook | None = None,
        after_off: Hook | None = None,
    ) -> None:
        self._inner = inner
        self._envelope = envelope
        self._before_on = before_on
        self._after_off = after_off
        self._on = False
        self._level: tuple[SourceKind, float] | None = None  # what the caller asked for
        self._limit_v: float | None = None
        self._limit_a: float | None = None
        # What was sent last, in V or A; None after a sweep that was cut short somewhere on its way.
        self._output: float | None = 0.0
        self._next_step_s = -math.inf

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is; `StateError` before `open()`."""
        return self._inner.identity

    async def open(self) -> None:
        """Connects and checks the identity, without touching an output."""
        await self._inner.open()

    async def close(self) -> None:
        """Ramps an output that is on to zero, switches it off, disconnects; a cancellation waits for that."""
        await undivided(self._close())

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def configure(self, *, source: SourceKind, nplc: float = 1.0, wires: Literal[2, 4] = 2) -> None:
        """Sets source function, integration time and sense wiring; see `SourceMeter.configure`."""
        await undivided(self._inner.configure(source=source, nplc=nplc, wires=wires))
        # Level and limit of another function say nothing about this one.
        self._level = self._limit_v = self._limit_a = None
        self._output = 0.0

    async def set_limit(self, *, current_a: float | None = None, voltage_v: float | None = None) -> None:
        """Sets the compliance limit; `SafetyError` where it leaves the envelope."""
        self._demand([(self._level_of("voltage"), current_a), (voltage_v, self._level_of("current"))])
        self._limit_a, self._limit_v = current_a, voltage_v
        await undivided(self._inner.set_limit(current_a=current_a, voltage_v=voltage_v))

    async def set_ranges(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Fixes the ranges; see `SourceMeter.set_ranges`."""
        await undivided(self._inner.set_ranges(voltage_v=voltage_v, current_a=current_a))

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Sets the level, by a ramp while the output is on; `SafetyError` where it leaves the envelope."""
        self._demand([(voltage_v, self._limit_a), (self._limit_v, current_a)])
        if (voltage_v is None) == (current_a is None):
            # Exactly one makes sense; the driver says so in its own words.
            await undivided(self._inner.set_level(voltage_v=voltage_v, current_a=current_a))
            return
        kind: SourceKind = "voltage" if voltage_v is not None else "current"
        level = voltage_v if voltage_v is not None else current_a or 0.0
        self._level = (kind, level)
        await (self._ramp(kind, level) if self._on else self._send(kind, level))

    async def output_on(self) -> None:
        """Switches the output on at zero and ramps to the level."""
        if self._before_on is not None:
            await undivided(self._before_on())
        level = self._level
        if level is not None and level[1]:
            await self._send(level[0], 0.0)
        # Before the request: an exchange that is cancelled may have switched it on.
        self._on = True
        await undivided(self._inner.output_on())
        if level is not None and level[1]:
            await self._ramp(*level)

    async def output_off(self) -> None:
        """Ramps to zero, switches the output off and reads the state back."""
        try:
            if self._on and self._output and self._level is not None:
                await self._ramp(self._level[0], 0.0)
        finally:
            await undivided(self._switch_off())

    async def output_is_on(self) -> bool:
        """Asks the instrument for the state of its output."""
        return await undivided(self._inner.output_is_on())

    async def measure(self) -> Reading:
        """Takes one reading; see `SourceMeter.measure`."""
        return await undivided(self._inner.measure())

    async def sweep(
        self, *, voltage_v: Sequence[float] | None = None, current_a: Sequence[float] | None = None
    ) -> list[Reading]:
        """Takes one reading at each level; where a step is too large for the ramp, point by point with ramps between.

        Raises:
            SafetyError: A level leaves the envelope; nothing was sent.
        """
        self._demand([*self._pairs("voltage", voltage_v or ()), *self._pairs("current", current_a or ())])
        if (voltage_v is None) == (current_a is None):
            return await self._inner.sweep(voltage_v=voltage_v, current_a=current_a)
        kind: SourceKind = "voltage" if voltage_v is not None else "current"
        levels = [*(voltage_v or ()), *(current_a or ())]
        if not levels:
            return []
        if self._on:
            self._level = (kind, levels[0])
            await self._ramp(kind, levels[0])
        # A hair more, so that twentieths of a range are steps of a twentieth.
        step = self._step(kind, levels) * (1 + _HAIR)
        if all(abs(after - before) <= step for before, after in pairwise(levels)):
            return await self._sweep_inside(kind, levels)
        readings = []
        for level in levels:
            await (self.set_level(voltage_v=level) if kind == "voltage" else self.set_level(current_a=level))
            readings.append(await undivided(self._inner.measure()))
        return readings

    async def errors(self) -> list[tuple[int, str]]:
        """Reads the instrument's error queue until it is empty; see `SourceMeter.errors`."""
        return await undivided(self._inner.errors())

    async def read_settings(self) -> dict[str, str]:
        """Asks how the instrument is set, where it can be asked; see `ReportsSettings`."""
        return await undivided(self._inner.read_settings()) if isinstance(self._inner, ReportsSettings) else {}

    async def _sweep_inside(self, kind: SourceKind, levels: list[float]) -> list[Reading]:
        self._output = None
        if kind == "voltage":
            readings = await self._inner.sweep(voltage_v=levels)
        else:
            readings = await self._inner.sweep(current_a=levels)
        self._output, self._level = levels[-1], (kind, levels[-1])
        return readings

    def _pairs(self, kind: SourceKind, levels: Sequence[float]) -> list[tuple[float | None, float | None]]:
        """What the envelope has to judge of a sweep: its worst level, since the limits hold for either sign."""
        if not levels:
            return []
        worst = next((level for level in levels if math.isnan(level)), None)
        worst = max(levels, key=abs) if worst is None else worst
        return [(worst, self._limit_a)] if kind == "voltage" else [(self._limit_v, worst)]

    def _level_of(self, kind: SourceKind) -> float | None:
        return self._level[1] if self._level is not None and self._level[0] == kind else None

    def _demand(self, pairs: list[tuple[float | None, float | None]]) -> None:
        reasons = self._envelope.reasons(pairs)
        if reasons:
            raise SafetyError(reasons)

    def _rate(self, kind: SourceKind) -> float | None:
        return self._envelope.ramp_v_per_s if kind == "voltage" else self._envelope.ramp_a_per_s

    def _step(self, kind: SourceKind, levels: Sequence[float]) -> float:
        """The largest step in V or A that an output may take at once, on a way through these levels."""
        rate = self._rate(kind)
        if rate is not None:
            return rate * RAMP_STEP_S
        return (max(levels) - min(levels)) / CURRENT_RAMP_STEPS if kind == "current" else math.inf

    async def _ramp(self, kind: SourceKind, target: float) -> None:
        start = self._output
        if start is None:
            # Only the instrument knows where it stands, and its driver ramps from there.
            await self._send(kind, target)
            return
        step = self._step(kind, (start, target))
        # A hair off, so that 0.3 / 0.1 is three steps.
        steps = max(1, math.ceil(abs(target - start) / step - _HAIR)) if step else 1
        rate = self._rate(kind)
        pause_s = RAMP_STEP_S if rate is None else abs(target - start) / steps / rate
        for index in range(1, steps + 1):
            # Also between two calls: many small levels in a row are a ramp too.
            await asyncio.sleep(max(0.0, self._next_step_s - time.monotonic()))
            await self._send(kind, target if index == steps else start + (target - start) * index / steps)
            self._next_step_s = time.monotonic() + pause_s

    async def _send(self, kind: SourceKind, level: float) -> None:
        # Before the request: an exchange that fails may have set it.
        self._output = level
        if kind == "voltage":
            await undivided(self._inner.set_level(voltage_v=level))
        else:
            await undivided(self._inner.set_level(current_a=level))

    async def _switch_off(self) -> None:
        await self._inner.output_off()
        self._on = False
        self._output = 0.0
        if self._after_off is not None:
            await self._after_off()

    async def _close(self) -> None:
        try:
            if self._on:
                await self.output_off()
        finally:
            await self._inner.close()
