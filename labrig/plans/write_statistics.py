"""The plan `writes`: the same conductance levels programmed again and again, each cell read alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labrig.plans.schedule import (
    Schedule,
    chosen_arrays,
    demand_positive,
    in_blocks,
    read_amplitude_v,
)
from labrig_calibration.stimulus import StimulusKind, WriteDesign, exact_in_float32
from labrig_drivers.crossbar import BoardInfo, FloatArray


@dataclass(frozen=True)
class WriteStatisticsDesign:
    """How far from its target each cell lands, at every level, write after write.

    In each write every cell has one of the levels, and over as many writes as there are levels each cell has had
    each of them once: neither the place on the array nor the order of writing is confounded with the level. What
    the board itself reports (rms error after its verify, pulses) is recorded with each write; rows are read one by one,
    with both signs, so that offsets cancel.

    Attributes:
        levels: Conductance levels, evenly spaced over the board's range.
        repeats: Times that each cell is programmed to each level.
        reads: Times that each row is read with each sign.
        batch: Most vectors in one request.
        seed: Determines the order of levels on each cell.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the board's.
    """

    levels: int = 8
    repeats: int = 4
    reads: int = 4
    batch: int = 256
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None

    def __post_init__(self) -> None:
        counts = {"repeats": self.repeats, "reads": self.reads, "batch": self.batch}
        demand_positive(self.name, levels=self.levels, **counts)

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "writes"

    def schedule(self, info: BoardInfo) -> Schedule:
        """`levels` times `repeats` writes of each array."""
        amplitude_v = read_amplitude_v(info, self.max_voltage_v)
        one_hot = np.tile(np.eye(info.rows) * amplitude_v, (self.reads, 1))
        blocks = tuple(in_blocks(StimulusKind.ONE_HOT, np.concatenate([one_hot, -one_hot]), self.batch))
        return {
            array: [WriteDesign(target_s, blocks) for target_s in self._targets(info, array)]
            for array in chosen_arrays(info, self.arrays)
        }

    def _targets(self, info: BoardInfo, array: int) -> list[FloatArray]:
        generator = np.random.default_rng([self.seed, array])
        levels_s = exact_in_float32(np.linspace(info.conductance_min_s, info.conductance_max_s, self.levels))
        targets: list[FloatArray] = []
        for _ in range(self.repeats):
            first = generator.integers(self.levels, size=(info.rows, info.columns))
            steps = generator.permutation(self.levels)
            targets += [levels_s[(first + step) % self.levels] for step in steps]
        return targets
