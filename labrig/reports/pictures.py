"""What the figures of a recording show, computed from its rows some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from labrig.recording import Recording
from labrig.recording.contents import Block, Contents, Stream
from labrig.unit_prefixes import with_prefix
from labrig_drivers.crossbar import BoardInfo, FloatArray

# Points of a cloud: enough to see its shape, few enough to draw at once.
_SAMPLED_MVMS = 400
_CLOUD = 6000
_AGE_BINS = 32
_FACTORS = 30.0
_MOST_WRITES = 128
_SUPPLY_POINTS = 2000
_MOST_CURVES, _MOST_CURVE_ROWS = 24, 100_000
# A vector whose outputs are a smaller part of full scale says more of noise than of drift.
_WEAK = 0.02
# First outputs that are remembered for each write.
_MOST_VECTORS = 4096


@dataclass(frozen=True)
class ArrayPicture:
    """One array. `C` columns, `R` rows.

    Attributes:
        array: Which array.
        ideal_a: Currents in A that the targets would give, for some of the outputs, `[K]`.
        measured_a: What was measured of the same outputs, `[K]`.
        saturated: Where those were at an end of the converter, `[K]`.
        target_s: Target of the latest write in S, `[R, C]`.
        error_a: Mean of measured minus ideal in A over all unsaturated outputs, by write and column, `[W, C]`; NaN
            where there are none. Writes that lie together share a line where there are more than a figure can show.
        writes_per_line: How many writes share a line of `error_a`.
        age_s: Time in s since the write, centres of bins, `[B]`.
        age_by_factors: Whether the ages span so much that a logarithmic axis shows them best.
        repeated: Outputs in each bin of vectors that had been measured on the same write before, their first outputs
            being 1 (least squares over all columns), `[B]`: what settles or drifts departs from 1. NaN where there
            are none.
        clock_s: Board clock in s at some of the MVMs, `[T]`.
        done: How many MVMs there were by then, `[T]`.
    """

    array: int
    ideal_a: FloatArray
    measured_a: FloatArray
    saturated: NDArray[np.bool_]
    target_s: FloatArray
    error_a: FloatArray
    writes_per_line: int
    age_s: FloatArray
    age_by_factors: bool
    repeated: FloatArray
    clock_s: FloatArray
    done: NDArray[np.int64]


@dataclass(frozen=True)
class SupplyPicture:
    """The array supply over time; readings that lie together are averaged where there are many.

    Attributes:
        time_s: Since the first reading, in s, `[N]`.
        power_w: Power in W, `[N]`.
    """

    time_s: FloatArray
    power_w: FloatArray


@dataclass(frozen=True)
class CurvePicture:
    """One I-V curve.

    Attributes:
        name: Of which cell, or which curve of a device.
        voltage_v: Measured voltages in V, in the order of measurement, `[N]`.
        current_a: Measured currents in A, `[N]`.
    """

    name: str
    voltage_v: FloatArray
    current_a: FloatArray


@dataclass(frozen=True)
class Pictures:
    """All that there is to see of a recording.

    Attributes:
        arrays: Each array that was measured.
        curves: The first I-V curves.
        supply: The array supply; None where it was not read at least twice.
    """

    arrays: tuple[ArrayPicture, ...]
    curves: tuple[CurvePicture, ...]
    supply: SupplyPicture | None


def pictures(recording: Recording, contents: Contents) -> Pictures:
    """Reads what the figures show, some rows at a time.

    Raises:
        StorageError: The file cannot be read.
    """
    return Pictures(
        tuple(array_pictures(recording, contents)), tuple(curve_pictures(contents)), supply_picture(recording)
    )


def curve_pictures(contents: Contents) -> list[CurvePicture]:
    """The first I-V curves of a recording; none where it has none.

    Raises:
        StorageError: The file cannot be read.
    """
    stream = next((one for one in contents.streams() if one.name == "curves"), None)
    if stream is None:
        return []
    rows = min(stream.rows, _MOST_CURVE_ROWS)
    names = ("curve", "array", "row", "column", "voltage_v", "current_a")
    curve, array, row, column, voltage_v, current_a = (stream.read(name, 0, rows) for name in names)
    found = []
    for number in np.unique(curve)[:_MOST_CURVES]:
        kept = np.flatnonzero(curve == number)
        first = int(kept[0])
        cell = f"array {array[first]}, row {row[first]}, column {column[first]}"
        name = cell if int(array[first]) >= 0 else f"curve {number}"
        found.append(CurvePicture(name, voltage_v[kept].astype(np.float64), current_a[kept].astype(np.float64)))
    return found


def array_pictures(recording: Recording, contents: Contents) -> list[ArrayPicture]:
    """What there is to see of each array that was measured.

    Raises:
        StorageError: The file cannot be read.
    """
    there = {one.name: one for one in contents.streams()}
    found = []
    for array in recording.arrays:
        mvms, writes = there[f"array_{array}"], there.get(f"array_{array}/writes")
        if mvms.rows and writes is not None and writes.rows:
            found.append(_picture(array, mvms, writes, recording.info))
    return found


def supply_picture(recording: Recording) -> SupplyPicture | None:
    """Power of the array supply; None where it was not read at least twice."""
    supply = recording.supply()
    if len(supply.time_s) < 2:
        return None
    parts = np.array_split(np.arange(len(supply.time_s)), min(len(supply.time_s), _SUPPLY_POINTS))
    power_w = supply.voltage_v * supply.current_a
    return SupplyPicture(
        np.array([supply.time_s[part].mean() for part in parts]) - supply.time_s[0],
        np.array([power_w[part].mean() for part in parts]),
    )


def _picture(array: int, mvms: Stream, writes: Stream, info: BoardInfo) -> ArrayPicture:
    lsb_a, full_scale_a = info.adc_lsb_a, np.array(info.adc_full_scale_a)
    programmed_s = writes.read("programmed_at_s", 0, writes.rows).astype(np.float64)
    errors = _Errors(writes.rows, len(lsb_a))
    drift = _Drift(_age_edges(mvms, programmed_s), _WEAK * float(np.max(full_scale_a)))
    every = max(1, mvms.rows // _SAMPLED_MVMS)
    cloud: list[tuple[FloatArray, FloatArray, NDArray[np.bool_]]] = []
    clock_s: list[FloatArray] = []
    done: list[NDArray[np.int64]] = []
    for first, write, block in _by_write(mvms):
        target_s = writes.read("target_conductance_s", write, write + 1)[0].astype(np.float64)
        ideal_a = block["voltage_v"].astype(np.float64) @ target_s
        measured_a = block["current_code"].astype(np.float64) * lsb_a
        saturated = block["saturated"].astype(np.bool_)
        time_s = block["time_s"].astype(np.float64)
        errors.add(write, measured_a - ideal_a, ~saturated)
        drift.add(write, block["voltage_v"], measured_a, time_s - programmed_s[write])
        sampled = slice(-first % every, None, every)
        cloud.append((ideal_a[sampled].ravel(), measured_a[sampled].ravel(), saturated[sampled].ravel()))
        clock_s.append(time_s[sampled])
        done.append(first + 1 + np.arange(len(time_s), dtype=np.int64)[sampled])
    ideal_a, measured_a, saturated = (np.concatenate(part) for part in zip(*cloud, strict=True))
    kept = np.unique(np.linspace(0, ideal_a.size - 1, min(ideal_a.size, _CLOUD)).astype(np.int64))
    age_s, repeated = drift.curve()
    return ArrayPicture(
        array=array,
        ideal_a=ideal_a[kept],
        measured_a=measured_a[kept],
        saturated=saturated[kept],
        target_s=writes.read("target_conductance_s", writes.rows - 1, writes.rows)[0].astype(np.float64),
        error_a=errors.mean(),
        writes_per_line=errors.per_line,
        age_s=age_s,
        age_by_factors=bool(age_s[0] > 0.0 and age_s[-1] > _FACTORS * age_s[0]),
        repeated=repeated,
        clock_s=np.concatenate(clock_s),
        done=np.concatenate(done),
    )


class _Errors:
    """Mean errors by write and column."""

    def __init__(self, writes: int, columns: int) -> None:
        self.per_line = -(-writes // _MOST_WRITES)
        shape = (-(-writes // self.per_line), columns)
        self._total_a, self._count = np.zeros(shape), np.zeros(shape)

    def add(self, write: int, error_a: FloatArray, good: NDArray[np.bool_]) -> None:
        self._total_a[write // self.per_line] += np.where(good, error_a, 0.0).sum(axis=0)
        self._count[write // self.per_line] += good.sum(axis=0)

    def mean(self) -> FloatArray:
        return np.divide(self._total_a, self._count, out=np.full_like(self._total_a, np.nan), where=self._count > 0)


class _Drift:
    """Outputs of vectors that were measured before on the same write, against their first outputs."""

    def __init__(self, edges_s: FloatArray, least_a: float) -> None:
        self._edges_s = edges_s
        self._least_a = least_a
        self._cross, self._square = np.zeros(len(edges_s) - 1), np.zeros(len(edges_s) - 1)
        self._write = -1
        self._first_a: dict[bytes, FloatArray] = {}

    def add(self, write: int, voltage_v: NDArray[np.generic], measured_a: FloatArray, age_s: FloatArray) -> None:
        if write != self._write:
            self._write = write
            self._first_a.clear()
        bins = np.clip(np.searchsorted(self._edges_s, age_s, side="right") - 1, 0, len(self._cross) - 1)
        for row, vector in enumerate(voltage_v):
            key = vector.tobytes()
            first_a = self._first_a.get(key)
            if first_a is None:
                if len(self._first_a) < _MOST_VECTORS and np.sqrt(np.mean(measured_a[row] ** 2)) >= self._least_a:
                    self._first_a[key] = measured_a[row].copy()
                continue
            self._cross[bins[row]] += float(first_a @ measured_a[row])
            self._square[bins[row]] += float(first_a @ first_a)

    def curve(self) -> tuple[FloatArray, FloatArray]:
        unknown = np.full_like(self._square, np.nan)
        repeated = np.divide(self._cross, self._square, out=unknown, where=self._square > 0.0)
        return 0.5 * (self._edges_s[1:] + self._edges_s[:-1]), repeated


def _by_write(mvms: Stream) -> Iterator[tuple[int, int, Block]]:
    """The MVMs in pieces of one write each: the number of the first, the write, the rows."""
    start = 0
    for block in mvms.blocks(["voltage_v", "current_code", "saturated", "write", "time_s"]):
        write = block["write"].astype(np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(write)) + 1).tolist(), len(write)]
        for low, high in pairwise(cuts):
            yield start + low, int(write[low]), {name: values[low:high] for name, values in block.items()}
        start += len(write)


def _age_edges(mvms: Stream, programmed_s: FloatArray) -> FloatArray:
    """Edges of bins over all ages in s; they widen with age where the ages span many times the least."""
    low_s, high_s = np.inf, -np.inf
    for block in mvms.blocks(["write", "time_s"]):
        age_s = block["time_s"].astype(np.float64) - programmed_s[block["write"].astype(np.int64)]
        low_s, high_s = min(low_s, float(age_s.min())), max(high_s, float(age_s.max()))
    if low_s > 0.0 and high_s > _FACTORS * low_s:
        return np.geomspace(low_s, high_s, _AGE_BINS + 1)
    return np.linspace(low_s, max(high_s, low_s + 1e-9), _AGE_BINS + 1)


def units_of(values: FloatArray, unit: str) -> tuple[float, str]:
    """A factor and a prefixed unit in which the largest of these values is between 1 and 1000."""
    finite = np.abs(values[np.isfinite(values)])
    return with_prefix(float(finite.max()) if finite.size else 0.0, unit)
