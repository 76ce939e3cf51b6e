"""Several recordings of one chip as one data set."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np

from labrig.recording.reader import Recording
from labrig.recording.spooling import size_bytes, spooled
from labrig_calibration.dataset import MvmDataset, join
from labrig_drivers.errors import StorageError

# Data sets beyond this are memory-mapped.
MEMORY_BYTES = 2**31

# What of a board's description decides whether its numbers mean the same, with the words for it.
_SAME_CONVERTERS = {
    "rows": "word lines",
    "columns": "bit lines",
    "conductance_min_s": "lowest conductance in S",
    "conductance_max_s": "highest conductance in S",
    "voltage_min_v": "lowest voltage in V",
    "voltage_max_v": "highest voltage in V",
    "dac_bits": "DAC bits",
    "adc_bits": "ADC bits",
    "adc_full_scale_a": "ADC full scale in A",
}


def read_mvms(path: Path | str | Sequence[Path | str], array: int = 0) -> MvmDataset:
    """The committed measurements of one array, every block checked against its checksum.

    Args:
        path: A recording, or several of one chip. Their MVMs follow one another in the order in which the runs were
            started, their writes are numbered through; each file keeps its own board clock.
        array: Which array.

    Raises:
        StorageError: See `Recording.open` and `Recording.dataset`; or the files belong to different chips or
            converters, or hold one run twice; every difference is named.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    with ExitStack() as opened:
        recordings = _fitting(_opened(paths, opened), array)
        return join([recording.dataset(array) for recording in recordings])


def read_arrays(paths: Sequence[Path | str], *, memory_bytes: int = MEMORY_BYTES) -> dict[int, MvmDataset]:
    """The committed measurements of every array that has any, over one or several recordings of one chip.

    Args:
        paths: The recordings; see `read_mvms`.
        memory_bytes: So much is held in memory. Inputs and outputs of more than that lie in files without a name in the
            folder for temporary files (`TMPDIR`), memory-mapped, and go with the data sets.

    Raises:
        StorageError: See `read_mvms`; or no file has a committed MVM; or there is no room for those files.
    """
    parts: dict[int, list[Recording]] = {}
    with ExitStack() as opened:
        for recording in _fitting(_opened(paths, opened)):
            for array in recording.arrays:
                if recording.committed(array):
                    parts.setdefault(array, []).append(recording)
        if not parts:
            raise StorageError(f"{', '.join(map(str, paths))}: no MVM was committed")
        needed = sum(size_bytes(recordings, array) for array, recordings in parts.items())
        if needed > memory_bytes:
            return {array: spooled(parts[array], array) for array in sorted(parts)}
        return {array: join([one.dataset(array) for one in parts[array]]) for array in sorted(parts)}


def _opened(paths: Sequence[Path | str], opened: ExitStack) -> list[Recording]:
    """All of them, or one error with every one that cannot be opened."""
    found, faults = [], []
    for path in paths:
        try:
            found.append(opened.enter_context(Recording.open(path)))
        except StorageError as error:
            faults.append(str(error))
    if faults:
        raise StorageError("; ".join(faults))
    return found


def _fitting(recordings: Sequence[Recording], array: int | None = None) -> list[Recording]:
    """The recordings in the order of their starts, after it was made sure that they can be joined."""
    if not recordings:
        raise StorageError("no recording was named, there is nothing to read")
    if len(recordings) == 1:
        return list(recordings)
    first = recordings[0]
    faults = [f"{one.path} has no array {array}" for one in recordings if array is not None and array not in one.arrays]
    faults += [
        f"{other.path} and {first.path} are of different chips ({other.info.chip_id} and {first.info.chip_id})"
        for other in recordings[1:]
        if other.info.chip_id != first.info.chip_id
    ]
    faults += [
        f"{other.path} has other {meaning} than {first.path}: {_difference(other, first, name)}"
        for other in recordings[1:]
        for name, meaning in _SAME_CONVERTERS.items()
        if getattr(other.info, name) != getattr(first.info, name)
    ]
    faults += [
        f"{one.path} and {other.path} hold the same run, started {one.header.started_utc}"
        for one, other in combinations(recordings, 2)
        if _same_run(one, other)
    ]
    if faults:
        raise StorageError("these recordings cannot be joined: " + "; ".join(faults))
    starts = [_started(one) for one in recordings]
    known = [start for start in starts if start is not None]
    # Where a file does not say when its run began, the order in which they were named is all there is.
    order = np.argsort(known, kind="stable") if len(known) == len(starts) else np.arange(len(starts))
    return [recordings[number] for number in order.tolist()]


def _same_run(one: Recording, other: Recording) -> bool:
    """By the identity of the run; files of format 1.1 have none, and their start has to do."""
    ids, starts = (one.header.run_id, other.header.run_id), (_started(one), _started(other))
    return (ids[0] != "" and ids[0] == ids[1]) or (starts[0] is not None and starts[0] == starts[1])


def _started(recording: Recording) -> float | None:
    """When a run was started, in s UTC; None where the file does not say."""
    try:
        start = datetime.fromisoformat(recording.header.started_utc)
    except ValueError:
        return None
    return (start if start.tzinfo else start.replace(tzinfo=UTC)).timestamp()


def _difference(one: Recording, other: Recording, name: str) -> str:
    here, there = getattr(one.info, name), getattr(other.info, name)
    if not isinstance(here, tuple):
        return f"{_said(here)} and {_said(there)}"
    if len(here) != len(there):
        return f"{len(here)} values and {len(there)}"
    apart = [number for number, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1]]
    first, other = here[apart[0]], there[apart[0]]
    return f"{_said(first)} and {_said(other)} at {apart[0]}, {len(apart)} of {len(here)} differ"


def _said(value: object) -> str:
    # Enough digits to tell apart what differs in float32.
    return f"{value:.9g}" if isinstance(value, float) else str(value)
