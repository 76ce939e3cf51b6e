"""What an error of mean or spread may look like in residuals: the terms that `battery` tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def base(mean_a: FloatArray, sigma_a: FloatArray) -> FloatArray:
    """What an error of offset and gain does to residuals, `[N, columns, 2]`."""
    inverse = np.nanmedian(sigma_a, axis=0) / sigma_a
    return np.stack([inverse, _scaled(mean_a) * inverse], axis=2)


def mean_terms(
    mean_a: FloatArray,
    sigma_a: FloatArray,
    time_s: FloatArray | None,
    age_s: FloatArray | None,
    covariates: FloatArray | None,
) -> dict[str, FloatArray]:
    """What an error of the mean may look like in residuals, `[N, columns, k]` for each check."""
    n = mean_a.shape[0]
    y = _scaled(mean_a)
    inverse = (np.nanmedian(sigma_a, axis=0) / sigma_a)[:, :, None]
    clocks = [] if age_s is None else [_centred(np.log1p(np.maximum(age_s, 0.0) / _positive_median(age_s)))]
    clocks += [] if time_s is None else [_centred(time_s)]
    clocks = [clock for clock in clocks if np.any(clock)]
    # A drift multiplies what flows; an amplifier that warms up moves the offset.
    drift = [term for clock in clocks for term in (clock[:, None] * y, np.broadcast_to(clock[:, None], y.shape))]
    others = [] if covariates is None else [_centred(covariates[:, k]) for k in range(covariates.shape[1])]
    other = [
        term for one in others if np.any(one) for term in (one[:, None] * y, np.broadcast_to(one[:, None], y.shape))
    ]
    terms = {"gain": [y], "curve": [y**2, y**3], "drift": drift, "covariates": other}
    empty = np.empty((n, mean_a.shape[1], 0))
    return {name: np.stack(some, axis=2) * inverse if some else empty for name, some in terms.items()}


def variance_terms(
    mean_a: FloatArray, sigma_a: FloatArray, age_s: FloatArray | None, covariates: FloatArray | None
) -> FloatArray:
    """What the spread may depend on, `[N, columns, k]`."""
    y = _scaled(mean_a)
    terms = [y, np.abs(y), y**2, _scaled(np.log(sigma_a))]
    if age_s is not None:
        terms.append(np.broadcast_to(np.log1p(np.maximum(age_s, 0.0) / _positive_median(age_s))[:, None], y.shape))
    if covariates is not None:
        terms += [np.broadcast_to(_centred(covariates[:, k])[:, None], y.shape) for k in range(covariates.shape[1])]
    return np.stack(terms, axis=2)


def averaged(terms: FloatArray) -> FloatArray:
    """Terms of all columns together, `[N, 1, k]`."""
    return np.asarray(terms.mean(axis=1, keepdims=True))


def _scaled(values: FloatArray) -> FloatArray:
    """Values of each column in units of their root mean square."""
    scale = np.sqrt((values**2).mean(axis=0))
    return np.asarray(values / np.where(scale > 0, scale, 1.0))


def _centred(values: FloatArray) -> FloatArray:
    """Deviations from the mean in units of their spread; zero where they do not vary, and where they are unknown."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    deviation = np.where(known, values - values[known].mean(), 0.0)
    scale = np.sqrt((deviation**2).mean())
    smallest = 1e-12 * float(np.abs(values[known]).max())
    return deviation / scale if scale > smallest else np.zeros_like(values)


def _positive_median(age_s: FloatArray) -> float:
    positive = age_s[age_s > 0]
    return float(np.median(positive)) if positive.size else 1.0
