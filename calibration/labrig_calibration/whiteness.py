"""Do residuals remember: Ljung and Box's test, and the cumulative periodogram, which finds slow noise.

Rows are in the order of measurement (`residuals.chronological`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from labrig_calibration.specification import Tested

FloatArray = NDArray[np.float64]


def autocorrelation(z: FloatArray, lags: int) -> FloatArray:
    """Autocorrelation at lags 1 to `lags`, `[lags, columns]`; NaN in `z` counts as the mean."""
    centred = _centred(z)
    power = np.maximum((centred**2).sum(axis=0), 1e-300)
    return np.stack([np.einsum("nc,nc->c", centred[lag:], centred[:-lag]) / power for lag in range(1, lags + 1)])


def ljung_box(z: FloatArray, lags: int) -> Tested:
    """Q = N (N + 2) sum of r_k² / (N - k), for large N chi-squared (Ljung and Box, Biometrika 65, 1978).

    Beyond the usual 5 % chi-squared is too thin a tail for a few hundred values (1e-4 is met 6 times too often with
    300); `nulls.Nulls` has the law by simulation. The effect is the autocorrelation at lag 1.

    Args:
        z: Residuals, `[N, columns]`; NaN where there is none.
        lags: How many lags.
    """
    count = np.isfinite(z).sum(axis=0)
    r = autocorrelation(z, lags)
    lag = np.arange(1, lags + 1)[:, None]
    q = count * (count + 2.0) * (r**2 / np.maximum(count - lag, 1)).sum(axis=0)
    return Tested(q, np.asarray(special.chdtrc(lags, q)), r[0])


def cumulative_periodogram(z: FloatArray) -> Tested:
    """Is power even over frequencies: Bartlett's Kolmogorov-Smirnov test of the cumulative periodogram.

    The periodogram of white normal noise is exponential, so its cumulative shares are ordered uniform numbers, exactly,
    and the two-sided Kolmogorov-Smirnov law holds at any N (Bartlett 1955; Durbin, Biometrika 56, 1969). Power that
    gathers at low frequencies, as that of 1/f noise does, shows long before it does at any single lag. The effect is
    the largest share of the power that is not where it should be, positive for slow noise.

    Args:
        z: Residuals, `[N, columns]`; NaN counts as the mean.
    """
    count = (z.shape[0] - 1) // 2
    power = np.abs(np.fft.rfft(_centred(z), axis=0)[1 : count + 1]) ** 2
    total = np.cumsum(power, axis=0)
    share = total[:-1] / np.maximum(total[-1], 1e-300)
    rank = np.arange(1, count)[:, None]
    above, below = share - (rank - 1) / (count - 1), rank / (count - 1) - share
    distance = np.maximum(above.max(axis=0), below.max(axis=0))
    p = np.asarray(stats.kstwo.sf(distance, count - 1))
    return Tested(distance, p, np.where(above.max(axis=0) >= below.max(axis=0), distance, -distance))


def _centred(z: FloatArray) -> FloatArray:
    return np.asarray(np.where(np.isfinite(z), z - np.nanmean(z, axis=0), 0.0))
