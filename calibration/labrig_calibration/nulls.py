"""Null distributions by simulation, with a tail that goes on beyond the draws.

An array has hundreds of columns, and a battery of tests with one false-alarm rate asks for p-values of 1e-5. Beyond the
draws the null goes on with the tail that these statistics have: exponential in the square of a Kolmogorov-Smirnov
distance, exponential in Anderson and Darling's and in Ljung and Box's statistic. A p-value of 1e-5 is right within a
factor of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.goodness import Estimated, anderson_darling, kolmogorov_smirnov, sized_distance, sized_square
from labrig_calibration.whiteness import cumulative_periodogram, ljung_box

FloatArray = NDArray[np.float64]

# Part of the draws that the tail is fitted to.
_TAIL = 0.05
# Numbers drawn in all, and the length beyond which that of a column no longer shows.
_DRAWN = 8_000_000
_LONGEST = 1000


@dataclass(frozen=True)
class Null:
    """Null distribution of one statistic.

    Attributes:
        draws: Statistics of simulated data, ascending, `[draws]`.
        power: The tail is exponential in this power of the statistic.
    """

    draws: FloatArray
    power: float

    def p_value(self, statistic: FloatArray) -> FloatArray:
        """Probability of a statistic at least so large, any shape; NaN stays NaN."""
        count = self.draws.size
        above = count - np.searchsorted(self.draws, statistic)
        start = self.draws[int((1.0 - _TAIL) * count)]
        excess = self.draws[self.draws > start] ** self.power - start**self.power
        beyond = np.maximum(statistic, start) ** self.power - start**self.power
        tail = excess.size / count * np.exp(-beyond / excess.mean())
        p = np.where(statistic > start, tail, (1.0 + above) / (1.0 + count))
        return np.asarray(np.where(np.isnan(statistic), np.nan, p))

    def critical(self, level: float) -> float:
        """The statistic that data of the model exceed with probability `level`."""
        return float(np.quantile(self.draws, 1.0 - level))


@dataclass(frozen=True)
class Nulls:
    """Null distributions of what has no exact law.

    Attributes:
        distance: Of the Kolmogorov-Smirnov distance, its size taken out (`goodness.sized_distance`).
        square: Of Anderson and Darling's statistic, its size taken out (`goodness.sized_square`).
        memory: Of Ljung and Box's Q.
        periodogram: Of the cumulative periodogram's statistic.
        lags: Lags in Q.
        estimated: What was estimated from the simulated data.
    """

    distance: Null
    square: Null
    memory: Null
    periodogram: Null
    lags: int
    estimated: Estimated

    @classmethod
    def simulate(
        cls,
        samples: int,
        *,
        rng: np.random.Generator,
        lags: int = 20,
        estimated: Estimated = "location and scale",
        draws: int | None = None,
    ) -> Nulls:
        """Draws normal data and treats them as data are treated.

        Args:
            samples: Length of a column; beyond 1,000 it no longer matters.
            rng: Source of the data.
            lags: Lags in Q, cut to a fifth of the length.
            estimated: What is taken from the data.
            draws: How many data sets; by default 8,000 to 20,000, more for shorter columns.
        """
        size, lags = min(samples, _LONGEST), max(1, min(lags, samples // 5))
        count = draws if draws is not None else int(np.clip(_DRAWN // size, 1, 20000))
        distances, squares, memories, periodograms = [], [], [], []
        for first in range(0, count, 500):
            z = rng.standard_normal((size, min(500, count - first)))
            distances.append(kolmogorov_smirnov(z, estimated))
            squares.append(anderson_darling(z, estimated))
            memories.append(ljung_box(z, lags).statistic)
            periodograms.append(cumulative_periodogram(z).statistic)
        return cls(
            Null(np.sort(sized_distance(np.concatenate(distances), size, estimated)), 2.0),
            Null(np.sort(sized_square(np.concatenate(squares), size, estimated)), 1.0),
            Null(np.sort(np.concatenate(memories)), 1.0),
            Null(np.sort(np.concatenate(periodograms)), 1.0),
            lags,
            estimated,
        )
