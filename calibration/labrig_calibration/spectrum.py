"""Spectra of noise traces: Welch's estimate with its intervals, and the slope and corner of 1/f noise.

Traces are equally spaced in time, one a column. A noise of constant density W plus one that falls as f^-slope has the
one-sided density S(f) = W (1 + (corner / f)^slope). It is fitted by Whittle's likelihood: periodogram values are
exponential around S, so that a straight line through their logarithms would be biased and its error unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, signal, special

from labrig_calibration.residuals import refuse
from labrig_surrogates.faults import counted

FloatArray = NDArray[np.float64]

# Part of the trace that the taper of the periodogram fades in and out: enough against leakage from low frequencies.
_TAPERED = 0.2
# Frequencies are pooled above this many to a decade.
_PER_DECADE = 60
_STEEPEST = 3.0


@dataclass(frozen=True)
class Spectrum:
    """One-sided power spectral densities.

    Attributes:
        frequency_hz: Frequencies in Hz, without the lowest, `[F]`.
        density: Power spectral density in units squared per Hz, `[F, columns]`.
        freedom: Degrees of freedom of each value: `freedom * density / truth` is chi-squared.
    """

    frequency_hz: FloatArray
    density: FloatArray
    freedom: float

    def interval(self, level: float = 0.9) -> tuple[FloatArray, FloatArray]:
        """Lower and upper ends of each value's interval, `[F, columns]`."""
        half = (1.0 - level) / 2.0
        upper, lower = special.chdtri(self.freedom, half), special.chdtri(self.freedom, 1.0 - half)
        return self.density * self.freedom / upper, self.density * self.freedom / lower


@dataclass(frozen=True)
class NoiseColour:
    """Fit of white plus 1/f noise to one trace.

    Attributes:
        white: W in units squared per Hz; 0 where no white noise is seen up to half the sampling rate.
        flicker: Density at 1 Hz of the part that falls as f^-slope, same unit; 0 where none is seen.
        slope: Exponent of that part; NaN where there is none.
        corner_hz: Frequency where both are equal; 0 where there is no 1/f noise, infinity where there is only that.
        slope_interval: Its interval.
        corner_interval_hz: Its interval; ends at 0 or infinity where data do not bound it.
        p_white: Chance of so much colour in white noise.
        level: Of the intervals.
    """

    white: float
    flicker: float
    slope: float
    corner_hz: float
    slope_interval: tuple[float, float]
    corner_interval_hz: tuple[float, float]
    p_white: float
    level: float

    def density(self, frequency_hz: FloatArray) -> FloatArray:
        """The fitted one-sided density, same shape."""
        if self.flicker == 0.0:
            return np.full(frequency_hz.shape, self.white)
        return np.asarray(self.white + self.flicker * frequency_hz**-self.slope)


