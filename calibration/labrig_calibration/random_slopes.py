"""Restricted maximum likelihood of a random-slope model: y_i = (X_i)(mean + u_i) + e, u_i ~ N(0, Omega), X_i = [1, x].

Each cell enters by X'X, X'y and y'y, and cells with one X'X by the sums of these (Laird and Ware, Biometrics 38, 1982;
the profile likelihood of Lindstrom and Bates, J. Am. Stat. Assoc. 83, 1988).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

FloatArray = NDArray[np.float64]

# Below this the deviations of level and slope, in units of the reading noise, cannot be told from none.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class RandomSlopes:
    """A fitted model.

    Attributes:
        mean: Mean level and slope, `[2]`.
        mean_covariance: Of the two, `[2, 2]`.
        spread: Omega, covariance of level and slope between cells, `[2, 2]`.
        noise: Standard deviation of a reading.
        spread_error: Standard errors of the deviations of level and of slope, `[2]`; NaN where one is zero.
        log_likelihood: Restricted log-likelihood.
    """

    mean: FloatArray
    mean_covariance: FloatArray
    spread: FloatArray
    noise: float
    spread_error: FloatArray
    log_likelihood: float


@dataclass(frozen=True)
class CellSums:
    """What cells enter by: X'X `[cells, 2, 2]`, X'y `[cells, 2]`, y'y `[cells]`, number of readings `[cells]`."""

    design: FloatArray
    products: FloatArray
    squares: FloatArray
    count: FloatArray


def fit_random_slopes(x: FloatArray, y: FloatArray) -> RandomSlopes:
    """Fits the model to readings `[cells, readings]`; NaN in `y` where there is none."""
    middle = float(np.nanmean(y))
    sums = sums_of(x, y - middle)
    groups = _grouped(sums)

    def loss(theta: FloatArray) -> float:
        return -_restricted(theta, groups)[0] / groups.readings

    start = _moments(sums)
    tries = [start, np.array([start[0], 0.0, start[2] / 10.0]), np.array([start[0], 0.0, start[2] * 10.0])]
    theta = _minimum(loss, tries)
    value, mean, information, noise2 = _restricted(theta, groups)
    factor = _factor(theta)
    return RandomSlopes(
        mean + np.array([middle, 0.0]),
        np.asarray(noise2 * np.linalg.inv(information), dtype=np.float64),
        noise2 * factor @ factor.T,
        math.sqrt(noise2),
        _spread_error(theta, groups),
        value,
    )


def sums_of(log_time: FloatArray, log_level: FloatArray) -> CellSums:
    """Sums of each cell; NaN where there is no reading."""
    seen = np.isfinite(log_level)
    x, y = np.where(seen, log_time, 0.0), np.where(seen, log_level, 0.0)
    count = seen.sum(axis=1).astype(np.float64)
    design = np.stack([np.stack([count, x.sum(1)], 1), np.stack([x.sum(1), (x**2).sum(1)], 1)], axis=1)
    return CellSums(design, np.stack([y.sum(1), (x * y).sum(1)], 1), (y**2).sum(1), count)


def _factor(theta: FloatArray) -> FloatArray:
    """Lower triangular factor of Omega / sigma²; theta = its elements."""
    return np.array([[theta[0], 0.0], [theta[1], theta[2]]])


@dataclass(frozen=True)
class _Groups:
    """Cells that were read at the same ages, added up.

    Attributes:
        cells: How many, `[groups]`.
        design: X'X of one of them, `[groups, 2, 2]`.
        products: Sum of X'y, `[groups, 2]`.
        outer: Sum of (X'y)(X'y)', `[groups, 2, 2]`.
        squares: y'y of all.
        readings: Number of readings.
    """

    cells: FloatArray
    design: FloatArray
    products: FloatArray
    outer: FloatArray
    squares: float
    readings: int


def _grouped(sums: CellSums) -> _Groups:
    flat = sums.design.reshape(-1, 4)[:, [0, 1, 3]]
    unique, member = np.unique(flat, axis=0, return_inverse=True)
    member = member.reshape(-1)
    outer = sums.products[:, :, None] * sums.products[:, None, :]
    added = [np.zeros((len(unique), 2)), np.zeros((len(unique), 2, 2))]
    for into, values in zip(added, (sums.products, outer), strict=True):
        np.add.at(into, member, values)
    cells = np.bincount(member).astype(np.float64)
    design = unique[:, [0, 1, 1, 2]].reshape(-1, 2, 2)
    return _Groups(cells, design, added[0], added[1], float(sums.squares.sum()), int(sums.count.sum()))


def _minimum(loss: Callable[[FloatArray], float], starts: list[FloatArray]) -> FloatArray:
    """A quick descent from each start, then a simplex from the best, which no boundary and no rounding stops."""
    near = [optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-9}) for start in starts]
    best = min(near, key=lambda one: float(one.fun))
    found = optimize.minimize(
        loss, best.x, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-13, "maxiter": 600}
    )
    return np.asarray(found.x)


