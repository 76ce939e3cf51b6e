"""The plan `mvm`: the stimulus of `labrig_calibration.stimulus` on one or more arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labrig.plans.base import Points, StreamCapacity
from labrig.plans.schedule import Schedule, capacity_of, chosen_arrays, points_of
from labrig_calibration.dataset import Converters
from labrig_calibration.stimulus import MvmDesign, StimulusCounts, design_mvm_calibration
from labrig_drivers.crossbar import BoardInfo


@dataclass(frozen=True)
class MvmCalibrationPlan:
    """Measures what a surrogate of each array is fitted to.

    Attributes:
        writes: Programmings of each array.
        batch: Most vectors in one request.
        seed: Determines targets, vectors and their order.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the board's.
        counts: Vectors of each kind of one write by name, as `StimulusCounts` names them; those that are not named,
            or None, as usual. `labrig plan` finds them.

    Raises:
        StimulusError: Counts that are none.
    """

    writes: int = 4
    batch: int = 128
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None
    counts: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        self.stimulus_counts()

    def stimulus_counts(self) -> StimulusCounts:
        """Vectors of each kind of one write."""
        return StimulusCounts() if self.counts is None else StimulusCounts.of(self.counts)

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "mvm"

    def describe(self) -> dict[str, object]:
        """Everything that determines the points, as JSON can hold it."""
        described: dict[str, object] = {
            "name": self.name,
            "writes": self.writes,
            "batch": self.batch,
            "seed": self.seed,
            "arrays": None if self.arrays is None else list(self.arrays),
            "max_voltage_v": self.max_voltage_v,
        }
        # A recording made before there were counts is resumed still.
        return described if self.counts is None else described | {"counts": self.stimulus_counts().as_options()}

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """How much a recording of this plan must hold, by array."""
        return capacity_of(self._schedule(info))

    def points(self, info: BoardInfo) -> Points:
        """The points: write by write over all arrays, so that none is measured only early or only late."""
        return points_of(self._schedule(info))

    def design(self, info: BoardInfo, array: int) -> MvmDesign:
        """Everything that is measured on one array."""
        return design_mvm_calibration(
            info.rows,
            info.columns,
            board_converters(info),
            writes=self.writes,
            seed=self.seed,
            stream=array,
            batch=self.batch,
            max_voltage_v=self.max_voltage_v,
            counts=self.stimulus_counts(),
        )

    def _schedule(self, info: BoardInfo) -> Schedule:
        return {array: self.design(info, array).writes for array in chosen_arrays(info, self.arrays)}


def board_converters(info: BoardInfo) -> Converters:
    """The converters of a board, as data sets carry them."""
    return Converters(
        voltage_min_v=info.voltage_min_v,
        voltage_max_v=info.voltage_max_v,
        dac_bits=info.dac_bits,
        adc_bits=info.adc_bits,
        adc_full_scale_a=np.asarray(info.adc_full_scale_a, dtype=np.float64),
        conductance_min_s=info.conductance_min_s,
        conductance_max_s=info.conductance_max_s,
    )
