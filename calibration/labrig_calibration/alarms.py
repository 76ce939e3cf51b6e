"""Alarms: a two-sided CUSUM on canaries, with the time between false alarms that was asked for.

A canary is a read that is repeated through a run: some vector, some cells. Its standardised surprises (`z`, or
`drift.innovations` where it drifts by a known law) are summed as long as they lean to one side:

    high <- max(0, high + z - k),    low <- max(0, low - z - k),    alarm when one exceeds h

With k half of the shift that matters this finds it sooner than anything with as few false alarms (Page, Biometrika 41,
1954; Moustakides, Ann. Stat. 14, 1986). h is found from the exact average run length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from labrig_calibration.residuals import refuse

FloatArray = NDArray[np.float64]

_NODES = 64


@dataclass(frozen=True)
class Cusum:
    """A CUSUM scheme for several canaries at once.

    Attributes:
        allowance: k, in standard deviations.
        limit: h, in standard deviations.
        canaries: Canaries watched together.
        run_length: Average number of reads of all canaries until a false alarm of any.
        shifted_run_length: Average number of reads until a shift of 2 k standard deviations in one canary is found.
    """

    allowance: float
    limit: float
    canaries: int
    run_length: float
    shifted_run_length: float


@dataclass(frozen=True)
class CusumTrace:
    """A CUSUM along reads.

    Attributes:
        high: Sum of what is above, `[reads, canaries]`.
        low: Sum of what is below, `[reads, canaries]`.
        alarm: First read at which a canary raised the alarm, -1 where none did, `[canaries]`.
        began: Read after which the sum that raised the alarm last was zero: where the change is likely to have begun;
            -1 for the start or no alarm, `[canaries]`.
    """

    high: FloatArray
    low: FloatArray
    alarm: NDArray[np.int64]
    began: NDArray[np.int64]


def siegmund_run_length(allowance: float, limit: float, shift: float = 0.0) -> float:
    """Siegmund's approximation of the average run length of a two-sided CUSUM (Sequential Analysis, 1985, eq. 2.57).

    One side: (exp(-2 D b) + 2 D b - 1) / (2 D²), D the shift less k, b = h + 1.166; rates of both sides add.
    """

    def one(drift: float) -> float:
        b = limit + 1.166
        x = 2.0 * drift * b
        return b * b if abs(x) < 1e-6 else (math.exp(-x) + x - 1.0) / (2.0 * drift * drift)

    return 1.0 / (1.0 / one(shift - allowance) + 1.0 / one(-shift - allowance))


def run_length(allowance: float, limit: float, shift: float = 0.0) -> float:
    """Average run length of a two-sided CUSUM that starts at zero, from Page's integral equation.

    One side: L(u) = 1 + L(0) P(z <= k - u) + integral over 0..h of L(v) p(v + k - u) dv, by Gauss-Legendre nodes. Both
    sides: 1/L = 1/L_high + 1/L_low, exact as both cannot be up when k > 0 (Kemp, Appl. Stat. 10, 1961).
    """

    def one(mean: float) -> float:
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        v, weights = 0.5 * limit * (nodes + 1.0), 0.5 * limit * weights
        starts = np.concatenate([[0.0], v])
        argument = v[None, :] + allowance - starts[:, None] - mean
        kernel = np.exp(-0.5 * argument**2) / math.sqrt(2.0 * math.pi) * weights
        back = special.ndtr(allowance - starts - mean)
        system = np.eye(_NODES + 1) - np.concatenate([back[:, None], kernel], axis=1)
        return float(np.linalg.solve(system, np.ones(_NODES + 1))[0])

    return 1.0 / (1.0 / one(shift) + 1.0 / one(-shift))


def design_cusum(false_alarm_reads: float, *, canaries: int = 1, shift: float = 1.0) -> Cusum:
    """Finds the limit for a wanted time between false alarms.

    Args:
        false_alarm_reads: Average number of reads of all canaries until a false alarm of any of them.
        canaries: Canaries watched together, whose surprises are independent.
        shift: The shift of one canary that matters, in its standard deviations.

    Raises:
        JudgementError: A value is out of range.
    """
    faults = []
    if not 10 <= false_alarm_reads * max(canaries, 1) <= 1e9 or not false_alarm_reads >= 10:
        faults.append(f"one false alarm in {false_alarm_reads} reads is outside 10 to 1e9 divided by the canaries")
    if canaries < 1:
        faults.append(f"{canaries} canaries cannot be watched")
    if not 0.1 <= shift <= 6:
        faults.append(f"a shift of {shift} standard deviations is outside 0.1 to 6")
    refuse("no alarm can be designed", faults)
    allowance = 0.5 * shift
    # Alarms of many canaries come as rare, independent events.
    each = false_alarm_reads * canaries
    start = optimize.brentq(lambda h: math.log(siegmund_run_length(allowance, h) / each), -1.1, 100.0)
    bracket = max(0.5 * start, 1e-3), max(start, 0.0) + 2.0
    limit = float(optimize.brentq(lambda h: math.log(run_length(allowance, h) / each), *bracket, xtol=1e-6))
    quiet, shifted = run_length(allowance, limit) / canaries, run_length(allowance, limit, shift)
    return Cusum(allowance, limit, canaries, quiet, shifted)


def watch(z: FloatArray, scheme: Cusum) -> CusumTrace:
    """Runs a scheme over standardised surprises `[reads, canaries]`; a missing one (NaN) changes nothing.

    Args:
        z: Standardised surprises, `[reads, canaries]`, such as `innovations` gives (transposed).
        scheme: When to raise an alarm.
    """
    reads, canaries = z.shape
    high, low = np.zeros((reads + 1, canaries)), np.zeros((reads + 1, canaries))
    for read in range(reads):
        step = np.where(np.isfinite(z[read]), z[read], 0.0)
        allowance = np.where(np.isfinite(z[read]), scheme.allowance, 0.0)
        high[read + 1] = np.maximum(high[read] + step - allowance, 0.0)
        low[read + 1] = np.maximum(low[read] - step - allowance, 0.0)
    above = (high[1:] > scheme.limit) | (low[1:] > scheme.limit)
    alarm = np.where(above.any(axis=0), above.argmax(axis=0), -1)
    began = np.full(canaries, -1)
    for canary in np.flatnonzero(alarm >= 0):
        at = alarm[canary] + 1
        side = high if high[at, canary] > scheme.limit else low
        began[canary] = int(np.flatnonzero(side[:at, canary] == 0.0)[-1]) - 1
    return CusumTrace(high[1:], low[1:], alarm, began)
