"""Any plan again and again, at every setting of the rig's axes: temperatures, fields, whatever the rig can set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np

from labrig.plans.base import (
    Answer,
    BesideCapacity,
    CurvePoint,
    MvmPoint,
    Plan,
    PlanNeeds,
    Point,
    Points,
    ProgramPoint,
    SettingPoint,
    StreamCapacity,
)
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError

Setting = Mapping[str, float]
"""A value for each axis, by name, in the axis' unit."""


def grid(values: Mapping[str, Sequence[float]]) -> list[Setting]:
    """Every combination; the last axis changes fastest.

    Args:
        values: The values of each axis, by name.
    """
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def repeated(settings: Sequence[Setting], visits: int) -> list[Setting]:
    """All settings once, then all again, so often."""
    return [setting for _ in range(visits) for setting in settings]


def shuffled(settings: Sequence[Setting], generator: np.random.Generator) -> list[Setting]:
    """In random order, so that drift is no effect of an axis."""
    return [settings[index] for index in generator.permutation(len(settings))]


@dataclass(frozen=True)
class OverAxes:
    """Runs a plan at each of a list of settings.

    Attributes:
        inner: The plan.
        settings: Where the axes go, in order.
        settle_s: Time in s between the arrival of the axes and the first request.
        rewrite: Program the arrays anew at each setting. False measures one write at all settings: only for plans that
            write each array once.
    """

    inner: Plan
    settings: Sequence[Setting]
    settle_s: float = 0.0
    rewrite: bool = True

    def __post_init__(self) -> None:
        if not self.settings:
            raise ConfigError(f"plan {self.inner.name!r} over axes: there is no setting")
        if self.settle_s < 0.0:
            raise ConfigError(
                f"plan {self.inner.name!r} over axes: settle_s is {self.settle_s:g} s, must not be negative"
            )

    @property
    def name(self) -> str:
        """That of the plan inside."""
        return self.inner.name

    def describe(self) -> dict[str, object]:
        """Everything that determines the points."""
        return {
            **self.inner.describe(),
            "settings": [dict(setting) for setting in self.settings],
            "settle_s": self.settle_s,
            "rewrite": self.rewrite,
        }

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """That of the plan inside, for each setting.

        Raises:
            ConfigError: The plan writes an array more than once, and `rewrite` is False.
        """
        visits = len(self.settings)
        once = self.inner.capacity(info)
        if not self.rewrite and any(one.writes > 1 for one in once.values()):
            raise ConfigError(
                f"plan {self.name!r} writes an array {max(one.writes for one in once.values())} times; to measure one "
                "write at all settings it must write it once, such as with writes=1"
            )
        return {
            array: StreamCapacity(
                visits * one.rows, visits * one.writes if self.rewrite else one.writes, visits * one.blocks
            )
            for array, one in once.items()
        }

    def beside(self, info: BoardInfo) -> BesideCapacity:
        """Room for the settings, and for the curves of each."""
        inner, visits = PlanNeeds.of(self.inner, info).beside, len(self.settings)
        values = {name: [one[name] for one in self.settings if name in one] for one in self.settings for name in one}
        ranges = {name: (min(of_axis), max(of_axis)) for name, of_axis in values.items()}
        return BesideCapacity(
            axes={**inner.axes, **ranges},
            settings=visits * (1 + inner.settings),
            curves=visits * inner.curves,
            readings=visits * inner.readings,
            meters=inner.meters,
            supply_period_s=inner.supply_period_s,
        )

    def waiting_s(self, info: BoardInfo) -> float:
        """What each setting and each run of the plan takes on purpose; how long the axes take is not known."""
        return len(self.settings) * (self.settle_s + PlanNeeds.of(self.inner, info).waiting_s)

    async def points(self, info: BoardInfo) -> Points:
        """A setting, then all points of the plan, and so on; writes, blocks and curves are counted through."""
        counts = _Counts.of(self.inner, info, rewrite=self.rewrite)
        for visit, setting in enumerate(self.settings):
            yield SettingPoint(setting, self.settle_s)
            async with aclosing(self.inner.points(info)) as points:
                answer: Answer = None
                while True:
                    try:
                        point = await points.asend(answer)
                    except StopAsyncIteration:
                        break
                    moved = counts.at(point, visit)
                    answer = None if moved is None else (yield moved)


@dataclass(frozen=True)
class _Counts:
    """How much one run of a plan has of what points are counted by."""

    writes: Mapping[int, int]
    blocks: Mapping[int, int]
    curves: int
    rewrite: bool

    @classmethod
    def of(cls, plan: Plan, info: BoardInfo, *, rewrite: bool) -> _Counts:
        needs = PlanNeeds.of(plan, info)
        writes = {array: one.writes for array, one in needs.capacity.items()}
        return cls(writes, {array: one.blocks for array, one in needs.capacity.items()}, needs.beside.curves, rewrite)

    def at(self, point: Point, visit: int) -> Point | None:
        """The point as that of a later visit; None for a write that is there already."""
        match point:
            case ProgramPoint() if self.rewrite:
                return replace(point, write=point.write + visit * self.writes[point.array])
            case ProgramPoint():
                return None if visit else point
            case MvmPoint() if self.rewrite:
                return replace(point, write=point.write + visit * self.writes[point.array])
            case MvmPoint():
                return replace(point, block=point.block + visit * self.blocks[point.array])
            case CurvePoint():
                return replace(point, curve=point.curve + visit * self.curves)
            case SettingPoint():
                return point
