"""Plans that choose their next point by what was measured: an async generator gets the answer to each point back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from labrig.plans.base import Points, StreamCapacity
from labrig.plans.schedule import describe_options
from labrig_drivers.crossbar import BoardInfo


@runtime_checkable
class AdaptiveDesign(Protocol):
    """A frozen dataclass with a name, whose fields are its options, and a generator of points.

    `answer = yield MvmPoint(...)` gives the result of the point. The next point may depend on answers and options and
    on nothing else: a run that is resumed is given the recorded answers and has to come to the same points.
    """

    @property
    def name(self) -> str:
        """What messages and recordings call the plan."""
        ...

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """The most that it may need, by array; a recording that outgrows it is extended."""
        ...

    def points(self, info: BoardInfo) -> Points:
        """The points."""
        ...


@dataclass(frozen=True)
class AdaptivePlan:
    """A `Plan` made of an `AdaptiveDesign`.

    Attributes:
        design: What decides.
    """

    design: AdaptiveDesign

    @property
    def name(self) -> str:
        """The name of the design."""
        return self.design.name

    def describe(self) -> dict[str, object]:
        """The name and every option of the design."""
        return describe_options(self.design)

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """The most that it may need, by array."""
        return self.design.capacity(info)

    def points(self, info: BoardInfo) -> Points:
        """The points."""
        return self.design.points(info)
