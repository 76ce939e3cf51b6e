"""The rig-wide envelope, and instruments that keep it: every request is checked before anything is sent.

The guards wrap an instrument and keep its contract, so nothing above knows that they are there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Literal, Self

import numpy as np

from labrig.cleanup import finish
from labrig.config import SafetyConfig
from labrig_drivers.crossbar import (
    BoardInfo,
    CrossbarBoard,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import SafetyError
from labrig_drivers.instrument import Identity
from labrig_drivers.source_meter import Reading, SourceKind, SourceMeter

# An output that is on moves in steps of this duration.
RAMP_STEP_S = 0.01


@dataclass(frozen=True)
class Envelope:
    """What no request may exceed, either sign.

    Attributes:
        max_voltage_v: Voltage in V of any source-meter.
        max_current_a: Current in A of any source-meter.
        max_power_w: Product in W of level and limit of any source-meter.
        max_ramp_v_per_s: Change in V/s of a source-meter's output that is on.
        max_read_voltage_v: Voltage in V of the array's word lines.
    """

    max_voltage_v: float
    max_current_a: float
    max_power_w: float
    max_ramp_v_per_s: float
    max_read_voltage_v: float

    @classmethod
    def from_config(cls, config: SafetyConfig) -> Envelope:
        """The envelope of a rig file's section `[safety]`."""
        return cls(
            max_voltage_v=config.max_voltage_v,
            max_current_a=config.max_current_a,
            max_power_w=config.max_power_w,
            max_ramp_v_per_s=config.max_ramp_v_per_s,
            max_read_voltage_v=config.max_read_voltage_v,
        )

    def source_violations(self, name: str, voltage_v: float | None, current_a: float | None) -> list[str]:
        """Every limit that a source-meter would violate with this voltage and current (level or limit)."""
        reasons = []
        for value, limit, unit, key in (
            (voltage_v, self.max_voltage_v, "V", "max_voltage_v"),
            (current_a, self.max_current_a, "A", "max_current_a"),
        ):
            # Written so that NaN is refused as well.
            if value is not None and not abs(value) <= limit:
                reasons.append(f"{name}: {value:g} {unit} exceeds {key} = {limit:g} {unit}")
        if voltage_v is not None and current_a is not None and abs(voltage_v * current_a) > self.max_power_w:
            power_w = abs(voltage_v * current_a)
            reasons.append(f"{name}: {power_w:g} W exceeds max_power_w = {self.max_power_w:g} W")
        return reasons

    def read_violations(self, voltage_v: FloatArray) -> list[str]:
        """Every limit that these word line voltages would violate."""
        # A float32 copy of the limit may round outward; a relative 1e-6 is below any converter's step.
        over = int((np.abs(voltage_v) > self.max_read_voltage_v * (1 + 1e-6)).sum())
        if not over:
            return []
        return [
            f"{over} word line voltages exceed max_read_voltage_v = {self.max_read_voltage_v:g} V "
            f"(largest {np.nanmax(np.abs(voltage_v)):g} V)"
        ]


class GuardedBoard:
    """A crossbar board whose every request is checked against the envelope and the board's own ranges."""

    def __init__(self, inner: CrossbarBoard, envelope: Envelope) -> None:
        self._inner = inner
        self._envelope = envelope

    @property
    def identity(self) -> Identity:
        """Who the board said it is; `StateError` before `open()`."""
        return self._inner.identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        return self._inner.info

    async def open(self) -> None:
        """Connects and checks the identity, without touching an output."""
        await self._inner.open()

    async def close(self) -> None:
        """Makes the board safe and disconnects."""
        await self._inner.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array; see `CrossbarBoard.program`."""
        check_program_request(self._inner.info, array, conductance_s)
        return await self._inner.program(array, conductance_s)

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch; see `CrossbarBoard.mvm`.

        Raises:
            SafetyError: A voltage lies outside the envelope or the board's range; every reason at once.
        """
        reasons: list[str] = []
        try:
            check_mvm_request(self._inner.info, array, voltage_v)
        except SafetyError as error:
            reasons += error.reasons
        reasons += self._envelope.read_violations(voltage_v)
        if reasons:
            raise SafetyError(reasons)
        return await self._inner.mvm(array, voltage_v)

    async def read_conductance(self, array: int) -> FloatArray:
        """Reads every cell; see `CrossbarBoard.read_conductance`."""
        return await self._inner.read_conductance(array)


