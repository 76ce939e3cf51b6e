"""What a plan is: an asynchronous generator of points, each one request to a rig, each with a stable hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from labrig.plans.faults import plan_faults
from labrig_drivers.crossbar import BoardInfo, FloatArray, MvmResult
from labrig_drivers.source_meter import Reading


@dataclass(frozen=True)
class StreamCapacity:
    """How much one array's part of a recording must hold.

    Attributes:
        rows: MVMs.
        writes: Programmings.
        blocks: Batches of MVMs, and points that may be missed.
    """

    rows: int
    writes: int
    blocks: int


@dataclass(frozen=True)
class BesideCapacity:
    """What a recording must hold beside MVMs and writes.

    Attributes:
        axes: The rig's axes that the plan moves, each with the lowest and the highest value that it is moved to.
        settings: How often it moves them.
        curves: Curves that it takes.
        readings: Readings of all these curves together.
        meters: Names of the rig's source-meters at which it takes curves.
        supply_period_s: Pause in s between two readings of the array supply; None as usual.
    """

    axes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    settings: int = 0
    curves: int = 0
    readings: int = 0
    meters: tuple[str, ...] = ()
    supply_period_s: float | None = None


@dataclass(frozen=True, eq=False)
class ProgramPoint:
    """Programs one array, when the first point comes that needs it.

    Attributes:
        array: Which array.
        write: Which programming of this array in this plan, from 0.
        conductance_s: Target in S, `[rows, columns]`.
        settle_s: Least age in s of the write when it is read first.
    """

    array: int
    write: int
    conductance_s: FloatArray
    settle_s: float = 0.0

    @cached_property
    def hash(self) -> str:
        """32 hex digits that depend on the content only."""
        place = {"point": "program", "array": self.array, "write": self.write}
        return _content_hash(place | _unusual(settle_s=(self.settle_s, 0.0)), self.conductance_s)


@dataclass(frozen=True, eq=False)
class MvmPoint:
    """Measures one block of vectors on one array.

    Attributes:
        array: Which array.
        write: Which programming of this array in this plan is read.
        block: Which block of this write, from 0: equal vectors measured twice are two points.
        kind: What the vectors are for, such as a `StimulusKind`.
        voltage_v: Inputs in V, `[batch, rows]`.
        due_s: Age of the write in s, by the board's clock, at which it is measured; None as soon as possible.
        late_s: How much later than `due_s` it may still be measured, in s; after that it is missed for good.
        rest_s: Time in s for which the board has nothing to do before this block.
    """

    array: int
    write: int
    block: int
    kind: int
    voltage_v: FloatArray
    due_s: float | None = None
    late_s: float = math.inf
    rest_s: float = 0.0

    @cached_property
    def hash(self) -> str:
        """32 hex digits that depend on the content only."""
        place = {
            "point": "mvm",
            "array": self.array,
            "write": self.write,
            "block": self.block,
            "kind": int(self.kind),
        }
        timing = _unusual(due_s=(self.due_s, None), late_s=(self.late_s, math.inf), rest_s=(self.rest_s, 0.0))
        return _content_hash(place | timing, self.voltage_v)


@dataclass(frozen=True, eq=False)
class SettingPoint:
    """Moves axes of the rig, when the first point comes that needs it; others stay where they are.

    Attributes:
        values: Where to, by name of the axis, in the axis' unit.
        settle_s: Time in s between the arrival and the next request.
    """

    values: Mapping[str, float]
    settle_s: float = 0.0

    @cached_property
    def hash(self) -> str:
        """32 hex digits that depend on the content only; equal settings have the same."""
        place = {"point": "setting", "values": dict(self.values), "settle_s": self.settle_s}
        return _content_hash(place, np.empty(0))


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """Takes one I-V curve with a source-meter: of one cell, or of whatever a source-meter is wired to.

    Attributes:
        curve: Which curve of this plan, from 0: equal curves taken twice are two points.
        voltage_v: Levels in V, in this order.
        limit_a: Compliance limit in A; None for what the board or the rig file says.
        array: Array of the cell; None where a source-meter is wired to the device.
        row: Word line of the cell.
        column: Bit line of the cell.
        meter: Name of the source-meter in the rig file; None for a cell of the board.
    """

    curve: int
    voltage_v: tuple[float, ...]
    limit_a: float | None = None
    array: int | None = None
    row: int = 0
    column: int = 0
    meter: str | None = None

    @cached_property
    def hash(self) -> str:
        """32 hex digits that depend on the content only."""
        place = {
            "point": "curve",
            "curve": self.curve,
            "limit_a": self.limit_a,
            "array": self.array,
            "row": self.row,
            "column": self.column,
            "meter": self.meter,
        }
        return _content_hash(place, np.array(self.voltage_v, dtype=np.float64))


Point = ProgramPoint | MvmPoint | SettingPoint | CurvePoint
Answer = MvmResult | tuple[Reading, ...] | None
"""What a plan gets back from `yield`: of an `MvmPoint` its result, of a `CurvePoint` its readings, None of a point that
was missed, and None of those that are carried out later."""
Points = AsyncGenerator[Point, Answer]
"""What `Plan.points` gives: its points, one after another; each `yield` may be told its answer."""


@runtime_checkable
class Plan(Protocol):
    """What to measure. The same plan on the same board, given the same answers, yields the same points in order."""

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        ...

    def describe(self) -> dict[str, object]:
        """Everything that determines the points, seeds included, as JSON can hold it."""
        ...

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """How much a recording of this plan must hold, by array; a plan that cannot know it guesses.

        Raises:
            CapabilityError: The board has no such array.
        """
        ...

    def points(self, info: BoardInfo) -> Points:
        """The points in the order of measurement.

        Raises:
            CapabilityError: The board has no such array.
        """
        ...


@runtime_checkable
class MeasuresBeside(Protocol):
    """A plan that moves axes or takes curves says so."""

    def beside(self, info: BoardInfo) -> BesideCapacity:
        """What a recording must hold beside MVMs and writes.

        Raises:
            CapabilityError: The board cannot do it.
        """
        ...


@runtime_checkable
class TakesTime(Protocol):
    """A plan that waits says how long."""

    def waiting_s(self, info: BoardInfo) -> float:
        """Time in s, at least, in which the plan waits on purpose."""
        ...


@dataclass(frozen=True)
class PlanNeeds:
    """Everything that a plan says of itself before it starts.

    Attributes:
        capacity: By array.
        beside: What is not of an array.
        waiting_s: Time in s, at least, in which the plan waits on purpose.
        board_s: How long the board alone needs, by its stated latencies, in s.
        readings_s: How long the readings of all curves take at least, in s.
    """

    capacity: Mapping[int, StreamCapacity]
    beside: BesideCapacity = field(default_factory=BesideCapacity)
    waiting_s: float = 0.0
    board_s: float = 0.0
    readings_s: float = 0.0

    @property
    def least_s(self) -> float:
        """Least time in s for all of it, without link and disk."""
        return self.waiting_s + self.board_s + self.readings_s

    @property
    def mvms(self) -> int:
        """MVMs over all arrays."""
        return sum(one.rows for one in self.capacity.values())

    @property
    def writes(self) -> int:
        """Programmings over all arrays."""
        return sum(one.writes for one in self.capacity.values())

    @classmethod
    def of(cls, plan: Plan, info: BoardInfo) -> PlanNeeds:
        """What `plan` says on this board; how long its curves take is the rig's to say (`labrig.plan_time`).

        Raises:
            CapabilityError: The board cannot do it.
            ConfigError: Code of the plan failed.
        """
        with plan_faults(plan.name, "what it needs"):
            capacity = plan.capacity(info)
            beside = plan.beside(info) if isinstance(plan, MeasuresBeside) else BesideCapacity()
            waiting_s = plan.waiting_s(info) if isinstance(plan, TakesTime) else 0.0
        return cls(capacity, beside, waiting_s, least_seconds(capacity, info))


def least_seconds(capacity: Mapping[int, StreamCapacity], info: BoardInfo) -> float:
    """How long the board alone needs for all of this, in s: its stated latencies, without link and disk."""
    rows = sum(one.rows for one in capacity.values())
    writes = sum(one.writes for one in capacity.values())
    return rows * info.mvm_latency_s + writes * info.program_latency_s


def _unusual(**values: tuple[object, object]) -> dict[str, object]:
    """Those that differ from their default: what a point had before it had this field stays its hash."""
    return {name: value for name, (value, default) in values.items() if value != default}


def _content_hash(place: Mapping[str, object], values: FloatArray) -> str:
    content = {**place, "shape": list(values.shape)}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    # Little-endian whatever the machine, or a run could not be resumed on another one.
    digest.update(np.ascontiguousarray(values, dtype="<f8").data)
    return digest.hexdigest()[:32]
