"""The plan `retention`: how conductances drift after a write, read at ages of 1, 2, 4, 8 ... seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labrig.plans.base import MvmPoint, Points, ProgramPoint, StreamCapacity
from labrig.plans.schedule import chosen_arrays, demand_positive, describe_options, random_target, read_amplitude_v
from labrig_calibration.stimulus import StimulusKind, exact_in_float32, fitted_to_adc
from labrig_drivers.crossbar import BoardInfo, FloatArray
from labrig_drivers.errors import ConfigError


@dataclass(frozen=True)
class RetentionPlan:
    """Fixed vectors at ages that double, on one or more writes; all arrays are written first and age together.

    A reading may come late, by a quarter of its age at most: then the next one is not due yet. What is later than that,
    because the run was interrupted or had to wait, is noted as missed and not made up for. A write is followed by the
    next one when it has reached its last age.

    Attributes:
        first_s: Age in s of the first reading.
        last_s: Age in s that no reading exceeds.
        vectors: Fixed vectors, from zero to full load.
        repeats: Times that each of them is read at each age.
        writes: Programmings of each array, each of another random pattern.
        seed: Determines patterns and vectors.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the board's.
    """

    first_s: float = 1.0
    last_s: float = 4096.0
    vectors: int = 16
    repeats: int = 4
    writes: int = 1
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None

    def __post_init__(self) -> None:
        counts = {"vectors": self.vectors, "repeats": self.repeats, "writes": self.writes}
        demand_positive(self.name, first_s=self.first_s, last_s=self.last_s, **counts)
        if self.last_s < self.first_s:
            raise ConfigError(f"plan 'retention': last_s is {self.last_s:g} s, before first_s = {self.first_s:g} s")

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "retention"

    @property
    def ages_s(self) -> tuple[float, ...]:
        """The ages in s at which each write is read."""
        steps = math.floor(math.log2(self.last_s / self.first_s) + 1e-9)
        return tuple(self.first_s * 2.0**step for step in range(steps + 1))

    def describe(self) -> dict[str, object]:
        """The name and every option."""
        return describe_options(self)

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """How much a recording of this plan must hold, by array."""
        blocks = self.writes * len(self.ages_s)
        rows = blocks * self.vectors * self.repeats
        return {array: StreamCapacity(rows, self.writes, blocks) for array in chosen_arrays(info, self.arrays)}

    def waiting_s(self, info: BoardInfo) -> float:  # noqa: ARG002 - of the protocol
        """The last age, for each write."""
        return self.writes * self.ages_s[-1]

    async def points(self, info: BoardInfo) -> Points:
        """All arrays are written, then read age by age."""
        arrays = chosen_arrays(info, self.arrays)
        for write in range(self.writes):
            designs = {array: self._design(info, array, write) for array in arrays}
            for array, (target_s, _) in designs.items():
                yield ProgramPoint(array, write, target_s)
            for block, age_s in enumerate(self.ages_s):
                for array, (_, vectors_v) in designs.items():
                    kind = StimulusKind.REPEAT
                    yield MvmPoint(array, write, block, kind, vectors_v, due_s=age_s, late_s=0.25 * age_s)

    def _design(self, info: BoardInfo, array: int, write: int) -> tuple[FloatArray, FloatArray]:
        """Target in S `[rows, columns]` and vectors in V `[vectors * repeats, rows]`."""
        generator = np.random.default_rng([self.seed, array, write])
        amplitude_v = read_amplitude_v(info, self.max_voltage_v)
        target_s = random_target(info, generator)
        shapes = generator.uniform(-amplitude_v, amplitude_v, (self.vectors, info.rows))
        fractions = np.linspace(0.0, 1.0, self.vectors)[:, None] if self.vectors > 1 else np.ones((1, 1))
        vectors_v = fractions * fitted_to_adc(shapes, target_s, np.asarray(info.adc_full_scale_a))
        return target_s, np.tile(exact_in_float32(vectors_v), (self.repeats, 1))
