"""A data set as blocks of tensors, read where they lie: nothing but a block is ever copied.

Blocks belong to one write each and follow time. A data set whose arrays are memory-mapped files is never held as a
whole, as long as its MVMs are in the order of writes and time, as recordings are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from labrig_calibration.dataset import MvmDataset
from labrig_calibration.information import dac_levels_v
from labrig_calibration.likelihood import Outputs

BLOCK = 4096
Rows = slice | NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """MVMs of one write.

    Attributes:
        write: Which write.
        rows: Which MVMs of the data set.
        voltage_v: Inputs after the DAC in V, `[n, rows]`.
        log_age: `log(1 + age / reference)`, `[n, 1]`.
        aging: Square of its distance from the write's mean, `[n, 1]`.
        outputs: What was measured, of the chosen columns.
    """

    write: int
    rows: Rows
    voltage_v: Tensor
    log_age: Tensor
    aging: Tensor
    outputs: Outputs


@dataclass(frozen=True)
class Measurements:
    """Some MVMs of a data set, and some of its columns.

    Attributes:
        dataset: The data.
        parts: Which MVMs, for each write, in the order of time.
        keep: False for MVMs that do not count, bool, `[N]`.
        columns: Which columns.
        drift_reference_s: Time constant of the drift law in s.
        mean_log_age: Mean of `log(1 + age / reference)` of each write.
    """

    dataset: MvmDataset
    parts: tuple[Rows, ...]
    keep: NDArray[np.bool_]
    columns: slice
    drift_reference_s: float
    mean_log_age: tuple[float, ...]

    @classmethod
    def of(cls, dataset: MvmDataset, drift_reference_s: float = 1.0) -> Measurements:
        """All MVMs and columns of a data set."""
        parts = tuple(_in_order(dataset, write) for write in range(dataset.writes))
        log_age = np.log1p(np.maximum(dataset.age_s, 0.0) / drift_reference_s)
        means = tuple(float(log_age[part].mean()) if _size(part) else 0.0 for part in parts)
        keep = np.ones(len(dataset), dtype=np.bool_)
        return cls(dataset, parts, keep, slice(0, dataset.columns), drift_reference_s, means)

    def split(self, fraction: float) -> tuple[Measurements, Measurements]:
        """Splits off the last part of every write: `(earlier, later)`."""
        sizes = [_size(part) for part in self.parts]
        cuts = [size - max(1, int(fraction * size)) for size in sizes]
        earlier = tuple(_piece(part, 0, cut) for part, cut in zip(self.parts, cuts, strict=True))
        later = tuple(_piece(part, cut, size) for part, cut, size in zip(self.parts, cuts, sizes, strict=True))
        return self._with(earlier), self._with(later)

    def thinned(self, most: int) -> Measurements:
        """At most `most` MVMs of every write, spread over its time; the same object where there are no more."""
        if all(_size(part) <= most for part in self.parts):
            return self
        return self._with(
            tuple(
                part if _size(part) <= most else _indices(part)[np.linspace(0, _size(part) - 1, most).astype(np.int64)]
                for part in self.parts
            )
        )

    def beginning(self, most: int) -> Measurements:
        """The first `most` MVMs of every write."""
        return self._with(tuple(_piece(part, 0, min(_size(part), most)) for part in self.parts))

    def of_columns(self, columns: slice) -> Measurements:
        """The same MVMs, of some of the columns."""
        return replace(self, columns=columns)

    def without(self, flagged: NDArray[np.bool_]) -> Measurements:
        """The same MVMs, those flagged counting nothing."""
        return replace(self, keep=self.keep & ~flagged)

    def counts(self) -> NDArray[np.int64]:
        """MVMs of each write that count."""
        return np.array([int(self.keep[part].sum()) for part in self.parts])

    def blocks(self) -> Iterator[Block]:
        """The MVMs, a block at a time."""
        converters = self.dataset.converters
        lsb_a = torch.as_tensor(converters.adc_lsb_a[self.columns])
        full_scale_a = torch.as_tensor(converters.adc_full_scale_a[self.columns])
        # A rounding ADC reports its last code from half a step before it.
        low_a, high_a = -full_scale_a + 0.5 * lsb_a, full_scale_a - 1.5 * lsb_a
        known = torch.isfinite(full_scale_a)
        range_a = 2.0 * full_scale_a
        if not bool(known.all()):
            range_a = torch.where(known, range_a, 2.0 * torch.as_tensor(self._largest_a()))
        for write, part in enumerate(self.parts):
            for start in range(0, _size(part), BLOCK):
                rows = _piece(part, start, min(start + BLOCK, _size(part)))
                yield self._block(write, rows, low_a, high_a, range_a)

    def _block(self, write: int, rows: Rows, low_a: Tensor, high_a: Tensor, range_a: Tensor) -> Block:
        dataset = self.dataset
        current_a = _tensor(dataset.current_a[rows, self.columns])
        saturated = _tensor(dataset.saturated[rows, self.columns], np.bool_)
        rail = None
        if bool(saturated.any()):
            rail = torch.where(saturated, torch.sign(current_a), torch.zeros_like(current_a))
            # Where the limits are not known, what was reported at the rail is all there is.
            low_a, high_a = _edge(low_a, current_a, rail < 0), _edge(high_a, current_a, rail > 0)
        age_s = np.maximum(dataset.time_s[rows] - dataset.programmed_at_s[write], 0.0)
        outputs = Outputs(
            current_a=current_a,
            rail=rail,
            low_a=low_a,
            high_a=high_a,
            keep=torch.as_tensor(self.keep[rows].astype(np.float64))[:, None],
            range_a=range_a,
        )
        log_age = torch.log1p(torch.as_tensor(age_s, dtype=torch.float64) / self.drift_reference_s)[:, None]
        aging = (log_age - self.mean_log_age[write]) ** 2
        return Block(write, rows, _tensor(dac_levels(dataset, rows)), log_age, aging, outputs)

    def _largest_a(self) -> NDArray[np.float64]:
        first = self.dataset.current_a[: 8 * BLOCK, self.columns]
        return np.asarray(np.maximum(np.abs(first).max(axis=0, initial=0.0), 1e-15))

    def _with(self, parts: tuple[Rows, ...]) -> Measurements:
        return replace(self, parts=parts)


def dac_levels(dataset: MvmDataset, rows: Rows = slice(None)) -> NDArray[np.float64]:
    """The commanded voltages as the DAC applies them, in V, `[n, rows]`."""
    return dac_levels_v(np.asarray(dataset.voltage_v[rows], dtype=np.float64), dataset.converters)


def _tensor(values: NDArray[np.float64] | NDArray[np.bool_], dtype: DTypeLike = np.float64) -> Tensor:
    """A tensor, on the same memory where it may be written to (a mapped file may not)."""
    make = np.asarray if values.flags.writeable else np.array
    return torch.as_tensor(make(values, dtype=dtype))


def _edge(limit_a: Tensor, current_a: Tensor, clipped: Tensor) -> Tensor:
    return torch.where(clipped & ~torch.isfinite(limit_a), current_a, limit_a.expand_as(current_a))


def _in_order(dataset: MvmDataset, write: int) -> Rows:
    """The MVMs of a write in the order of time: a slice where they lie so already."""
    members = np.flatnonzero(dataset.pattern == write)
    ordered = members[np.argsort(dataset.time_s[members], kind="stable")]
    if ordered.size and np.array_equal(ordered, np.arange(ordered[0], ordered[0] + ordered.size)):
        return slice(int(ordered[0]), int(ordered[0]) + int(ordered.size))
    return ordered


def _size(part: Rows) -> int:
    return part.stop - part.start if isinstance(part, slice) else int(part.size)


def _piece(part: Rows, start: int, stop: int) -> Rows:
    return slice(part.start + start, part.start + stop) if isinstance(part, slice) else part[start:stop]


def _indices(part: Rows) -> NDArray[np.int64]:
    return np.arange(part.start, part.stop) if isinstance(part, slice) else part
