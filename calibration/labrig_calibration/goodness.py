"""Are residuals normal: Kolmogorov-Smirnov and Anderson-Darling, with the null distribution of what was estimated.

Whoever takes mean and spread from the data that are tested must not use the tables for known ones: distances come out
too small and nothing is ever found (Lilliefors, J. Am. Stat. Assoc. 62, 1967). The null here is a parametric bootstrap:
data of the model, treated like the data (`nulls`, and `parametric_bootstrap` for whole fits). Sizes are taken out by
the factors of Stephens (J. Am. Stat. Assoc. 69, 1974), so that one null serves columns of any length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

FloatArray = NDArray[np.float64]

Estimated = Literal["nothing", "location and scale"]
"""What was taken from the very data that are tested."""


def kolmogorov_smirnov(z: FloatArray, estimated: Estimated = "location and scale") -> FloatArray:
    """Largest distance between the distribution of residuals and the normal one, `[columns]`.

    Args:
        z: Residuals, `[N, columns]`; NaN where there is none.
        estimated: With "nothing" the normal distribution is the standard one, else it has the data's mean and spread.
    """
    ordered, count = _ordered(z, estimated)
    u = special.ndtr(ordered)
    rank = np.arange(1, z.shape[0] + 1)[:, None]
    gaps = np.maximum(rank / count - u, u - (rank - 1) / count)
    return np.asarray(np.nanmax(np.where(rank <= count, gaps, -np.inf), axis=0))


def anderson_darling(z: FloatArray, estimated: Estimated = "location and scale") -> FloatArray:
    """Anderson-Darling statistic of residuals against the normal distribution, `[columns]`: it looks at the tails.

    Args:
        z: Residuals, `[N, columns]`; NaN where there is none.
        estimated: With "nothing" the normal distribution is the standard one, else it has the data's mean and spread.
    """
    ordered, count = _ordered(z, estimated)
    rank = np.arange(1, z.shape[0] + 1)[:, None]
    inside = rank <= count
    # Sum of (2i - 1) [ln u_i + ln(1 - u_(n+1-i))], each ordered value taken once.
    terms = (2 * rank - 1) * special.log_ndtr(ordered) + (2 * (count - rank) + 1) * special.log_ndtr(-ordered)
    return np.asarray(-count - np.where(inside, terms, 0.0).sum(axis=0) / count)


def sized_distance(distance: FloatArray, samples: NDArray[np.int64] | int, estimated: Estimated) -> FloatArray:
    """Kolmogorov-Smirnov distance with its size taken out (Stephens 1974)."""
    root = np.sqrt(samples)
    factor = root + 0.12 + 0.11 / root if estimated == "nothing" else root - 0.01 + 0.85 / root
    return np.asarray(distance * factor)


def sized_square(square: FloatArray, samples: NDArray[np.int64] | int, estimated: Estimated) -> FloatArray:
    """Anderson-Darling statistic with its size taken out (Stephens 1974; D'Agostino and Stephens 1986)."""
    n = np.asarray(samples, dtype=np.float64)
    return np.asarray(square if estimated == "nothing" else square * (1.0 + 0.75 / n + 2.25 / n**2))


def exactly_studentised(z: FloatArray) -> FloatArray:
    """Residuals of which each column's mean and spread are taken out, each again standard normal, `[N, columns]`.

    `(z - mean) / s` is not normal but follows Thompson's tau distribution, that is Student's t after a transformation
    (Thompson, Ann. Math. Stat. 6, 1935). Pooled over many short columns the difference would show.
    """
    count = np.isfinite(z).sum(axis=0)
    ratio = (z - np.nanmean(z, axis=0)) / np.nanstd(z, axis=0)
    # The largest possible ratio is sqrt(n - 1); rounding must not go beyond.
    rest = np.maximum(count - 1 - ratio**2, 1e-12)
    t = ratio * np.sqrt(np.maximum(count - 2, 1) / rest)
    negative = special.ndtri(special.stdtr(np.maximum(count - 2, 1).astype(np.float64), -np.abs(t)))
    return np.asarray(-np.sign(t) * negative)


def parametric_bootstrap(
    statistic: float, replicate: Callable[[np.random.Generator], float], *, rng: np.random.Generator, draws: int = 199
) -> float:
    """p-value of any statistic of a fit whose parameters came from the data.

    Args:
        statistic: Of the data.
        replicate: Draws data from the fitted model, fits them as the data were fitted and returns their statistic.
        rng: Source of the data sets, one stream for each.
        draws: How many.
    """
    simulated = np.array([replicate(one) for one in rng.spawn(draws)])
    return float((1 + (simulated >= statistic).sum()) / (1 + draws))


def _ordered(z: FloatArray, estimated: Estimated) -> tuple[FloatArray, NDArray[np.int64]]:
    """Each column in ascending order, NaN last, with mean and spread taken out; and its length."""
    count = np.isfinite(z).sum(axis=0)
    if estimated == "location and scale":
        z = (z - np.nanmean(z, axis=0)) / np.nanstd(z, axis=0, ddof=1)
    return np.sort(z, axis=0), count
