"""The plan `mvm`: the stimulus of `labrig_calibration.stimulus` on one or more arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labrig.plans.base import Points, StreamCapacity
from labrig.plans.schedule import Schedule, capacity_of, chosen_arrays, points_of
from labrig_calibration.dataset import Converters
from labrig_calibration.stimulus import design_mvm_calibration
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
    """

    writes: int = 4
    batch: int = 128
    seed: int = 0
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        return "mvm"

    def describe(self) -> dict[str, object]:
        """Everything that determines the points, as JSON can hold it."""
        return {
            "name": self.name,
            "writes": self.writes,
            "batch": self.batch,
            "seed": self.seed,
            "arrays": None if self.arrays is None else list(self.arrays),
            "max_voltage_v": self.max_voltage_v,
        }

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """How much a recording of this plan must hold, by array."""
        return capacity_of(self._schedule(info))

    def points(self, info: BoardInfo) -> Points:
        """The points: write by write over all arrays, so that none is measured only early or only late."""
        return points_of(self._schedule(info))

    def _schedule(self, info: BoardInfo) -> Schedule:
        converters = board_converters(info)
        return {
            array: design_mvm_calibration(
                info.rows,
                info.columns,
                converters,
                writes=self.writes,
                seed=self.seed,
                stream=array,
                batch=self.batch,
                max_voltage_v=self.max_voltage_v,
            ).writes
            for array in chosen_arrays(info, self.arrays)
        }


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
