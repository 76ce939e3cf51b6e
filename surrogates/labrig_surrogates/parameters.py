"""The fitted parameters of a chip as arrays with units and standard errors. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


REQUIRED_ESTIMATES = (
    "gain",
    "offset",
    "compression",
    "drift",
    "amplifier_noise",
    "shot_noise",
    "conductance_noise",
    "programming",
)
OPTIONAL_ESTIMATES = (
    "mismatch",
    "skew",
    "line_noise",
    "output_shot_noise",
    "output_relative_noise",
    "wire_ohm",
    "crosstalk",
    "drift_spread",
)

PARTS: Final = MappingProxyType(
    {"programming": ("constant", "linear", "quadratic"), "wire_ohm": ("word line", "bit line")}
)
"""What the values of families stand for that belong to all cells: terms of a law, and lines."""


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
class ResidualNetwork:
    """A small correction of the outputs that physics left over: one hidden layer, shared by all columns.

        y += scale_j * (out @ tanh(hidden @ (u / scale_j, log(1 + age / reference), load) + bias))

    with `scale_j` the column's largest output in A and `load` the mean of the inputs' magnitudes over their limit.

    Attributes:
        hidden: Weights of the hidden layer, `[units, 3]`.
        bias: Its biases, `[units]`.
        out: Weights of the output, `[units]`.
        scale_a: Scale of each column in A, `[columns]`.
    """

    hidden: FloatArray
    bias: FloatArray
    out: FloatArray
    scale_a: FloatArray


@dataclass(frozen=True)
class ArrayParameters:
    """One array of one chip, as fitted from its recording.

    The model of a column j at an age t after a write, with inputs v after the DAC:

        u_j = gain_j * (1 + t / drift_reference_s) ** -drift_j * sum_i v_i g_ij
        y_j = offset_j + tanh(compression_j * u_j) / compression_j + noise
        var = amplifier_j + slope(u_j)**2 * (shot_j * sum_i |v_i w_ij| + conductance_j * sum_i (v_i w_ij)**2)

    with w = gain * drift * g, slope the derivative of the tanh, and the ADC's own lsb**2 / 12 beside it. Noise has
    its place: `amplifier`, `output_shot` and `output_relative` act after the curve, `line`, `shot` and `conductance`
    before it; the three that a chip rarely shows are None where the data did not ask for them.

    For a write that was recorded, g is `write_conductance_s`, what the array does with its wires. For a new one it is
    `cell_slope * target + cell_intercept_s`, plus a programming error (cycle to cycle) with standard deviation
    `conductance_max_s * (p0 + p1 r + p2 r**2)`, r = target / highest, behind the wires and beside its neighbours'
    crosstalk. `cell_slope` is the fixed pattern (device to device), `mismatch` its spread. The gauge: the mean cell
    slope over the healthy cells of a column is one, and the mean programming error is zero.

    A skewed curve replaces `tanh(k u) / k` by `(tanh(k u - s) + tanh(s)) * cosh(s)**2 / k`: other limits up and down,
    value zero and slope one at zero still.

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
        write_conductance_error_s: Standard errors in S of `write_conductance_s`, None in files of schema 1.
        cell_slope_error: Standard errors of `cell_slope`, None in files of schema 1.
        mismatch: Relative spread of the healthy cells' slopes, `[]`.
        skew: Skew s of the curve, `[columns]`.
        line_noise: Variance before the curve in A^2, `[columns]`.
        output_shot_noise: Variance after the curve per current in A, `[columns]`.
        output_relative_noise: Relative variance after the curve, per sum of squares, `[columns]`.
        wire_ohm: Resistance in ohm of a word-line and of a bit-line segment, `[2]`.
        exact_wires: Whether `wire_ohm` belongs to the exact network instead of its first order.
        crosstalk: Share of a column's current that appears on each neighbour, before the curve, `[]`.
        drift_spread: Variance of the drift exponents over the cells of a column, `[columns]`.
        write_log_age: Mean of `log(1 + t / drift_reference_s)` at which each write was measured, `[writes]`; from there
            on a cell's own drift makes its conductance uncertain.
        wire_uncertainty: Relative standard error that gains and conductances have in common, beyond their own, because
            wires and crosstalk that the data do not show are taken to be absent, `[columns]`; None where that was
            not looked at.
        residual: What is left beyond the physics, as a small network.
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
    write_conductance_error_s: FloatArray | None = None
    cell_slope_error: FloatArray | None = None
    mismatch: Estimate | None = None
    skew: Estimate | None = None
    line_noise: Estimate | None = None
    output_shot_noise: Estimate | None = None
    output_relative_noise: Estimate | None = None
    wire_ohm: Estimate | None = None
    exact_wires: bool = False
    crosstalk: Estimate | None = None
    drift_spread: Estimate | None = None
    write_log_age: FloatArray | None = None
    wire_uncertainty: FloatArray | None = None
    residual: ResidualNetwork | None = None

    @property
    def rows(self) -> int:
        """Word lines of the array."""
        return int(self.cell_slope.shape[0])

    @property
    def columns(self) -> int:
        """Bit lines of the array."""
        return int(self.cell_slope.shape[1])

    @property
    def left_when_read(self) -> float:
        """Part of the conductances that drift had left when the recorded writes were read, on average.

        What wires take grows with what is left; see `wire_ohm_when_read`.
        """
        fitted = np.isfinite(self.drift.error)
        if self.write_log_age is None or not self.write_log_age.size or not fitted.any():
            return 1.0
        return float(np.exp(-np.median(self.drift.value[fitted]) * self.write_log_age.mean()))

    @property
    def wire_ohm_when_read(self) -> tuple[float, float] | None:
        """Resistances of a word and a bit line in which undrifted cells would have lost as much; None without wires."""
        if self.wire_ohm is None:
            return None
        word_ohm, bit_ohm = (self.left_when_read * float(ohm) for ohm in self.wire_ohm.value)
        return word_ohm, bit_ohm

    def with_estimates(self, changes: Mapping[str, Estimate]) -> ArrayParameters:
        """The same array with other estimates, by their names in `estimates`.

        Raises:
            KeyError: A name that is none of an estimate.
        """
        unknown = sorted(set(changes) - {*REQUIRED_ESTIMATES, *OPTIONAL_ESTIMATES})
        if unknown:
            raise KeyError(f"no such estimates: {', '.join(unknown)}")
        return replace(self, **changes)  # type: ignore[arg-type]  # the names are checked above

    def estimates(self) -> dict[str, Estimate]:
        """All fitted estimates by name, in the order of the model."""
        found = {name: getattr(self, name) for name in (*REQUIRED_ESTIMATES, *OPTIONAL_ESTIMATES)}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    def stated(self) -> dict[str, Estimate]:
        """The estimates with all that they may be wrong by: `wire_uncertainty` is in the errors of the gains.

        Those of `estimates` are errors beside one another: all gains may be off together and still be compared, with
        each other and with those of another fit.
        """
        return self.estimates() | {"gain": self.widened(self.gain)}

    def widened(self, estimate: Estimate) -> Estimate:
        """Gains or conductances, `[..., columns]`, with `wire_uncertainty` in their errors."""
        if self.wire_uncertainty is None:
            return estimate
        shared = np.abs(estimate.value) * self.wire_uncertainty
        return Estimate(estimate.value, np.hypot(estimate.error, shared), estimate.unit)


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
