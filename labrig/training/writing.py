"""Which cells are written: changes below one step of the programming wait in float, and every write is counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class WriteRule:
    """When a cell gets a new target.

    The weights themselves stay in float, so that small updates add up until they are worth a write.

    Attributes:
        step_s: Smallest change in S that is written, and distance of two levels; zero writes every change.
        conductance_min_s: Level zero in S, which the others are counted from.
    """

    step_s: float = 0.0
    conductance_min_s: float = 0.0

    def commanded(self, wanted_s: FloatArray, held_s: FloatArray | None) -> FloatArray:
        """The targets in S to command, `[rows, columns]`.

        Args:
            wanted_s: What the weights ask for.
            held_s: What was commanded last; None where nothing is known to be on the array.
        """
        level_s = wanted_s
        if self.step_s > 0.0:
            level_s = self.conductance_min_s + self.step_s * np.rint((wanted_s - self.conductance_min_s) / self.step_s)
        if held_s is None or self.step_s == 0.0:
            return level_s
        # One whole step, not half of one: a weight that rests between two levels must not be written to and fro.
        return np.where(np.abs(wanted_s - held_s) >= self.step_s, level_s, held_s)


class Wear:
    """How often each cell of each array got a new target."""

    def __init__(self) -> None:
        self.writes: dict[int, NDArray[np.int64]] = {}

    def count(self, array: int, held_s: FloatArray | None, commanded_s: FloatArray) -> int:
        """Counts one programming of an array, and returns how many of its cells changed."""
        changed = np.ones(commanded_s.shape, np.bool_) if held_s is None else held_s != commanded_s
        self.writes.setdefault(array, np.zeros(commanded_s.shape, np.int64))[changed] += 1
        return int(changed.sum())

    def as_file(self) -> bytes:
        """The counts as a safetensors file: `array_0` and so on, int64, `[rows, columns]`."""
        return save({f"array_{array}": one for array, one in sorted(self.writes.items())})

    @property
    def most(self) -> int:
        """Writes of the cell that was written most."""
        return max((int(one.max()) for one in self.writes.values()), default=0)
