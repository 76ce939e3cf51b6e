"""The plan `iv`: current-voltage curves of single cells, or of a device that a source-meter is wired to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from labrig.plans.base import BesideCapacity, CurvePoint, Points, ProgramPoint, StreamCapacity
from labrig.plans.schedule import chosen_arrays, demand_positive, describe_options, random_target
from labrig_drivers.capabilities import CELL_SWEEP, require_capability
from labrig_drivers.crossbar import BoardInfo, FloatArray
from labrig_drivers.errors import CapabilityError, ConfigError


@dataclass(frozen=True)
class IvPlan:
    """Each curve goes from zero to `high_v`, back to zero, to `low_v` and back, so that hysteresis shows.

    Attributes:
        low_v: Lowest level in V; the board's lowest read voltage when None.
        high_v: Highest level in V; the board's highest read voltage when None.
        levels: Levels between zero and one end, the end among them.
        there_and_back: False for one pass from `low_v` to `high_v`.
        cells: How many cells of each array, drawn at random; or a list of [row, column].
        repeats: Curves of each cell; all cells once, then all again.
        limit_a: Compliance limit in A; None for what the board or the rig file says.
        program: Program each array to a random pattern first; False leaves the cells as they are.
        meter: Name of a source-meter in the rig file whose device is measured in place of cells of the board.
        seed: Determines cells and pattern.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Magnitude in V that no level of a cell exceeds.
    """

    low_v: float | None = None
    high_v: float | None = None
    levels: int = 20
    there_and_back: bool = True
    cells: int | Sequence[Sequence[int]] = 16
    repeats: int = 1
    limit_a: float | None = None
    program: bool = False
    meter: str | None = None
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None

    def __post_init__(self) -> None:
        demand_positive(self.name, levels=self.levels, repeats=self.repeats)
        if isinstance(self.cells, int):
            demand_positive(self.name, cells=self.cells)
        elif wrong := [cell for cell in self.cells if len(cell) != 2]:
            raise ConfigError(f"plan 'iv': cells has {wrong}, each must be [row, column]")
        if self.meter is not None and (self.low_v is None or self.high_v is None):
            raise ConfigError("plan 'iv': a device at a source-meter needs low_v and high_v")

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "iv"

    def describe(self) -> dict[str, object]:
        """The name and every option."""
        return describe_options(self)

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """Room for the writes, where there are any; curves are `beside`."""
        if not self.program or self.meter is not None:
            return {}
        return dict.fromkeys(chosen_arrays(info, self.arrays), StreamCapacity(0, 1, 0))

    def beside(self, info: BoardInfo) -> BesideCapacity:
        """Room for the curves.

        Raises:
            CapabilityError: The board has no source-meters at its lines.
        """
        if self.meter is None:
            require_capability(info, CELL_SWEEP)
        curves = self.repeats * (1 if self.meter is not None else len(self._places(info)))
        meters = () if self.meter is None else (self.meter,)
        return BesideCapacity(curves=curves, readings=curves * len(self._levels_v(info)), meters=meters)

    async def points(self, info: BoardInfo) -> Points:
        """The curves, all cells once, then all again."""
        levels_v = self._levels_v(info)
        if self.meter is not None:
            for curve in range(self.repeats):
                yield CurvePoint(curve, levels_v, self.limit_a, meter=self.meter)
            return
        if self.program:
            for array in chosen_arrays(info, self.arrays):
                yield ProgramPoint(array, 0, random_target(info, np.random.default_rng([self.seed, array])))
        places = itertools.chain.from_iterable(itertools.repeat(self._places(info), self.repeats))
        for curve, (array, row, column) in enumerate(places):
            yield CurvePoint(curve, levels_v, self.limit_a, array, row, column)

    def _levels_v(self, info: BoardInfo) -> tuple[float, ...]:
        low_v = info.voltage_min_v if self.low_v is None else self.low_v
        high_v = info.voltage_max_v if self.high_v is None else self.high_v
        if self.max_voltage_v is not None and self.meter is None:
            low_v, high_v = max(low_v, -self.max_voltage_v), min(high_v, self.max_voltage_v)
        if not low_v < high_v:
            raise ConfigError(f"plan 'iv': goes from {low_v:g} V to {high_v:g} V, which is no range")
        steps = np.arange(self.levels + 1) / self.levels
        if not self.there_and_back:
            return tuple((low_v + (high_v - low_v) * steps).tolist())
        branches = [end_v * way for end_v in (high_v, low_v) if end_v for way in (steps[:-1], steps[:0:-1])]
        levels_v: FloatArray = np.concatenate([*branches, [0.0]])
        return tuple(levels_v.tolist())

    def _places(self, info: BoardInfo) -> list[tuple[int, int, int]]:
        return [
            (array, row, column) for array in chosen_arrays(info, self.arrays) for row, column in self._of(info, array)
        ]

    def _of(self, info: BoardInfo, array: int) -> Iterator[tuple[int, int]]:
        if isinstance(self.cells, int):
            count = min(self.cells, info.rows * info.columns)
            drawn = np.random.default_rng([self.seed, array, 1]).choice(info.rows * info.columns, count, replace=False)
            yield from (divmod(int(cell), info.columns) for cell in drawn)
            return
        wrong = [list(cell) for cell in self.cells if not (0 <= cell[0] < info.rows and 0 <= cell[1] < info.columns)]
        if wrong:
            raise CapabilityError(f"plan 'iv': cells {wrong} are not on an array of {info.rows} x {info.columns}")
        yield from ((cell[0], cell[1]) for cell in self.cells)
