"""Plans that know beforehand what they measure: a list of writes for each array, each with its blocks of vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol, runtime_checkable

import numpy as np

from labrig.plans.base import MvmPoint, Points, ProgramPoint, StreamCapacity
from labrig_calibration.stimulus import StimulusBlock, WriteDesign, exact_in_float32
from labrig_drivers.crossbar import BoardInfo, FloatArray
from labrig_drivers.errors import CapabilityError, ConfigError

Schedule = Mapping[int, Sequence[WriteDesign]]
"""For each array the programmings, in order, and what is measured on each."""


@runtime_checkable
class ScheduleDesign(Protocol):
    """What a plan of one's own needs: a frozen dataclass with a name, whose fields are its options."""

    @property
    def name(self) -> str:
        """What messages and recordings call the plan."""
        ...

    def schedule(self, info: BoardInfo) -> Schedule:
        """Everything that is measured on this board; the same each time it is asked."""
        ...


@dataclass(frozen=True)
class ScheduledPlan:
    """A `Plan` made of a `ScheduleDesign`.

    Attributes:
        design: What is measured.
    """

    design: ScheduleDesign

    @property
    def name(self) -> str:
        """The name of the design."""
        return self.design.name

    def describe(self) -> dict[str, object]:
        """The name and every option of the design."""
        return describe_options(self.design)

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """How much a recording of this plan must hold, by array."""
        return capacity_of(self.design.schedule(info))

    def points(self, info: BoardInfo) -> Points:
        """The points: write by write over all arrays, so that none is measured only early or only late."""
        return points_of(self.design.schedule(info))


class Named(Protocol):
    """A plan or design of one's own: a dataclass with a name, whose fields are its options."""

    @property
    def name(self) -> str:
        """What messages and recordings call the plan."""
        ...


def describe_options(design: Named) -> dict[str, object]:
    """Name and options of a plan or design, as JSON can hold them.

    Raises:
        TypeError: The design is no dataclass, so that its options are unknown.
    """
    if not dataclasses.is_dataclass(design) or isinstance(design, type):
        raise TypeError(f"{type(design).__name__} must be a dataclass, whose fields are the plan's options")
    values = {field.name: getattr(design, field.name) for field in dataclasses.fields(design)}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {"name": design.name, **plain}


def capacity_of(schedule: Schedule) -> dict[int, StreamCapacity]:
    """How much a recording of this schedule must hold, by array."""
    return {
        array: StreamCapacity(
            rows=sum(len(block.voltage_v) for write in writes for block in write.blocks),
            writes=len(writes),
            blocks=sum(len(write.blocks) for write in writes),
        )
        for array, writes in schedule.items()
    }


async def points_of(schedule: Schedule) -> Points:
    """The points of a schedule, write by write over all arrays."""
    for number, writes in enumerate(zip_longest(*schedule.values())):
        for array, write in zip(schedule, writes, strict=True):
            if write is None:
                continue
            yield ProgramPoint(array, number, write.target_conductance_s)
            for index, block in enumerate(write.blocks):
                yield MvmPoint(array, number, index, block.kind, block.voltage_v)


def chosen_arrays(info: BoardInfo, arrays: Sequence[int] | None) -> list[int]:
    """The arrays that a plan names; all of the board when None.

    Raises:
        CapabilityError: None is named, or the board has not all of them.
    """
    chosen = list(range(info.arrays) if arrays is None else arrays)
    if not chosen:
        raise CapabilityError(f"the plan names no array; leave arrays out to take all {info.arrays} of the board")
    missing = [str(array) for array in chosen if not 0 <= array < info.arrays]
    if missing:
        raise CapabilityError(
            f"the plan names arrays {', '.join(missing)}, but the board has 0 to {info.arrays - 1} only"
        )
    return chosen


def read_amplitude_v(info: BoardInfo, max_voltage_v: float | None) -> float:
    """The largest magnitude in V that inputs of both signs may have.

    Args:
        info: The board.
        max_voltage_v: The rig's own limit in V; None where it has none.

    Raises:
        CapabilityError: There is none: the board takes one sign only, or the limit is zero.
    """
    amplitude_v = min(-info.voltage_min_v, info.voltage_max_v)
    if max_voltage_v is not None:
        amplitude_v = min(amplitude_v, max_voltage_v)
    if not amplitude_v > 0.0:
        limit = "" if max_voltage_v is None else f", and to {max_voltage_v:g} V by the rig's limit"
        raise CapabilityError(
            f"the plan needs inputs of both signs, but they may go from {info.voltage_min_v:g} V to "
            f"{info.voltage_max_v:g} V only{limit}"
        )
    return amplitude_v


def random_target(info: BoardInfo, generator: np.random.Generator) -> FloatArray:
    """A target conductance in S, `[rows, columns]`, uniform over the whole range and exact in float32."""
    shape = (info.rows, info.columns)
    return exact_in_float32(generator.uniform(info.conductance_min_s, info.conductance_max_s, shape))


def in_blocks(kind: int, voltage_v: FloatArray, batch: int) -> list[StimulusBlock]:
    """Cuts vectors `[count, rows]` in V into blocks of at most `batch`, in their order.

    Args:
        kind: What they are for: a `StimulusKind`, or a number from 64 to 127 of one's own.
        voltage_v: The vectors.
        batch: Most vectors in one request.
    """
    exact = exact_in_float32(voltage_v)
    return [StimulusBlock(kind, exact[start : start + batch]) for start in range(0, len(exact), batch)]


def demand_positive(name: str, **counts: float) -> None:
    """Checks the options of a plan.

    Raises:
        ConfigError: One or more are not positive; every one is named.
    """
    faults = [f"{key} is {value}, must be above zero" for key, value in counts.items() if not value > 0]
    if faults:
        raise ConfigError(f"plan {name!r}: " + "; ".join(faults))
