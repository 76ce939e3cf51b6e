"""The plan `transfer`: the transfer curve of every column, from one end of its ADC to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labrig.plans.schedule import (
    Schedule,
    chosen_arrays,
    demand_positive,
    in_blocks,
    random_target,
    read_amplitude_v,
)
from labrig_calibration.stimulus import StimulusKind, WriteDesign
from labrig_drivers.crossbar import BoardInfo, FloatArray


@dataclass(frozen=True)
class TransferCurveDesign:
    """A ladder of amplitudes of both signs along random directions, on several writes.

    The ladder is not scaled to the ADC: where the load allows it, columns are driven into saturation, and the
    curve shows where. Its steps come in random order, so that drift is no curvature.

    Attributes:
        levels: Amplitudes of each direction, from the negative end to the positive; an odd number has zero among them.
        directions: Random patterns of driven rows, from all rows to a quarter of them.
        repeats: Times that each vector is measured.
        writes: Programmings of each array.
        batch: Most vectors in one request.
        seed: Determines every random choice.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the board's.
    """

    levels: int = 65
    directions: int = 4
    repeats: int = 4
    writes: int = 2
    batch: int = 256
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None

    def __post_init__(self) -> None:
        counts = {"directions": self.directions, "repeats": self.repeats, "writes": self.writes, "batch": self.batch}
        demand_positive(self.name, levels=self.levels, **counts)

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "transfer"

    def schedule(self, info: BoardInfo) -> Schedule:
        """The writes of each array."""
        amplitude_v = read_amplitude_v(info, self.max_voltage_v)
        schedule: dict[int, list[WriteDesign]] = {}
        for array in chosen_arrays(info, self.arrays):
            generator = np.random.default_rng([self.seed, array])
            schedule[array] = [self._write(info, amplitude_v, generator) for _ in range(self.writes)]
        return schedule

    def _write(self, info: BoardInfo, amplitude_v: float, generator: np.random.Generator) -> WriteDesign:
        target_s = random_target(info, generator)
        density = np.geomspace(1.0, 0.25, self.directions)[:, None]
        driven = generator.random((self.directions, info.rows)) < density
        levels_v = amplitude_v * np.linspace(-1.0, 1.0, self.levels)
        ladder: FloatArray = (levels_v[:, None, None] * driven[None]).reshape(-1, info.rows)
        vectors = np.tile(ladder, (self.repeats, 1))
        shuffled = vectors[generator.permutation(len(vectors))]
        return WriteDesign(target_s, tuple(in_blocks(StimulusKind.LADDER, shuffled, self.batch)))
