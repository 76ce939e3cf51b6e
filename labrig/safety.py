"""What no request may exceed: the limits of the rig, of one instrument, of one array, all of which apply at once.

Limits only; the guards (`labrig.guarded_board`, `labrig.guarded_source_meter`) hold every request against them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from labrig.config import BoardSafetyConfig, RigConfig
from labrig_drivers.crossbar import FloatArray
from labrig_drivers.wording import counted

# A float32 copy of a limit may round outward; a relative 1e-6 is below any converter's step.
_SLACK = 1e-6


@dataclass(frozen=True)
class SourceLimits:
    """One table of limits of a source-meter, either sign; None limits nothing.

    Attributes:
        where: The table in the rig file, for messages.
        max_voltage_v: Voltage in V, level or limit.
        max_current_a: Current in A, level or limit.
        max_power_w: Product in W of level and limit.
        max_ramp_v_per_s: Change in V/s of an output that is on.
        max_ramp_a_per_s: Change in A/s of an output that is on.
    """

    where: str
    max_voltage_v: float | None = None
    max_current_a: float | None = None
    max_power_w: float | None = None
    max_ramp_v_per_s: float | None = None
    max_ramp_a_per_s: float | None = None

    def reasons(self, voltage_v: float | None, current_a: float | None) -> Iterator[str]:
        """Every limit of this table that a voltage and a current, level or limit, would violate."""
        power_w = None if voltage_v is None or current_a is None else abs(voltage_v * current_a)
        for value, limit, unit, key in (
            (voltage_v, self.max_voltage_v, "V", "max_voltage_v"),
            (current_a, self.max_current_a, "A", "max_current_a"),
            (power_w, self.max_power_w, "W", "max_power_w"),
        ):
            # Written so that NaN is refused as well.
            if value is not None and limit is not None and not abs(value) <= limit:
                yield f"{value:g} {unit} exceeds {self.where}.{key} = {limit:g} {unit}"


@dataclass(frozen=True)
class SourceEnvelope:
    """All limits of one source-meter.

    Attributes:
        name: How messages call the source-meter.
        limits: Every table that applies.
    """

    name: str
    limits: tuple[SourceLimits, ...]

    @property
    def ramp_v_per_s(self) -> float | None:
        """Fastest change of a voltage in V/s."""
        return _least(one.max_ramp_v_per_s for one in self.limits)

    @property
    def ramp_a_per_s(self) -> float | None:
        """Fastest change of a current in A/s; None where no table says."""
        return _least(one.max_ramp_a_per_s for one in self.limits)

    def reasons(self, pairs: Sequence[tuple[float | None, float | None]]) -> list[str]:
        """Every limit that one of the pairs of voltage in V and current in A would violate."""
        found = (f"{self.name}: {reason}" for one in self.limits for pair in pairs for reason in one.reasons(*pair))
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class BoardLimits:
    """One table of limits of a board or of one array; None limits nothing.

    Attributes:
        where: The table in the rig file, for messages.
        max_read_voltage_v: Voltage in V of the lines that a read drives, either sign.
        min_conductance_s: Lowest conductance in S that may be programmed.
        max_conductance_s: Highest conductance in S that may be programmed.
    """

    where: str
    max_read_voltage_v: float | None = None
    min_conductance_s: float | None = None
    max_conductance_s: float | None = None

    def read_reasons(self, voltage_v: FloatArray, what: str) -> Iterator[str]:
        """What these voltages of lines, called `what` in messages, would violate."""
        limit = self.max_read_voltage_v
        if limit is None:
            return
        over = int((np.abs(voltage_v) > limit * (1 + _SLACK)).sum())
        if over:
            largest_v = np.nanmax(np.abs(voltage_v))
            subject = f"{over} {what} exceed" if over > 1 else f"1 {what.removesuffix('s')} exceeds"
            yield (f"{subject} {self.where}.max_read_voltage_v = {limit:g} V (largest {largest_v:g} V)")

    def program_reasons(self, conductance_s: FloatArray) -> Iterator[str]:
        """What these targets would violate."""
        low, high = self.min_conductance_s, self.max_conductance_s
        if low is not None and (under := int((conductance_s < low * (1 - _SLACK)).sum())):
            yield (
                f"{counted(under, 'target is', 'targets are')} below {self.where}.min_conductance_s = {low:g} S "
                f"(lowest {np.nanmin(conductance_s):g} S)"
            )
        if high is not None and (over := int((conductance_s > high * (1 + _SLACK)).sum())):
            yield (
                f"{counted(over, 'target exceeds', 'targets exceed')} {self.where}.max_conductance_s = {high:g} S "
                f"(highest {np.nanmax(conductance_s):g} S)"
            )


@dataclass(frozen=True)
class BoardEnvelope:
    """All limits of a board.

    Attributes:
        limits: Every table that applies to all arrays.
        arrays: The table of one array, by its number.
        sources: What holds for source-meters that measure single cells; None limits nothing.
    """

    limits: tuple[BoardLimits, ...]
    arrays: Mapping[int, BoardLimits] = field(default_factory=dict)
    sources: SourceLimits | None = None

    def of_array(self, array: int) -> tuple[BoardLimits, ...]:
        """Every table that applies to one array."""
        own = self.arrays.get(array)
        return self.limits if own is None else (*self.limits, own)

    def read_reasons(self, array: int, voltage_v: FloatArray, what: str = "word line voltages") -> list[str]:
        """Every limit that these voltages of lines, called `what` in messages, would violate."""
        return [reason for one in self.of_array(array) for reason in one.read_reasons(voltage_v, what)]

    def cell_sweep_reasons(self, array: int, level_v: FloatArray, limit_a: float | None) -> list[str]:
        """Every limit that the curve of a cell would violate; a limit of the board's own was judged elsewhere."""
        reasons = self.read_reasons(array, level_v)
        if self.sources is not None and level_v.size:
            # NaN wins, and is refused.
            reasons += self.sources.reasons(float(np.abs(level_v).max()), limit_a)
        return reasons

    def program_reasons(self, array: int, conductance_s: FloatArray) -> list[str]:
        """Every limit that these targets would violate."""
        return [reason for one in self.of_array(array) for reason in one.program_reasons(conductance_s)]