def _restricted(theta: FloatArray, groups: _Groups) -> tuple[float, FloatArray, FloatArray, float]:
    """Restricted log-likelihood with means and noise profiled out, the means, their information, and sigma²."""
    factor = _factor(theta)
    # With D = F F': ln|I + A D| = ln|I + F'AF|, and (I + D A)^-1 D = F (I + F'AF)^-1 F'.
    inner = np.eye(2) + factor.T @ groups.design @ factor
    drawn = factor @ np.linalg.inv(inner) @ factor.T
    weighted = groups.cells[:, None, None] * groups.design
    information = weighted.sum(0) - np.einsum("gij,gjk,gkl->il", weighted, drawn, groups.design)
    right = groups.products.sum(0) - np.einsum("gij,gjk,gk->i", groups.design, drawn, groups.products)
    total = groups.squares - float(np.einsum("gij,gij->", drawn, groups.outer))
    mean = np.linalg.solve(information, right)
    freedom = groups.readings - 2
    noise2 = max(total - float(right @ mean), 1e-300) / freedom
    logs = float(groups.cells @ np.linalg.slogdet(inner)[1]) + float(np.linalg.slogdet(information)[1])
    value = -0.5 * (freedom * (math.log(2.0 * math.pi * noise2) + 1.0) + logs)
    return value, mean, information, noise2


def _moments(sums: CellSums) -> FloatArray:
    """Start of the search by the method of moments: scatter of single cells' lines less what noise explains."""
    lined = np.linalg.det(sums.design) > 1e-9 * np.maximum(sums.design[:, 0, 0] * sums.design[:, 1, 1], 1e-300)
    if lined.sum() < 3:
        return np.array([1.0, 0.0, 1.0])
    lines = np.linalg.solve(sums.design[lined], sums.products[lined][:, :, None])[:, :, 0]
    rest = sums.squares[lined] - np.einsum("ci,ci->c", lines, sums.products[lined])
    freedom = float((sums.count[lined] - 2.0).sum())
    scatter = np.cov(lines.T)
    noise2 = float(rest.sum()) / freedom if freedom > 0 else 0.1 * float(np.trace(scatter))
    noise2 = max(noise2, 1e-12 * float(np.trace(scatter)), 1e-300)
    excess = scatter - noise2 * np.linalg.inv(sums.design[lined]).mean(axis=0)
    values, vectors = np.linalg.eigh(excess / noise2)
    positive = vectors * np.maximum(values, 1e-2 * max(float(values.max()), 1e-2)) @ vectors.T
    lower = np.linalg.cholesky(positive)
    return np.array([lower[0, 0], lower[1, 0], lower[1, 1]])


def _spread_error(theta: FloatArray, groups: _Groups) -> FloatArray:
    """Standard errors of the deviations between cells, from the curvature of the likelihood."""

    def loss(values: FloatArray) -> float:
        """In ln sd(level), ln sd(exponent), their correlation's atanh and ln sigma, none profiled out."""
        deviations, correlation = np.exp(values[:2]), np.tanh(values[2])
        noise2 = float(np.exp(2.0 * values[3]))
        second = deviations[1] * np.array([correlation, np.sqrt(1.0 - correlation**2)])
        scaled = np.array([deviations[0], *second]) / np.sqrt(noise2)
        profiled, _, _, best2 = _restricted(scaled, groups)
        freedom = groups.readings - 2
        return float(-profiled + 0.5 * freedom * (np.log(noise2 / best2) + best2 / noise2 - 1.0))

    noise2 = _restricted(theta, groups)[3]
    deviation = np.sqrt(noise2) * np.array([abs(theta[0]), float(np.hypot(theta[1], theta[2]))])
    if min(abs(theta[0]), float(np.hypot(theta[1], theta[2]))) < _SMALLEST:
        return np.array([np.nan, np.nan])
    correlation = np.sign(theta[0]) * theta[1] / np.hypot(theta[1], theta[2])
    at = np.array([*np.log(deviation), np.arctanh(np.clip(correlation, -0.999999, 0.999999)), 0.5 * np.log(noise2)])
    step = 1e-3
    eye = np.eye(4) * step
    curvature = np.array(
        [
            [
                sum(a * b * loss(at + a * eye[i] + b * eye[j]) for a in (1.0, -1.0) for b in (1.0, -1.0))
                for j in range(4)
            ]
            for i in range(4)
        ]
    ) / (4.0 * step**2)
    variance = np.diag(np.linalg.pinv(curvature))[:2]
    return np.asarray(deviation * np.sqrt(np.where(variance > 0, variance, np.nan)))
