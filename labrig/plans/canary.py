"""The plan `canary`: sixteen fixed vectors show in a second whether a chip is still the one that was calibrated."""

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
from labrig_calibration.stimulus import StimulusKind, WriteDesign, fitted_to_adc
from labrig_drivers.crossbar import BoardInfo

CANARIES = 16


@dataclass(frozen=True)
class CanaryDesign:
    """Sixteen vectors from zero to full load, always the same ones for one seed, on one write of a fixed pattern.

    Attributes:
        repeats: Times that each vector is measured.
        seed: Determines pattern and vectors; recordings are compared only with those of the same seed.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the board's.
    """

    repeats: int = 16
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None

    def __post_init__(self) -> None:
        demand_positive(self.name, repeats=self.repeats)

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "canary"

    def schedule(self, info: BoardInfo) -> Schedule:
        """One write of each array; each block holds all sixteen vectors once."""
        return {array: [self._write(info, array)] for array in chosen_arrays(info, self.arrays)}

    def _write(self, info: BoardInfo, array: int) -> WriteDesign:
        generator = np.random.default_rng([self.seed, array])
        amplitude_v = read_amplitude_v(info, self.max_voltage_v)
        target_s = random_target(info, generator)
        shapes = generator.uniform(-amplitude_v, amplitude_v, (CANARIES, info.rows))
        fractions = np.linspace(0.0, 1.0, CANARIES)[:, None]
        vectors = fractions * fitted_to_adc(shapes, target_s, np.asarray(info.adc_full_scale_a))
        blocks = in_blocks(StimulusKind.REPEAT, vectors, CANARIES) * self.repeats
        return WriteDesign(target_s, tuple(blocks))
