"""What the page shows of one array, from a sample of its measured blocks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig.live.algebra import solved, solved_three, times
from labrig.live.packing import packed, packed_coarsely
from labrig_drivers.crossbar import FloatArray

_CLOUD = 1200
_PER_BLOCK = 96
_NOISE = 4000
_NOISE_BINS = 10
_LEAST_IN_BIN = 20
_CURVE_POINTS = 41
# Solving for the cells grows with more than the square of the rows.
_MOST_ROWS = 256
_MOST_PIXELS = 128
_RIDGE = 1e-3
# The input whose "cell" is the offset of a column; about as large as the others, so that all are found as fast.
_CONSTANT_V = 0.1
_GROWTH = 1.3
# Vectors, as a multiple of the rows, that are remembered over writes.
_MEMORY = 16
# The curve is straightened a little beyond what it was fitted to.
_REACH, _GRID = 1.2, 401


@dataclass(frozen=True, eq=False)
class Sample:
    """Some vectors of a block, copied.

    Attributes:
        array: Which array.
        write: Which write was read; -1 for one from before the lease of a served rig.
        target_s: Target in S, `[R, C]`; None where it is not known.
        voltage_v: Inputs in V, `[k, R]`.
        current_a: Outputs in A, `[k, C]`.
        saturated: Outputs at an end of the converter, `[k, C]`.
    """

    array: int
    write: int
    target_s: FloatArray | None
    voltage_v: FloatArray
    current_a: FloatArray
    saturated: NDArray[np.bool_]


@dataclass(frozen=True)
class Fit:
    """A line that bends: `measured = offset + gain * ideal + cubic * ideal^3`, least squares over all columns.

    Attributes:
        offset_a: Offset in A.
        gain: Slope at zero.
        cubic: Third-order coefficient in 1/A²; negative where outputs are compressed.
        sigma_a: Root mean square of what is left in A.
        largest_a: Largest ideal current in A that it was fitted to.
    """

    offset_a: float
    gain: float
    cubic: float
    sigma_a: float
    largest_a: float

    @property
    def compression(self) -> float:
        """Part of the output that is missing, by the cubic term, at the largest current."""
        return -self.cubic * self.largest_a**2 / self.gain if self.gain else 0.0

    def at(self, ideal_a: FloatArray) -> FloatArray:
        """The fitted outputs in A."""
        return np.asarray(self.offset_a + self.gain * ideal_a + self.cubic * ideal_a**3)

    def straightened(self, measured_a: FloatArray) -> FloatArray:
        """The currents in A that would have given these outputs; the last one where the curve turns at an end."""
        grid_a = np.linspace(-_REACH * self.largest_a, _REACH * self.largest_a, _GRID)
        curve_a = self.at(grid_a)
        middle = _GRID // 2
        # Only as far out from the middle as it rises.
        rising = np.diff(curve_a) > 0.0
        low = middle - int(np.argmin(rising[:middle][::-1])) if not rising[:middle].all() else 0
        high = middle + int(np.argmin(rising[middle:])) if not rising[middle:].all() else _GRID - 1
        kept = slice(low, high + 1)
        return np.asarray(np.interp(measured_a, curve_a[kept], grid_a[kept]))

    def slope(self, ideal_a: FloatArray) -> FloatArray:
        """How much of a small change of the current shows in the output."""
        return np.asarray(self.gain + 3.0 * self.cubic * ideal_a**2)


def fitted(ideal_a: FloatArray, measured_a: FloatArray) -> Fit | None:
    """Fits a bent line; None where there are too few points or all are the same."""
    largest_a = float(np.abs(ideal_a).max()) if ideal_a.size else 0.0
    if ideal_a.size < 16 or largest_a == 0.0 or float(np.ptp(ideal_a)) < 1e-3 * largest_a:
        return None
    x = ideal_a / largest_a
    basis = np.stack([np.ones_like(x), x, x**3])
    # Normal equations: three unknowns of size one are no danger, and this is done again and again.
    square = np.einsum("ik,jk->ij", basis, basis) + 1e-9 * x.size * np.eye(3)
    offset, slope, cubic = solved_three(square, np.einsum("ik,k->i", basis, measured_a))
    left_a = measured_a - (offset + slope * x + cubic * x**3)
    sigma_a = float(np.sqrt(np.mean(left_a**2)))
    return Fit(float(offset), float(slope / largest_a), float(cubic / largest_a**3), sigma_a, largest_a)


class ArrayView:
    """One array, in bounded memory.

    Args:
        array: Which array.
    """

    def __init__(self, array: int) -> None:
        self.array = array
        self.version = 0
        self._write = -1
        self._vectors = 0
        self._cloud: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=max(1, _CLOUD // _PER_BLOCK))
        self._saturated = self._outputs = 0
        self._noise: deque[tuple[FloatArray, FloatArray]] = deque()
        self._noise_count = 0
        self._target_s: FloatArray | None = None
        self._square: FloatArray | None = None
        self._cross: FloatArray | None = None
        self._cells: FloatArray | None = None
        self._fit: Fit | None = None
        self._solved_at = self._of_write = self._writes = 0

    def add(self, sample: Sample) -> None:
        """Takes in some vectors."""
        self.version += 1
        if sample.target_s is None:
            self._write = sample.write
            return
        # Two runs, or leases of a served rig, may count to the same write.
        same = self._target_s is not None and np.array_equal(sample.target_s, self._target_s, equal_nan=True)
        if sample.write != self._write or not same:
            self._begin(sample, sample.target_s)
        ideal_a = times(sample.voltage_v, sample.target_s)
        good = ~sample.saturated & np.isfinite(sample.current_a)
        self._saturated += int(sample.saturated.sum())
        self._outputs += sample.saturated.size
        self._put_in_cloud(ideal_a[good], sample.current_a[good])
        self._fit = fitted(*_joined(self._cloud)) or self._fit
        if self._fit is not None:
            self._learn_cells(sample, self._fit, ideal_a, good)
        self._vectors += len(sample.voltage_v)
        self._of_write += len(sample.voltage_v)
        # Ever more seldom: each answer is as good as all before it had to say.
        if self._square is not None and self._vectors >= max(2 * len(self._square), _GROWTH * self._solved_at):
            self._solve_cells()

    def section(self, measured: int) -> dict[str, object]:
        """What the page draws.

        Args:
            measured: MVMs of this array that were committed while the page watched.
        """
        (ideal_a, measured_a), fit = _joined(self._cloud), self._fit
        return {
            "array": self.array,
            "write": self._write,
            "measured": measured,
            "saturated": self._saturated / self._outputs if self._outputs else None,
            "cloud": {"ideal_a": packed(ideal_a), "measured_a": packed(measured_a)},
            "fit": None if fit is None else _drawn(fit, float(ideal_a.min()), float(ideal_a.max())),
            "noise": self._noise_bins(),
            "cells": self._cells_drawn(),
        }

    def _begin(self, sample: Sample, target_s: FloatArray) -> None:
        """A new write: the cells begin anew, unless the last write alone did not say enough of them.

        Then, as in a training that writes after every batch, what is found is the mean over the latest writes.
        """
        rows, columns = target_s.shape
        known = self._square is not None and self._target_s is not None and self._target_s.shape == target_s.shape
        self._write, self._target_s = sample.write, target_s
        if known and self._of_write < 2 * (rows + 1):
            assert self._square is not None
            assert self._cross is not None
            kept = min(1.0, _MEMORY * rows / max(self._vectors, 1))
            self._square *= kept
            self._cross *= kept
            self._vectors = round(kept * self._vectors)
            self._solved_at = min(self._solved_at, self._vectors)
            self._writes += 1
        else:
            self._cells = None
            self._vectors = self._solved_at = 0
            self._writes = 1
            if rows <= _MOST_ROWS:
                self._square, self._cross = np.zeros((rows + 1, rows + 1)), np.zeros((rows + 1, columns))
        self._of_write = 0

    def _put_in_cloud(self, ideal_a: FloatArray, measured_a: FloatArray) -> None:
        if ideal_a.size:
            # Neighbours in a row of the block are other columns, so that even steps see all of them.
            kept = np.linspace(0, ideal_a.size - 1, min(ideal_a.size, _PER_BLOCK)).astype(np.int64)
            self._cloud.append((ideal_a[kept], measured_a[kept]))

    def _learn_cells(self, sample: Sample, fit: Fit, ideal_a: FloatArray, good: NDArray[np.bool_]) -> None:
        """Sums up what the least-squares fit of every cell needs; what it left of this sample, first, is noise.

        Outputs are straightened by the fitted curve before, so that its bend is in neither.
        """
        if self._square is None or self._cross is None:
            return
        error_a = np.where(good, fit.straightened(np.where(good, sample.current_a, 0.0)) - ideal_a, 0.0)
        constant_v = np.full((len(sample.voltage_v), 1), _CONSTANT_V)
        inputs_v = np.concatenate([sample.voltage_v, constant_v], axis=1)
        if self._cells is not None and self._vectors >= 2 * len(self._square):
            left_a = fit.slope(ideal_a) * (error_a - times(inputs_v, self._cells))
            kept = np.linspace(0, int(good.sum()) - 1, min(int(good.sum()), 4 * _PER_BLOCK)).astype(np.int64)
            self._noise.append((np.abs(ideal_a[good][kept]), left_a[good][kept] ** 2))
            self._noise_count += kept.size
            while self._noise_count - self._noise[0][0].size >= _NOISE:
                self._noise_count -= self._noise.popleft()[0].size
        self._square += times(inputs_v.T, inputs_v)
        self._cross += times(inputs_v.T, error_a)

    def _solve_cells(self) -> FloatArray | None:
        """Least-squares estimate of each cell's conductance beyond its target in S.

        The last row is the offset of each column, as the cell of a constant input.
        The gain that all columns share is in the fitted curve, not in the cells.
        """
        if self._square is None or self._cross is None or not np.trace(self._square) > 0.0:
            return None
        ridge = np.full(len(self._square), _RIDGE * float(np.trace(self._square)) / len(self._square))
        self._solved_at = self._vectors
        start = np.zeros_like(self._cross) if self._cells is None else self._cells
        self._cells = solved(self._square + np.diag(ridge), self._cross, start)
        return self._cells

    def _cells_drawn(self) -> dict[str, object] | None:
        cells = self._solve_cells()
        if cells is None or self._target_s is None:
            return None
        rows, columns = self._target_s.shape
        per_pixel = -(-max(rows, columns) // _MOST_PIXELS)
        return {
            "rows": rows,
            "columns": columns,
            "per_pixel": per_pixel,
            "vectors": self._vectors,
            "writes": self._writes,
            "enough": self._vectors >= 2 * len(cells),
            "target_s": packed_coarsely(_coarse(self._target_s, per_pixel)),
            "error_s": packed_coarsely(_coarse(cells[:-1], per_pixel)),
        }

    def _noise_bins(self) -> dict[str, object] | None:
        signal_a, squared = _joined(self._noise)
        if signal_a.size < _NOISE_BINS * _LEAST_IN_BIN:
            return None
        order = np.argsort(signal_a)
        parts = np.array_split(order, _NOISE_BINS)
        return {
            "signal_a": packed([signal_a[part].mean() for part in parts]),
            "sigma_a": packed([np.sqrt(squared[part].mean()) for part in parts]),
            "median_a": float(np.sqrt(np.median([squared[part].mean() for part in parts]))),
            "outputs": int(signal_a.size),
        }


def _drawn(fit: Fit, lowest_a: float, highest_a: float) -> dict[str, object]:
    ideal_a = np.linspace(lowest_a, highest_a, _CURVE_POINTS)
    return {
        "offset_a": fit.offset_a,
        "gain": fit.gain,
        "compression": fit.compression,
        "sigma_a": fit.sigma_a,
        "ideal_a": packed(ideal_a),
        "fitted_a": packed(fit.at(ideal_a)),
    }


def _joined(pairs: deque[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    if not pairs:
        return np.empty(0), np.empty(0)
    first, second = zip(*pairs, strict=True)
    return np.concatenate(first), np.concatenate(second)


def _coarse(cells: FloatArray, size: int) -> FloatArray:
    """Means over squares of so many cells, the last ones of a line perhaps over fewer."""
    if size == 1:
        return cells
    rows, columns = (np.arange(0, length, size) for length in cells.shape)
    sums = np.add.reduceat(np.add.reduceat(cells, rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff([*rows, cells.shape[0]]), np.diff([*columns, cells.shape[1]]))
    return np.asarray(sums / counts)
