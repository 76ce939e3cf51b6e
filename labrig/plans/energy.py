"""The plan `energy`: bursts of MVMs between rests, while the array supply is read without a pause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labrig.plans.base import BesideCapacity, MvmPoint, Points, ProgramPoint, StreamCapacity
from labrig.plans.schedule import (
    chosen_arrays,
    demand_positive,
    describe_options,
    in_blocks,
    random_target,
    read_amplitude_v,
)
from labrig_calibration.stimulus import StimulusKind, fitted_to_adc
from labrig_drivers.crossbar import BoardInfo, FloatArray
from labrig_drivers.errors import ConfigError


@dataclass(frozen=True)
class EnergyPlan:
    """What an MVM costs at several loads; `labrig.energy` makes joules per MVM of the recording.

    Before each burst the board rests, fed and idle: what it draws then is not the MVMs'. Loads take turns, so that a
    slow change of the supply is no difference between loads. One MVM of zeros after a last rest ends the whole, so that
    the supply is read until the last burst is over.

    Attributes:
        loads: Fractions of the largest inputs that the ADC can take; 0 is an MVM of zeros.
        bursts: Bursts of each load.
        mvms: MVMs of each burst.
        rest_s: Rest in s before each burst.
        batch: Most vectors in one request.
        seed: Determines pattern and vectors.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the board's.
    """

    loads: Sequence[float] = (0.0, 0.5, 1.0)
    bursts: int = 4
    mvms: int = 8192
    rest_s: float = 0.5
    batch: int = 1024
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None

    def __post_init__(self) -> None:
        demand_positive(self.name, bursts=self.bursts, mvms=self.mvms, rest_s=self.rest_s, batch=self.batch)
        wrong = [load for load in self.loads if not 0.0 <= load <= 1.0]
        if wrong or not self.loads:
            raise ConfigError(f"plan 'energy': loads are {list(self.loads)}, must be one or more numbers from 0 to 1")

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "energy"

    @property
    def blocks_per_burst(self) -> int:
        """Requests that make one burst."""
        return math.ceil(self.mvms / self.batch)

    def load_of(self, block: int) -> float:
        """The load of a block of this plan, counted from 0 on its array."""
        return float(self.loads[block // self.blocks_per_burst % len(self.loads)])

    def describe(self) -> dict[str, object]:
        """The name and every option."""
        return describe_options(self)

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """How much a recording of this plan must hold, by array."""
        bursts = self.bursts * len(self.loads)
        one = StreamCapacity(bursts * self.mvms + 1, 1, bursts * self.blocks_per_burst + 1)
        return dict.fromkeys(chosen_arrays(info, self.arrays), one)

    def beside(self, info: BoardInfo) -> BesideCapacity:  # noqa: ARG002 - of the protocol
        """The supply is read again as soon as it was read."""
        return BesideCapacity(supply_period_s=0.0)

    def waiting_s(self, info: BoardInfo) -> float:
        """All rests."""
        return self.rest_s * (self.bursts * len(self.loads) + 1) * len(chosen_arrays(info, self.arrays))

    async def points(self, info: BoardInfo) -> Points:
        """Array after array; on each the loads in turn."""
        for array in chosen_arrays(info, self.arrays):
            target_s, vectors_v = self._design(info, array)
            yield ProgramPoint(array, 0, target_s)
            for burst in range(self.bursts * len(self.loads)):
                load = self.loads[burst % len(self.loads)]
                blocks = in_blocks(StimulusKind.RANDOM, load * vectors_v, self.batch)
                for number, block in enumerate(blocks):
                    rest_s = 0.0 if number else self.rest_s
                    index = burst * self.blocks_per_burst + number
                    yield MvmPoint(array, 0, index, block.kind, block.voltage_v, rest_s=rest_s)
            last = self.bursts * len(self.loads) * self.blocks_per_burst
            yield MvmPoint(array, 0, last, StimulusKind.ZERO, np.zeros((1, info.rows)), rest_s=self.rest_s)

    def _design(self, info: BoardInfo, array: int) -> tuple[FloatArray, FloatArray]:
        generator = np.random.default_rng([self.seed, array])
        amplitude_v = read_amplitude_v(info, self.max_voltage_v)
        target_s = random_target(info, generator)
        vectors_v = generator.uniform(-amplitude_v, amplitude_v, (self.mvms, info.rows))
        return target_s, fitted_to_adc(vectors_v, target_s, np.asarray(info.adc_full_scale_a))
