"""Device measurements out of recordings of the plans `iv`, `writes`, `retention` and `noise`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labrig.recording import Recording
from labrig.recording.layout import CURVES
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.devices.iv import Curve
from labrig_calibration.devices.programming import ProgrammedCells
from labrig_calibration.devices.read_noise import Traces
from labrig_calibration.devices.values import FloatArray
from labrig_drivers.errors import StorageError
from labrig_surrogates.measured_device import Relaxation

PLAN_OF = {"iv": "iv", "programming": "writes", "relaxation": "retention", "noise": "noise"}
"""The plan that measures each kind; pulses have none."""

# Columns whose response is a smaller part of the largest say more of noise than of drift.
_WEAK = 0.05


def _demand_plan(recording: Recording, kind: str) -> None:
    plan = str(recording.header.plan.get("name", ""))
    if plan != PLAN_OF[kind]:
        raise StorageError(
            f"{recording.path}: a recording of the plan {plan!r}; the kind {kind} needs one of {PLAN_OF[kind]!r}"
        )


def recorded_curves(path: Path) -> list[Curve]:
    """The I-V curves of a recording.

    Raises:
        StorageError: It cannot be read, is of another plan, or holds no curve.
    """
    with Recording.open(path) as recording:
        _demand_plan(recording, "iv")
        names = ("curve", "array", "row", "column", "voltage_v", "current_a", "in_compliance")
        columns = {name: recording.column(CURVES, name) for name in names}
    numbers = np.unique(columns["curve"])
    if not len(numbers):
        raise StorageError(f"{path}: no curve was committed")
    curves = []
    for number in numbers:
        at = columns["curve"] == number
        array, row, column = (int(columns[name][at][0]) for name in ("array", "row", "column"))
        name = f"curve {number}" if array < 0 else f"curve {number}, array {array} cell {row},{column}"
        voltage_v, current_a = (columns[one][at].astype(np.float64) for one in ("voltage_v", "current_a"))
        curves.append(Curve(name, voltage_v, current_a, columns["in_compliance"][at].astype(np.bool_)))
    return curves


def recorded_programming(path: Path) -> ProgrammedCells:
    """How far cells landed from their targets, each read alone with both signs, so that offsets cancel.

    The gain of a column's amplifier is in the conductances, as it is in every product.

    Raises:
        StorageError: It cannot be read, is of another plan, or holds nothing.
        DeviceFitError: There is too little in it.
    """
    targets, conductances, devices, variances, first = [], [], [], [], 0
    with Recording.open(path) as recording:
        _demand_plan(recording, "programming")
        for array in recording.arrays:
            if not recording.committed(array):
                continue
            data = recording.dataset(array)
            mean_s, variance_s2 = _cells(data)
            there = np.isfinite(mean_s)
            cell = np.broadcast_to(np.arange(data.rows * data.columns).reshape(data.rows, -1), mean_s.shape)
            targets.append(data.target_conductance_s[there])
            conductances.append(mean_s[there])
            devices.append(first + cell[there])
            variances.append(variance_s2[there])
            first += data.rows * data.columns
    if not targets:
        raise StorageError(f"{path}: no MVM was committed")
    known = np.concatenate(variances)
    known = known[np.isfinite(known)]
    return ProgrammedCells(
        np.concatenate(targets),
        np.concatenate(conductances),
        np.concatenate(devices).astype(np.int64),
        float(np.sqrt(known.mean())) if len(known) else 0.0,
    )


def _cells(data: MvmDataset) -> tuple[FloatArray, FloatArray]:
    """Conductance of each cell of each write in S, and what reading adds to its variance, `[writes, rows, columns]`."""
    shape = data.target_conductance_s.shape
    mean, variance = np.full(shape, np.nan), np.full(shape, np.nan)
    row = np.abs(data.voltage_v).argmax(axis=1)
    level_v = data.voltage_v[np.arange(len(row)), row]
    for write in range(shape[0]):
        for line in range(shape[1]):
            at = (data.pattern == write) & (row == line) & (level_v != 0.0)
            up, down = at & (level_v > 0), at & (level_v < 0)
            if not (up.any() and down.any()):
                continue
            size_v = 0.5 * (level_v[up].mean() - level_v[down].mean())
            mean[write, line] = 0.5 * (data.current_a[up].mean(axis=0) - data.current_a[down].mean(axis=0)) / size_v
            if up.sum() > 1 and down.sum() > 1:
                noise = data.current_a[up].var(axis=0, ddof=1) / up.sum()
                noise = noise + data.current_a[down].var(axis=0, ddof=1) / down.sum()
                variance[write, line] = 0.25 * noise / size_v**2
    return mean, variance


def recorded_relaxation(path: Path) -> Relaxation:
    """What became of the columns of each write: their response to the same vectors, relative to the first reading.

    A column with the mean conductance G of its targets stands for a device that was programmed to G; ages are counted
    from the first reading. Single cells are not read by this plan.

    Raises:
        StorageError: It cannot be read, is of another plan, or was not read at two ages.
    """
    parts, first = [], 0
    with Recording.open(path) as recording:
        _demand_plan(recording, "relaxation")
        for array in recording.arrays:
            if not recording.committed(array):
                continue
            data = recording.dataset(array)
            for write in range(len(data.target_conductance_s)):
                part = _columns_of(data, write, first)
                parts += [] if part is None else [part]
                first += data.columns
    if not parts:
        raise StorageError(f"{path}: no write was read at two ages or more")
    joined = (np.concatenate([getattr(one, name) for one in parts]) for name in Relaxation.__dataclass_fields__)
    return Relaxation(*joined)


def _columns_of(data: MvmDataset, write: int, first: int) -> Relaxation | None:
    """All columns of one write."""
    at = data.pattern == write
    age_s = data.age_s[at]
    # Readings of one block follow each other at once; blocks double in age.
    order = np.argsort(age_s)
    breaks = np.flatnonzero(age_s[order][1:] > 1.3 * np.maximum(age_s[order][:-1], 1e-12)) + 1
    blocks = np.split(order, breaks)
    if len(blocks) < 2:
        return None
    voltage_v, current_a = data.voltage_v[at], data.current_a[at]
    ideal_a = voltage_v @ data.target_conductance_s[write]
    gains, ages_s = [], []
    for block in blocks:
        centred = ideal_a[block] - ideal_a[block].mean(axis=0)
        gains.append((centred * current_a[block]).sum(axis=0) / (centred**2).sum(axis=0))
        ages_s.append(float(age_s[block].mean()))
    gain, programmed_s = np.stack(gains), data.target_conductance_s[write].mean(axis=0)
    used = np.abs(gain[0]) > _WEAK * np.abs(gain[0]).max()
    count, later = int(used.sum()), len(blocks) - 1
    relative = gain[1:, used] / gain[0, used]
    start_s = np.tile(programmed_s[used], later)
    cell = first + np.tile(np.flatnonzero(used), later)
    elapsed_s = np.repeat([round(one - ages_s[0], 9) for one in ages_s[1:]], count)
    return Relaxation(
        cell.astype(np.int64), np.zeros(len(cell), dtype=np.int64), start_s, relative.reshape(-1) * start_s, elapsed_s
    )


def recorded_traces(path: Path) -> Traces:
    """The traces of a recording of read noise: currents of each column at each vector but the zero vector.

    Raises:
        StorageError: It cannot be read, is of another plan, or was not read evenly in time.
        DeviceFitError: The traces cannot be used.
    """
    traces, intervals_s = [], []
    with Recording.open(path) as recording:
        _demand_plan(recording, "noise")
        for array in recording.arrays:
            if not recording.committed(array):
                continue
            data = recording.dataset(array)
            vectors, which = np.unique(data.voltage_v, axis=0, return_inverse=True)
            for vector in range(len(vectors)):
                at = which.reshape(-1) == vector
                if vectors[vector].any():
                    traces += list(data.current_a[at].T)
                intervals_s.append(np.diff(data.time_s[at]))
    if not traces:
        raise StorageError(f"{path}: no vector but zero was read")
    steps_s = np.concatenate(intervals_s)
    if not len(steps_s) or not np.median(steps_s) > 0:
        raise StorageError(f"{path}: the board's clock does not tell readings apart, so there is no spectrum")
    length = min(len(one) for one in traces)
    moving = [one[:length] for one in traces if np.ptp(one[:length]) > 0]
    if not moving:
        raise StorageError(f"{path}: no reading ever changes: the converter's step hides the noise")
    return Traces(np.stack(moving), float(1.0 / np.median(steps_s)), "A")
