"""What a model left out: tests of residuals for bias, spread, curves, drift, heteroscedasticity and outliers.

All work on standardised residuals `[N, columns]` (NaN where nothing was measured) and give one p-value a column. Where
a small-sample law is known it is used, because a p-value that must survive hundreds of columns lies far out in the
tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

FloatArray = NDArray[np.float64]

# Directions of regressors below this part of the largest one are the same direction.
_SAME = 1e-8


@dataclass(frozen=True)
class Tested:
    """One test of each column.

    Attributes:
        statistic: What was compared with its null distribution, `[columns]`.
        p_value: Probability of at least as much by chance, `[columns]`; NaN where a column cannot be tested.
        effect: Size of what was found in a unit that the test's docstring names, `[columns]`.
    """

    statistic: FloatArray
    p_value: FloatArray
    effect: FloatArray


def bias(z: FloatArray, *, inflation: float = 1.0) -> Tested:
    """Is the mean residual zero: Student's t; the effect is the mean in predicted standard deviations.

    Args:
        z: Residuals, `[N, columns]`.
        inflation: Variance of the mean as a multiple of that with known parameters.
    """
    count = np.isfinite(z).sum(axis=0)
    mean = np.nanmean(z, axis=0)
    t = mean / np.nanstd(z, axis=0, ddof=1) * np.sqrt(count / inflation)
    return Tested(t, 2.0 * special.stdtr(count - 1.0, -np.abs(t)), mean)


def spread(z: FloatArray) -> Tested:
    """Is the predicted standard deviation right: chi-squared; the effect is the true one as a multiple of it."""
    squares, count = np.nansum(z**2, axis=0), np.isfinite(z).sum(axis=0)
    p = 2.0 * np.minimum(special.chdtr(count, squares), special.chdtrc(count, squares))
    return Tested(squares, np.asarray(np.minimum(p, 1.0), np.float64), np.sqrt(squares / np.maximum(count, 1)))


def added_terms(response: FloatArray, base: FloatArray, terms: FloatArray, *, inflation: float = 1.0) -> Tested:
    """Do terms explain a response beyond those that the model has: an F test (Ramsey's RESET with powers as terms).

    Args:
        response: What may depend on the terms, `[N, columns]`; NaN where there is none.
        base: Terms that do not count, `[N, columns, q]`.
        terms: Terms that are tested, `[N, columns, k]`; those that `base` or others already span do not count.
        inflation: Variance of a fitted term as a multiple of that with known parameters.

    Returns:
        The effect is the part of the response's variance that the terms explain, corrected for chance, at least 0.
    """
    valid = np.isfinite(response)
    y = np.where(valid, response, 0.0)[:, :, None]
    base, terms = base * valid[:, :, None], terms * valid[:, :, None]
    known = _span(base)
    y, fresh = y - known.project(y), terms - known.project(terms)
    fresh = np.where(_norms(fresh) > _SAME * _norms(terms), fresh, 0.0)
    added = _span(fresh)
    total, found = (y**2).sum(axis=(0, 2)), (added.project(y) ** 2).sum(axis=(0, 2))
    rank, rest = added.rank, valid.sum(axis=0) - known.rank - added.rank
    usable = (rank > 0) & (rest > 0) & (total > 0)
    rank, rest = np.where(usable, rank, 1), np.where(usable, rest, 1)
    share = np.minimum(found / np.where(total > 0, total, 1.0), 1.0)
    f = share / rank / np.maximum((1.0 - share) / rest, 1e-300) / inflation
    effect = np.maximum(1.0 - (1.0 - share) * (rest + rank) / rest, 0.0)
    nothing = np.where(usable, 0.0, np.nan)
    return Tested(f + nothing, np.asarray(special.fdtrc(rank, rest, f) + nothing, dtype=np.float64), effect)


def breusch_pagan(residual: FloatArray, regressors: FloatArray) -> Tested:
    """Does the variance depend on regressors: Koenker's studentised form of Breusch and Pagan's test.

    N R² of squared residuals on the regressors is chi-squared with as many degrees as there are regressors
    (Breusch and Pagan, Econometrica 47, 1979; Koenker, J. Econometrics 17, 1981). The effect is R².

    Args:
        residual: Residuals, `[N, columns]`; NaN where there is none.
        regressors: What the variance may depend on, without a constant, `[N, columns, k]`.
    """
    valid = np.isfinite(residual)
    inside = np.broadcast_to(valid[:, :, None], regressors.shape)
    centred = np.where(inside, regressors - np.mean(regressors, axis=0, where=inside), 0.0)
    squares = np.where(valid, residual**2, 0.0)
    squares = np.where(valid, squares - squares.sum(axis=0) / np.maximum(valid.sum(axis=0), 1), 0.0)
    span = _span(centred)
    share = (span.project(squares[:, :, None]) ** 2).sum(axis=(0, 2)) / np.maximum((squares**2).sum(axis=0), 1e-300)
    statistic = valid.sum(axis=0) * share
    p = np.where(span.rank > 0, special.chdtrc(np.maximum(span.rank, 1), statistic), np.nan)
    return Tested(statistic, p, share)


def heteroscedasticity(z: FloatArray, regressors: FloatArray) -> Tested:
    """Breusch-Pagan's question asked of ranks, whose answer holds far out in the tail and for heavy-tailed residuals.

    |z| is replaced by the normal score of its rank: regressed on anything that it does not depend on, these follow the
    F law almost exactly, where squares of residuals do not. The effect is the predicted-to-true standard deviation's
    swing: the standard deviation of the logarithm of the true spread that the regressors explain.

    Args:
        z: Residuals, `[N, columns]`; NaN where there is none.
        regressors: What the variance may depend on, without a constant, `[N, columns, k]`.
    """
    tested = added_terms(normal_scores(np.abs(z)), np.ones((*z.shape, 1)), regressors)
    # ln|z| of a normal has the variance pi^2 / 8, of which its score explains nearly all.
    return Tested(tested.statistic, tested.p_value, np.sqrt(tested.effect * np.pi**2 / 8.0))


def normal_scores(values: FloatArray) -> FloatArray:
    """Van der Waerden's scores: the normal quantile of each value's rank in its column; NaN stays NaN."""
    count = np.isfinite(values).sum(axis=0)
    rank = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0, kind="stable") + 1.0
    return np.asarray(np.where(np.isfinite(values), special.ndtri(np.minimum(rank / (count + 1.0), 1 - 1e-16)), np.nan))


def outliers(z: FloatArray) -> Tested:
    """Is the largest residual too large for so many; the effect is its size in predicted standard deviations."""
    count = np.isfinite(z).sum(axis=0)
    largest = np.nanmax(np.abs(z), axis=0)
    return Tested(largest, _any_of(count, 2.0 * special.ndtr(-largest)), largest)


def bad_rows(z: FloatArray) -> Tested:
    """Is one MVM wrong in many columns at once (a cable, a glitch): the largest sum of squares of a row.

    One value, not one a column. The effect is the root mean square residual of the worst row.
    """
    count = np.isfinite(z).sum(axis=1)
    squares = np.nansum(z**2, axis=1)
    p = np.where(count > 0, special.chdtrc(np.maximum(count, 1), squares), 1.0)
    worst = int(np.argmin(p))
    size = np.sqrt(squares[worst] / max(int(count[worst]), 1))
    return Tested(squares[[worst]], _any_of(np.array([z.shape[0]]), p[[worst]]), np.array([size]))


def between_columns(z: FloatArray) -> Tested:
    """Do columns err together: the sum of squared correlations of all pairs (Schott, Biometrika 92, 2005).

    A shared supply, reference or settling shows so. The law is a gamma with Schott's mean and variance, which a normal
    one is for many columns. One value, not one a column. The effect is the root mean square correlation beyond chance.
    """
    n, columns = z.shape
    if columns < 2 or n < 4:
        return Tested(np.array([np.nan]), np.array([np.nan]), np.array([np.nan]))
    valid = np.isfinite(z)
    centred = np.where(valid, z - np.nanmean(z, axis=0), 0.0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), 1e-300)
    r = centred.T @ centred
    pairs = columns * (columns - 1) / 2.0
    total = ((r**2).sum() - (np.diag(r) ** 2).sum()) / 2.0
    freedom = n - 1.0
    mean = pairs / freedom
    variance = 2.0 * pairs * (freedom - 1.0) / (freedom**2 * (freedom + 2.0))
    p = special.gammaincc(mean**2 / variance, total * mean / variance)
    effect = np.sqrt(max(total - mean, 0.0) / pairs)
    return Tested(np.array([total]), np.array([p]), np.array([effect]))


def _any_of(count: NDArray[np.int64], p: FloatArray) -> FloatArray:
    """Probability that the smallest of so many p-values is at most `p`."""
    return np.asarray(-np.expm1(count * np.log1p(-np.minimum(p, 1.0 - 1e-16))))


@dataclass(frozen=True)
class _Span:
    """What terms span in each column: unit terms `[columns, N, k]`, the inverse of their products, its rank."""

    unit: FloatArray
    inverse: FloatArray
    rank: NDArray[np.int64]

    def project(self, values: FloatArray) -> FloatArray:
        """The part of `values` `[N, columns, m]` that lies in the span."""
        moments = self.unit.swapaxes(1, 2) @ values.swapaxes(0, 1)
        return np.asarray((self.unit @ (self.inverse @ moments)).swapaxes(0, 1))


def _span(terms: FloatArray) -> _Span:
    norms = _norms(terms)
    # Columns first: then each product is one of ordinary matrices.
    unit = np.ascontiguousarray((terms / np.where(norms > 0, norms, 1.0)).swapaxes(0, 1))
    values, vectors = np.linalg.eigh(unit.swapaxes(1, 2) @ unit)
    kept = values > _SAME * np.maximum(values[:, -1:], 1e-300)
    weight = kept / np.where(kept, values, 1.0)
    inverse = (vectors * weight[:, None, :]) @ vectors.swapaxes(1, 2)
    return _Span(unit, inverse, np.asarray(kept.sum(axis=1)))


def _norms(terms: FloatArray) -> FloatArray:
    """Length of each term, `[columns, k]`."""
    return np.asarray(np.sqrt((terms**2).sum(axis=0)))
