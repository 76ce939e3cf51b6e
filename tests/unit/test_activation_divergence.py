"""Jensen-Shannon divergence with its bias, floors and p-values, and the energy distance of whole vectors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import signal, stats
from scipy.spatial.distance import jensenshannon

from labrig_calibration.activation_divergence import compare_activations, effective_samples
from labrig_calibration.dataset import Converters, MvmDataset
from labrig_calibration.divergence import compare, jensen_shannon, jensen_shannon_rows, miller_madow, plug_in_bias
from labrig_calibration.histogram_bins import HistogramBins
from labrig_calibration.judging import adc_steps, judge_recorded, repeated_inputs, through_steps
from labrig_calibration.residuals import JudgementError
from labrig_calibration.two_sample import energy_test

FloatArray = NDArray[np.float64]


def test_plug_in_value_has_the_bias_and_the_law_that_are_known() -> None:
    rng, bins, samples = np.random.default_rng(0), 64, 1000
    counts = rng.multinomial(samples, np.full(bins, 1.0 / bins), size=(2, 4000)).astype(np.float64)
    value = jensen_shannon_rows(counts[0], counts[1])
    assert plug_in_bias(bins, samples, samples) == pytest.approx((bins - 1) / (4 * samples * np.log(2)))
    assert value.mean() == pytest.approx(plug_in_bias(bins, samples, samples), rel=0.02)
    # 4 N times the value in nats is chi-squared with K - 1 degrees of freedom.
    scaled = 4 * samples * np.log(2) * value
    assert scaled.var() == pytest.approx(2 * (bins - 1), rel=0.1)
    assert stats.kstest(scaled / scaled.mean() * (bins - 1), "chi2", args=(bins - 1,)).pvalue > 1e-3
    corrected = np.mean([miller_madow(p, q) for p, q in zip(counts[0, :500], counts[1, :500], strict=True)])
    assert abs(corrected) < 0.05 * value.mean()
    unequal = rng.multinomial(300, np.full(bins, 1.0 / bins), size=4000).astype(np.float64)
    assert jensen_shannon_rows(counts[0], unequal).mean() == pytest.approx(plug_in_bias(bins, 1000, 300), rel=0.1)


def test_divergence_is_scipys() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.random(20), rng.random(20)
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == pytest.approx(1.0)


def test_unrelated_samples_keep_their_level_and_differences_show() -> None:
    rng = np.random.default_rng(2)
    results = [compare(rng.standard_normal(300), rng.standard_normal(300), rng=rng, bins=16) for _ in range(300)]
    assert 0.05 < np.mean([one.p_value <= 0.1 for one in results]) < 0.16
    assert abs(np.mean([one.corrected for one in results])) < 1e-3
    assert compare(rng.standard_normal(300), 1.5 * rng.standard_normal(300), rng=rng, bins=16).p_value < 0.01


def layer(rng: np.random.Generator, noise: float, signal_: FloatArray) -> FloatArray:
    return np.asarray(signal_ + noise * rng.standard_normal(signal_.shape))


def test_partners_keep_the_level_where_inputs_scatter_more_than_noise() -> None:
    rng, found, unrelated = np.random.default_rng(3), [], []
    for _ in range(150):
        inputs = rng.standard_normal((400, 4))
        measured, predicted = layer(rng, 0.2, inputs), layer(rng, 0.2, inputs)
        one = compare_activations(measured, predicted, rng=rng, permutations=59, bootstraps=2)
        found.append([one.layer_p_value, one.worst_p_value, float(one.corrected.mean())])
        unrelated.append(compare(measured, predicted, rng=rng, permutations=59).p_value)
    p = np.array(found)
    assert ((p[:, :2] <= 0.1).mean(axis=0) < 0.17).all()
    assert ((p[:, :2] <= 0.1).mean(axis=0) > 0.04).all()
    assert abs(p[:, 2].mean()) < 5.0 * p[:, 2].std() / np.sqrt(150)
    # Who shuffles all rows takes the common inputs for scatter, and equal ones for more alike than chance allows.
    assert np.median(unrelated) > 0.65


def test_a_bad_column_is_found_named_and_inside_its_interval() -> None:
    rng = np.random.default_rng(4)
    inputs = rng.standard_normal((2000, 8))
    predicted = layer(rng, 0.3, inputs)
    predicted[:, 5] += 0.25
    one = compare_activations(layer(rng, 0.3, inputs), predicted, rng=rng)
    assert one.worst_column == 5
    assert one.worst_p_value < 0.01
    assert one.p_value[5] < 0.01
    assert one.worst > 5.0 * abs(one.median)
    # The true value, by a sample so large that it has no bias left.
    large = rng.standard_normal((400_000, 1)) * np.sqrt(1.09)
    truth = compare(large, rng.standard_normal((400_000, 1)) * np.sqrt(1.09) + 0.25, rng=rng, permutations=9).corrected
    assert one.corrected[5] == pytest.approx(truth, rel=0.5)
    low, high = one.layer_interval
    assert low < truth / 8 < high


def test_chip_against_itself_is_the_figure_of_merit() -> None:
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((1500, 6))
    chip, again = layer(rng, 0.3, inputs), layer(rng, 0.3, inputs)
    good = compare_activations(chip, layer(rng, 0.3, inputs), rng=rng, repeated=again)
    bad = compare_activations(chip, layer(rng, 0.8, inputs), rng=rng, repeated=again)
    assert 0.8 < good.ratio_to_itself < 1.2
    assert bad.ratio_to_itself > 1.5
    assert np.isnan(compare_activations(chip, again, rng=rng).itself)


def test_noise_that_remembers_is_exchanged_in_blocks() -> None:
    rng, blocked, single = np.random.default_rng(6), [], []

    def remembering() -> FloatArray:
        return np.asarray(signal.lfilter([1.0], [1.0, -0.8], rng.standard_normal((2100, 3)), axis=0)[100:])

    for _ in range(40):
        measured, predicted = remembering(), remembering()
        one = compare_activations(measured, predicted, rng=rng, permutations=49, bootstraps=2)
        blocked.append(one.layer_p_value)
        single.append(
            compare_activations(measured, predicted, rng=rng, permutations=49, bootstraps=2, block=1).layer_p_value
        )
    assert one.block > 10
    # Worth about (1 - 0.8) / (1 + 0.8) of their number.
    assert np.median(one.effective) == pytest.approx(2000 / 9.0, rel=0.35)
    assert np.mean(np.array(blocked) <= 0.1) < 0.3
    assert np.mean(np.array(single) <= 0.1) > 0.5
    white = np.random.default_rng(0).integers(0, 9, (2, 1000, 20))
    assert np.median(effective_samples(white[0], white[1])) > 800


def test_zeros_have_a_bin_of_their_own() -> None:
    rng = np.random.default_rng(7)
    rectified = np.maximum(rng.standard_normal((1000, 2)), 0.0)
    bins = HistogramBins.equal_mass(rectified, 16)
    assert bins.zero_apart
    index = bins.index(rectified)
    assert ((index == 0) == (rectified == 0.0)).all()
    shares = np.bincount(index[:, 0][index[:, 0] > 0], minlength=17)[1:] / (rectified[:, 0] > 0).sum()
    assert np.abs(shares - 1.0 / 16.0).max() < 0.01
    # As many zeros too many are seen in that bin although no other differs.
    fewer = np.where(rng.random((1000, 2)) < 0.3, 0.0, np.maximum(rng.standard_normal((1000, 2)), 0.0))
    one = compare_activations(rectified, fewer, rng=rng, bins=bins)
    assert one.layer_p_value < 0.02
    assert one.zero_share[1] > one.zero_share[0] + 0.02


def test_codes_are_bins_and_many_codes_share_one() -> None:
    lsb = np.array([0.5, 1.0])
    codes = np.random.default_rng(0).integers(-20, 21, (500, 2))
    few = HistogramBins.codes(lsb, -20 * lsb, 20 * lsb)
    assert few.count == 41
    np.testing.assert_array_equal(few.index(codes * lsb), codes + 20)
    many = HistogramBins.codes(lsb, -2000 * lsb, 2000 * lsb, largest=256)
    assert 126 <= many.count <= 256
    wide = np.random.default_rng(0).integers(-2000, 2001, (500, 2))
    index = many.index(wide * lsb)
    assert 0 <= index.min() < index.max() < many.count
    np.testing.assert_array_equal(index[:, 0] - index[0, 0], wide[:, 0] // 16 - wide[0, 0] // 16)


def test_energy_distance_is_scipys_and_keeps_its_level() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((50, 1)), rng.standard_normal((70, 1)) + 0.3
    expected = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    assert energy_test(x, y, rng=rng, exchange="all").energy == pytest.approx(expected, rel=1e-9)
    found = []
    for _ in range(100):
        a, b = rng.standard_normal((2, 40, 5))
        found.append([energy_test(a, b, rng=rng, exchange=how, permutations=99).p_value for how in ("pairs", "all")])
    assert ((np.mean(np.array(found) <= 0.1, axis=0) > 0.03) & (np.mean(np.array(found) <= 0.1, axis=0) < 0.19)).all()


def test_energy_distance_sees_what_no_column_shows() -> None:
    rng = np.random.default_rng(9)
    common = np.sqrt(0.7) * rng.standard_normal((600, 4)) + np.sqrt(0.3) * rng.standard_normal((600, 1))
    apart = rng.standard_normal((600, 4))
    assert energy_test(common, apart, rng=rng).p_value < 0.01
    assert min(stats.ks_2samp(common[:, c], apart[:, c]).pvalue for c in range(4)) > 0.01
    small = energy_test(common, apart, rng=rng, largest=100, block=5)
    assert small.samples == (100, 100)


def test_what_cannot_be_compared_is_refused() -> None:
    rng, values = np.random.default_rng(0), np.zeros((30, 2))
    with pytest.raises(JudgementError, match=r"predicted has shape \[30, 1\].*; predicted has 30 values"):
        compare_activations(values, np.full((30, 1), np.nan), rng=rng)
    with pytest.raises(JudgementError, match="30 samples make fewer than 20 blocks of 2"):
        compare_activations(values, values, rng=rng, block=2)
    with pytest.raises(JudgementError, match="pairs need as many rows"):
        energy_test(values, values[:20], rng=rng)
    with pytest.raises(JudgementError, match="1 bins compare nothing"):
        HistogramBins.equal_mass(values, 1)


def recorded(seed: int, noise_a: float) -> tuple[MvmDataset, FloatArray, FloatArray]:
    """A chip with a known law behind a coarse ADC that clips, every input twice; predictions that are true."""
    rng = np.random.default_rng(seed)
    voltage_v = np.repeat(rng.uniform(-0.2, 0.2, (250, 8)), 2, axis=0)
    target_s = rng.uniform(1e-6, 20e-6, (1, 8, 3))
    converters = Converters(-0.2, 0.2, 8, 6, np.full(3, 4e-6), 1e-6, 20e-6)
    mean_a = voltage_v @ target_s[0]
    blank = MvmDataset(
        voltage_v,
        mean_a,
        np.zeros(500, dtype=np.int64),
        target_s,
        1e-3 * np.arange(500.0),
        np.zeros(1),
        np.zeros((500, 3), dtype=np.bool_),
        converters,
    )
    steps = adc_steps(blank)
    current_a = through_steps(mean_a + noise_a * rng.standard_normal(mean_a.shape), steps)
    saturated = (current_a <= steps.low_a) | (current_a >= steps.high_a)
    sigma_a = np.sqrt(np.full_like(mean_a, noise_a) ** 2 + steps.lsb_a**2 / 12.0)
    full = MvmDataset(
        voltage_v, current_a, blank.pattern, target_s, blank.time_s, blank.programmed_at_s, saturated, converters
    )
    return full, mean_a, sigma_a


def test_recorded_mvms_through_a_coarse_clipping_adc_are_judged_fairly() -> None:
    data, mean_a, sigma_a = recorded(0, 0.1e-6)
    assert 0.001 < data.saturated.mean() < 0.5
    judged = judge_recorded(mean_a, sigma_a, data, rng=np.random.default_rng(1))
    assert judged.battery.clean, judged.battery.sentences()
    assert judged.layer.layer_p_value > 0.02
    assert judged.vectors.p_value > 0.02
    assert judged.against_itself is not None
    assert 0.6 < judged.against_itself.ratio_to_itself < 1.6
    first, second = repeated_inputs(data)
    np.testing.assert_array_equal(data.voltage_v[first], data.voltage_v[second])
    assert first.size == 250
    wrong = judge_recorded(mean_a * 1.1, sigma_a, data, rng=np.random.default_rng(1))
    assert not wrong.battery.clean
    assert {check.name for check in wrong.battery.findings} & {"spread", "curve"}
