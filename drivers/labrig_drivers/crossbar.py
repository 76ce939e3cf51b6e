"""The contract of a crossbar board: program conductances, measure matrix-vector products (MVMs).

The in-process mock, the wire driver and every other board keep this contract, so everything above is written once.
An array has `rows` word lines (inputs) and `columns` bit lines (outputs); an ideal MVM is
`current_a[b, j] = sum_i voltage_v[b, i] * conductance_s[i, j]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.errors import CapabilityError, SafetyError
from labrig_drivers.instrument import Instrument
from labrig_drivers.wording import counted

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class BoardInfo:
    """What a board says of itself.

    Attributes:
        chip_id: Serial number of the chip on the board; a calibration belongs to one chip.
        arrays: Number of crossbar arrays.
        rows: Word lines of each array.
        columns: Bit lines of each array.
        conductance_min_s: Lowest programmable conductance in S.
        conductance_max_s: Highest programmable conductance in S.
        voltage_min_v: Lowest read voltage in V.
        voltage_max_v: Highest read voltage in V.
        dac_bits: Resolution of the input converters.
        adc_bits: Resolution of the output converters; codes are signed, `-(2**(bits-1)) .. 2**(bits-1) - 1`.
        adc_full_scale_a: Current in A at the upper end of the ADC, one value for each column.
        mvm_latency_s: Time of one MVM on the chip in s, without the link.
        program_latency_s: Time of one programming of an array in s, without the link.
        capabilities: Names of optional abilities, such as `transposed-mvm`.
    """

    chip_id: str
    arrays: int
    rows: int
    columns: int
    conductance_min_s: float
    conductance_max_s: float
    voltage_min_v: float
    voltage_max_v: float
    dac_bits: int
    adc_bits: int
    adc_full_scale_a: tuple[float, ...]
    mvm_latency_s: float
    program_latency_s: float
    capabilities: frozenset[str] = frozenset()

    @property
    def adc_lsb_a(self) -> FloatArray:
        """Current in A of one ADC step, one value for each column."""
        return np.asarray(self.adc_full_scale_a, dtype=np.float64) / float(2 ** (self.adc_bits - 1))

    @property
    def dac_step_v(self) -> float:
        """Voltage in V of one DAC step: `2**bits - 2` steps over a symmetric range, so that 0 V is a level."""
        return (self.voltage_max_v - self.voltage_min_v) / float(2**self.dac_bits - 2)


@dataclass(frozen=True)
class ProgramReport:
    """What one programming of an array achieved, by the board's own write-verify.

    Attributes:
        write_index: How many times this array was programmed before, as the board counts.
        time_s: Board clock in s at the end of the programming.
        pulses: Programming pulses spent.
        rms_error_s: Root mean square of (read-back - target) in S.
    """

    write_index: int
    time_s: float
    pulses: int
    rms_error_s: float


@dataclass(frozen=True)
class MvmResult:
    """Answers to one batch of input vectors.

    Attributes:
        code: Raw ADC codes, int16 `[batch, columns]`.
        current_a: Codes times the ADC step, in A, float64 `[batch, columns]`.
        saturated: True where the converter was at an end of its range, bool `[batch, columns]`.
        time_s: Board clock in s at each MVM, float64 `[batch]`.
        write_index: Which programming of the array was read.
    """

    code: NDArray[np.int16]
    current_a: FloatArray
    saturated: NDArray[np.bool_]
    time_s: FloatArray
    write_index: int


class CrossbarBoard(Instrument, Protocol):
    """A board with one or more crossbar arrays. Always batches: one request carries many vectors."""

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        ...

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array to `conductance_s[rows, columns]`. Never repeated by a driver on its own.

        Args:
            array: Which array, from 0.
            conductance_s: Targets in S, `[rows, columns]`.

        Raises:
            SafetyError: A target lies outside the board's conductance range, or is not finite.
            CapabilityError: No such array, or wrong shape.
        """
        ...

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Applies `voltage_v[batch, rows]` to one array, one vector after another.

        Args:
            array: Which array, from 0.
            voltage_v: Voltages of the word lines in V, `[batch, rows]`.

        Raises:
            SafetyError: A voltage lies outside the board's range, or is not finite.
            CapabilityError: No such array, or wrong shape.
            StateError: The array was never programmed, or its supply is off.
        """
        ...

    async def read_conductance(self, array: int) -> FloatArray:
        """Reads every cell by the board's own small-signal read, `[rows, columns]` in S (slow, noisy).

        Args:
            array: Which array, from 0.

        Raises:
            CapabilityError: No such array, or the board cannot read single cells.
            StateError: The array was never programmed, or its supply is off.
        """
        ...


def check_program_request(info: BoardInfo, array: int, conductance_s: FloatArray) -> None:
    """Refuses a programming request that the board cannot carry out; every fault in one error.

    Args:
        info: What the board says of itself.
        array: Which array, from 0.
        conductance_s: Targets in S, `[rows, columns]`.

    Raises:
        CapabilityError: No such array, or wrong shape.
        SafetyError: A target is not finite or outside the board's range.
    """
    _check_array_and_shape(
        info, array, conductance_s.shape == (info.rows, info.columns), conductance_s.shape, "program"
    )
    _check_range(conductance_s, info.conductance_min_s, info.conductance_max_s, "conductance", "S")


def check_mvm_request(info: BoardInfo, array: int, voltage_v: FloatArray) -> None:
    """Refuses an MVM request that the board cannot carry out; every fault in one error.

    Args:
        info: What the board says of itself.
        array: Which array, from 0.
        voltage_v: Voltages in V, `[batch, rows]`.

    Raises:
        CapabilityError: No such array, or wrong shape.
        SafetyError: A voltage is not finite or outside the board's range.
    """
    shape_ok = voltage_v.ndim == 2 and voltage_v.shape[1] == info.rows and voltage_v.shape[0] > 0
    _check_array_and_shape(info, array, shape_ok, voltage_v.shape, "mvm")
    _check_range(voltage_v, info.voltage_min_v, info.voltage_max_v, "voltage", "V")


def _check_array_and_shape(info: BoardInfo, array: int, shape_ok: bool, shape: tuple[int, ...], verb: str) -> None:
    faults = []
    if not 0 <= array < info.arrays:
        faults.append(f"array {array} does not exist (the board has arrays 0 to {info.arrays - 1})")
    if not shape_ok:
        wanted = f"[{info.rows}, {info.columns}]" if verb == "program" else f"[batch >= 1, {info.rows}]"
        faults.append(f"shape {list(shape)} does not fit, expected {wanted}")
    if faults:
        raise CapabilityError(f"{verb} refused, nothing was sent: " + "; ".join(faults))


def _check_range(values: FloatArray, low: float, high: float, quantity: str, unit: str) -> None:
    # A float32 copy of a limit may round outward; a relative 1e-6 is below any converter's step.
    slack = 1e-6 * max(abs(low), abs(high))
    # The usual case in one pass each; NaN compares as false and goes on to be counted.
    if low - slack <= values.min(initial=high) and values.max(initial=low) <= high + slack:
        return
    faults = []
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        faults.append(counted(bad, f"{quantity} value is not finite", f"{quantity} values are not finite"))
    outside = (values < low - slack) | (values > high + slack)
    if outside.any():
        faults.append(
            f"{counted(int(outside.sum()), f'{quantity} value')} outside {low:g} to {high:g} {unit} "
            f"(extremes {np.nanmin(values):g} and {np.nanmax(values):g} {unit})"
        )
    if faults:
        raise SafetyError(faults)
