"""Drift of cells, when to measure again, and alarms: against statsmodels, published tables and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig_calibration.alarms import design_cusum, run_length, siegmund_run_length, watch
from labrig_calibration.drift import DriftModel, cell_drift, fit_drift, innovations
from labrig_calibration.remeasure import measure_again, predicted_error
from labrig_calibration.residuals import JudgementError

FloatArray = NDArray[np.float64]

AGES_S: FloatArray = np.exp2(np.arange(0.0, 14.0, 2.0))


def drifting(cells: int, seed: int, ages_s: FloatArray = AGES_S) -> tuple[FloatArray, FloatArray]:
    """Conductances in S and the exponents behind them; level and exponent hang together."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((2, cells))
    level, exponent = np.log(2e-5) + 0.2 * normal[0], 0.05 - 0.005 * normal[0] + 0.0194 * normal[1]
    noise = 0.02 * rng.standard_normal((cells, ages_s.size))
    return np.exp(level[:, None] - exponent[:, None] * np.log(ages_s) + noise), exponent


def with_gaps() -> FloatArray:
    conductance_s, _ = drifting(60, 5)
    conductance_s[3, 5:] = np.nan
    conductance_s[7, 0] = np.nan
    conductance_s[40, 2:4] = np.nan
    return conductance_s


def test_numbers_are_those_of_statsmodels_mixed_lm() -> None:
    # statsmodels 0.15.0, MixedLM(ln G, [1, ln t], cells, exog_re=[1, ln t]).fit(reml=True, method=["lbfgs", "powell"]).
    model = fit_drift(AGES_S, with_gaps(), reference_s=1.0)
    assert [model.level, -model.exponent] == pytest.approx([-10.86091712, -0.04849424], rel=1e-5)
    assert np.sqrt(np.diag(model.mean_covariance)) == pytest.approx([0.02452408, 0.00214339], rel=1e-3)
    np.testing.assert_allclose(model.spread, [[0.03591291, -0.00055461], [-0.00055461, 0.00026862]], rtol=2e-3)
    assert model.noise == pytest.approx(0.019080169564164216, rel=1e-3)
    assert model.log_likelihood == pytest.approx(741.682405979614, abs=1e-4)
    assert (model.cells, model.readings) == (60, 415)
    cells = cell_drift(model, AGES_S, with_gaps())
    assert [cells.level[0] - model.level, model.exponent - cells.exponent[0]] == pytest.approx(
        [-0.111530, -0.024765], abs=2e-5
    )
    assert [cells.level[3] - model.level, model.exponent - cells.exponent[3]] == pytest.approx(
        [0.149421, -0.004697], abs=2e-5
    )


@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
def test_numbers_are_those_of_the_statsmodels_that_is_installed() -> None:
    mixed = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    conductance_s, _ = drifting(40, 8)
    x = np.column_stack([np.ones(40 * 7), np.tile(np.log(AGES_S), 40)])
    fitted = mixed.MixedLM(np.log(conductance_s).ravel(), x, np.repeat(np.arange(40), 7), exog_re=x).fit(reml=True)
    model = fit_drift(AGES_S, conductance_s, reference_s=1.0)
    assert model.exponent == pytest.approx(-fitted.fe_params[1], rel=1e-4)
    assert model.log_likelihood >= fitted.llf - 1e-3


def test_truth_is_within_the_errors() -> None:
    scores, cells = [], []
    for seed in range(40):
        conductance_s, exponent = drifting(80, 100 + seed)
        model = fit_drift(AGES_S, conductance_s)
        found = cell_drift(model, AGES_S, conductance_s)
        cells.append((found.exponent - exponent) / np.sqrt(found.covariance[:, 1, 1]))
        spread = math.hypot(0.005, 0.0194)
        scores.append(
            [(model.exponent - 0.05) / model.exponent_error, (model.exponent_spread - spread) / model.spread_error[1]]
        )
    assert np.abs(np.mean(scores, axis=0)).max() < 0.5
    assert ((np.std(scores, axis=0) > 0.7) & (np.std(scores, axis=0) < 1.35)).all()
    assert np.std(cells) == pytest.approx(1.0, abs=0.05)


def test_cells_that_drift_alike_have_no_spread() -> None:
    rng = np.random.default_rng(0)
    log_g = np.log(2e-5) - 0.05 * np.log(AGES_S) + 0.02 * rng.standard_normal((50, 7))
    model = fit_drift(AGES_S, np.exp(log_g))
    assert model.exponent_spread < 0.002
    assert model.noise == pytest.approx(0.02, rel=0.1)


