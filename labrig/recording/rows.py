"""Everything that was recorded of one array, row by row: for what plays a recording back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig.recording.reader import Recording
from labrig_drivers.crossbar import FloatArray


@dataclass(frozen=True)
class RecordedArray:
    """The committed rows of one array, `N` MVMs and `W` writes, with the stored types.

    Attributes:
        voltage_v: Commanded voltages in V, float32 `[N, rows]`.
        code: Raw ADC codes, int16 `[N, columns]`.
        saturated: True where the ADC was at an end, `[N, columns]`.
        write: Which write of this file was read, `[N]`.
        time_s: Board clock in s at each MVM, `[N]`.
        target_conductance_s: Target of each write in S, float32 `[W, rows, columns]`.
        programmed_at_s: Board clock in s at the end of each write, `[W]`.
        rms_error_s: Root mean square of (read-back - target) in S, `[W]`.
        pulses: Programming pulses of each write, `[W]`.
    """

    voltage_v: NDArray[np.float32]
    code: NDArray[np.int16]
    saturated: NDArray[np.bool_]
    write: NDArray[np.int64]
    time_s: FloatArray
    target_conductance_s: NDArray[np.float32]
    programmed_at_s: FloatArray
    rms_error_s: FloatArray
    pulses: NDArray[np.int64]


def read_rows(recording: Recording, array: int) -> RecordedArray:
    """The committed rows of one array, every block checked against its checksum; there may be none.

    Raises:
        StorageError: There is no such array, or committed rows are not those that were written.
    """
    mvms, writes = recording.mvm_columns(array), recording.write_columns(array)
    return RecordedArray(
        voltage_v=mvms["voltage_v"].astype(np.float32),
        code=mvms["current_code"].astype(np.int16),
        saturated=mvms["saturated"].astype(np.bool_),
        write=mvms["write"].astype(np.int64),
        time_s=mvms["time_s"].astype(np.float64),
        target_conductance_s=writes["target_conductance_s"].astype(np.float32),
        programmed_at_s=writes["programmed_at_s"].astype(np.float64),
        rms_error_s=writes["rms_error_s"].astype(np.float64),
        pulses=writes["pulses"].astype(np.int64),
    )
