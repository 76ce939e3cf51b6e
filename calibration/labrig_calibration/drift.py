"""Drift of conductances: each cell its own level and its own exponent, both random around the array's.

    ln G_i(t) = a_i - nu_i ln(t / t0) + e,    (a_i, nu_i) ~ N((a, nu), Omega),    e ~ N(0, sigma²)

a random-slope model of log-time, fitted by restricted maximum likelihood (Laird and Ware, Biometrics 38, 1982). Cells
that were read at the same ages enter as one sum, so that a million of them cost as little as a thousand. Cells that
drift alike can be compensated by one factor; what the exponents scatter cannot, and that says when to measure again
(`remeasure`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.random_slopes import fit_random_slopes, sums_of
from labrig_calibration.residuals import refuse
from labrig_surrogates.faults import counted

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class DriftModel:
    """A fitted random-slope model.

    Attributes:
        reference_s: t0 in s.
        level: Mean of ln(G / 1 S) at t0.
        exponent: Mean drift exponent nu.
        mean_covariance: Of the two, `[2, 2]`.
        spread: Omega, covariance of level and exponent between cells, `[2, 2]`.
        noise: sigma, standard deviation of a reading's logarithm.
        spread_error: Standard errors of the deviations of level and of exponent between cells, `[2]`; NaN where one is
            at zero, the end of its range.
        cells: Number of cells.
        readings: Number of readings.
        log_likelihood: Restricted log-likelihood.
    """

    reference_s: float
    level: float
    exponent: float
    mean_covariance: FloatArray
    spread: FloatArray
    noise: float
    spread_error: FloatArray
    cells: int
    readings: int
    log_likelihood: float

    @property
    def exponent_error(self) -> float:
        """Standard error of the mean exponent."""
        return float(np.sqrt(self.mean_covariance[1, 1]))

    @property
    def exponent_spread(self) -> float:
        """Standard deviation of the exponent between cells."""
        return float(np.sqrt(self.spread[1, 1]))

    def decades(self, age_s: FloatArray) -> FloatArray:
        """ln(t / t0), any shape."""
        return np.asarray(np.log(np.asarray(age_s) / self.reference_s))

    def compensation(self, age_s: FloatArray) -> FloatArray:
        """Factor on outputs that restores the array's summed conductance to that at t0, any shape.

        exp(nu L - var(nu) L² / 2 + cov(a, nu) L), L = ln(t / t0): the mean of the log-normal law, in which cells that
        drift less count more and more.
        """
        log_time = self.decades(age_s)
        return np.asarray(
            np.exp(self.exponent * log_time - 0.5 * self.spread[1, 1] * log_time**2 + self.spread[0, 1] * log_time)
        )


@dataclass(frozen=True)
class CellDrift:
    """Level and exponent of each cell, drawn to the array's as far as its readings are few.

    Attributes:
        level: ln(G / 1 S) at t0, `[cells]`.
        exponent: Drift exponent, `[cells]`.
        covariance: Of the two, `[cells, 2, 2]`.
    """

    level: FloatArray
    exponent: FloatArray
    covariance: FloatArray


def fit_drift(age_s: FloatArray, conductance_s: FloatArray, *, reference_s: float | None = None) -> DriftModel:
    """Fits the model by restricted maximum likelihood.

    Args:
        age_s: Age of each reading in s, `[times]` or `[cells, times]`.
        conductance_s: Readings in S, `[cells, times]`; NaN where there is none.
        reference_s: t0; by default the geometric mean age, where level and exponent are least entangled.

    Raises:
        JudgementError: Fewer than three cells with two readings, one age only, or values without a logarithm.
    """
    log_time, log_level, reference_s = _logarithms(age_s, conductance_s, reference_s)
    fit = fit_random_slopes(log_time, log_level)
    return DriftModel(
        reference_s=reference_s,
        level=float(fit.mean[0]),
        exponent=float(-fit.mean[1]),
        mean_covariance=_signed(fit.mean_covariance),
        spread=_signed(fit.spread),
        noise=fit.noise,
        spread_error=fit.spread_error,
        cells=conductance_s.shape[0],
        readings=int(np.isfinite(log_level).sum()),
        log_likelihood=fit.log_likelihood,
    )


def cell_drift(model: DriftModel, age_s: FloatArray, conductance_s: FloatArray) -> CellDrift:
    """What the readings say of each cell, the array's law being the prior (best linear unbiased prediction).

    Args:
        model: The fitted model.
        age_s: Age of each reading in s, `[times]` or `[cells, times]`.
        conductance_s: Readings in S, `[cells, times]`; NaN where there is none.

    Raises:
        JudgementError: Values without a logarithm, or shapes that do not fit.
    """
    log_time, log_level, _ = _logarithms(age_s, conductance_s, model.reference_s, fit=False)
    sums = sums_of(log_time, log_level)
    prior = _signed(model.spread)
    mean = np.array([model.level, -model.exponent])
    # (I + D A / s²)^-1 D: the posterior covariance without inverting D, which may be singular.
    shrunk = np.eye(2) + prior @ sums.design / model.noise**2
    covariance = np.linalg.solve(shrunk, np.broadcast_to(prior, sums.design.shape))
    pull = (sums.products - np.einsum("cij,j->ci", sums.design, mean)) / model.noise**2
    values = mean + np.einsum("cij,cj->ci", covariance, pull)
    return CellDrift(values[:, 0], -values[:, 1], np.stack([_signed(one) for one in covariance]))


def innovations(model: DriftModel, age_s: FloatArray, conductance_s: FloatArray) -> FloatArray:
    """Each reading against what the model and the cell's earlier readings foretell, standardised, `[cells, times]`.

    Where the model holds these are independent standard normal numbers, in spite of each cell's own level and exponent:
    what alarms (`alarms`) need. Readings must be in the order of time; NaN where there is none.

    Args:
        model: How cells of this kind drift.
        age_s: Time in s since programming of each reading, `[times]` or `[cells, times]`.
        conductance_s: Readings in S, `[cells, times]`.

    Raises:
        JudgementError: Values without a logarithm, or shapes that do not fit.
    """
    log_time, log_level, _ = _logarithms(age_s, conductance_s, model.reference_s, fit=False)
    cells, times = log_level.shape
    mean = np.tile([model.level, -model.exponent], (cells, 1))
    covariance = np.tile(_signed(model.spread), (cells, 1, 1))
    scores = np.full((cells, times), np.nan)
    for k in range(times):
        row = np.stack([np.ones(cells), log_time[:, k]], axis=1)
        seen = np.isfinite(log_level[:, k])
        spread = np.einsum("cij,cj->ci", covariance, row)
        variance = np.einsum("ci,ci->c", spread, row) + model.noise**2
        surprise = np.where(seen, log_level[:, k] - np.einsum("ci,ci->c", mean, row), 0.0)
        gain = np.where(seen[:, None], spread / variance[:, None], 0.0)
        scores[:, k] = np.where(seen, surprise / np.sqrt(variance), np.nan)
        mean = mean + gain * surprise[:, None]
        covariance = covariance - gain[:, :, None] * spread[:, None, :]
    return scores


def _logarithms(
    age_s: FloatArray, conductance_s: FloatArray, reference_s: float | None, *, fit: bool = True
) -> tuple[FloatArray, FloatArray, float]:
    faults = []
    if conductance_s.ndim != 2 or age_s.shape not in (conductance_s.shape, conductance_s.shape[1:]):
        shapes = f"{list(age_s.shape)} and {list(conductance_s.shape)}"
        faults.append(f"ages must be [times] or [cells, times] and conductances [cells, times], not {shapes}")
        refuse("no drift to fit", faults)
    age_s = np.broadcast_to(age_s, conductance_s.shape)
    seen = np.isfinite(conductance_s)
    if bad := int((conductance_s[seen] <= 0).sum()):
        faults.append(
            f"{counted(bad, 'conductance is', 'conductances are')} not positive, without a logarithm; "
            "leave those cells out (NaN)"
        )
    if bad := int((~(age_s[seen] > 0)).sum()):
        faults.append(f"{counted(bad, 'age is', 'ages are')} not positive; drift in log-time starts after the write")
    if fit and not faults:
        if (seen.sum(axis=1) >= 2).sum() < 3:
            faults.append("fewer than three cells have two readings")
        if np.unique(age_s[seen]).size < 2:
            faults.append("all readings have one age")
    refuse("no drift to fit", faults)
    if reference_s is None:
        reference_s = float(np.exp(np.log(age_s[seen]).mean()))
    log_time = np.log(np.where(seen, age_s, reference_s) / reference_s)
    return log_time, np.log(np.where(seen, conductance_s, np.nan)), reference_s


def _signed(covariance: FloatArray) -> FloatArray:
    """Covariance of (level, exponent) from that of (level, slope), and back: exponent = -slope."""
    return np.asarray(covariance * np.array([[1.0, -1.0], [-1.0, 1.0]]))
