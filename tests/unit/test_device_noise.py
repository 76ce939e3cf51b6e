"""Read noise: jumps are found with honest intervals and not where there are none; spread against conductance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from labrig_calibration.devices.read_noise import Traces, fit_read_noise
from labrig_calibration.devices.telegraph import fit_telegraph
from labrig_calibration.devices.values import DeviceFitError, FloatArray
from labrig_surrogates.noise_traces import Flicker, Telegraph

RATE_HZ = 100.0
TRAP = Telegraph(1.0, 4.0, 9.0)


def jumps(count: int, readings: int, sigma: float, seed: int = 0) -> FloatArray:
    generator = torch.Generator().manual_seed(seed)
    state, values = TRAP.start((count,), generator), []
    for _ in range(readings):
        values.append(TRAP.value(state).numpy())
        state = TRAP.step(state, 1.0 / RATE_HZ, generator)
    noise = np.random.default_rng(seed).standard_normal((count, readings))
    return np.asarray(np.array(values, dtype=np.float64).T + sigma * noise)


def wandering(count: int, readings: int, seed: int = 0) -> FloatArray:
    """1/f noise over white noise: it has a memory of every length, and no jump."""
    generator = torch.Generator().manual_seed(seed)
    law = Flicker.between(1.0, 0.01, 50.0)
    state, values = law.start((count,), generator, torch.float64), []
    for _ in range(readings):
        values.append(law.value(state).numpy())
        state = law.step(state, 1.0 / RATE_HZ, generator)
    return np.asarray(np.array(values).T + 0.2 * np.random.default_rng(seed).standard_normal((count, readings)))


def test_jumps_are_found_and_their_law_comes_back() -> None:
    fits = fit_telegraph(Traces(jumps(3, 800, 0.3), RATE_HZ))
    assert all(one.found for one in fits)
    for one in fits:
        law = one.law()
        assert law is not None
        assert law.amplitude == pytest.approx(1.0, abs=0.1)
        assert law.up_hz == pytest.approx(4.0, rel=0.6)
        assert law.down_hz == pytest.approx(9.0, rel=0.6)
        assert one.summary()["sigma"].value == pytest.approx(0.3, rel=0.1)


def test_no_jumps_are_found_where_there_are_none() -> None:
    white = np.random.default_rng(1).standard_normal((2, 800))
    fits = fit_telegraph(Traces(np.concatenate([white, wandering(2, 800)]), RATE_HZ))
    assert [one.found for one in fits] == 4 * [False]
    assert all(one.law() is None for one in fits)


def test_a_converter_that_hides_the_noise_does_not_hide_the_rates() -> None:
    traces = np.round(jumps(2, 800, 0.05))
    assert set(np.unique(traces).tolist()) == {0.0, 1.0}
    counted = np.abs(np.diff(traces, axis=1)).sum(axis=1)
    for one, jumped in zip(fit_telegraph(Traces(traces, RATE_HZ)), counted, strict=True):
        assert one.jumps == pytest.approx(jumped, rel=0.1)
        assert one.amplitude.value == pytest.approx(1.0, abs=0.05)
        assert one.up_hz.high / one.up_hz.low < 4.0
    step = np.repeat([[0.0, 1.0]], 500, axis=1)
    assert not fit_telegraph(Traces(step, RATE_HZ))[0].found
    alternating = np.tile([0.0, 1.0], 300)[None]
    assert not fit_telegraph(Traces(alternating, RATE_HZ))[0].found
    late = np.concatenate([np.zeros(700), np.random.default_rng(0).standard_normal(50)])[None]
    with pytest.raises(DeviceFitError, match="trace 0: its first 600 readings are all the same"):
        fit_telegraph(Traces(late, RATE_HZ), most_readings=600)


def test_currents_of_either_sign_have_the_same_noise() -> None:
    rng = np.random.default_rng(5)
    level = np.geomspace(1e-6, 32e-6, 6)[:, None]
    values = level * (1.0 + 0.01 * rng.standard_normal((6, 500)))
    sign = np.array([1.0, -1.0, -1.0, 1.0, -1.0, 1.0])[:, None]
    plain, turned = (fit_read_noise(Traces(one, RATE_HZ)) for one in (values, sign * values))
    assert turned.reference == pytest.approx(plain.reference)
    assert (turned.exponent.value, turned.exponent.error) == pytest.approx((plain.exponent.value, plain.exponent.error))
    assert turned.exponent.holds(1.0)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_how_often_jumps_are_found_and_intervals_hold() -> None:
    fits = fit_telegraph(Traces(jumps(200, 1000, 0.3), RATE_HZ))
    truth = {"amplitude": 1.0, "up_hz": 4.0, "down_hz": 9.0, "sigma": 0.3}
    rates = {name: float(np.mean([getattr(one, name).holds(true) for one in fits])) for name, true in truth.items()}
    print("found in", np.mean([one.found for one in fits]), "of 200 traces; intervals hold", rates)
    assert np.mean([one.found for one in fits]) > 0.99
    assert all(0.84 < rate < 0.96 for rate in rates.values())
    for name, values in (
        ("white", np.random.default_rng(2).standard_normal((100, 1000))),
        ("1/f", wandering(100, 1000)),
    ):
        alarms = float(np.mean([one.found for one in fit_telegraph(Traces(values, RATE_HZ))]))
        print(f"false alarms on 100 traces of {name} noise: {alarms:.3f}")
        assert alarms <= 0.05


def test_jumps_faster_than_readings_are_said_to_be_unresolved() -> None:
    rng = np.random.default_rng(3)
    two_levels = (rng.random((1, 2000)) < 0.4) + 0.1 * rng.standard_normal((1, 2000))
    (fit,) = fit_telegraph(Traces(two_levels, RATE_HZ))
    assert not fit.found
    assert any("not resolved" in note for note in fit.summary().notes)


def test_the_spread_against_the_conductance_and_its_law() -> None:
    rng = np.random.default_rng(4)
    level_s = np.geomspace(1e-6, 1e-4, 40)
    sigma_s = 2e-8 * (level_s / 1e-5) ** 0.5 * np.exp(0.2 * rng.standard_normal(40))
    fit = fit_read_noise(Traces(level_s[:, None] + sigma_s[:, None] * rng.standard_normal((40, 512)), 10.0))
    assert fit.exponent.holds(0.5)
    assert fit.scatter.holds(0.2)
    assert fit.factor.holds(2e-8)
    at = torch.tensor([1e-5, 4e-5], dtype=torch.float64)
    expected = fit.factor.value * (at.numpy() / fit.reference) ** fit.exponent.value
    np.testing.assert_allclose(fit.law().sigma_s(at, at, 0.0).numpy(), expected, rtol=1e-6)
    assert fit.summary().conditions["traces that are not white (p < 0.01)"] in range(4)


def test_coloured_noise_has_a_slope_and_becomes_a_law_of_traces() -> None:
    values = 1e-5 + 1e-7 * wandering(4, 4096)
    fit = fit_read_noise(Traces(values, RATE_HZ))
    assert all(one.p_white < 0.01 for one in fit.colour)
    assert np.mean([one.slope for one in fit.colour]) == pytest.approx(1.0, abs=0.2)
    law = fit.flicker(0)
    assert law is not None
    assert law.sigma == pytest.approx(1e-7, rel=0.5)
    plain = fit_read_noise(Traces(1e-5 + 1e-7 * np.random.default_rng(0).standard_normal((1, 1024)), RATE_HZ))
    assert plain.flicker(0) is None
    with pytest.raises(DeviceFitError, match="too few traces"):
        plain.law()


def test_with_time_shuffled_noise_is_white_and_jumps_are_unresolved() -> None:
    rng = np.random.default_rng(5)
    shuffled = rng.permuted(np.concatenate([jumps(1, 1000, 0.3), wandering(1, 1000)]), axis=1)
    assert all(one.p_white > 0.001 for one in fit_read_noise(Traces(shuffled, RATE_HZ)).colour)
    assert not any(one.found for one in fit_telegraph(Traces(shuffled, RATE_HZ)))


def test_every_fault_is_named() -> None:
    with pytest.raises(DeviceFitError, match=r"traces of shape \[1, 5\].*rate_hz = -1"):
        Traces(np.zeros((1, 5)), -1.0)
    with pytest.raises(DeviceFitError, match=r"traces \[0\] never change"):
        Traces(np.ones((1, 300)), 1.0)
    with pytest.raises(DeviceFitError, match="2 readings are not finite"):
        Traces(np.where(np.arange(300) < 2, np.nan, 1.0)[None], 1.0)


def test_real_traces_are_coloured(data_dir: Path) -> None:
    path = data_dir / "measured" / "readc_memristor" / "repeated_reads_uS.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    from labrig.measured_files import read_traces

    traces = read_traces(path)
    assert traces.values.shape == (7, 1000)
    fit = fit_read_noise(traces)
    assert sum(one.p_white < 0.01 for one in fit.colour) >= 4
