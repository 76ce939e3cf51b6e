"""Intervals of means and of paired differences, from a handful of independent runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from labrig.studies.result import Interval


def of_mean(values: Sequence[float], unit: str, of: str, *, level: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values.

    Args:
        values: One of each run; a single one has an infinite interval.
        unit: Their unit.
        of: What they are over, such as `seeds`; their number is put in front.
        level: Part of such intervals that hold the truth.
    """
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    described = f"{x.size} {of}"
    if x.size < 2:
        return Interval(mean, -np.inf, np.inf, unit, described, level)
    half = float(stats.t.ppf(0.5 + 0.5 * level, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, unit, described, level)


def of_difference(
    first: Sequence[float], second: Sequence[float], unit: str, of: str, *, level: float = 0.95
) -> Interval:
    """Student's interval of `first` minus `second`, run by run.

    Raises:
        ValueError: They are not pairs.
    """
    pairs = zip(first, second, strict=True)
    return of_mean([a - b for a, b in pairs], unit, f"pairs of {of}", level=level)


def exactly(value: float, unit: str, of: str) -> Interval:
    """A figure without a spread, such as the largest of all: its interval is itself.

    Args:
        value: The figure.
        unit: Its unit.
        of: What it was taken from.
    """
    return Interval(value, value, value, unit, of, 1.0)


def mean(values: Sequence[float]) -> float:
    """The mean of some runs."""
    return sum(values) / len(values)


def half_width(values: Sequence[float], *, level: float = 0.95) -> float:
    """Half of Student's interval of a mean, for the bars of a plot; none, 0, for a single value."""
    interval = of_mean(values, "", "", level=level)
    return interval.high - interval.value if len(values) > 1 else 0.0