class GuardedSourceMeter:
    """A source-meter whose levels and limits keep the envelope, and whose output moves by a ramp.

    A cancellation waits for the exchange in flight: cut in two, it would leave a link that cannot switch off.

    Args:
        inner: The instrument.
        envelope: What it must keep.
        name: How messages call it.
    """

    def __init__(self, inner: SourceMeter, envelope: Envelope, name: str) -> None:
        self._inner = inner
        self._envelope = envelope
        self._name = name
        self._on = False
        self._level_v: float | None = None  # what the caller asked for
        self._output_v = 0.0  # what was sent last
        self._level_a: float | None = None
        self._limit_v: float | None = None
        self._limit_a: float | None = None

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is; `StateError` before `open()`."""
        return self._inner.identity

    async def open(self) -> None:
        """Connects and checks the identity, without touching an output."""
        await self._inner.open()

    async def close(self) -> None:
        """Ramps an output that is on to zero, switches it off, disconnects; a cancellation waits for that."""
        await finish(self._close())

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def configure(self, *, source: SourceKind, nplc: float = 1.0, wires: Literal[2, 4] = 2) -> None:
        """Sets source function, integration time and sense wiring; see `SourceMeter.configure`."""
        await finish(self._inner.configure(source=source, nplc=nplc, wires=wires))
        # Level and limit of another function say nothing about this one.
        self._level_v = self._level_a = self._limit_v = self._limit_a = None
        self._output_v = 0.0

    async def set_limit(self, *, current_a: float | None = None, voltage_v: float | None = None) -> None:
        """Sets the compliance limit; `SafetyError` where it leaves the envelope."""
        self._demand_inside([(self._level_v, current_a), (voltage_v, self._level_a)])
        self._limit_a, self._limit_v = current_a, voltage_v
        await finish(self._inner.set_limit(current_a=current_a, voltage_v=voltage_v))

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Sets the level, by a ramp while the output is on; `SafetyError` where it leaves the envelope."""
        self._demand_inside([(voltage_v, self._limit_a), (self._limit_v, current_a)])
        self._level_v, self._level_a = voltage_v, current_a
        if voltage_v is not None and self._on:
            await self._ramp(voltage_v)
        else:
            self._output_v = voltage_v or 0.0
            await finish(self._inner.set_level(voltage_v=voltage_v, current_a=current_a))

    async def output_on(self) -> None:
        """Switches the output on at 0 V and ramps to the level."""
        level_v = self._level_v
        if level_v:
            self._output_v = 0.0
            await finish(self._inner.set_level(voltage_v=0.0))
        # Before the request: an exchange that is cancelled may have switched it on.
        self._on = True
        await finish(self._inner.output_on())
        if level_v:
            await self._ramp(level_v)

    async def output_off(self) -> None:
        """Ramps to zero, switches the output off and reads the state back."""
        try:
            if self._on and self._output_v:
                await self._ramp(0.0)
        finally:
            await finish(self._inner.output_off())
            self._on = False

    async def output_is_on(self) -> bool:
        """Asks the instrument for the state of its output."""
        return await finish(self._inner.output_is_on())

    async def measure(self) -> Reading:
        """Takes one reading; see `SourceMeter.measure`."""
        return await finish(self._inner.measure())

    async def set_ranges(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        """Fixes the ranges; see `SourceMeter.set_ranges`."""
        await finish(self._inner.set_ranges(voltage_v=voltage_v, current_a=current_a))

    async def sweep(
        self, *, voltage_v: Sequence[float] | None = None, current_a: Sequence[float] | None = None
    ) -> list[Reading]:
        """Takes one reading at each level; where a step is too large for the ramp, point by point."""
        if voltage_v is None:
            levels_a = current_a or []
            self._demand_inside([(self._limit_v, level) for level in levels_a])
            return await self._inner.sweep(current_a=levels_a)
        self._demand_inside([(level, self._limit_a) for level in voltage_v])
        if not voltage_v:
            return []
        if self._on:
            await self._ramp(voltage_v[0])
        step_v = self._envelope.max_ramp_v_per_s * RAMP_STEP_S
        if all(abs(after - before) <= step_v for before, after in pairwise(voltage_v)):
            readings = await self._inner.sweep(voltage_v=voltage_v)
            self._output_v = self._level_v = voltage_v[-1]
            return readings
        readings = []
        for level_v in voltage_v:
            await self.set_level(voltage_v=level_v)
            readings.append(await finish(self._inner.measure()))
        return readings

    async def errors(self) -> list[tuple[int, str]]:
        """Reads the instrument's error queue until it is empty; see `SourceMeter.errors`."""
        return await finish(self._inner.errors())

    def _demand_inside(self, pairs: list[tuple[float | None, float | None]]) -> None:
        reasons = [reason for pair in pairs for reason in self._envelope.source_violations(self._name, *pair)]
        if reasons:
            raise SafetyError(list(dict.fromkeys(reasons)))

    async def _ramp(self, target_v: float) -> None:
        start_v = self._output_v
        distance_v = abs(target_v - start_v)
        # A hair off, so that 0.3 / 0.1 is three steps.
        steps = max(1, math.ceil(distance_v / (self._envelope.max_ramp_v_per_s * RAMP_STEP_S) - 1e-9))
        for step in range(1, steps + 1):
            level_v = target_v if step == steps else start_v + (target_v - start_v) * step / steps
            self._output_v = level_v
            await finish(self._inner.set_level(voltage_v=level_v))
            if step < steps:
                await asyncio.sleep(RAMP_STEP_S)

    async def _close(self) -> None:
        try:
            if self._on:
                await self.output_off()
        finally:
            await self._inner.close()