def test_every_cell_may_have_ages_of_its_own() -> None:
    rng = np.random.default_rng(1)
    ages_s = np.exp(rng.uniform(0.0, 10.0, (200, 5)))
    exponent = 0.05 + 0.02 * rng.standard_normal(200)
    conductance_s = np.exp(-10.0 - exponent[:, None] * np.log(ages_s) + 0.01 * rng.standard_normal(ages_s.shape))
    model = fit_drift(ages_s, conductance_s)
    assert model.exponent == pytest.approx(0.05, abs=4.0 * model.exponent_error)
    assert model.exponent_spread == pytest.approx(0.02, rel=0.2)


def test_compensation_restores_the_summed_conductance() -> None:
    ages_s = np.append(AGES_S, 1e5)
    conductance_s, _ = drifting(20_000, 3, ages_s)
    model = fit_drift(AGES_S, conductance_s[:, :-1], reference_s=1.0)
    lost = conductance_s[:, 0].sum() / conductance_s[:, -1].sum()
    assert lost > 1.6
    assert float(model.compensation(np.array(1e5))) == pytest.approx(lost, rel=0.005)
    # What compensation cannot restore is what was predicted, each cell by itself.
    start = conductance_s[:, :1]
    clean = np.exp(np.log(conductance_s / start))
    left = clean[:, -1] * math.exp(model.exponent * math.log(1e5)) - 1.0
    predicted = float(predicted_error(model, np.array(1e5), 1.0))
    assert float(np.sqrt((left**2).mean())) == pytest.approx(predicted, rel=0.12)


def constant_model(exponent: float, spread: float, error: float = 0.0) -> DriftModel:
    covariance = np.array([[1e-6, 0.0], [0.0, error**2]])
    omega = np.array([[0.04, 0.0], [0.0, spread**2]])
    return DriftModel(1.0, -10.0, exponent, covariance, omega, 0.01, np.array([0.0, 0.0]), 100, 700, 0.0)


def test_when_to_measure_again() -> None:
    model = constant_model(0.05, 0.01)
    schedule = measure_again(model, 60.0, 0.05)
    np.testing.assert_allclose(schedule.age_s, 60.0 * 2.0 ** np.arange(1, schedule.age_s.size + 1))
    assert (schedule.error[:-1] <= 0.05).all()
    assert schedule.error[-1] > 0.05
    # To first order the scatter of exponents times ln(t / t_c): due after exp(0.05 / 0.01).
    assert schedule.due_s == pytest.approx(60.0 * math.exp(5.0), rel=0.02)
    assert schedule.age_s[-2] < schedule.due_s <= schedule.age_s[-1]
    # Averaged over many cells the compensated array lasts; without compensation the mean drift decides.
    longer = measure_again(model, 60.0, 0.05, cells_per_output=16.0)
    assert longer.due_s > 1e6 * schedule.due_s or math.isinf(longer.due_s)
    raw = measure_again(model, 60.0, 0.05, compensated=False, cells_per_output=1e6)
    assert raw.due_s == pytest.approx(60.0 * math.exp(-math.log(0.95) / 0.05), rel=0.01)
    # An exponent that is hardly known cannot be compensated for long either.
    assert measure_again(constant_model(0.05, 0.0, 0.01), 60.0, 0.05, cells_per_output=1e6).due_s < 1e4
    quiet = measure_again(constant_model(0.0, 0.0), 60.0, 0.05)
    assert math.isinf(quiet.due_s)
    assert 0.5 < quiet.age_s[-1] / (10.0 * 365.25 * 86400.0) <= 1.0
    assert measure_again(constant_model(0.0, 0.0), 1.0, 0.05, longest_s=10.0).age_s.tolist() == [2.0, 4.0, 8.0]


def test_what_has_no_drift_to_fit_is_refused() -> None:
    conductance_s, _ = drifting(10, 0)
    conductance_s[2, 3] = -1e-6
    with pytest.raises(JudgementError, match=r"1 conductance is not positive.*10 ages are not positive"):
        fit_drift(np.append(0.0, AGES_S[1:]), conductance_s)
    with pytest.raises(JudgementError, match="all readings have one age"):
        fit_drift(np.full(7, 3.0), np.abs(conductance_s))
    with pytest.raises(JudgementError, match=r"\[3\] and \[10, 7\]"):
        fit_drift(AGES_S[:3], conductance_s)
    with pytest.raises(JudgementError, match=r"calibrated_s = 0.* tolerance = -1"):
        measure_again(constant_model(0.05, 0.01), 0.0, -1.0)


