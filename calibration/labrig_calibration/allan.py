"""Allan deviation: how much two averages of neighbouring stretches of a trace differ, for each length of the stretch.

It exists where the standard deviation does not (1/f noise, drift), tells the noises apart by their slopes, and its
minimum says how long to average: longer only follows the drift. A one-sided density of h0 gives h0 / (2 tau), one of
h-1 / f gives 2 ln 2 h-1 at every tau, one of h-2 / f² gives (2 pi² / 3) h-2 tau (all squared deviations).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from labrig_calibration.residuals import refuse
from labrig_surrogates.faults import counted

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class AllanDeviation:
    """Allan deviations of traces.

    Attributes:
        tau_s: Averaging times in s, `[T]`.
        deviation: Allan deviation in the unit of the trace, `[T, columns]`.
        freedom: Degrees of freedom of each squared deviation, `[T]`.
    """

    tau_s: FloatArray
    deviation: FloatArray
    freedom: FloatArray

    def interval(self, level: float = 0.9) -> tuple[FloatArray, FloatArray]:
        """Lower and upper ends of each value's interval, `[T, columns]`."""
        half = (1.0 - level) / 2.0
        lower = np.sqrt(self.freedom / special.chdtri(self.freedom, half))[:, None]
        upper = np.sqrt(self.freedom / special.chdtri(self.freedom, 1.0 - half))[:, None]
        return self.deviation * lower, self.deviation * upper

    def slopes(self) -> FloatArray:
        """Local slopes in a log-log plot, `[T - 1, columns]`: -1/2 white, 0 1/f noise, 1/2 random walk, 1 drift."""
        return np.asarray(np.diff(np.log(self.deviation), axis=0) / np.diff(np.log(self.tau_s))[:, None])

    def best_average_s(self) -> FloatArray:
        """Averaging time in s after which averaging longer gains nothing, `[columns]`."""
        return np.asarray(self.tau_s[np.argmin(self.deviation, axis=0)])


def allan_deviation(trace: FloatArray, rate_hz: float, *, tau_s: FloatArray | None = None) -> AllanDeviation:
    """Overlapping Allan deviation, every start counted (Riley, NIST SP 1065, 2008).

    Args:
        trace: Equally spaced values, `[N, columns]`.
        rate_hz: Values a second.
        tau_s: Averaging times in s, rounded to multiples of the spacing; by default octaves to a fourth of the trace.

    Raises:
        JudgementError: Not a trace, or a time that it cannot answer for.
    """
    n = trace.shape[0]
    faults = []
    if trace.ndim != 2 or n < 16:
        faults.append(f"a trace is [N, columns] with at least 16 values, not {list(trace.shape)}")
    if bad := int((~np.isfinite(trace)).sum()):
        faults.append(f"the trace has {counted(bad, 'value that is', 'values that are')} not finite")
    if not rate_hz > 0:
        faults.append(f"the rate of {rate_hz} values a second must be positive")
    refuse("no Allan deviation", faults)
    if tau_s is None:
        steps = 2 ** np.arange(int(np.log2(n // 4)) + 1)
    else:
        steps = np.unique(np.round(tau_s * rate_hz).astype(np.int64))
        if steps[0] < 1 or 2 * steps[-1] > n:
            asked = f"{steps[0] / rate_hz:g} to {steps[-1] / rate_hz:g} s"
            allowed = f"{1 / rate_hz:g} and {n / 2 / rate_hz:g} s"
            refuse("no Allan deviation", [f"times must be between {allowed}, not {asked}"])
    # Without the mean the sums stay small and keep their digits.
    total = np.concatenate([np.zeros((1, trace.shape[1])), np.cumsum(trace - trace.mean(axis=0), axis=0)])
    squares = []
    for m in steps:
        second = total[2 * m :] - 2.0 * total[m:-m] + total[: -2 * m]
        squares.append((second**2).mean(axis=0) / (2.0 * float(m) ** 2))
    return AllanDeviation(steps / rate_hz, np.sqrt(np.stack(squares)), _freedom(n, steps.astype(np.float64)))


def _freedom(n: int, m: FloatArray) -> FloatArray:
    """Degrees of freedom for white and for 1/f noise, the smaller of the two (NIST SP 1065, table 5)."""
    points = n + 1.0
    white = (1.5 * (points - 1.0) / m - 2.0 * (points - 2.0) / points) * 4.0 * m**2 / (4.0 * m**2 + 5.0)
    flicker = np.where(
        m == 1, 2.0 * (points - 2.0) ** 2 / (2.3 * points - 4.9), 1.25 * points**2 / (m * (points + 3.0 * m))
    )
    return np.maximum(np.minimum(white, flicker), 1.0)
