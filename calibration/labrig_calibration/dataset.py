"""`MvmDataset`: one array's measured matrix-vector products, as arrays with units. Numpy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.mapped import picked_columns, picked_rows, pieces
from labrig_surrogates.faults import counted

FloatArray = NDArray[np.float64]


class DatasetError(ValueError):
    """The arrays of a data set do not fit together; the message lists every fault."""


@dataclass(frozen=True)
class Converters:
    """The converters that stand between the digital world and the array; those with no bits change nothing.

    Attributes:
        voltage_min_v: Lowest DAC level in V.
        voltage_max_v: Highest DAC level in V.
        dac_bits: DAC resolution.
        adc_bits: ADC resolution.
        adc_full_scale_a: Current in A at the upper end of the ADC, `[columns]`.
        conductance_min_s: Lowest programmable conductance in S.
        conductance_max_s: Highest programmable conductance in S.
    """

    voltage_min_v: float
    voltage_max_v: float
    dac_bits: int
    adc_bits: int
    adc_full_scale_a: FloatArray
    conductance_min_s: float
    conductance_max_s: float

    @property
    def dac_step_v(self) -> float:
        """Voltage in V of one DAC step (`2**bits - 2` steps, so that 0 V is a level); zero without a DAC."""
        if self.dac_bits == 0:
            return 0.0
        return (self.voltage_max_v - self.voltage_min_v) / float(2**self.dac_bits - 2)

    @property
    def adc_lsb_a(self) -> FloatArray:
        """Current in A of one ADC step, `[columns]`; zero without an ADC."""
        if self.adc_bits == 0:
            return np.zeros_like(self.adc_full_scale_a)
        return self.adc_full_scale_a / float(2 ** (self.adc_bits - 1))


_VALUES = ("value that is", "values that are")
# What stands for an argument that was left out; told apart by identity.
_UNKNOWN: FloatArray = np.empty(0)
_UNSEEN: NDArray[np.bool_] = np.empty((0, 0), dtype=np.bool_)
_UNDESCRIBED = Converters(0.0, 0.0, 0, 0, np.empty(0), 0.0, 0.0)


@dataclass(frozen=True)
class MvmDataset:
    """Measurements of one array. A pattern is one *write*: the same target written twice is two patterns.

    Whoever has only the first five arrays leaves the others out: a write then ends with its first MVM, no output is
    known to be clipped, and converters neither round nor clip. Arrays of MVMs may be memory-mapped files
    (`np.memmap`): nothing holds one of them as a whole.

    Attributes:
        voltage_v: Commanded inputs in V, `[N, rows]`.
        current_a: Measured outputs in A, `[N, columns]`.
        pattern: Which write was read, int, `[N]`.
        target_conductance_s: Target of each write in S, `[P, rows, columns]`.
        time_s: Board clock in s of each MVM, `[N]`.
        programmed_at_s: Board clock in s at the end of each write, `[P]`.
        saturated: True where the ADC was at an end of its range, `[N, columns]`.
        converters: Ranges and resolutions.
        chip_id: Which chip was measured.
        array: Which array of the chip.
        temperature_k: Temperature of the chip in K at each MVM, `[N]`, NaN where it was not known; None where it
            was never measured.

    Raises:
        DatasetError: Shapes, writes or values do not fit together; every fault in one error.
    """

    voltage_v: FloatArray
    current_a: FloatArray
    pattern: NDArray[np.int64]
    target_conductance_s: FloatArray
    time_s: FloatArray
    programmed_at_s: FloatArray = field(default_factory=lambda: _UNKNOWN)
    saturated: NDArray[np.bool_] = field(default_factory=lambda: _UNSEEN)
    converters: Converters = field(default_factory=lambda: _UNDESCRIBED)
    chip_id: str = ""
    array: int = 0
    temperature_k: FloatArray | None = None

    def __post_init__(self) -> None:
        self._complete()
        faults = self._faults()
        if faults:
            raise DatasetError("the data set does not fit together: " + "; ".join(faults))

    @property
    def rows(self) -> int:
        """Word lines of the array."""
        return int(self.target_conductance_s.shape[1])

    @property
    def columns(self) -> int:
        """Bit lines of the array."""
        return int(self.target_conductance_s.shape[2])

    @property
    def writes(self) -> int:
        """Number of writes."""
        return int(self.target_conductance_s.shape[0])

    def __len__(self) -> int:
        return int(self.voltage_v.shape[0])

    @property
    def age_s(self) -> FloatArray:
        """Time in s between each MVM and the write that it reads, `[N]`."""
        return self.time_s - self.programmed_at_s[self.pattern]

    def sha256(self) -> str:
        """Hash of everything that a fit depends on, which temperatures are not; a fitted file carries it."""
        described = {name: np.asarray(value).tolist() for name, value in vars(self.converters).items()}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        arrays: list[NDArray[np.generic]] = [self.voltage_v, self.current_a, self.pattern, self.target_conductance_s]
        arrays += [self.time_s, self.programmed_at_s, self.saturated]
        for array in arrays:
            for piece in pieces(len(array)):
                digest.update(np.ascontiguousarray(array[piece]).tobytes())
        return digest.hexdigest()

    def select(self, keep: NDArray[np.bool_]) -> MvmDataset:
        """The same writes, with only the MVMs where `keep[N]` is true."""
        return replace(
            self,
            voltage_v=picked_rows(self.voltage_v, keep),
            current_a=picked_rows(self.current_a, keep),
            pattern=self.pattern[keep],
            time_s=self.time_s[keep],
            saturated=picked_rows(self.saturated, keep),
            temperature_k=None if self.temperature_k is None else self.temperature_k[keep],
        )

    def of_columns(self, chosen: NDArray[np.bool_]) -> MvmDataset:
        """The same MVMs, with only the columns where `chosen[columns]` is true."""
        return replace(
            self,
            current_a=picked_columns(self.current_a, chosen),
            saturated=picked_columns(self.saturated, chosen),
            target_conductance_s=self.target_conductance_s[:, :, chosen],
            converters=replace(self.converters, adc_full_scale_a=self.converters.adc_full_scale_a[chosen]),
        )

    def without_sparse_writes(self, minimum: int) -> MvmDataset:
        """Without the writes that have fewer than `minimum` MVMs, as interrupted runs leave them.

        Unchanged where fewer than two writes would be left.
        """
        counts = np.bincount(self.pattern, minlength=self.writes)
        kept = np.flatnonzero(counts >= minimum)
        if kept.size == self.writes or kept.size < 2:
            return self
        renumbered = np.full(self.writes, -1, dtype=np.int64)
        renumbered[kept] = np.arange(kept.size)
        rows = renumbered[self.pattern] >= 0
        return replace(
            self,
            voltage_v=picked_rows(self.voltage_v, rows),
            current_a=picked_rows(self.current_a, rows),
            pattern=renumbered[self.pattern[rows]],
            target_conductance_s=self.target_conductance_s[kept],
            time_s=self.time_s[rows],
            programmed_at_s=self.programmed_at_s[kept],
            saturated=picked_rows(self.saturated, rows),
            temperature_k=None if self.temperature_k is None else self.temperature_k[rows],
        )

    def _complete(self) -> None:
        """Fills in what was left out, as far as the other arrays allow; `_faults` complains about these."""
        if self.target_conductance_s.ndim != 3 or self.voltage_v.ndim != 2 or self.current_a.ndim != 2:
            return
        if self.saturated is _UNSEEN:
            object.__setattr__(self, "saturated", np.zeros(self.current_a.shape, dtype=np.bool_))
        if self.programmed_at_s is _UNKNOWN and self.pattern.shape == self.time_s.shape:
            writes = self.target_conductance_s.shape[0]
            known = (self.pattern >= 0) & (self.pattern < writes)
            first_s = np.full(writes, np.inf)
            np.minimum.at(first_s, self.pattern[known], self.time_s[known])
            object.__setattr__(self, "programmed_at_s", np.where(np.isfinite(first_s), first_s, 0.0))
        if self.converters is _UNDESCRIBED:
            largest_v = float(np.abs(self.voltage_v).max(initial=0.0))
            targets_s = self.target_conductance_s
            converters = Converters(
                voltage_min_v=-largest_v,
                voltage_max_v=largest_v,
                dac_bits=0,
                adc_bits=0,
                adc_full_scale_a=np.full(self.current_a.shape[1], np.inf),
                conductance_min_s=float(targets_s.min(initial=np.inf)),
                conductance_max_s=float(targets_s.max(initial=0.0)),
            )
            object.__setattr__(self, "converters", converters)

    def _faults(self) -> list[str]:
        faults: list[str] = []
        if self.target_conductance_s.ndim != 3 or self.voltage_v.ndim != 2 or self.current_a.ndim != 2:
            wanted = {
                "voltage_v": "[N, rows]",
                "current_a": "[N, columns]",
                "target_conductance_s": "[writes, rows, columns]",
            }
            return [
                f"{name} has shape {list(getattr(self, name).shape)}, expected {axes}"
                for name, axes in wanted.items()
                if getattr(self, name).ndim != len(axes.split(","))
            ]
        n = self.voltage_v.shape[0]
        writes, rows, columns = self.target_conductance_s.shape
        expected = {
            "voltage_v": (n, rows),
            "current_a": (n, columns),
            "pattern": (n,),
            "time_s": (n,),
            "programmed_at_s": (writes,),
            "saturated": (n, columns),
        }
        if self.temperature_k is not None:
            expected["temperature_k"] = (n,)
            impossible = int(((self.temperature_k <= 0) | np.isinf(self.temperature_k)).sum())
            if impossible:
                faults.append(f"temperature_k has {counted(impossible, *_VALUES)} no temperature in K")
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                faults.append(f"{name} has shape {list(got)}, expected {list(shape)}")
        for name in ("voltage_v", "current_a", "target_conductance_s", "time_s", "programmed_at_s"):
            array: FloatArray = getattr(self, name)
            bad = sum(int((~np.isfinite(array[piece])).sum()) for piece in pieces(len(array)))
            if bad:
                faults.append(f"{name} has {counted(bad, *_VALUES)} not finite")
        if self.pattern.size and (self.pattern.min() < 0 or self.pattern.max() >= writes):
            found = f"{self.pattern.min()} to {self.pattern.max()}"
            faults.append(f"pattern names writes {found}, and those of target_conductance_s are 0 to {writes - 1}")
        return faults


def join(datasets: Sequence[MvmDataset]) -> MvmDataset:
    """Joins recordings of one array of one chip; the writes of each keep their own clock.

    Raises:
        DatasetError: Nothing to join, or the parts belong to different chips, arrays or sizes, or were measured with
            other converters.
    """
    if not datasets:
        raise DatasetError("no data sets were given to join; at least one is needed")
    first = datasets[0]
    owners = {(part.chip_id, part.array, part.rows, part.columns) for part in datasets}
    if len(owners) != 1:
        listed = ", ".join(f"array {array} of chip {chip} ({r} x {c})" for chip, array, r, c in sorted(owners))
        raise DatasetError(f"recordings of different arrays cannot be joined: {listed}")
    differing = sorted(
        {
            name
            for part in datasets
            for name, value in vars(part.converters).items()
            if not np.array_equal(value, getattr(first.converters, name))
        }
    )
    if differing:
        raise DatasetError(
            f"recordings of array {first.array} of chip {first.chip_id} cannot be joined: their converters differ in "
            + ", ".join(differing)
        )
    offsets = np.cumsum([0, *(part.writes for part in datasets[:-1])])
    return MvmDataset(
        voltage_v=np.concatenate([part.voltage_v for part in datasets]),
        current_a=np.concatenate([part.current_a for part in datasets]),
        pattern=np.concatenate([part.pattern + offset for part, offset in zip(datasets, offsets, strict=True)]),
        target_conductance_s=np.concatenate([part.target_conductance_s for part in datasets]),
        time_s=np.concatenate([part.time_s for part in datasets]),
        programmed_at_s=np.concatenate([part.programmed_at_s for part in datasets]),
        saturated=np.concatenate([part.saturated for part in datasets]),
        converters=first.converters,
        chip_id=first.chip_id,
        array=first.array,
        temperature_k=_joined_temperature_k(datasets),
    )


def _joined_temperature_k(datasets: Sequence[MvmDataset]) -> FloatArray | None:
    if all(part.temperature_k is None for part in datasets):
        return None
    return np.concatenate(
        [np.full(len(part), np.nan) if part.temperature_k is None else part.temperature_k for part in datasets]
    )
