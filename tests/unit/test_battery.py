"""The battery as a whole: silent on true models, wrong as often as it says, alert to each thing left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig_calibration.battery import MEANING, FitSize, Judgement, judge
from labrig_calibration.nulls import Nulls
from labrig_calibration.residuals import JudgementError

FloatArray = NDArray[np.float64]

MVMS, COLUMNS = 400, 6


@dataclass
class Bench:
    """Predictions that are true, and outputs drawn from them; tests spoil one or the other."""

    rng: np.random.Generator
    mean: FloatArray
    sigma: FloatArray
    time_s: FloatArray
    age_s: FloatArray
    drive: FloatArray

    @classmethod
    def of(cls, seed: int, mvms: int = MVMS, columns: int = COLUMNS) -> Bench:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((mvms, 8))
        mean = x @ rng.standard_normal((8, columns))
        sigma = np.sqrt(1.0 + 0.1 * mean**2)
        return cls(
            rng, mean, sigma, 0.1 * np.arange(float(mvms)), np.exp(rng.uniform(0.0, 8.0, mvms)), np.abs(x).mean(axis=1)
        )

    def noise(self) -> FloatArray:
        return self.rng.standard_normal(self.mean.shape)

    def judge(self, measured: FloatArray, nulls: Nulls, rate: float = 0.01) -> Judgement:
        z = (measured - self.mean) / self.sigma
        return judge(
            z,
            self.mean,
            self.sigma,
            rng=self.rng,
            time_s=self.time_s,
            age_s=self.age_s,
            covariates=self.drive[:, None],
            nulls=nulls,
            false_alarm_rate=rate,
        )


@pytest.fixture(scope="module")
def nulls() -> Nulls:
    return Nulls.simulate(MVMS, rng=np.random.default_rng(0))


def names(judgement: Judgement) -> set[str]:
    return {check.name for check in judgement.findings}


def alarms(sets: int, mvms: int, columns: int, rate: float) -> int:
    known = Nulls.simulate(mvms, rng=np.random.default_rng(0))
    count = 0
    for seed in range(sets):
        bench = Bench.of(seed, mvms, columns)
        count += not bench.judge(bench.mean + bench.sigma * bench.noise(), known, rate).clean
    return count


def test_a_model_without_fault_is_faulted_as_often_as_stated() -> None:
    # 5 % of 500: 25, give or take 4.9; Bonferroni's share makes it a little less.
    assert 10 <= alarms(500, 100, 5, 0.05) <= 37


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("sets", "mvms", "columns", "rate", "fewest", "most"),
    [(3000, 300, 3, 0.01, 12, 46), (500, 1000, 64, 0.05, 10, 37), (1000, 40, 8, 0.05, 25, 70)],
)
def test_the_false_alarm_rate_holds_for_arrays_of_all_sizes(
    sets: int, mvms: int, columns: int, rate: float, fewest: int, most: int
) -> None:
    assert fewest <= alarms(sets, mvms, columns, rate) <= most


def test_the_errors_of_the_fit_itself_are_no_fault() -> None:
    """Held-out data of a true model whose 20 parameters came from 200 other MVMs."""
    known, count, uncorrected = Nulls.simulate(150, rng=np.random.default_rng(0)), 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        x = np.concatenate([np.ones((350, 1)), rng.standard_normal((350, 19))], axis=1)
        y = x @ rng.standard_normal((20, 4)) + rng.standard_normal((350, 4))
        mean = x[200:] @ np.linalg.lstsq(x[:200], y[:200], rcond=None)[0]
        for fitted in (FitSize(200, 20.0), None):
            found = judge(
                y[200:] - mean,
                mean,
                np.ones((150, 4)),
                rng=rng,
                time_s=np.arange(150.0),
                fitted=fitted,
                false_alarm_rate=0.05,
                nulls=known,
            )
            count += fitted is not None and not found.clean
            uncorrected += fitted is None and not found.clean
    assert count <= 17
    assert uncorrected > 2 * max(count, 1)


def test_constant_noise_fitted_to_noise_that_grows_is_found(nulls: Nulls) -> None:
    bench = Bench.of(1)
    measured = bench.mean + bench.sigma * bench.noise()
    bench.sigma = np.full_like(bench.sigma, np.sqrt((bench.sigma**2).mean()))
    assert "noise law" in names(bench.judge(measured, nulls))


def test_noise_that_follows_the_drive_is_found(nulls: Nulls) -> None:
    bench = Bench.of(2)
    measured = bench.mean + bench.sigma * (bench.drive / bench.drive.mean())[:, None] * bench.noise()
    assert "noise law" in names(bench.judge(measured, nulls))


def test_drift_left_out_is_found(nulls: Nulls) -> None:
    bench = Bench.of(3)
    decay = np.exp(-0.05 * (np.log1p(bench.age_s) - np.log1p(bench.age_s).mean()))[:, None]
    assert "drift" in names(bench.judge(bench.mean * decay + bench.sigma * bench.noise(), nulls))
    warming = 0.3 * np.linspace(-1.0, 1.0, MVMS)[:, None]
    assert "drift" in names(bench.judge(bench.mean + warming + bench.sigma * bench.noise(), nulls))


def test_flicker_noise_in_the_place_of_white_is_found(nulls: Nulls) -> None:
    bench = Bench.of(4)
    frequency = np.fft.rfftfreq(MVMS)
    shape = np.sqrt(1.0 + 0.05 / np.maximum(frequency, 1.0 / MVMS))
    noise = np.fft.irfft(
        np.fft.rfft(bench.noise(), axis=0) * (shape / np.sqrt((shape**2).mean()))[:, None], MVMS, axis=0
    )
    found = names(bench.judge(bench.mean + bench.sigma * noise, nulls))
    assert found & {"slow noise", "memory"}
    # Shuffled, the same numbers are innocent: the order is what was found.
    shuffled = bench.rng.permuted(noise, axis=0)
    assert not names(bench.judge(bench.mean + bench.sigma * shuffled, nulls)) & {"slow noise", "memory"}


def test_outliers_and_bad_rows_are_found_and_named(nulls: Nulls) -> None:
    bench = Bench.of(5)
    noise = bench.noise()
    noise[77, 2] = 7.0
    judgement = bench.judge(bench.mean + bench.sigma * noise, nulls)
    assert "outliers" in names(judgement)
    assert judgement.checks["outliers"].worst_column == 2
    assert any("worst in column 2" in sentence and "7 predicted" in sentence for sentence in judgement.sentences())
    loose = bench.noise()
    loose[50] = [3.2, -3.1, 3.0, -3.3, 3.1, 3.0]
    judgement = bench.judge(bench.mean + bench.sigma * loose, nulls)
    assert "all columns together" in judgement.checks["outliers"].sentence()
    assert "outliers" in names(judgement)


def test_wrong_curve_is_found(nulls: Nulls) -> None:
    bench = Bench.of(6)
    measured = 8.0 * np.tanh(bench.mean / 8.0) + 0.3 * bench.sigma * bench.noise()
    bench.sigma *= 0.3
    assert "curve" in names(bench.judge(measured, nulls))


def test_wrong_gain_is_told_from_a_wrong_curve(nulls: Nulls) -> None:
    bench = Bench.of(12)
    found = names(bench.judge(0.9 * bench.mean + bench.sigma * bench.noise(), nulls))
    assert "gain" in found
    assert "curve" not in found


def test_wrong_spread_offset_shape_and_common_noise_are_found(nulls: Nulls) -> None:
    bench = Bench.of(7)
    assert "spread" in names(bench.judge(bench.mean + 1.2 * bench.sigma * bench.noise(), nulls))
    assert "bias" in names(bench.judge(bench.mean + bench.sigma * (bench.noise() + 0.2), nulls))
    heavy = bench.rng.standard_t(4, bench.mean.shape) / np.sqrt(2.0)
    assert names(bench.judge(bench.mean + bench.sigma * heavy, nulls)) & {"tails", "shape"}
    common = 0.9 * bench.noise() + np.sqrt(1 - 0.81) * bench.rng.standard_normal((MVMS, 1))
    assert "between columns" in names(bench.judge(bench.mean + bench.sigma * common, nulls))


def test_one_bad_column_is_named(nulls: Nulls) -> None:
    bench = Bench.of(8)
    noise = bench.noise()
    noise[:, 4] *= 1.5
    judgement = bench.judge(bench.mean + bench.sigma * noise, nulls)
    assert judgement.checks["spread"].worst_column == 4
    assert judgement.checks["spread"].effect[4] == pytest.approx(1.5, rel=0.1)
    assert judgement.findings[0].name in {"spread", "outliers"}


def test_little_that_all_columns_share_adds_up() -> None:
    bench = Bench.of(9, 400, 64)
    known = Nulls.simulate(400, rng=np.random.default_rng(0), draws=4000)
    judgement = bench.judge(bench.mean + bench.sigma * (bench.noise() + 0.04), known)
    check = judgement.checks["bias"]
    assert check.together_p_value < 1e-6
    assert check.p_value.min() * 64 > 1e-4
    assert "all columns together" in check.sentence()


def test_order_of_rows_is_that_of_time(nulls: Nulls) -> None:
    bench = Bench.of(10)
    noise = 0.8 * bench.noise()
    noise[1:] += 0.6 * noise[:-1]
    measured = bench.mean + bench.sigma * noise
    order = bench.rng.permutation(MVMS)
    straight = bench.judge(measured, nulls)
    bench.mean, bench.sigma, bench.time_s = bench.mean[order], bench.sigma[order], bench.time_s[order]
    bench.age_s, bench.drive = bench.age_s[order], bench.drive[order]
    mixed = bench.judge(measured[order], nulls)
    assert "memory" in names(mixed)
    for name, check in straight.checks.items():
        np.testing.assert_allclose(check.p_value, mixed.checks[name].p_value, rtol=1e-6)


def test_gaps_one_column_and_missing_times_are_no_obstacle(nulls: Nulls) -> None:
    bench = Bench.of(11)
    z = bench.noise()
    z[bench.rng.random(z.shape) < 0.1] = np.nan
    assert judge(z, bench.mean, bench.sigma, rng=bench.rng, nulls=nulls).clean
    single = judge(z[:, :1], bench.mean[:, :1], bench.sigma[:, :1], rng=bench.rng, nulls=nulls)
    assert set(single.skipped) == {"drift", "covariates", "between columns"}
    assert set(single.checks) | set(single.skipped) == set(MEANING)
    assert any("drift: not looked at" in sentence for sentence in single.sentences())
    assert "nothing found by" in single.sentences()[0]


def test_what_cannot_be_judged_is_refused_with_every_reason() -> None:
    z = np.zeros((20, 2))
    with pytest.raises(JudgementError, match=r"one shape .*; time_s has 3 entries for 20 MVMs; 20 MVMs are too few"):
        judge(z, z[:, :1], z, rng=np.random.default_rng(0), time_s=np.zeros(3))
    dead = np.random.default_rng(0).standard_normal((100, 2))
    dead[:, 1] = np.nan
    with pytest.raises(JudgementError, match=r"column 1 has fewer than 30 outputs; leave it out"):
        judge(dead, np.zeros((100, 2)), np.ones((100, 2)), rng=np.random.default_rng(0))
