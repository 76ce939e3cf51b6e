"""From stored columns to measurements with units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig.plans.mvm import board_converters
from labrig.recording.streams import Columns
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.crossbar import BoardInfo


@dataclass(frozen=True)
class MvmBlock:
    """Some MVMs of one array that follow one another in a recording.

    Attributes:
        start: Number of the first in the recording.
        first_write: Number in the recording of the write that `mvms.pattern` calls 0.
        mvms: The measurements, with the writes that they read and no others.
    """

    start: int
    first_write: int
    mvms: MvmDataset


def mvm_dataset(info: BoardInfo, array: int, mvms: Columns, writes: Columns, pattern: NDArray[np.int64]) -> MvmDataset:
    """Measurements of one array.

    Args:
        info: The board.
        array: Which array.
        mvms: Columns of the MVMs, as stored.
        writes: Columns of the writes that they read, as stored.
        pattern: Which of `writes` each MVM read.
    """
    return MvmDataset(
        voltage_v=mvms["voltage_v"].astype(np.float64),
        current_a=mvms["current_code"].astype(np.float64) * info.adc_lsb_a,
        pattern=pattern,
        target_conductance_s=writes["target_conductance_s"].astype(np.float64),
        time_s=mvms["time_s"].astype(np.float64),
        programmed_at_s=writes["programmed_at_s"].astype(np.float64),
        saturated=mvms["saturated"].astype(np.bool_),
        converters=board_converters(info),
        chip_id=info.chip_id,
        array=array,
    )
