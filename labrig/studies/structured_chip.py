"""A chip whose departure from its surrogate has one structure and a chosen size, and which drifts while it is used.

Everything else about it (converters, programming and read noise) the surrogate knows, so that a study can ask what
one thing that a calibration misses costs. The answers are written out in numpy, apart from the surrogates' code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.crossbar import MvmResult, ProgramReport
from labrig_drivers.mock.nodal import transfer_matrix
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate

FloatArray = NDArray[np.float64]
Structure = Literal["columns", "cells", "wires", "crosstalk", "curve"]

STRUCTURES: tuple[Structure, ...] = get_args(Structure)

CONDUCTANCE_MAX_S = 50e-6
VOLTAGE_MAX_V = 0.2
# Largest current of one cell in A, and of a column that the ADC still tells.
UNIT_A = CONDUCTANCE_MAX_S * VOLTAGE_MAX_V
_FULL_SCALE = 16.0
_DAC_BITS, _ADC_BITS = 8, 10
# Keeps the streams of one chip apart.
_DEVICES, _PROGRAMMING, _READING, _REFERENCE = 1, 2, 3, 4
# Columns and cells beyond so many deviations do not occur.
_FARTHEST = 3.0


@dataclass(frozen=True)
class StructuredChip:
    """What the chip is made of.

    Attributes:
        seed: Decides every device and every noise draw.
        structure: What the surrogate does not know: gains of the `columns`, factors of the `cells`, resistance of the
            `wires`, `crosstalk` between neighbouring columns, or the `curve` of the amplifiers.
        mismatch: How much of it: the root mean square of the error of a difference of two columns over that of the
            difference, for reference weights and inputs, `0.1` for 10 %.
        drift: Mean loss of the cells' conductances, in logarithms, from age zero to one; the cells spread by as much.
        arrays: Number of arrays.
        rows: Word lines.
        columns: Bit lines.
        programming: Standard deviation of a programming, over the highest conductance.
        noise: Standard deviation of a read, over the largest current of one cell.
    """

    seed: int
    structure: Structure
    mismatch: float
    drift: float = 0.0
    arrays: int = 2
    rows: int = 64
    columns: int = 32
    programming: float = 0.02
    noise: float = 0.05

    @property
    def chip_id(self) -> str:
        """Serial number."""
        return f"STRUCTURED-{self.seed:04d}"

    def calibration(self, *, gains: bool = False) -> ChipParameters:
        """What the surrogate knows: all but the structure and the drift.

        Args:
            gains: Whether it knows the gains of the columns too; then nothing is hidden of a chip of `columns`.
        """
        strength = strength_of(self) if gains else 0.0
        arrays = {
            index: self._known(index, self.gains(index, strength) if gains else np.ones(self.columns))
            for index in range(self.arrays)
        }
        return ChipParameters(self.chip_id, arrays, {})

    def gains(self, array: int, strength: float) -> FloatArray:
        """Gain of each column of an array, for a strength of `columns`."""
        drawn = self._rng(array, _DEVICES).standard_normal(self.columns)
        return np.asarray(np.maximum(1.0 + strength * np.clip(drawn, -_FARTHEST, _FARTHEST), 0.05))

    def aged(self, array: int, age: float) -> FloatArray:
        """Part of its conductance that each cell has left at an age, `[rows, columns]`."""
        rng = self._rng(array, _DEVICES, 1)
        own = 1.0 + np.clip(rng.standard_normal((self.rows, self.columns)), -_FARTHEST, _FARTHEST)
        return np.asarray(np.exp(-self.drift * age * own))

    def transfer(self, array: int, cells_s: FloatArray, strength: float) -> FloatArray:
        """Transfer of an array's cells in S, before the amplifiers, for a strength of the chip's structure."""
        if self.structure == "columns":
            return np.asarray(cells_s * self.gains(array, strength))
        if self.structure == "cells":
            drawn = self._rng(array, _DEVICES, 2).standard_normal(cells_s.shape)
            return np.asarray(cells_s * np.maximum(1.0 + strength * np.clip(drawn, -_FARTHEST, _FARTHEST), 0.0))
        if self.structure == "wires":
            return transfer_matrix(cells_s, strength, strength)
        if self.structure == "crosstalk":
            coupled = cells_s.copy()
            coupled[:, 1:] += strength * cells_s[:, :-1]
            coupled[:, :-1] += strength * cells_s[:, 1:]
            return coupled
        return cells_s

    def amplified(self, current_a: FloatArray, strength: float) -> FloatArray:
        """What the amplifiers make of currents in A."""
        if self.structure != "curve" or strength == 0.0:
            return current_a
        limit_a = UNIT_A / strength
        return np.asarray(limit_a * np.tanh(current_a / limit_a))

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def _known(self, array: int, gain: FloatArray) -> ArrayParameters:
        size, columns = (self.rows, self.columns), self.columns

        def estimate(value: FloatArray | float, unit: str) -> Estimate:
            return Estimate(np.broadcast_to(np.asarray(value, np.float64), (columns,)).copy(), np.zeros(columns), unit)

        return ArrayParameters(
            array=array,
            gain=estimate(gain, "1"),
            offset=estimate(0.0, "A"),
            compression=estimate(0.0, "1/A"),
            drift=estimate(0.0, "1"),
            amplifier_noise=estimate((self.noise * UNIT_A) ** 2, "A^2"),
            shot_noise=estimate(0.0, "A"),
            conductance_noise=estimate(0.0, "1"),
            programming=Estimate(np.array([self.programming, 0.0, 0.0]), np.zeros(3), "1"),
            cell_slope=np.ones(size),
            cell_intercept_s=np.zeros(size),
            stuck=np.zeros(size, np.bool_),
            write_conductance_s=np.zeros((0, *size)),
            drift_reference_s=1.0,
            converters=ConverterRange(
                voltage_max_v=VOLTAGE_MAX_V,
                dac_step_v=2.0 * VOLTAGE_MAX_V / (2**_DAC_BITS - 2),
                adc_lsb_a=np.full(columns, _lsb_a()),
                code_min=-(2 ** (_ADC_BITS - 1)),
                code_max=2 ** (_ADC_BITS - 1) - 1,
                conductance_min_s=0.0,
                conductance_max_s=CONDUCTANCE_MAX_S,
            ),
            cell_slope_error=np.zeros(size),
        )


def strength_of(chip: StructuredChip) -> float:
    """The strength of a chip's structure at which its mismatch is what it should be: gain, ohm, share, or unit.

    Found by bisection on reference weights and inputs: Gaussian weights as differential pairs, and inputs of which
    half are zero.
    """
    if chip.mismatch == 0.0:
        return 0.0
    low, high = 0.0, {"columns": 2.0, "cells": 2.0, "wires": 2000.0, "crosstalk": 2.0, "curve": 20.0}[chip.structure]
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _mismatch(chip, middle) < chip.mismatch else (low, middle)
    return 0.5 * (low + high)


def _mismatch(chip: StructuredChip, strength: float) -> float:
    errors, sizes = 0.0, 0.0
    for array in range(chip.arrays):
        # All chips have the same reference.
        rng = np.random.default_rng([_REFERENCE, array])
        weight = np.clip(rng.standard_normal((chip.rows, chip.columns // 2)) / 2.5, -1.0, 1.0)
        cells_s = np.zeros((chip.rows, chip.columns))
        cells_s[:, 0::2], cells_s[:, 1::2] = np.maximum(weight, 0.0), np.maximum(-weight, 0.0)
        cells_s *= CONDUCTANCE_MAX_S
        voltage_v = VOLTAGE_MAX_V * rng.random((64, chip.rows)) * (rng.random((64, chip.rows)) < 0.5)
        ideal_a = voltage_v @ cells_s
        real_a = chip.amplified(voltage_v @ chip.transfer(array, cells_s, strength), strength)
        ideal, real = (one[:, 0::2] - one[:, 1::2] for one in (ideal_a, real_a))
        errors, sizes = errors + float(np.sum((real - ideal) ** 2)), sizes + float(np.sum(ideal**2))
    return float((errors / sizes) ** 0.5)


@dataclass
class StructuredBoard:
    """The board of such a chip, for blocking code; noise is keyed by chip, array, write and request.

    Attributes:
        chip: The chip.
        age: How far it has drifted, from 0 to 1; whoever uses it moves it on.
    """

    chip: StructuredChip
    age: float = 0.0
    _strength: float = field(init=False)
    _cells_s: dict[int, FloatArray] = field(default_factory=dict, init=False)
    _transfer: dict[int, tuple[float, FloatArray]] = field(default_factory=dict, init=False)
    _writes: dict[int, int] = field(default_factory=dict, init=False)
    _requests: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._strength = strength_of(self.chip)

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array."""
        chip, write = self.chip, self._writes.get(array, 0)
        drawn = np.random.default_rng([chip.seed, array, _PROGRAMMING, write]).standard_normal(conductance_s.shape)
        error_s = chip.programming * CONDUCTANCE_MAX_S * drawn
        self._cells_s[array] = np.maximum(conductance_s + error_s, 0.0)
        self._transfer.pop(array, None)
        self._writes[array] = write + 1
        return ProgramReport(write, float(self._requests), conductance_s.size, float(np.sqrt(np.mean(error_s**2))))

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch."""
        chip = self.chip
        self._requests += 1
        step_v = 2.0 * VOLTAGE_MAX_V / (2**_DAC_BITS - 2)
        current_a = np.round(voltage_v / step_v) * step_v @ self._transfer_s(array)
        rng = np.random.default_rng([chip.seed, array, _READING, self._requests])
        amplified_a = chip.amplified(current_a, self._strength)
        amplified_a = amplified_a + chip.noise * UNIT_A * rng.standard_normal(current_a.shape)
        lowest, highest = -(2 ** (_ADC_BITS - 1)), 2 ** (_ADC_BITS - 1) - 1
        code = np.clip(np.round(amplified_a / _lsb_a()), lowest, highest).astype(np.int16)
        return MvmResult(
            code=code,
            current_a=code.astype(np.float64) * _lsb_a(),
            saturated=(code == lowest) | (code == highest),
            time_s=np.full(len(voltage_v), float(self._requests)),
            write_index=self._writes[array] - 1,
        )

    def _transfer_s(self, array: int) -> FloatArray:
        known = self._transfer.get(array)
        if known is None or known[0] != self.age:
            cells_s = self._cells_s[array] * self.chip.aged(array, self.age)
            known = (self.age, self.chip.transfer(array, cells_s, self._strength))
            self._transfer[array] = known
        return known[1]


def _lsb_a() -> float:
    return float(_FULL_SCALE * UNIT_A / 2 ** (_ADC_BITS - 1))


def another(chip: StructuredChip) -> StructuredChip:
    """A chip of the same kind with other devices."""
    return replace(chip, seed=chip.seed + 500_000)
