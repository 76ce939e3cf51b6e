"""Do residuals remember: Ljung and Box's test, the cumulative periodogram for slow noise, the largest line for hum.

Rows are in the order of measurement (`residuals.chronological`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

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
    """Is power even over frequencies: Anderson and Darling's statistic of the cumulative periodogram.

    The periodogram of white normal noise is exponential, so its cumulative shares are ordered uniform numbers, exactly,
    at any N (Bartlett 1955; Durbin, Biometrika 56, 1969). Anderson and Darling's weights look at both ends of the band,
    where 1/f noise lives (Anderson, Ann. Stat. 21, 1993). The p-value is that of large values, sqrt(3) erfc(sqrt(A)),
    for a chi-squared sum with weights 1 / j(j + 1); above 0.05 `nulls.Nulls` knows better. The effect is the largest
    share of the power that is not where it should be, positive for slow noise.

    Args:
        z: Residuals, `[N, columns]`; NaN counts as the mean.
    """
    power = _periodogram(z)
    count = power.shape[0]
    total = np.cumsum(power, axis=0)
    share = np.clip(total[:-1] / np.maximum(total[-1], 1e-300), 1e-15, 1.0 - 1e-15)
    rank = np.arange(1, count)[:, None]
    terms = (2 * rank - 1) * np.log(share) + (2 * (count - 1 - rank) + 1) * np.log1p(-share)
    square = 1.0 - count - terms.sum(axis=0) / (count - 1)
    above, below = (share - (rank - 1) / (count - 1)).max(axis=0), (rank / (count - 1) - share).max(axis=0)
    p = np.minimum(np.sqrt(3.0) * special.erfc(np.sqrt(np.maximum(square, 0.0))), 1.0)
    return Tested(square, np.asarray(p), np.where(above >= below, above, -below))


def strongest_line(z: FloatArray) -> Tested:
    """Does one frequency stand out, as mains hum does: Fisher's test of the largest periodogram value.

    m (1 - g)^(m - 1) bounds the chance that the largest of m shares reaches g, and is exact for small ones (Fisher,
    Proc. R. Soc. A 125, 1929). The effect is g, the share of the power at that frequency.

    Args:
        z: Residuals, `[N, columns]`; NaN counts as the mean.
    """
    power = _periodogram(z)
    count = power.shape[0]
    share = power.max(axis=0) / np.maximum(power.sum(axis=0), 1e-300)
    p = np.minimum(count * np.exp((count - 1) * np.log1p(-np.minimum(share, 1.0 - 1e-15))), 1.0)
    return Tested(share, np.asarray(p), share)


def _periodogram(z: FloatArray) -> FloatArray:
    """Power at the Fourier frequencies between zero and half the sampling rate, both left out, `[F, columns]`."""
    return np.asarray(np.abs(np.fft.rfft(_centred(z), axis=0)[1 : (z.shape[0] + 1) // 2]) ** 2)


def _centred(z: FloatArray) -> FloatArray:
    return np.asarray(np.where(np.isfinite(z), z - np.nanmean(z, axis=0), 0.0))
