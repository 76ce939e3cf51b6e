"""What the families of fitted parameters are called and how a person reads them: noise as a standard deviation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labrig.unit_prefixes import with_prefix
from labrig_surrogates.parameters import PARTS, ArrayParameters, Estimate

FloatArray = NDArray[np.float64]

# How the stored number becomes the one that is shown; errors follow to first order.
Form = Literal["plain", "root", "reciprocal"]


@dataclass(frozen=True)
class Family:
    """How one family is shown.

    Attributes:
        title: Its name in words.
        form: What is done to the stored values: nothing, the square root of a variance, or the reciprocal.
        unit: Unit of what is shown; `%` for shares.
    """

    title: str
    form: Form
    unit: str


FAMILIES: dict[str, Family] = {
    "gain": Family("column gain", "plain", ""),
    "offset": Family("column offset", "plain", "A"),
    "compression": Family("current at which a column saturates", "reciprocal", "A"),
    "skew": Family("skew of the curve", "plain", ""),
    "drift": Family("drift exponent", "plain", ""),
    "drift_spread": Family("spread of the drift exponents over cells", "root", ""),
    "amplifier_noise": Family("noise after the curve (amplifier, ADC)", "root", "A"),
    "line_noise": Family("noise before the curve", "root", "A"),
    "shot_noise": Family("variance per current, before the curve", "plain", "A"),
    "conductance_noise": Family("read noise of a conductance", "root", "%"),
    "output_shot_noise": Family("variance per current, after the curve", "plain", "A"),
    "output_relative_noise": Family("relative noise after the curve", "root", "%"),
    "programming": Family("programming error", "plain", "%"),
    "mismatch": Family("mismatch of the cells", "plain", "%"),
    "wire_ohm": Family("wire segment", "plain", "Ω"),
    "crosstalk": Family("crosstalk to each neighbour", "plain", "%"),
    "response": Family("column response (gain, wires)", "plain", ""),
    "cell_response": Family("cell response (output over target)", "plain", ""),
}


@dataclass(frozen=True)
class ParameterRow:
    """One line of a table of parameters, in the units of a reader.

    Attributes:
        name: Name in the file.
        title: Name in words.
        unit: Unit of the numbers, with its prefix.
        count: How many parameters the line stands for.
        value: Median.
        error: Median standard error; infinite where the data say nothing.
        low: 5 % of the values lie below; equal to `value` for a single one.
        high: 5 % lie above.
    """

    name: str
    title: str
    unit: str
    count: int
    value: float
    error: float
    low: float
    high: float

    @property
    def value_text(self) -> str:
        """Value and error with as many digits as the error deserves."""
        text = with_error(self.value, self.error)
        return f"{text} {self.unit}".rstrip()

    @property
    def range_text(self) -> str:
        """5 % to 95 % of the values; empty for a single one."""
        if self.count == 1:
            return ""
        return f"{self.low:.4g} to {self.high:.4g} {self.unit}".rstrip()


def family(name: str) -> Family:
    """How a family is shown; one without an entry as it is stored."""
    return FAMILIES.get(name, Family(name.replace("_", " "), "plain", ""))


def direction(name: str) -> int:
    """-1 where what is shown falls as the stored number grows, else 1."""
    return -1 if family(name).form == "reciprocal" else 1


def shown(name: str, estimate: Estimate) -> tuple[FloatArray, FloatArray, str]:
    """Values, errors and unit as a reader wants them: `(values, errors, unit)`."""
    kind = family(name)
    value, error = np.asarray(estimate.value, dtype=np.float64), np.asarray(estimate.error, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind.form == "root":
            root = np.sqrt(np.maximum(value, 0.0))
            # A variance at zero has no error of its root: what it may be at most is the root of its error.
            slope_error = error / (2.0 * root)
            value, error = root, np.where(root**2 > error, slope_error, np.sqrt(np.maximum(error, 0.0)))
        elif kind.form == "reciprocal":
            value, error = 1.0 / value, error / value**2
    unit = kind.unit or (estimate.unit if estimate.unit != "1" else "")
    if kind.unit == "%":
        return 100.0 * value, 100.0 * error, "%"
    factor, unit = prefixed(value, unit)
    return factor * value, factor * error, unit


def prefixed(values: FloatArray, unit: str) -> tuple[float, str]:
    """A factor and a prefixed unit in which typical values lie between 1 and 1000; as it is where there is no unit."""
    finite = np.abs(values[np.isfinite(values)])
    return with_prefix(float(np.median(finite[finite > 0])) if (finite > 0).any() else 1.0, unit)


def parameter_rows(array: ArrayParameters) -> list[ParameterRow]:
    """A line for every family of an array, in the order of the model."""
    return [row for name, estimate in array.stated().items() for row in _rows(name, estimate, array)]


def column_families(array: ArrayParameters) -> dict[str, Estimate]:
    """The families that have one value for each column."""
    return {name: one for name, one in array.estimates().items() if one.value.shape == (array.columns,)}


def with_error(value: float, error: float) -> str:
    """A number and its standard error, both with two digits of the error."""
    if not np.isfinite(value):
        return "not bounded"
    if not np.isfinite(error):
        return f"{value:.4g} (not known)"
    if error <= 0.0:
        return f"{value:.4g}"
    decimals = max(0, 1 - int(np.floor(np.log10(error))))
    if decimals > 6 or max(abs(value), error) >= 1e5:
        digits = max(2, 2 + int(np.floor(np.log10(max(abs(value), error) / error))))
        return f"{value:.{min(digits, 8)}g} ± {error:.2g}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _rows(name: str, estimate: Estimate, array: ArrayParameters) -> Iterator[ParameterRow]:
    title = family(name).title
    if name == "programming":
        yield from _programming_rows(estimate, array)
        return
    if name == "wire_ohm":
        values, errors, unit = shown(name, estimate)
        for line, value, error in zip(PARTS[name], values, errors, strict=True):
            yield ParameterRow(
                name, f"{title}, {line}", unit, 1, float(value), float(error), float(value), float(value)
            )
        return
    values, errors, unit = shown(name, estimate)
    bounded = values[np.isfinite(values)]
    if not bounded.size:
        yield ParameterRow(name, title, unit, 1, np.nan, np.inf, np.nan, np.nan)
        return
    value, error = float(np.median(bounded)), float(np.median(errors))
    low, high = np.quantile(bounded, [0.05, 0.95]).tolist()
    yield ParameterRow(name, title, unit, int(values.size), value, error, low, high)


def _programming_rows(estimate: Estimate, array: ArrayParameters) -> Iterator[ParameterRow]:
    """The three terms with their errors, which hang together, and what they make at half the highest conductance."""
    for term, value, error in zip(PARTS["programming"], estimate.value, estimate.error, strict=True):
        percent = 100.0 * float(value)
        title = f"programming error, {term} term, of the highest conductance"
        yield ParameterRow("programming", title, "%", 1, percent, 100.0 * float(error), percent, percent)
    half = 100.0 * float(np.maximum(estimate.value @ 0.5 ** np.arange(3), 0.0))
    half_us = 0.5e6 * array.converters.conductance_max_s
    yield ParameterRow("", f"... that is, at {half_us:.4g} µS", "%", 1, half, 0.0, half, half)
