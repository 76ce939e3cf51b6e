"""From stored columns to measurements with units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig.plans.mvm import board_converters
from labrig.recording.streams import Columns
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.crossbar import BoardInfo, FloatArray


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


def temperature_of(mvms: Columns, settings: Columns, axis_units: Mapping[str, str]) -> FloatArray | None:
    """Temperature in K at each MVM: what the axis in kelvin read when the setting in force was reached.

    Args:
        mvms: Columns of the MVMs, as stored.
        settings: Columns of the settings of axes, as stored; none where the run moved none.
        axis_units: Unit of each axis by its name.

    Returns:
        `[N]`, NaN in front of the first setting; None where not exactly one axis is one of temperature.
    """
    names = [name for name, unit in axis_units.items() if unit == "K"]
    if len(names) != 1 or "setting" not in mvms or f"{names[0]}_read" not in settings:
        return None
    # The last entry is what the number of no setting, -1, picks.
    read_k = np.append(settings[f"{names[0]}_read"].astype(np.float64), np.nan)
    return np.asarray(read_k[mvms["setting"].astype(np.int64)])


def mvm_dataset(
    info: BoardInfo,
    array: int,
    mvms: Columns,
    writes: Columns,
    pattern: NDArray[np.int64],
    temperature_k: FloatArray | None = None,
) -> MvmDataset:
    """Measurements of one array.

    Args:
        info: The board.
        array: Which array.
        mvms: Columns of the MVMs, as stored.
        writes: Columns of the writes that they read, as stored.
        pattern: Which of `writes` each MVM read.
        temperature_k: Temperature in K at each MVM, where it was an axis of the run; see `temperature_of`.
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
        temperature_k=temperature_k,
    )
