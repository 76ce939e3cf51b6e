"""Data sets that are larger than memory: read from recordings piece by piece into memory-mapped files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labrig.plans.mvm import board_converters
from labrig.recording.reader import Recording
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.mapped import mapped
from labrig_drivers.errors import StorageError


def size_bytes(recordings: Sequence[Recording], array: int) -> int:
    """What inputs and outputs of an array take as a data set."""
    info = recordings[0].info
    of_mvm = 8 * info.rows + 8 * info.columns + info.columns
    return of_mvm * sum(recording.committed(array) for recording in recordings)


def spooled(recordings: Sequence[Recording], array: int) -> MvmDataset:
    """The committed measurements of one array, over recordings of one chip, inputs and outputs in mapped files.

    Equal to joining what `Recording.dataset` gives; a few thousand MVMs are in memory at a time.

    Args:
        recordings: In the order in which their MVMs follow one another.
        array: Which array; each recording has MVMs of it.

    Raises:
        StorageError: Committed rows are not those that were written, or there is no room for the files.
    """
    info, count = recordings[0].info, sum(recording.committed(array) for recording in recordings)
    try:
        voltage_v = mapped((count, info.rows), np.float64)
        current_a = mapped((count, info.columns), np.float64)
        saturated = mapped((count, info.columns), np.bool_)
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: no room for {size_bytes(recordings, array) / 1e9:.1f} GB of array {array} "
            f"({error}); name another folder in the environment variable TMPDIR"
        ) from error
    time_s, pattern = np.empty(count), np.empty(count, dtype=np.int64)
    temperature_k = np.full(count, np.nan)
    known = False
    targets: list[NDArray[np.float64]] = []
    ends: list[NDArray[np.float64]] = []
    start = writes = 0
    for recording in recordings:
        for block in recording.iter_mvms(array):
            stop = start + len(block.mvms)
            voltage_v[start:stop], current_a[start:stop] = block.mvms.voltage_v, block.mvms.current_a
            saturated[start:stop], time_s[start:stop] = block.mvms.saturated, block.mvms.time_s
            pattern[start:stop] = block.mvms.pattern + block.first_write + writes
            if block.mvms.temperature_k is not None:
                temperature_k[start:stop], known = block.mvms.temperature_k, True
            start = stop
        columns = recording.write_columns(array)
        targets.append(columns["target_conductance_s"].astype(np.float64))
        ends.append(columns["programmed_at_s"].astype(np.float64))
        writes += len(ends[-1])
    return MvmDataset(
        voltage_v=voltage_v,
        current_a=current_a,
        pattern=pattern,
        target_conductance_s=np.concatenate(targets),
        time_s=time_s,
        programmed_at_s=np.concatenate(ends),
        saturated=saturated,
        converters=board_converters(info),
        chip_id=info.chip_id,
        array=array,
        temperature_k=temperature_k if known else None,
    )
