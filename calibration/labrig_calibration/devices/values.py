"""Fitted numbers with errors, intervals and units, and the table that a fit is shown as."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FloatArray = NDArray[np.float64]

Progress = Callable[[str, float], None]
"""Told what is being done, and which part of it is done, 0 to 1."""

LEVEL = 0.9
"""Probability that intervals are made for."""


def quiet(stage: str, fraction: float) -> None:
    """A progress that nobody wants to see."""
    del stage, fraction


class DeviceFitError(ValueError):
    """These measurements cannot carry the fit that was asked for; the message names every reason."""


def refuse(subject: str, faults: Sequence[str]) -> None:
    """Raises one error that names every fault; does nothing when there is none.

    Args:
        subject: What was to be fitted, as the reader knows it.
        faults: One clause for each fault.

    Raises:
        DeviceFitError: There is at least one fault.
    """
    if faults:
        raise DeviceFitError(f"{subject}: " + "; ".join(faults))


@dataclass(frozen=True)
class Quantity:
    """One fitted number.

    Attributes:
        name: What it is.
        value: Its value.
        error: Standard error; infinite where the data say nothing.
        unit: SI unit, `1` for a pure number.
        low: Lower end of the 90 % interval.
        high: Upper end.
    """

    name: str
    value: float
    error: float
    unit: str
    low: float
    high: float

    def holds(self, truth: float) -> bool:
        """Whether a number lies in the interval."""
        return self.low <= truth <= self.high

    def as_json(self) -> dict[str, str | float | None]:
        """All of it as JSON can hold it: what is not finite is null."""
        numbers = {"value": self.value, "error": self.error, "low": self.low, "high": self.high}
        return {
            "name": self.name,
            "unit": self.unit,
            **{name: number if math.isfinite(number) else None for name, number in numbers.items()},
        }


def _reach(freedom: float) -> float:
    """Standard errors from the middle to either end of an interval."""
    half = 0.5 + 0.5 * LEVEL
    return float(stats.norm.ppf(half) if math.isinf(freedom) else stats.t.ppf(half, max(freedom, 1.0)))


def quantity(name: str, value: float, error: float, unit: str, freedom: float = math.inf) -> Quantity:
    """A number whose error is symmetric.

    Args:
        name: What it is.
        value: Its value.
        error: Standard error.
        unit: SI unit.
        freedom: Degrees of freedom behind the error: few make the interval wider.
    """
    value, error = float(value), float(error)
    reach = _reach(freedom) * error
    return Quantity(name, value, error, unit, value - reach, value + reach)


def from_logarithm(name: str, logarithm: float, error: float, unit: str, freedom: float = math.inf) -> Quantity:
    """A positive number that was fitted through its natural logarithm: the interval is symmetric there.

    Args:
        name: What it is.
        logarithm: Its natural logarithm.
        error: Standard error of that.
        unit: SI unit of the number itself.
        freedom: Degrees of freedom behind the error.
    """
    value, error = _exp(logarithm), float(error)
    if not math.isfinite(error):
        return Quantity(name, value, math.inf, unit, 0.0, math.inf)
    reach = _reach(freedom) * error
    return Quantity(name, value, value * error, unit, _exp(logarithm - reach), _exp(logarithm + reach))


def _exp(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm < 700.0 else math.inf


def share(name: str, hits: int, count: int) -> Quantity:
    """A part of a whole, with Wilson's interval.

    Args:
        name: What it is.
        hits: How many.
        count: Of how many.
    """
    if not count:
        return Quantity(name, math.nan, math.inf, "1", 0.0, 1.0)
    rate, z = hits / count, _reach(math.inf)
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    error = math.sqrt(max(rate * (1 - rate), 0.25 / count) / count)
    return Quantity(name, rate, error, "1", max(middle - half, 0.0), min(middle + half, 1.0))


@dataclass(frozen=True)
class Table:
    """Numbers that belong together.

    Attributes:
        title: What they are.
        header: Names of the columns, with units.
        rows: One tuple a row.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


@dataclass(frozen=True)
class Summary:
    """What a fit found, for people and for programs.

    Attributes:
        title: What was fitted.
        conditions: What it was fitted to, and how.
        quantities: The numbers.
        tables: Numbers in rows: comparisons of laws, levels, coverage.
        notes: What the data do not tell, or what does not fit.
    """

    title: str
    conditions: dict[str, str | float]
    quantities: tuple[Quantity, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Quantity:
        """The number of that name.

        Raises:
            KeyError: There is none.
        """
        for one in self.quantities:
            if one.name == name:
                return one
        raise KeyError(f"{name} is not among {', '.join(one.name for one in self.quantities)}")

    def as_json(self) -> dict[str, object]:
        """All of it as JSON can hold it; what is not finite is null."""
        return {
            "title": self.title,
            "conditions": {name: _json_value(value) for name, value in self.conditions.items()},
            "interval": LEVEL,
            "quantities": [one.as_json() for one in self.quantities],
            "tables": [
                {
                    "title": one.title,
                    "header": list(one.header),
                    "rows": [[_json_value(value) for value in row] for row in one.rows],
                }
                for one in self.tables
            ],
            "notes": list(self.notes),
        }


def _json_value(value: str | float) -> str | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