def test_run_lengths_are_the_published_ones() -> None:
    # Montgomery, Introduction to Statistical Quality Control, table 9.3 (k = 1/2), as Lucas and Crosier computed them.
    shifts = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
    for limit, lengths in (
        (4.0, (168.0, 74.2, 26.6, 13.3, 8.38, 4.75, 3.34, 2.62, 2.19, 1.71)),
        (5.0, (465.0, 139.0, 38.0, 17.0, 10.4, 5.75, 4.01, 3.11, 2.57, 2.01)),
    ):
        assert [run_length(0.5, limit, shift) for shift in shifts] == pytest.approx(lengths, rel=5e-3)
    # Siegmund's approximation with the same book's numbers: 938.2 for one side, 469.1 for two.
    assert siegmund_run_length(0.5, 5.0) == pytest.approx(469.1, rel=1e-3)
    for limit in (3.0, 4.0, 6.0, 9.0):
        assert siegmund_run_length(0.5, limit) == pytest.approx(run_length(0.5, limit), rel=0.04)


def test_false_alarms_come_as_seldom_as_designed() -> None:
    scheme = design_cusum(100.0, canaries=5)
    assert scheme.run_length == pytest.approx(100.0, rel=1e-4)
    z = np.random.default_rng(0).standard_normal((1500, 5 * 800))
    alarm = watch(z, scheme).alarm.reshape(800, 5)
    first = np.where(alarm >= 0, alarm + 1, 10_000).min(axis=1)
    assert first.max() < 10_000
    # Exponential with a mean of 100: the mean of 800 is known to 3.5 %.
    assert first.mean() == pytest.approx(100.0, rel=0.13)
    one = design_cusum(100.0)
    assert one.limit < scheme.limit


def test_shifts_are_found_in_time_and_dated() -> None:
    scheme = design_cusum(1000.0, shift=1.0)
    z = np.random.default_rng(1).standard_normal((400, 500))
    z[100:] += np.where(np.arange(500) % 2, 1.0, -1.0)
    trace = watch(z, scheme)
    late = trace.alarm[trace.alarm >= 100] - 99
    assert late.size > 440
    assert late.mean() == pytest.approx(scheme.shifted_run_length, rel=0.1)
    assert abs(np.median(trace.began[trace.alarm >= 100]) - 99) <= 2
    gaps = z.copy()
    gaps[50:60] = np.nan
    assert (watch(gaps, scheme).high[50:60] == watch(gaps, scheme).high[49]).all()


def test_canaries_that_drift_by_the_law_are_silent_and_others_are_not() -> None:
    ages_s = np.exp2(np.arange(0.0, 20.0))
    model = fit_drift(ages_s, drifting(400, 1, ages_s)[0])
    fresh, _ = drifting(300, 2, ages_s)
    scores = innovations(model, ages_s, fresh)
    assert np.std(scores) == pytest.approx(1.0, abs=0.03)
    later = np.corrcoef(scores[:, 3:-1].ravel(), scores[:, 4:].ravel())[0, 1]
    assert abs(later) < 0.05
    # Residuals from the array's mean alone remember each cell's own level, and would ring all the time.
    naive = (np.log(fresh) - model.level + model.exponent * model.decades(ages_s)) / 0.2
    assert np.corrcoef(naive[:, 3:-1].ravel(), naive[:, 4:].ravel())[0, 1] > 0.9
    scheme = design_cusum(20.0 * 300, shift=2.0)
    assert (watch(scores.T, scheme).alarm >= 0).mean() < 0.02
    broken = fresh.copy()
    broken[:, 12:] *= 0.9
    alarmed = watch(innovations(model, ages_s, broken).T, scheme).alarm
    assert (alarmed >= 12).mean() > 0.8


def test_alarms_that_cannot_be_designed_are_refused() -> None:
    with pytest.raises(JudgementError, match=r"one false alarm in 2.*; 0 canaries.*; a shift of 9"):
        design_cusum(2.0, canaries=0, shift=9.0)
