"""Checks of residuals one by one, against published critical values, statsmodels' numbers and their own laws."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from labrig_calibration import goodness, specification, whiteness
from labrig_calibration.nulls import Nulls
from labrig_calibration.residuals import (
    AdcSteps,
    JudgementError,
    chronological,
    pit,
    pit_histogram,
    quantile_residuals,
    standardised,
)

FloatArray = NDArray[np.float64]


def false_alarms(p_value: FloatArray, level: float) -> float:
    """How often p-values are below a level, as a multiple of it."""
    return float((p_value < level).mean() / level)


def test_residuals_of_a_coarse_adc_are_normal_and_naive_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    mean_a, sigma_a = rng.uniform(-2.0, 2.0, (20_000, 1)), np.full((20_000, 1), 0.3)
    lsb_a = np.array([0.5])
    steps = AdcSteps(lsb_a, -4 * lsb_a, 3 * lsb_a)
    read_a = np.clip(np.round((mean_a + 0.3 * rng.standard_normal(mean_a.shape)) / lsb_a), -4, 3) * lsb_a
    z = quantile_residuals(mean_a, sigma_a, read_a, steps, rng=rng)
    assert stats.kstest(z[:, 0], "norm").pvalue > 0.01
    naive = standardised(mean_a, np.sqrt(sigma_a**2 + lsb_a**2 / 12.0), read_a)
    assert stats.kstest(naive[:, 0], "norm").pvalue < 1e-10
    # Among the clipped ones, too, and a glitch far outside keeps its size.
    clipped = read_a[:, 0] >= 1.5
    assert 0.1 < clipped.mean() < 0.9
    assert abs(z[clipped & (mean_a[:, 0] > 1.5)].std() - 1.0) < 0.4
    far = quantile_residuals(
        np.zeros((2, 1)),
        np.full((2, 1), 0.01),
        np.array([[1.0], [-1.0]]),
        AdcSteps(lsb_a, -9 * lsb_a, 9 * lsb_a),
        rng=rng,
    )
    assert 74.0 < far[0, 0] < 126.0
    assert -126.0 < far[1, 0] < -74.0


def test_residuals_refuse_with_every_fault_and_keep_gaps() -> None:
    with pytest.raises(JudgementError, match=r"one shape .*; 1 predicted mean is .*; 2 predicted standard deviations"):
        standardised(np.array([[np.nan, 0.0]]), np.array([[0.0, -1.0]]), np.zeros((2, 2)))
    one = np.ones((3, 1))
    z = quantile_residuals(
        one,
        one,
        np.array([[np.nan], [1.0], [2.0]]),
        AdcSteps(np.ones(1), np.array([-9.0]), np.array([9.0])),
        rng=np.random.default_rng(0),
    )
    assert np.isnan(z[0, 0])
    assert np.isfinite(z[1:]).all()
    np.testing.assert_array_equal(chronological(np.array([3.0, 1.0, 1.0, 2.0])), [1, 2, 3, 0])


def test_pit_says_what_is_wrong() -> None:
    z = np.random.default_rng(0).standard_normal((5000, 2))
    share, error = pit_histogram(z)
    assert np.abs(share - 0.05).max() < 4.0 * error
    too_wide, _ = pit_histogram(0.5 * z)
    too_narrow, _ = pit_histogram(2.0 * z)
    assert too_wide[10] > 0.07 > 0.03 > too_wide[0]
    assert too_narrow[0] > 0.1 > too_narrow[10]
    np.testing.assert_allclose(pit(np.array([-1.959964, 0.0])), [0.025, 0.5], atol=1e-6)


def test_null_with_estimated_parameters_is_that_of_lilliefors() -> None:
    nulls = Nulls.simulate(200, rng=np.random.default_rng(0), draws=20_000)
    # Stephens, J. Am. Stat. Assoc. 69 (1974), table 1, case 3: modified statistics.
    for level, distance, square in ((0.1, 0.819, 0.631), (0.05, 0.895, 0.752), (0.01, 1.035, 1.035)):
        assert nulls.distance.critical(level) == pytest.approx(distance, rel=0.02)
        assert nulls.square.critical(level) == pytest.approx(square, rel=0.03)
        assert nulls.distance.p_value(np.array([distance]))[0] == pytest.approx(level, rel=0.15)
    # Lilliefors' own table for 30 values: 0.161 at 5 %.
    small = Nulls.simulate(30, rng=np.random.default_rng(1), draws=20_000)
    limit = small.distance.critical(0.05) / float(goodness.sized_distance(np.ones(1), 30, "location and scale")[0])
    assert limit == pytest.approx(0.161, abs=0.002)


def test_null_with_known_parameters_is_kolmogorovs_and_far_from_the_other() -> None:
    known = Nulls.simulate(100, rng=np.random.default_rng(0), estimated="nothing", draws=20_000)
    assert known.distance.critical(0.05) == pytest.approx(1.358, rel=0.02)
    assert known.square.critical(0.05) == pytest.approx(2.492, rel=0.04)
    # Whoever tests fitted residuals against known parameters finds nothing where there is something.
    z = np.random.default_rng(1).standard_normal((100, 4000))
    wrong = stats.kstwo.sf(goodness.kolmogorov_smirnov(z), 100)
    assert (wrong < 0.05).mean() < 0.002


def test_statistics_are_scipys() -> None:
    z = np.random.default_rng(3).standard_normal((80, 3)) * 1.1 + 0.1
    for column in range(3):
        expected = stats.kstest(z[:, column], "norm")
        assert goodness.kolmogorov_smirnov(z, "nothing")[column] == pytest.approx(expected.statistic)
    gap = z.copy()
    gap[5, 0] = np.nan
    short = np.delete(z[:, :1], 5, axis=0)
    np.testing.assert_allclose(goodness.kolmogorov_smirnov(gap)[0], goodness.kolmogorov_smirnov(short)[0])
    np.testing.assert_allclose(goodness.anderson_darling(gap)[0], goodness.anderson_darling(short)[0])


def test_tail_of_a_null_goes_on_beyond_its_draws() -> None:
    nulls = Nulls.simulate(60, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    square = [goodness.anderson_darling(rng.standard_normal((60, 5000))) for _ in range(40)]
    far = goodness.sized_square(np.quantile(np.concatenate(square), [1 - 1e-3, 1 - 1e-4]), 60, "location and scale")
    ratio = nulls.square.p_value(far) / np.array([1e-3, 1e-4])
    assert ((ratio > 0.5) & (ratio < 2.0)).all()
    # D'Agostino and Stephens (1986), table 4.9, for large values: exp(1.2937 - 5.709 A + 0.0186 A^2).
    assert nulls.square.p_value(np.array([2.0]))[0] == pytest.approx(np.exp(1.2937 - 11.418 + 0.0744), rel=0.7)
    assert np.isnan(nulls.distance.p_value(np.array([np.nan]))[0])


def test_parametric_bootstrap_of_a_whole_fit_keeps_its_level() -> None:
    def statistic(values: FloatArray) -> float:
        return float(values.max() / values.mean())

    def p_value(data: FloatArray, seed: int) -> float:
        mean = float(data.mean())
        return goodness.parametric_bootstrap(
            statistic(data),
            lambda rng: statistic(rng.exponential(mean, data.size)),
            rng=np.random.default_rng(seed),
            draws=99,
        )

    rng = np.random.default_rng(0)
    found = np.array([p_value(rng.exponential(3.0, 40), k) for k in range(200)])
    assert 0.04 < (found <= 0.1).mean() < 0.17
    assert p_value(np.append(rng.exponential(3.0, 40), 90.0), 0) == 0.01


def statsmodels_example() -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(20)
    x = rng.standard_normal((150, 2))
    return x, rng.standard_normal(150) * (1 + 0.3 * np.abs(x[:, 0])) + 0.2 * x[:, 1] ** 2


def test_numbers_are_those_of_statsmodels() -> None:
    # statsmodels 0.15.0: het_breuschpagan, acorr_ljungbox, compare_f_test, normal_ad, lilliefors of this example.
    x, z = statsmodels_example()
    pagan = specification.breusch_pagan(z[:, None], x[:, None, :])
    assert pagan.statistic[0] == pytest.approx(7.1427079678356815, rel=1e-10)
    assert pagan.p_value[0] == pytest.approx(0.028117756904255088, rel=1e-10)
    for lags, statistic, p in ((5, 15.3870210, 8.83054382e-03), (10, 18.9290500, 4.11731644e-02)):
        box = whiteness.ljung_box(z[:, None], lags)
        assert box.statistic[0] == pytest.approx(statistic, rel=1e-7)
        assert box.p_value[0] == pytest.approx(p, rel=1e-7)
    base = np.stack([np.ones(150), x[:, 0]], axis=1)[:, None, :]
    added = specification.added_terms(z[:, None], base, np.stack([x[:, 1], x[:, 1] ** 2], axis=1)[:, None, :])
    assert added.statistic[0] == pytest.approx(3.410420298835164, rel=1e-9)
    assert added.p_value[0] == pytest.approx(0.03568040908020406, rel=1e-9)
    assert goodness.anderson_darling(z[:, None])[0] == pytest.approx(0.3856828344491987, rel=1e-9)
    assert goodness.kolmogorov_smirnov(z[:, None])[0] == pytest.approx(0.05156272722152533, rel=1e-9)


def test_numbers_are_those_of_the_statsmodels_that_is_installed() -> None:
    diagnostic = pytest.importorskip("statsmodels.stats.diagnostic")
    x, z = statsmodels_example()
    expected = diagnostic.het_breuschpagan(z, np.column_stack([np.ones(150), x]))
    assert specification.breusch_pagan(z[:, None], x[:, None, :]).statistic[0] == pytest.approx(expected[0], rel=1e-9)
    table = np.asarray(diagnostic.acorr_ljungbox(z, lags=[10]))
    assert whiteness.ljung_box(z[:, None], 10).statistic[0] == pytest.approx(table[0, 0], rel=1e-9)


def test_terms_that_are_already_there_are_not_tested() -> None:
    rng = np.random.default_rng(0)
    y, x = rng.standard_normal((50, 2)), rng.standard_normal((50, 2, 1))
    again = specification.added_terms(y, x, np.concatenate([x, 2.0 * x], axis=2))
    assert np.isnan(again.p_value).all()
    other = rng.standard_normal((50, 2, 1))
    with_copy = specification.added_terms(y, x, np.concatenate([other, x + other], axis=2))
    np.testing.assert_allclose(with_copy.p_value, specification.added_terms(y, x, other).p_value)


@pytest.mark.parametrize("samples", [60, 200])
def test_p_values_hold_far_out_where_many_columns_need_them(samples: int) -> None:
    rng = np.random.default_rng(samples)
    nulls = Nulls.simulate(samples, rng=rng)
    found: dict[str, list[FloatArray]] = {}
    for _ in range(8):
        z = rng.standard_normal((samples, 1000))
        y = rng.standard_normal((samples, 1000))
        terms, ones = np.stack([np.abs(y), y**2], axis=2), np.ones((samples, 1000, 1))
        for name, p in {
            "bias": specification.bias(z).p_value,
            "spread": specification.spread(z).p_value,
            "added": specification.added_terms(z, ones, terms).p_value,
            "heteroscedasticity": specification.heteroscedasticity(z, terms).p_value,
            "outliers": specification.outliers(z).p_value,
            "ljung-box": nulls.memory.p_value(whiteness.ljung_box(z, nulls.lags).statistic),
            "periodogram": nulls.periodogram.p_value(whiteness.cumulative_periodogram(z).statistic),
            "line": whiteness.strongest_line(z).p_value,
            "breusch-pagan": specification.breusch_pagan(z, terms).p_value,
        }.items():
            found.setdefault(name, []).append(p)
    rates = {name: [false_alarms(np.concatenate(p), level) for level in (0.05, 1e-3)] for name, p in found.items()}
    naive = rates.pop("breusch-pagan")
    for name, (common, rare) in rates.items():
        assert 0.85 < common < 1.15, name
        assert 0.2 < rare < 2.2, name
    # What the textbooks' test would do there: the reason for ranks.
    assert naive[1] > 2.5


def test_columns_that_err_together_are_found_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    p = np.array([specification.between_columns(rng.standard_normal((100, 12))).p_value[0] for _ in range(600)])
    assert 0.07 < (p < 0.1).mean() < 0.135
    assert 0.002 < (p < 0.01).mean() < 0.02
    z = rng.standard_normal((100, 12)) + 0.5 * rng.standard_normal((100, 1))
    found = specification.between_columns(z)
    assert found.p_value[0] < 1e-9
    assert found.effect[0] == pytest.approx(0.2, abs=0.08)


def test_slow_noise_and_hum_are_each_found_best_by_their_own_test() -> None:
    rng = np.random.default_rng(0)
    nulls = Nulls.simulate(1000, rng=rng, draws=4000)
    white = rng.standard_normal((1000, 400))
    hum = white + 0.3 * np.sin(2.0 * np.pi * (77 * np.arange(1000)[:, None] / 1000 + rng.random(400)))
    frequency = np.fft.rfftfreq(1000)
    frequency[0] = 1.0
    slow = np.fft.irfft(np.fft.rfft(white, axis=0) * np.sqrt(1.0 + 0.01 / frequency)[:, None], 1000, axis=0)

    def found(z: FloatArray) -> list[float]:
        p_values = (
            nulls.memory.p_value(whiteness.ljung_box(z, nulls.lags).statistic),
            nulls.periodogram.p_value(whiteness.cumulative_periodogram(z).statistic),
            whiteness.strongest_line(z).p_value,
        )
        return [float((p < 0.01).mean()) for p in p_values]

    assert max(found(white)) < 0.03
    lags, periodogram, line = found(hum)
    assert line > max(lags, periodogram)
    lags, periodogram, line = found(slow)
    assert periodogram > 0.7
    assert periodogram > lags - 0.05 > line
    # Critical values of Anderson and Darling's known case, and the law of large values beside the simulated one.
    for level, square in ((0.05, 2.492), (0.01, 3.857)):
        assert nulls.periodogram.critical(level) == pytest.approx(square, rel=0.08)
    far = nulls.periodogram.p_value(np.array([8.0]))[0]
    assert far == pytest.approx(np.sqrt(3.0) * special.erfc(np.sqrt(8.0)), rel=0.5)
