"""A small chip whose calibration is known, since it is what the chip is made of: for tests that need no fit.

Nothing here shares code with the surrogates or with the simulated chip: the answers are written out in numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
from labrig_drivers.errors import LabrigError
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class KnownChip:
    """A chip with gains, offsets and compression of its columns, errors of its cells, and noise of its outputs.

    Attributes:
        seed: Decides every device and every noise draw.
        arrays: Number of arrays.
        rows: Word lines.
        columns: Bit lines.
        gain_sigma: Relative spread of the gains.
        offset_sigma: Spread of the offsets, as a part of the largest current of one cell.
        cell_sigma: Relative spread of the cells.
        compression: Largest current of one cell over the saturation current of a column.
        noise: Noise of an output, as a part of the largest current of one cell.
        drift_gain: Relative change of all gains after `drift_after` programmings of an array.
        drift_after: See `drift_gain`.
    """

    seed: int = 1
    arrays: int = 2
    rows: int = 8
    columns: int = 16
    gain_sigma: float = 0.0
    offset_sigma: float = 0.0
    cell_sigma: float = 0.0
    compression: float = 0.0
    noise: float = 0.0
    drift_gain: float = 0.0
    drift_after: int = 0

    # Not of the physics: what a current is measured in.
    conductance_max_s: float = 1e-4
    voltage_max_v: float = 0.2

    @property
    def unit_a(self) -> float:
        """Largest current of one cell in A."""
        return self.conductance_max_s * self.voltage_max_v

    @property
    def info(self) -> BoardInfo:
        """What its board says; converters too fine to matter."""
        return BoardInfo(
            chip_id=f"KNOWN-{self.seed}",
            arrays=self.arrays,
            rows=self.rows,
            columns=self.columns,
            conductance_min_s=0.0,
            conductance_max_s=self.conductance_max_s,
            voltage_min_v=-self.voltage_max_v,
            voltage_max_v=self.voltage_max_v,
            dac_bits=24,
            adc_bits=24,
            adc_full_scale_a=(self.rows * self.unit_a,) * self.columns,
            mvm_latency_s=1e-6,
            program_latency_s=1e-3,
        )

    def devices(self, array: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Gains and offsets `[columns]`, and factors of the cells `[rows, columns]`."""
        rng = np.random.default_rng([self.seed, array])
        gain = 1.0 + self.gain_sigma * np.clip(rng.standard_normal(self.columns), -2.0, 2.0)
        offset_a = self.offset_sigma * self.unit_a * rng.standard_normal(self.columns)
        cells = 1.0 + self.cell_sigma * np.clip(rng.standard_normal((self.rows, self.columns)), -2.0, 2.0)
        return gain, offset_a, cells

    def calibration(self) -> ChipParameters:
        """What a perfect calibration would find; no converter rounds."""
        return ChipParameters(self.info.chip_id, {n: self._array(n) for n in range(self.arrays)}, {})

    def nominal(self) -> ChipParameters:
        """What the data sheet says: all columns and cells alike."""
        return replace(self, gain_sigma=0.0, offset_sigma=0.0, cell_sigma=0.0, compression=0.0).calibration()

    def _array(self, array: int) -> ArrayParameters:
        gain, offset_a, cells = self.devices(array)

        def estimate(value: FloatArray | float, unit: str, error: float = 0.0) -> Estimate:
            full = np.broadcast_to(np.asarray(value, dtype=np.float64), (self.columns,)).copy()
            return Estimate(full, np.full(self.columns, error), unit)

        return ArrayParameters(
            array=array,
            gain=estimate(gain, "1", 1e-3),
            offset=estimate(offset_a, "A", 1e-3 * self.unit_a),
            compression=estimate(self.compression / self.unit_a, "1/A"),
            drift=estimate(0.0, "1"),
            amplifier_noise=estimate((self.noise * self.unit_a) ** 2, "A^2"),
            shot_noise=estimate(0.0, "A"),
            conductance_noise=estimate(0.0, "1"),
            programming=Estimate(np.zeros(3), np.zeros(3), "1"),
            cell_slope=cells,
            cell_intercept_s=np.zeros((self.rows, self.columns)),
            stuck=np.zeros((self.rows, self.columns), np.bool_),
            write_conductance_s=np.zeros((0, self.rows, self.columns)),
            drift_reference_s=1.0,
            converters=ConverterRange(
                voltage_max_v=self.voltage_max_v,
                dac_step_v=0.0,
                adc_lsb_a=np.zeros(self.columns),
                code_min=-(2**23),
                code_max=2**23 - 1,
                conductance_min_s=0.0,
                conductance_max_s=self.conductance_max_s,
            ),
            cell_slope_error=np.full((self.rows, self.columns), 1e-3),
        )


@dataclass
class KnownBoard:
    """The board of a known chip, for blocking code.

    Attributes:
        chip: The chip.
        fail: Called before every request with its number; what it raises is what the board does.
        programmed: What was commanded, by array.
        programmings: Programmings of each array.
        requests: Requests that were answered.
    """

    chip: KnownChip
    fail: Callable[[int], LabrigError | None] = lambda _: None
    programmed: dict[int, FloatArray] = field(default_factory=dict)
    programmings: dict[int, int] = field(default_factory=dict)
    requests: int = 0

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array."""
        self._request()
        self.programmed[array] = conductance_s.copy()
        count = self.programmings.get(array, 0)
        self.programmings[array] = count + 1
        return ProgramReport(count, float(self.requests), 0, 0.0)

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch."""
        self._request()
        chip = self.chip
        gain, offset_a, cells = chip.devices(array)
        drifted = 1.0 + (chip.drift_gain if self.programmings[array] > chip.drift_after else 0.0)
        linear_a = drifted * gain * (voltage_v @ (cells * self.programmed[array]))
        if chip.compression:
            saturation_a = chip.unit_a / chip.compression
            linear_a = saturation_a * np.tanh(linear_a / saturation_a)
        rng = np.random.default_rng([chip.seed, array, self.requests])
        current_a = offset_a + linear_a + chip.noise * chip.unit_a * rng.standard_normal(linear_a.shape)
        return MvmResult(
            code=np.zeros(current_a.shape, np.int16),
            current_a=current_a,
            saturated=np.zeros(current_a.shape, np.bool_),
            time_s=np.full(len(voltage_v), float(self.requests)),
            write_index=self.programmings[array] - 1,
        )

    def _request(self) -> None:
        self.requests += 1
        error = self.fail(self.requests)
        if error is not None:
            raise error
