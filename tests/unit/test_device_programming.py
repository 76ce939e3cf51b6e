"""Programming statistics: published spreads come back, devices and writes are kept apart, shapes are seen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from labrig_calibration.devices.programming import ProgrammedCells, ProgrammingFit, fit_programming
from labrig_calibration.devices.values import DeviceFitError, FloatArray, share
from labrig_surrogates.device_laws import PowerLawDrift, Programmed
from labrig_surrogates.device_presets import Device, pcm_joshi, pcm_like, reram_milo

US = 1e-6
JOSHI = (0.28638599 * US, 0.07585724 * 25 * US, -0.00178767 * 25**2 * US)


def joshi_sigma_s(target_s: FloatArray) -> FloatArray:
    relative = target_s / (25 * US)
    return np.asarray(JOSHI[0] + JOSHI[1] * relative + JOSHI[2] * relative**2)


def cells_of(rng: np.random.Generator, devices: int, own_s: float = 0.0, bias_s: float = 0.0) -> ProgrammedCells:
    target_s = np.tile(np.linspace(1.0, 25.0, 8) * US, devices)
    device = np.repeat(np.arange(devices), 8)
    error_s = (
        joshi_sigma_s(target_s) * rng.standard_normal(len(target_s)) + own_s * rng.standard_normal(devices)[device]
    )
    return ProgrammedCells(target_s, target_s + bias_s + error_s, device)


def rates(sets: int, devices: int) -> FloatArray:
    """How often the intervals of the bias and the three coefficients hold, terms given."""
    rng = np.random.default_rng(7)
    holds = []
    for _ in range(sets):
        fit = fit_programming(cells_of(rng, devices, bias_s=0.1 * US), terms=(1, 3))
        holds.append([fit.bias[0].holds(0.1 * US), *(q.holds(v) for q, v in zip(fit.spread, JOSHI, strict=True))])
    return np.asarray(np.mean(holds, axis=0))


def test_intervals_hold_on_a_few_sets() -> None:
    assert rates(12, 60).mean() > 0.75


def test_few_devices_with_many_writes_say_no_more_than_the_devices_do() -> None:
    rng = np.random.default_rng(3)
    held = []
    for _ in range(30):
        device = np.repeat(np.arange(5), 100)
        target_s = np.tile(np.linspace(5.0, 25.0, 10) * US, 50)
        error_s = 1.0 * US * rng.standard_normal(5)[device] + 0.5 * US * rng.standard_normal(500)
        fit = fit_programming(ProgrammedCells(target_s, target_s + error_s, device), terms=(1, 1))
        held.append(fit.bias[0].holds(0.0))
    # As if every write were a device of its own, 1 of 7.
    assert np.mean(held) > 0.7


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_intervals_hold_as_often_as_they_say() -> None:
    found = rates(300, 60)
    print("intervals hold: bias, sigma_0, sigma_1, sigma_2", found.round(3))
    assert ((found > 0.85) & (found < 0.95)).all()


@pytest.mark.parametrize("device", [pcm_joshi(), pcm_like(), reram_milo()], ids=lambda one: one.name)
def test_spreads_of_published_devices_are_found(device: Device) -> None:
    generator = torch.Generator().manual_seed(1)
    low_s, high_s = device.conductance_min_s, device.conductance_max_s
    target = torch.linspace(max(low_s, 0.2 * high_s), high_s, 9, dtype=torch.float64).repeat(400)
    normal = torch.randn(len(target), generator=generator, dtype=torch.float64)
    state = device.state.state_s(target, 0.0, lambda _: normal)
    fit = fit_programming(ProgrammedCells(target.numpy(), state.numpy(), np.arange(len(target))))
    law = device.state
    programming = law.programming if isinstance(law, PowerLawDrift) else law
    assert isinstance(programming, Programmed)
    at = torch.linspace(0.25 * high_s, high_s, 5, dtype=torch.float64)
    torch.testing.assert_close(fit.law().sigma_s(at), programming.sigma_s(at), rtol=0.06, atol=0.0)
    np.testing.assert_allclose(fit.sigma_s(at.numpy()), fit.law().sigma_s(at).numpy(), rtol=1e-9)


def test_more_terms_are_taken_only_where_they_predict() -> None:
    rng = np.random.default_rng(2)
    flat = ProgrammedCells(
        t := np.tile(np.linspace(1, 4, 4) * US, 200), t + US * rng.standard_normal(800), np.arange(800)
    )
    fit = fit_programming(flat)
    assert (len(fit.bias), len(fit.spread)) == (0, 1)
    growing = ProgrammedCells(t, t + 0.3 * t * rng.standard_normal(800), np.arange(800))
    assert len(fit_programming(growing).spread) > 1
    # The right spreads at the wrong targets predict nothing: a constant is left.
    shuffled = ProgrammedCells(t, t + rng.permutation(growing.conductance_s - t), np.arange(800))
    assert len(fit_programming(shuffled).spread) == 1


def test_what_stays_with_a_device_is_told_from_what_a_write_adds() -> None:
    rng = np.random.default_rng(3)
    own = fit_programming(cells_of(rng, 150, own_s=0.6 * US), terms=(0, 3)).device_sigma
    none = fit_programming(cells_of(rng, 150), terms=(0, 3)).device_sigma
    assert own.holds(0.6 * US)
    assert none.high < 0.25 * US < own.low
    alone = ProgrammedCells(
        t := np.tile(np.linspace(1, 4, 4) * US, 10), t + US * rng.standard_normal(40), np.arange(40)
    )
    assert np.isnan(fit_programming(alone).device_sigma.value)


def test_failed_cells_are_counted_and_do_not_widen_the_spread() -> None:
    rng = np.random.default_rng(4)
    cells = cells_of(rng, 60)
    conductance_s = cells.conductance_s.copy()
    conductance_s[::97] = 0.0
    stuck = np.zeros(len(conductance_s), dtype=bool)
    stuck[::97] = cells.target_s[::97] > 8 * US
    fit = fit_programming(ProgrammedCells(cells.target_s, conductance_s, cells.device), terms=(0, 3))
    assert fit.failed[stuck].all()
    assert fit.failed.sum() <= stuck.sum() + 3
    assert fit.spread[0].value < 2 * JOSHI[0]


def test_a_window_of_acceptance_shows_in_the_shape() -> None:
    rng = np.random.default_rng(5)
    target_s = np.tile(np.linspace(100, 400, 7) * US, 64)
    window = ProgrammedCells(target_s, target_s + rng.uniform(-5, 5, 448) * US, np.arange(448))
    fit = fit_programming(window)
    assert fit.tails.holds(-1.2)
    assert fit.largest.holds(5 * US)
    assert any("accepted" in note for note in fit.summary().notes)


def test_the_noise_of_reading_is_taken_out() -> None:
    rng = np.random.default_rng(6)
    cells = cells_of(rng, 100)
    read = ProgrammedCells(
        cells.target_s, cells.conductance_s + 1.0 * US * rng.standard_normal(800), cells.device, read_sigma_s=1.0 * US
    )
    fit: ProgrammingFit = fit_programming(read, terms=(0, 1))
    assert fit.spread[0].value == pytest.approx(float(np.sqrt(np.mean(joshi_sigma_s(cells.target_s) ** 2))), rel=0.1)


def test_faults_are_all_named_and_json_has_no_nan() -> None:
    with pytest.raises(DeviceFitError, match=r"has 3 rows.*has 2 rows.*_s: 1 value is not finite.*at least 10"):
        ProgrammedCells(np.ones(3), np.array([1.0, np.nan]), np.arange(3))
    alone = ProgrammedCells(
        t := np.full(20, US), t + 0.1 * US * np.random.default_rng(0).standard_normal(20), np.arange(20)
    )
    text = json.dumps(fit_programming(alone).summary().as_json(), allow_nan=False)
    assert json.loads(text)["title"] == "programming"
    assert share("x", 0, 100).low == 0.0
    assert share("x", 0, 100).high > 0.0