def welch(trace: FloatArray, rate_hz: float, *, segment: int | None = None) -> Spectrum:
    """Welch's estimate with Hann windows that overlap by half (Welch, IEEE Trans. Audio Electroacoust. 15, 1967).

    Args:
        trace: Equally spaced values, `[N, columns]`.
        rate_hz: Values a second.
        segment: Length of a segment; by default an eighth of the trace. The mean of each is taken out.

    Raises:
        JudgementError: Not a trace: too short, gaps, or no rate.
    """
    _refuse(trace, rate_hz)
    length = min(segment if segment is not None else max(trace.shape[0] // 8, 16), trace.shape[0])
    frequency_hz, density = signal.welch(
        trace, rate_hz, window="hann", nperseg=length, noverlap=length // 2, detrend="constant", axis=0
    )
    segments = 1 + (trace.shape[0] - length) // (length - length // 2)
    window = np.asarray(signal.get_window("hann", length))
    shared = float(window[length // 2 :] @ window[: length - length // 2]) / float(window @ window)
    freedom = 2.0 * segments / (1.0 + 2.0 * (1.0 - 1.0 / segments) * shared**2)
    # Taking out the mean empties zero and spoils its neighbour; the last of an even segment has half the freedom.
    last = len(frequency_hz) - (length % 2 == 0)
    return Spectrum(frequency_hz[2:last], density[2:last], freedom)


def noise_colour(trace: FloatArray, rate_hz: float, *, level: float = 0.9, alpha: float = 0.01) -> list[NoiseColour]:
    """Slope and corner of the 1/f noise of each column, with intervals.

    White noise alone, 1/f noise alone and both are fitted; more than the simplest is only believed where the likelihood
    ratio says so at `alpha`, else a corner would be named where there is none.

    Args:
        trace: Equally spaced values, `[N, columns]`.
        rate_hz: Values a second.
        level: Of the intervals.
        alpha: Chance that white noise is called coloured.

    Raises:
        JudgementError: Not a trace: too short, gaps, or no rate.
    """
    _refuse(trace, rate_hz)
    n = trace.shape[0]
    taper = np.asarray(signal.windows.tukey(n, _TAPERED))
    power = float(taper @ taper)
    # A taper makes neighbours dependent: as if there were so much less data (Dahlhaus, Stoch. Proc. Appl. 30, 1988).
    dependence = n * float((taper**4).sum()) / power**2
    centred = (trace - (taper @ trace) / taper.sum()) * taper[:, None]
    # The lowest frequency is what taking out the mean has spoiled.
    values = np.abs(np.fft.rfft(centred, axis=0)[2 : (n + 1) // 2]) ** 2 * 2.0 / (rate_hz * power)
    frequency_hz = np.arange(2, (n + 1) // 2) * rate_hz / n
    where, counts = _bands(frequency_hz)
    pooled = np.add.reduceat(values, where, axis=0) / counts[:, None]
    centre_hz = np.exp(np.add.reduceat(np.log(frequency_hz), where) / counts)
    weight = counts / dependence
    return [_fit(centre_hz, pooled[:, column], weight, level, alpha) for column in range(trace.shape[1])]


def _bands(frequency_hz: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """Where bands of frequencies start, and how many are in each: single ones below, so many to a decade above."""
    band = np.floor(np.log10(frequency_hz / frequency_hz[0]) * _PER_DECADE).astype(np.int64)
    starts = np.flatnonzero(np.diff(band, prepend=-1))
    return starts, np.diff(np.append(starts, frequency_hz.size)).astype(np.float64)


def _fit(frequency_hz: FloatArray, power: FloatArray, weight: FloatArray, level: float, alpha: float) -> NoiseColour:
    """Fits the three models to one periodogram and keeps the simplest that the data allow."""
    half = float(special.ndtri(0.5 + level / 2.0))
    middle = math.exp(float(np.log(frequency_hz).mean()))
    logs = np.log(frequency_hz / middle)
    scale = float((weight * power).sum() / weight.sum())
    if scale <= 0.0:
        return NoiseColour(0.0, 0.0, math.nan, 0.0, (math.nan, math.nan), (0.0, math.inf), 1.0, level)
    power = power / scale

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        """Whittle's negative log-likelihood; theta = ln W, ln A, slope, with S = W + A (f / middle)^-slope."""
        white = np.exp(theta[0])
        coloured = np.exp(theta[1] - theta[2] * logs)
        density = white + coloured
        ratio = power / density
        pull = weight * (1.0 - ratio) / density
        gradient = np.array([(pull * white).sum(), (pull * coloured).sum(), -(pull * coloured * logs).sum()])
        return float((weight * (np.log(density) + ratio)).sum()), gradient

    none = -60.0
    white_loss = loss(np.array([0.0, none, 0.0]))[0]
    pure = _best(loss, [[none, -1.0, slope] for slope in (0.5, 1.0, 2.0)], ((none, none), (-50, 50), (0, _STEEPEST)))
    starts = [[white, -1.0, slope] for slope in (1.0, 2.0) for white in (-0.5, -3.0)]
    both = _best(loss, starts, ((-20.0, 5.0), (-50.0, 50.0), (0.05, _STEEPEST)))
    gained = max(2.0 * (white_loss - min(pure.fun, both.fun)), 0.0)
    # Two more parameters, of which one means nothing without the other: chi-squared with 2 errs on the safe side.
    p_white = float(special.chdtrc(2, gained))
    if p_white >= alpha:
        return NoiseColour(scale, 0.0, math.nan, 0.0, (math.nan, math.nan), (0.0, math.inf), p_white, level)
    with_white = 2.0 * (pure.fun - both.fun) > float(special.chdtri(1, 2.0 * alpha))
    theta = np.asarray((both if with_white else pure).x)
    rows = _derivatives(theta, logs)
    rows = rows if with_white else rows[1:]
    covariance = np.linalg.pinv((rows * weight) @ rows.T)
    slope, slope_error = float(theta[2]), math.sqrt(covariance[-1, -1])
    flicker = scale * math.exp(theta[1]) * middle**slope
    slope_interval = (slope - half * slope_error, slope + half * slope_error)
    if not with_white:
        # White noise that is too weak to be sure of bends the slope all the same: the interval holds that of both.
        other = _slope_interval(np.asarray(both.x), logs, weight, half)
        slope_interval = (min(slope_interval[0], other[0]), max(slope_interval[1], other[1]))
        # White noise would show if its corner were inside the band by enough.
        return NoiseColour(
            0.0, flicker, slope, math.inf, slope_interval, (float(frequency_hz[-1]), math.inf), p_white, level
        )
    log_corner = (theta[1] - theta[0]) / slope
    direction = np.array([-1.0 / slope, 1.0 / slope, -log_corner / slope])
    error = math.sqrt(float(direction @ covariance @ direction))
    ends = [middle * math.exp(log_corner + side * half * error) for side in (-1.0, 1.0)]
    corner_hz = middle * math.exp(log_corner)
    return NoiseColour(
        scale * math.exp(theta[0]), flicker, slope, corner_hz, slope_interval, (ends[0], ends[1]), p_white, level
    )


def _derivatives(theta: FloatArray, logs: FloatArray) -> FloatArray:
    """Of the logarithm of the density W + A (f / middle)^-slope, in ln W, ln A and slope, `[3, frequencies]`."""
    white, coloured = np.exp(theta[0]), np.exp(theta[1] - theta[2] * logs)
    return np.asarray(np.stack([white * np.ones_like(logs), coloured, -coloured * logs]) / (white + coloured))


def _slope_interval(theta: FloatArray, logs: FloatArray, weight: FloatArray, half: float) -> tuple[float, float]:
    """Interval of the slope where white noise is fitted as well."""
    rows = _derivatives(theta, logs)
    error = math.sqrt(np.linalg.pinv((rows * weight) @ rows.T)[-1, -1])
    return float(theta[2]) - half * error, float(theta[2]) + half * error


def _best(
    loss: Callable[[FloatArray], tuple[float, FloatArray]],
    starts: list[list[float]],
    bounds: tuple[tuple[float, float], ...],
) -> optimize.OptimizeResult:
    """The best of several starts: the likelihood has a second hill where slope and corner trade off."""
    found = [optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    return min(found, key=lambda one: float(one.fun))


def _refuse(trace: FloatArray, rate_hz: float) -> None:
    faults = []
    if trace.ndim != 2 or trace.shape[0] < 64:
        faults.append(f"a trace is [N, columns] with at least 64 values, not {list(trace.shape)}")
    gaps = int((~np.isfinite(trace)).sum())
    if gaps:
        faults.append(
            f"{counted(gaps, 'value is', 'values are')} missing: a spectrum needs equally spaced ones, "
            "cut the trace at its gaps"
        )
    if not rate_hz > 0:
        faults.append(f"the rate of {rate_hz} values a second must be positive")
    refuse("no spectrum", faults)
