"""The plan `noise`: few fixed vectors, each read very many times in a row, for spectra of the read noise."""

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


@dataclass(frozen=True)
class ReadNoiseDesign:
    """Long traces at several loads, one after another on one write.

    The reads of one vector follow each other without a break, so that their spectrum reaches from the board's read
    rate down to one over the length of the trace. The first vector is zero: the noise of the amplifiers alone.

    Attributes:
        vectors: Fixed vectors, the zero vector among them.
        reads: Times that each is read.
        batch: Most vectors in one request.
        seed: Determines target and vectors.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the board's.
    """

    vectors: int = 4
    reads: int = 4096
    batch: int = 1024
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None

    def __post_init__(self) -> None:
        demand_positive(self.name, vectors=self.vectors, reads=self.reads, batch=self.batch)

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "noise"

    def schedule(self, info: BoardInfo) -> Schedule:
        """One write of each array."""
        return {array: [self._write(info, array)] for array in chosen_arrays(info, self.arrays)}

    def _write(self, info: BoardInfo, array: int) -> WriteDesign:
        generator = np.random.default_rng([self.seed, array])
        amplitude_v = read_amplitude_v(info, self.max_voltage_v)
        target_s = random_target(info, generator)
        shapes = generator.uniform(0.0, amplitude_v, (self.vectors, info.rows))
        fractions = np.linspace(0.0, 1.0, self.vectors)[:, None]
        vectors = fractions * fitted_to_adc(shapes, target_s, np.asarray(info.adc_full_scale_a))
        blocks = [
            block
            for vector in vectors
            for block in in_blocks(StimulusKind.REPEAT, np.broadcast_to(vector, (self.reads, info.rows)), self.batch)
        ]
        return WriteDesign(target_s, tuple(blocks))
