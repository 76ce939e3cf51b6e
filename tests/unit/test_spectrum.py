"""Spectra and Allan deviations against scipy, closed forms, and noise made with a known spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal

from labrig_calibration.allan import allan_deviation
from labrig_calibration.residuals import JudgementError
from labrig_calibration.spectrum import noise_colour, welch
from labrig_surrogates.noise_traces import Flicker

FloatArray = NDArray[np.float64]

RATE_HZ = 400.0


def made(
    white: float, flicker: float, slope: float, *, samples: int, columns: int, seed: int, longer: int = 8
) -> FloatArray:
    """Noise of one-sided density white + flicker f^-slope: a piece of a longer one, so that its ends do not meet."""
    rng, total = np.random.default_rng(seed), samples * longer
    frequency = np.fft.rfftfreq(total, 1.0 / RATE_HZ)[1:]
    sigma = np.sqrt((white + flicker * frequency**-slope) * RATE_HZ * total / 4.0)[:, None]
    parts = sigma * (rng.standard_normal((2, frequency.size, columns)) * np.array([1.0, 1j])[:, None, None]).sum(axis=0)
    return np.asarray(np.fft.irfft(np.concatenate([np.zeros((1, columns)), parts]), total, axis=0)[:samples])


def test_welch_is_scipys_and_its_intervals_hold_the_truth() -> None:
    trace = np.random.default_rng(0).standard_normal((4000, 50)) * 3.0
    spectrum = welch(trace, RATE_HZ, segment=256)
    frequency_hz, density = signal.welch(trace, RATE_HZ, nperseg=256, axis=0)
    np.testing.assert_allclose(spectrum.frequency_hz, frequency_hz[2:-1])
    np.testing.assert_allclose(spectrum.density, density[2:-1])
    truth = 2.0 * 9.0 / RATE_HZ
    low, high = spectrum.interval(0.9)
    assert ((low < truth) & (truth < high)).mean() == pytest.approx(0.9, abs=0.01)
    # The spread of the estimates is what the degrees of freedom say.
    assert spectrum.density.std() / truth == pytest.approx(math.sqrt(2.0 / spectrum.freedom), rel=0.05)
    # All power is there: the integral is the variance.
    whole = welch(trace, RATE_HZ)
    assert float((whole.density * whole.frequency_hz[0] / 2.0).sum(axis=0).mean()) == pytest.approx(9.0, rel=0.02)


@pytest.mark.parametrize(("slope", "corner_hz"), [(1.0, 5.0), (0.8, 20.0), (1.4, 8.0)])
def test_slope_and_corner_are_recovered_within_their_intervals(slope: float, corner_hz: float) -> None:
    trace = made(2.0, 2.0 * corner_hz**slope, slope, samples=4096, columns=60, seed=1)
    found = noise_colour(trace, RATE_HZ)
    assert np.median([one.slope for one in found]) == pytest.approx(slope, abs=0.06)
    assert np.median([one.corner_hz for one in found]) == pytest.approx(corner_hz, rel=0.1)
    assert np.median([one.white for one in found]) == pytest.approx(2.0, rel=0.05)
    held = [
        (
            one.slope_interval[0] < slope < one.slope_interval[1],
            one.corner_interval_hz[0] < corner_hz < one.corner_interval_hz[1],
        )
        for one in found
    ]
    assert (np.mean(held, axis=0) > 0.8).all()
    assert max(one.p_white for one in found) < 1e-6


@pytest.mark.parametrize("corner_hz", [300.0, 600.0])
def test_white_noise_too_weak_to_be_seen_is_in_the_interval_of_the_slope(corner_hz: float) -> None:
    found = noise_colour(made(1.0, corner_hz, 1.0, samples=4096, columns=60, seed=4), RATE_HZ)
    assert np.mean([one.corner_hz == math.inf for one in found]) > 0.2
    assert np.mean([one.slope_interval[0] < 1.0 < one.slope_interval[1] for one in found]) > 0.8


def test_colours_that_are_not_there_are_not_named() -> None:
    white = noise_colour(np.random.default_rng(0).standard_normal((512, 100)), 1.0)
    assert sum(one.flicker > 0 for one in white) <= 4
    assert white[0].corner_hz == 0.0
    np.testing.assert_allclose(white[0].density(np.array([0.1, 0.2])), white[0].white)
    # Without white noise there is no corner inside the band, and it is not made up.
    pure = noise_colour(made(0.0, 1.0, 1.2, samples=2048, columns=20, seed=2), RATE_HZ)
    assert sum(math.isinf(one.corner_hz) for one in pure) >= 18
    assert np.mean([one.slope for one in pure]) == pytest.approx(1.2, abs=0.05)
    assert noise_colour(np.zeros((100, 1)), 1.0)[0].white == 0.0


def test_flicker_of_the_surrogate_has_the_slope_it_promises() -> None:
    noise = Flicker.between(1.0, 0.05, 200.0, per_decade=3)
    generator = torch.Generator().manual_seed(0)
    state = noise.start((24,), generator, dtype=torch.float64)
    values = []
    for _ in range(4096):
        values.append(Flicker.value(state))
        state = noise.step(state, 1.0 / RATE_HZ, generator)
    trace = torch.stack(values).numpy()
    # Far below the half sampling rate, beyond which a sampled spectrum folds back.
    spectrum = welch(trace, RATE_HZ, segment=1024)
    band = (spectrum.frequency_hz > 1.0) & (spectrum.frequency_hz < 40.0)
    promised = noise.spectrum(torch.as_tensor(spectrum.frequency_hz[band])).numpy()
    assert np.median(spectrum.density[band].mean(axis=1) / promised) == pytest.approx(1.0, abs=0.1)
    assert np.median([one.slope for one in noise_colour(trace, RATE_HZ)]) == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize(
    ("white", "flicker", "slope", "law", "rate"),
    [
        (1.0, 0.0, 1.0, lambda tau: 1.0 / (2.0 * tau), -0.5),
        (0.0, 1.0, 1.0, lambda tau: 2.0 * math.log(2.0) + 0.0 * tau, 0.0),
        (0.0, 1.0, 2.0, lambda tau: 2.0 * math.pi**2 / 3.0 * tau, 0.5),
    ],
    ids=["white", "flicker", "random walk"],
)
def test_allan_deviation_is_that_of_the_closed_forms(
    white: float, flicker: float, slope: float, law: Callable[[FloatArray], FloatArray], rate: float
) -> None:
    trace = made(white, flicker, slope, samples=2048, columns=200, seed=3, longer=16)
    found = allan_deviation(trace, RATE_HZ)
    # At a few samples the closed forms, which know no sampling, differ.
    inside = (found.tau_s >= 8 / RATE_HZ) & (found.tau_s <= 64 / RATE_HZ)
    ratio = (found.deviation[inside] ** 2).mean(axis=1) / law(found.tau_s[inside])
    np.testing.assert_allclose(ratio, 1.0, atol=0.05)
    assert found.slopes()[3:7].mean() == pytest.approx(rate, abs=0.03)
    low, high = found.interval(0.9)
    truth = np.sqrt(law(found.tau_s[inside]))[:, None]
    assert ((low[inside] < truth) & (truth < high[inside])).mean() > 0.8


def test_allan_deviation_by_its_definition() -> None:
    trace = np.random.default_rng(0).standard_normal((40, 1)) + 100.0
    found = allan_deviation(trace, 2.0, tau_s=np.array([1.5]))
    means = np.array([trace[i : i + 3].mean() for i in range(38)])
    expected = math.sqrt(0.5 * np.mean((means[3:] - means[:-3]) ** 2))
    assert found.deviation[0, 0] == pytest.approx(expected, rel=1e-12)
    # White noise that also drifts: the minimum is where the drift takes over.
    drifting = np.random.default_rng(0).standard_normal((4096, 1)) + 0.01 * np.arange(4096)[:, None]
    best = allan_deviation(drifting, 1.0).best_average_s()[0]
    assert 8 <= best <= 64


def test_what_is_no_trace_is_refused() -> None:
    with pytest.raises(JudgementError, match=r"1 value is missing.*the rate of 0"):
        welch(np.where(np.arange(100)[:, None] == 3, np.nan, 0.0), 0.0)
    with pytest.raises(JudgementError, match="at least 64 values"):
        noise_colour(np.zeros((10, 1)), 1.0)
    with pytest.raises(JudgementError, match=r"times must be between 1 and 50 s, not 80 to 80 s"):
        allan_deviation(np.zeros((100, 1)), 1.0, tau_s=np.array([80.0]))
    # The shape is right here; what is wrong is a value.
    with pytest.raises(JudgementError, match=r"no Allan deviation: the trace has 1 value that is not finite$"):
        allan_deviation(np.where(np.arange(100)[:, None] == 3, np.nan, 0.0), 1.0)
