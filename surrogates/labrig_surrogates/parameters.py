"""The fitted parameters of a chip as arrays with units and standard errors. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Fitted values and their standard errors, in one unit.

    Attributes:
        value: Fitted values, any shape.
        error: Standard errors, same shape; infinite where the data say nothing.
        unit: SI unit of both, `1` for a pure number.
    """

    value: FloatArray
    error: FloatArray
    unit: str


@dataclass(frozen=True)
class ConverterRange:
    """DAC and ADC as the board describes them.

    Attributes:
        voltage_max_v: The DAC reaches from minus to plus this.
        dac_step_v: One DAC level in V.
        adc_lsb_a: One ADC step in A, `[columns]`.
        code_min: Lowest ADC code.
        code_max: Highest ADC code.
        conductance_min_s: Lowest programmable conductance in S.
        conductance_max_s: Highest programmable conductance in S.
    """

    voltage_max_v: float
    dac_step_v: float
    adc_lsb_a: FloatArray
    code_min: int
    code_max: int
    conductance_min_s: float
    conductance_max_s: float


@dataclass(frozen=True)
class ArrayParameters:
    """One array of one chip, as fitted from its recording.

    The model of a column j at an age t after a write, with inputs v after the DAC:

        u_j = gain_j * (1 + t / drift_reference_s) ** -drift_j * sum_i v_i g_ij
        y_j = offset_j + tanh(compression_j * u_j) / compression_j + noise
        var = amplifier_j + slope(u_j)**2 * (shot_j * sum_i |v_i w_ij| + conductance_j * sum_i (v_i w_ij)**2)

    with w = gain * drift * g, slope the derivative of the tanh, and the ADC's own lsb**2 / 12 beside it. For a write
    that was recorded, g is `write_conductance_s`; for a new one it is `cell_slope * target + cell_intercept_s`, plus
    a programming error with standard deviation `conductance_max_s * (p0 + p1 r + p2 r**2)`, r = target / highest.
    The gauge: the mean cell slope over the healthy cells of a column is one.

    Attributes:
        array: Which array of the chip.
        gain: Column gains, `[columns]`.
        offset: Column offsets in A, `[columns]`.
        compression: Reciprocal saturation currents in 1/A, `[columns]`.
        drift: Drift exponents, `[columns]`.
        amplifier_noise: Variance after the curve in A^2, `[columns]`.
        shot_noise: Variance per current in A, `[columns]`.
        conductance_noise: Relative variance of the conductances, `[columns]`.
        programming: Coefficients p0, p1, p2 of the programming error, `[3]`.
        cell_slope: Slope of each cell's conductance over its target, `[rows, columns]`.
        cell_intercept_s: Conductance of each cell at target zero in S, `[rows, columns]`.
        stuck: Cells that do not follow their target, bool, `[rows, columns]`.
        write_conductance_s: Conductances of the recorded writes in S, `[writes, rows, columns]`.
        drift_reference_s: Time constant of the drift law in s.
        converters: DAC and ADC.
    """

    array: int
    gain: Estimate
    offset: Estimate
    compression: Estimate
    drift: Estimate
    amplifier_noise: Estimate
    shot_noise: Estimate
    conductance_noise: Estimate
    programming: Estimate
    cell_slope: FloatArray
    cell_intercept_s: FloatArray
    stuck: NDArray[np.bool_]
    write_conductance_s: FloatArray
    drift_reference_s: float
    converters: ConverterRange

    @property
    def rows(self) -> int:
        """Word lines of the array."""
        return int(self.cell_slope.shape[0])

    @property
    def columns(self) -> int:
        """Bit lines of the array."""
        return int(self.cell_slope.shape[1])

    def estimates(self) -> dict[str, Estimate]:
        """All fitted estimates by name, in the order of the model."""
        names = (
            "gain",
            "offset",
            "compression",
            "drift",
            "amplifier_noise",
            "shot_noise",
            "conductance_noise",
            "programming",
        )
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ChipParameters:
    """Every fitted array of one chip.

    Attributes:
        chip_id: Serial number of the chip that was measured.
        arrays: Fitted arrays by their index on the chip.
        provenance: Where the fit comes from: data hash, file, versions, time, quality (JSON-able).
    """

    chip_id: str
    arrays: dict[int, ArrayParameters]
    provenance: dict[str, str | float | int]