@dataclass(frozen=True)
class AxisEnvelope:
    """The limits of one axis in its unit, beside its driver's own; None limits nothing.

    Attributes:
        name: How messages call the axis.
        low: Lowest value that may be set.
        high: Highest value that may be set.
    """

    name: str
    low: float | None = None
    high: float | None = None

    def reasons(self, value: float, unit: str) -> list[str]:
        """Every limit that a value would violate."""
        found = []
        # Written so that NaN is refused as well.
        if self.low is not None and not value >= self.low:
            found.append(f"{self.name}: {value:g} {unit} is below axes.{self.name}.low = {self.low:g} {unit}")
        if self.high is not None and not value <= self.high:
            found.append(f"{self.name}: {value:g} {unit} exceeds axes.{self.name}.high = {self.high:g} {unit}")
        return found


def axis_envelope(config: RigConfig, name: str) -> AxisEnvelope:
    """The limits of the axis `name` of a rig file."""
    axis = config.axes[name]
    return AxisEnvelope(name, axis.low, axis.high)


def source_envelope(config: RigConfig, name: str) -> SourceEnvelope:
    """The limits of the source-meter `name` of a rig file."""
    own = config.source_meters[name].safety
    tables = [_rig_source_limits(config)]
    if own is not None:
        tables.append(SourceLimits(f"source_meters.{name}.safety", **own.model_dump()))
    return SourceEnvelope(name, tuple(tables))


def board_envelope(config: RigConfig) -> BoardEnvelope:
    """The limits of the board of a rig file."""
    tables = [BoardLimits("safety", max_read_voltage_v=config.safety.max_read_voltage_v)]
    if config.board.safety is not None:
        tables.append(_board_limits("board.safety", config.board.safety))
    arrays = {
        int(number): _board_limits(f"board.arrays.{number}.safety", array.safety)
        for number, array in config.board.arrays.items()
    }
    return BoardEnvelope(tuple(tables), arrays, _rig_source_limits(config))


def _rig_source_limits(config: RigConfig) -> SourceLimits:
    rig = config.safety
    return SourceLimits(
        "safety",
        max_voltage_v=rig.max_voltage_v,
        max_current_a=rig.max_current_a,
        max_power_w=rig.max_power_w,
        max_ramp_v_per_s=rig.max_ramp_v_per_s,
        max_ramp_a_per_s=rig.max_ramp_a_per_s,
    )


def _board_limits(where: str, table: BoardSafetyConfig) -> BoardLimits:
    return BoardLimits(where, **table.model_dump())


def _least(values: Iterator[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
