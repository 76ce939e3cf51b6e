"""The hidden truth: a simulated analog chip with everything that makes real ones hard to use.

Order of effects in one MVM: DAC (quantise, clip) -> cells (programmed, mismatched, stuck, drifted) behind resistive
wires -> cell noise -> column gain -> compressive column amplifier -> offset -> amplifier noise -> ADC (quantise, clip).
Every random draw comes from a generator keyed by (seed, array, write, request), so a rerun is equal bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.mock.nodal import transfer_matrix

FloatArray = NDArray[np.float64]

# Tags that keep the streams of random numbers apart.
_DEVICES, _PROGRAMMING, _READING, _VERIFYING, _TRANSPOSED, _SWEEPING = 1, 2, 3, 4, 5, 6

_COUNTS: Final = ("seed", "arrays", "rows", "columns", "dac_bits", "adc_bits")
_POSITIVE: Final = (
    "conductance_max_s",
    "voltage_max_v",
    "adc_full_scale_a",
    "compression_a",
    "drift_start_s",
    "temperature_k",
)
# Codes are int16.
_MOST_BITS: Final = 16
# Half a gigabyte for each number that a cell has.
_MOST_CELLS: Final = 2**26


@dataclass(frozen=True)
class ChipSettings:
    """What a simulated chip is made of. Spreads are standard deviations over devices or columns.

    Attributes:
        seed: Decides every device of the chip and every noise draw.
        arrays: Number of crossbar arrays.
        rows: Word lines of each array.
        columns: Bit lines of each array.
        conductance_min_s: Lowest programmable conductance in S.
        conductance_max_s: Highest programmable conductance in S.
        voltage_max_v: Read voltages reach from minus to plus this, in V.
        dac_bits: Input converter, `2**bits - 1` levels.
        adc_bits: Output converter, signed codes.
        adc_full_scale_a: Current in A at the upper end of the ADC.
        programming_scale: Multiple of the PCM-like programming error (see `programming_sigma_s`).
        mismatch_sigma: Relative spread of a device around what it was programmed to, the same at every write.
        stuck_fraction: Fraction of devices that cannot be programmed, half of them low, half high.
        wire_ohm: Resistance in ohm of one segment of a word line, and of a bit line where nothing else is said.
        gain_sigma: Relative spread of the column gains around 1.
        offset_sigma_a: Spread of the column offsets in A.
        compression_a: Mean current in A at which a column amplifier saturates.
        compression_sigma: Relative spread of that current.
        amplifier_noise_a: Noise in A after the transfer curve.
        shot_noise_a: Excess shot noise before the curve: variance = this * sum |v g|, in A.
        conductance_noise: Relative read noise of each conductance before the curve.
        drift_exponent: Mean drift exponent nu of `g(t) = g * (1 + t / drift_start_s) ** -nu`.
        drift_exponent_sigma: Spread of the exponent over devices.
        drift_start_s: Time constant of the drift law in s.
        mvm_latency_s: Time in s of one MVM on the chip.
        program_latency_s: Time in s of one programming of an array.
        temperature_k: What a temperature sensor on the chip reads, in K; nothing else depends on it.
        cell_reading_s: Time in s that source-meters take for one reading of a single cell.
        bit_wire_ohm: Resistance in ohm of one segment of a bit line where it is another metal than the word lines.
    """

    seed: int = 1
    arrays: int = 2
    rows: int = 64
    columns: int = 64
    conductance_min_s: float = 4e-6
    conductance_max_s: float = 50e-6
    voltage_max_v: float = 0.3
    dac_bits: int = 8
    adc_bits: int = 10
    adc_full_scale_a: float = 160e-6
    programming_scale: float = 0.7
    mismatch_sigma: float = 0.10
    stuck_fraction: float = 0.02
    wire_ohm: float = 1.5
    gain_sigma: float = 0.08
    offset_sigma_a: float = 2e-6
    compression_a: float = 140e-6
    compression_sigma: float = 0.15
    amplifier_noise_a: float = 0.2e-6
    shot_noise_a: float = 1e-9
    conductance_noise: float = 0.015
    drift_exponent: float = 0.03
    drift_exponent_sigma: float = 0.01
    drift_start_s: float = 1.0
    mvm_latency_s: float = 10e-6
    program_latency_s: float = 5e-3
    temperature_k: float = 300.0
    cell_reading_s: float = 20e-3
    bit_wire_ohm: float | None = None

    def faults(self) -> list[str]:
        """What no chip can be made of, a clause each as `key: reason`."""
        named = {name: value for name, value in asdict(self).items() if value is not None}
        faults = [f"{name}: {named[name]} is less than 1" for name in ("arrays", "rows", "columns") if named[name] < 1]
        cells = self.arrays * self.rows * self.columns
        if not faults and cells > _MOST_CELLS:
            faults.append(f"rows: {self.arrays} x {self.rows} x {self.columns} cells are more than {_MOST_CELLS}")
        if self.seed < 0:
            faults.append(f"seed: {self.seed} is negative")
        faults += [
            f"{name}: {named[name]} is not 2 to {_MOST_BITS} bits"
            for name in ("dac_bits", "adc_bits")
            if not 2 <= named[name] <= _MOST_BITS
        ]
        # A column without compression has an infinite current here.
        faults += [
            f"{name}: {value:g} is not a positive number"
            for name, value in named.items()
            if name in _POSITIVE and not (value > 0.0 and (value < math.inf or name == "compression_a"))
        ]
        faults += [
            f"{name}: {value:g} is negative or not finite"
            for name, value in named.items()
            if name not in {*_POSITIVE, *_COUNTS} and not 0.0 <= value < math.inf
        ]
        if self.stuck_fraction > 1.0:
            faults.append(f"stuck_fraction: {self.stuck_fraction:g} is more than 1")
        if self.conductance_min_s >= self.conductance_max_s:
            faults.append(
                f"conductance_min_s: {self.conductance_min_s:g} S is not below conductance_max_s = "
                f"{self.conductance_max_s:g} S"
            )
        return faults


def programming_sigma_s(target_s: FloatArray, conductance_max_s: float, scale: float) -> FloatArray:
    """Standard deviation in S of the programming error at each target.

    The polynomial is the phase-change-memory fit of Nandakumar et al., ICECS 2019, as published with its
    constants in aihwkit (g_max 25 uS); it runs from 1.05 % to 4.35 % of the highest conductance.
    """
    relative = target_s / conductance_max_s
    polynomial_us = 0.26348 + 1.9650 * relative - 1.1731 * relative**2
    return scale * conductance_max_s * np.maximum(polynomial_us, 0.0) / 25.0


@dataclass(frozen=True)
class WrittenArray:
    """What one programming left on an array.

    Attributes:
        write: How many programmings this array had before.
        time_s: Chip clock in s at the end of the programming.
        conductance_s: Conductances at that time, `[rows, columns]`.
    """

    write: int
    time_s: float
    conductance_s: FloatArray


class SimulatedArray:
    """One array of the chip: its devices and columns, drawn once from the chip's seed."""

    def __init__(self, settings: ChipSettings, index: int) -> None:
        self._settings = settings
        self._index = index
        self._last: tuple[FloatArray, FloatArray] | None = None
        rng = self._generator(_DEVICES)
        cells = (settings.rows, settings.columns)
        log_sigma = np.sqrt(np.log1p(settings.mismatch_sigma**2))
        self.mismatch: FloatArray = np.exp(log_sigma * rng.standard_normal(cells) - 0.5 * log_sigma**2)
        fate = rng.random(cells)
        self.stuck_low = fate < 0.5 * settings.stuck_fraction
        self.stuck_high = (fate >= 0.5 * settings.stuck_fraction) & (fate < settings.stuck_fraction)
        spread = settings.drift_exponent_sigma * rng.standard_normal(cells)
        self.drift_exponent: FloatArray = np.abs(settings.drift_exponent + spread)
        columns = settings.columns
        self.gain = 1.0 + settings.gain_sigma * np.clip(rng.standard_normal(columns), -2.5, 2.5)
        self.offset_a = settings.offset_sigma_a * rng.standard_normal(columns)
        compression = 1.0 + settings.compression_sigma * np.clip(rng.standard_normal(columns), -2.5, 2.5)
        self.compression_a = settings.compression_a * compression

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self._settings.seed, self._index, *key])

    def program(self, target_s: FloatArray, write: int, time_s: float) -> WrittenArray:
        """Programs every device once; stuck ones stay where they are."""
        settings = self._settings
        rng = self._generator(_PROGRAMMING, write)
        sigma_s = programming_sigma_s(target_s, settings.conductance_max_s, settings.programming_scale)
        reached_s = self.mismatch * target_s + sigma_s * rng.standard_normal(target_s.shape)
        reached_s = np.where(self.stuck_low, 0.5 * settings.conductance_min_s, reached_s)
        reached_s = np.where(self.stuck_high, settings.conductance_max_s, reached_s)
        return WrittenArray(write, time_s, np.maximum(reached_s, 0.0))

    def conductance_s(self, written: WrittenArray, time_s: float) -> FloatArray:
        """Conductances at `time_s`, after drift; stuck devices drift like the others."""
        age_s = max(time_s - written.time_s, 0.0)
        decay = np.exp(-self.drift_exponent * np.log1p(age_s / self._settings.drift_start_s))
        return np.asarray(written.conductance_s * decay)

    def transfer_s(self, conductance_s: FloatArray) -> FloatArray:
        """What conductances `[rows, columns]` in S pass on from line voltages to column currents, wires included."""
        # Where nothing drifts a thousand batches ask for the same matrix, whose wires take longest.
        if self._last is None or not np.array_equal(self._last[0], conductance_s):
            word_ohm, bit_ohm = self._settings.wire_ohm, self._settings.bit_wire_ohm
            transfer = transfer_matrix(conductance_s, word_ohm, word_ohm if bit_ohm is None else bit_ohm)
            self._last = (conductance_s, transfer)
        return self._last[1]

    def verify(self, written: WrittenArray, time_s: float, request: int) -> FloatArray:
        """The board's own read of every cell: one cell at a time, with the conductance noise."""
        rng = self._generator(_VERIFYING, written.write, request)
        noise = 1.0 + self._settings.conductance_noise * rng.standard_normal(written.conductance_s.shape)
        return self.conductance_s(written, time_s) * noise

    def dac_v(self, voltage_v: FloatArray) -> FloatArray:
        """What the input converters make of the commanded voltages."""
        settings = self._settings
        step_v = 2.0 * settings.voltage_max_v / (2**settings.dac_bits - 2)
        levels_v = np.round(voltage_v / step_v) * step_v
        return np.asarray(np.clip(levels_v, -settings.voltage_max_v, settings.voltage_max_v))

    def mvm(self, written: WrittenArray, voltage_v: FloatArray, time_s: float, request: int) -> MeasuredBatch:
        """One batch of MVMs at `time_s`, from commanded voltages `[batch, rows]` to ADC codes."""
        settings = self._settings
        rng = self._generator(_READING, written.write, request)
        line_v = self.dac_v(voltage_v)
        conductance_s = self.conductance_s(written, time_s)
        transfer_s = self.transfer_s(conductance_s)
        current_a = line_v @ transfer_s
        variance = settings.shot_noise_a * (np.abs(line_v) @ transfer_s)
        variance += settings.conductance_noise**2 * (line_v**2 @ transfer_s**2)
        current_a = current_a + np.sqrt(variance) * rng.standard_normal(current_a.shape)
        bent = np.isfinite(self.compression_a)
        limit_a = np.where(bent, self.compression_a, 1.0)
        straight_a = self.gain * current_a
        amplified_a = np.where(bent, limit_a * np.tanh(straight_a / limit_a), straight_a)
        amplified_a += self.offset_a + settings.amplifier_noise_a * rng.standard_normal(current_a.shape)
        # Bound on the drivers' power: each line as if its current came at its own voltage alone.
        power_w = line_v**2 @ transfer_s.sum(axis=1)
        return self._converted(amplified_a, float(power_w.mean()))

    def mvm_transposed(
        self, written: WrittenArray, voltage_v: FloatArray, time_s: float, request: int
    ) -> MeasuredBatch:
        """One batch from the bit lines `[batch, columns]` to the word lines, read by plain amplifiers.

        The network of cells and wires is passive, hence reciprocal: its transfer backwards is the transpose of the
        one forwards, from the same ends of the lines.
        """
        settings = self._settings
        rng = self._generator(_TRANSPOSED, written.write, request)
        line_v = self.dac_v(voltage_v)
        transfer_s = self.transfer_s(self.conductance_s(written, time_s)).T
        current_a = line_v @ transfer_s
        variance = settings.shot_noise_a * (np.abs(line_v) @ transfer_s)
        variance += settings.conductance_noise**2 * (line_v**2 @ transfer_s**2) + settings.amplifier_noise_a**2
        current_a = current_a + np.sqrt(variance) * rng.standard_normal(current_a.shape)
        return self._converted(current_a, float((line_v**2 @ transfer_s.sum(axis=1)).mean()))

    def sweep_cell(
        self, written: WrittenArray, cell: tuple[int, int], level_v: FloatArray, time_s: float, request: int
    ) -> FloatArray:
        """Current in A through one cell at each level, as source-meters at the ends of its two lines see it.

        They stand in for the converters and amplifiers of the chip, so levels are not rounded, and the columns' gains,
        offsets and curves have no part in it. With all other lines grounded the cell and its wires are ohmic.
        """
        settings = self._settings
        rng = self._generator(_SWEEPING, written.write, request)
        transfer_s = self.transfer_s(self.conductance_s(written, time_s))
        current_a = level_v * transfer_s[cell]
        variance = settings.shot_noise_a * np.abs(current_a) + (settings.conductance_noise * current_a) ** 2
        return np.asarray(current_a + np.sqrt(variance) * rng.standard_normal(current_a.shape))

    def _converted(self, current_a: FloatArray, power_w: float) -> MeasuredBatch:
        """What the output converters make of currents."""
        bits = self._settings.adc_bits
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        lsb_a = self._settings.adc_full_scale_a / 2 ** (bits - 1)
        code = np.clip(np.round(current_a / lsb_a), lowest, highest).astype(np.int16)
        return MeasuredBatch(code, (code == lowest) | (code == highest), power_w)


@dataclass(frozen=True)
class MeasuredBatch:
    """Codes of one batch, where they sat at a rail, and the mean power in W that the lines drew."""

    code: NDArray[np.int16]
    saturated: NDArray[np.bool_]
    power_w: float
