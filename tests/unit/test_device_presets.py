"""Published devices against their own equations: spot values worked out by hand, and moments of many draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from labrig_surrogates.device_laws import AccumulatedFlicker, LogRelaxation, PowerLawDrift, Programmed, ReplacedError
from labrig_surrogates.device_presets import (
    PRESETS,
    Device,
    hermes,
    pcm_joshi,
    pcm_like,
    reram_cmo,
    reram_milo,
    reram_wan,
    reram_wan_one_second,
    sonos,
)
from labrig_surrogates.errors import SurrogateError

US, DAY_S = 1e-6, 86_400.0
# Relative conductance, and what the published equations give there.
SPOTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def numbers(seed: int, shape: tuple[int, ...]) -> Callable[[str], Tensor]:
    """Normal numbers by name, the same at each call."""
    kept: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def find(name: str) -> Tensor:
        if name not in kept:
            kept[name] = torch.randn(shape, generator=generator, dtype=torch.float64)
        return kept[name]

    return find


def values(*relative: float) -> Tensor:
    return torch.tensor(relative, dtype=torch.float64)


def programmed(device: Device) -> Programmed:
    law = device.state.programming if isinstance(device.state, PowerLawDrift | LogRelaxation) else device.state
    assert isinstance(law, Programmed)
    return law


@pytest.mark.parametrize(
    ("device", "sigma_us"),
    [
        (pcm_like(), (0.2635, 0.4482, 0.6814, 0.9527, 1.0774, 1.0554)),
        (hermes(2), (0.1660, 0.5577, 0.8888, 0.9910, 0.9124, 1.0927)),
        (hermes(1), (0.1578, 0.3693, 0.6145, 0.8653, 0.9748, 1.0076)),
    ],
    ids=["PCM", "HERMES 2", "HERMES 1"],
)
def test_spread_of_programming_at_spot_values(device: Device, sigma_us: tuple[float, ...]) -> None:
    found = programmed(device).sigma_s(values(*SPOTS) * device.conductance_max_s) / US
    np.testing.assert_allclose(found, sigma_us, atol=6e-5)


@pytest.mark.parametrize(
    ("device", "targets_us", "sigma_us"),
    [
        (pcm_joshi(), (0, 5, 12.5, 20, 25), (0.2864, 0.6210, 0.9553, 1.0885, 1.0655)),
        (reram_milo(), (50, 100, 150, 225), (4.327, 3.872, 3.416, 2.733)),
        (reram_wan_one_second(), (0, 10, 20, 30, 39.26), (1.053, 2.414, 2.362, 1.819, 1.681)),
        (reram_cmo(0.2), (9, 40, 88.2), (0.01043, 0.04356, 0.09508)),
        (reram_cmo(2.0), (9, 40, 88.2), (0.1128, 0.4628, 1.007)),
    ],
    ids=["Joshi", "Milo", "Wan 1 s", "CMO 0.2 %", "CMO 2 %"],
)
def test_spread_of_programming_in_microsiemens(
    device: Device, targets_us: tuple[float, ...], sigma_us: tuple[float, ...]
) -> None:
    found = programmed(device).sigma_s(values(*targets_us) * US) / US
    np.testing.assert_allclose(found, sigma_us, rtol=6e-4)


@pytest.mark.parametrize(
    ("device", "mean", "sigma", "amplitude"),
    [
        (
            pcm_like(),
            (0.1000, 0.0601, 0.0490, 0.0490, 0.0490, 0.0490),
            (0.0450, 0.0229, 0.0114, 0.0080, 0.0080, 0.0080),
            (0.2000, 0.0393, 0.0217, 0.0138, 0.0106, 0.0088),
        ),
        (
            hermes(2),
            (0.1300, 0.0719, 0.0677, 0.0564, 0.0396, 0.0174),
            (0.0400, 0.0212, 0.0105, 0.0090, 0.0076, 0.0048),
            (0.0400, 0.0200, 0.0159, 0.0167, 0.0153, 0.0123),
        ),
        (
            hermes(1),
            (0.1300, 0.0719, 0.0677, 0.0564, 0.0396, 0.0174),
            (0.0400, 0.0253, 0.0143, 0.0121, 0.0098, 0.0055),
            (0.0400, 0.0218, 0.0206, 0.0217, 0.0184, 0.0168),
        ),
    ],
    ids=["PCM", "HERMES 2", "HERMES 1"],
)
def test_exponents_and_amplitudes_at_spot_values(
    device: Device, mean: tuple[float, ...], sigma: tuple[float, ...], amplitude: tuple[float, ...]
) -> None:
    assert isinstance(device.state, PowerLawDrift)
    assert isinstance(device.read, AccumulatedFlicker)
    np.testing.assert_allclose(device.state.exponent_mean(values(*SPOTS)), mean, atol=6e-5)
    np.testing.assert_allclose(device.state.exponent_sigma(values(*SPOTS)), sigma, atol=6e-5)
    np.testing.assert_allclose(device.read.amplitude(values(*SPOTS)), amplitude, atol=6e-5)


@pytest.mark.parametrize(
    ("device", "age_s", "growth"),
    [
        (pcm_like(), 0.0, 4.184),
        (pcm_like(), 1.0, 4.190),
        (pcm_like(), 3600.0, 4.765),
        (pcm_like(), DAY_S, 5.087),
        (hermes(), DAY_S, 5.016),
    ],
)
def test_accumulated_flicker_grows_as_published(device: Device, age_s: float, growth: float) -> None:
    assert isinstance(device.read, AccumulatedFlicker)
    full_s = values(device.conductance_max_s)
    sigma_s = device.read.sigma_s(full_s, full_s, age_s)
    assert float(sigma_s / full_s / device.read.amplitude(values(1.0))) == pytest.approx(growth, abs=6e-4)


@pytest.mark.parametrize(
    ("age_s", "sigma_us"),
    [
        (1.0, (0.348, 1.556, 2.258, 2.023, 1.533, 1.103)),
        (DAY_S, (0.701, 2.447, 3.721, 3.909, 3.366, 2.651)),
        (2.0 * DAY_S, (0.782, 2.410, 3.664, 3.929, 3.374, 2.677)),
    ],
)
def test_a_later_error_replaces_the_earlier(age_s: float, sigma_us: tuple[float, ...]) -> None:
    device = reram_wan()
    target_s = (values(*SPOTS) * device.conductance_max_s)[:, None].expand(-1, 100_000)
    ones = torch.ones(target_s.shape, dtype=torch.float64)
    found = device.state.state_s(target_s, age_s, lambda _: ones)[:, 0] - target_s[:, 0]
    np.testing.assert_allclose(found / US, sigma_us, rtol=6e-4)


def test_an_age_that_nobody_measured_is_refused() -> None:
    with pytest.raises(SurrogateError, match="measured up to 172800 s"):
        reram_wan().state.state_s(values(1e-5), 3.0 * DAY_S, numbers(0, (1,)))
    with pytest.raises(SurrogateError, match="measured up to 432000 s"):
        sonos().state.state_s(values(1e-6), 6.0 * DAY_S, numbers(0, (1,)))


def test_between_two_ages_the_spread_lies_between() -> None:
    law = reram_wan().state
    target_s, one = values(20e-6), lambda _: values(1.0)
    early, between, late = (float(law.state_s(target_s, age_s, one)) for age_s in (1.0, math.sqrt(DAY_S), DAY_S))
    assert between == pytest.approx(0.5 * (early + late), rel=1e-12)


def test_sonos_at_spot_values_and_its_shift_after_a_day() -> None:
    device, na = sonos(read_voltage_v=0.1), 1e-8
    assert isinstance(device.state, ReplacedError)
    assert device.read is not None
    targets_s = values(0, 100, 400, 1600) * na
    found = device.state.state_s(targets_s, 0.0, lambda _: torch.ones(4, dtype=torch.float64)) - targets_s
    np.testing.assert_allclose(found / na, (0, 8.608, 17.829, 19.884), atol=6e-4)
    np.testing.assert_allclose(
        device.read.sigma_s(targets_s, targets_s, 0.0) / na, (0, 4.673, 10.617, 12.573), atol=6e-4
    )
    quiet = device.state.state_s(targets_s, DAY_S, lambda _: torch.zeros(4, dtype=torch.float64)) - targets_s
    assert float(quiet[0]) / na == pytest.approx(0.172684, rel=1e-9)
    # The polynomial of the first day at 100 nA, summed term by term.
    terms = (0.172684, 5.72552, -6.85715, 3.50271, -0.937682, 0.140575, -0.0119803, 5.41293e-4, -8.85448e-6)
    assert float(quiet[1]) / na == pytest.approx(sum(terms), rel=1e-5)


def test_cmo_relaxes_and_is_read_as_published() -> None:
    device = reram_cmo()
    assert device.read is not None
    target_s = torch.full((200_000,), 40.0 * US, dtype=torch.float64)
    moved_us = (device.state.state_s(target_s, DAY_S, numbers(1, (200_000,))) - target_s) / US
    sigma_us = math.hypot(0.8894, 0.04356)
    assert float(moved_us.mean()) == pytest.approx(-1.0117, abs=5 * sigma_us / math.sqrt(200_000))
    assert float(moved_us.std()) == pytest.approx(sigma_us, rel=0.01)
    found = device.read.sigma_s(values(9, 40, 88.2) * US, values(9, 40, 88.2) * US, 3600.0) / US
    np.testing.assert_allclose(found, (0.1222, 0.2051, 0.2491), atol=6e-5)
    fresh = device.state.state_s(target_s, 0.0, numbers(1, (200_000,)))
    assert float((fresh - target_s).std() / US) == pytest.approx(0.04356, rel=0.01)


def test_drift_has_the_published_moments_and_keeps_each_device_its_own() -> None:
    device, draw = pcm_like(), numbers(2, (200_000,))
    target_s = torch.full((200_000,), 0.5 * device.conductance_max_s, dtype=torch.float64)
    fresh_s, later_s = (device.state.state_s(target_s, age_s, draw) for age_s in (0.0, DAY_S))
    assert float(fresh_s.mean()) == pytest.approx(12.5 * US, rel=5e-4)
    assert float(fresh_s.std()) == pytest.approx(0.9527 * US, rel=0.01)
    exponent = -torch.log(later_s / fresh_s) / math.log1p(DAY_S / 20.0)
    assert float(exponent.mean()) == pytest.approx(0.0490, abs=1e-4)
    assert float(exponent.std()) == pytest.approx(0.0080, rel=0.01)
    again_s = device.state.state_s(target_s, 7.0, draw)
    expected_s = fresh_s * (1.0 + 7.0 / 20.0) ** -exponent
    torch.testing.assert_close(again_s, expected_s, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("age_s", [0.0, 100.0, DAY_S])
def test_every_preset_is_differentiable_and_never_negative(name: str, age_s: float) -> None:
    device = PRESETS[name]()
    span_s = device.conductance_max_s - device.conductance_min_s
    share = torch.linspace(0.0, 1.0, 23, dtype=torch.float64)
    target_s = (device.conductance_min_s + span_s * share).requires_grad_()
    state_s = device.state.state_s(target_s, age_s, numbers(3, (23,)))
    sigma_s = torch.zeros_like(state_s) if device.read is None else device.read.sigma_s(state_s, state_s, age_s)
    assert bool((state_s >= 0).all())
    assert bool((sigma_s >= 0).all())
    (slope,) = torch.autograd.grad((state_s + sigma_s).sum(), target_s)
    assert bool(torch.isfinite(slope).all())
    inside = slice(3, -3)
    step_s = 1e-6 * span_s
    shifted = [device.state.state_s(target_s.detach() + sign * step_s, age_s, numbers(3, (23,))) for sign in (1, -1)]
    (exact,) = torch.autograd.grad(device.state.state_s(target_s, age_s, numbers(3, (23,))).sum(), target_s)
    numeric = (shifted[0] - shifted[1]) / (2 * step_s)
    torch.testing.assert_close(exact[inside], numeric[inside], rtol=2e-4, atol=2e-4)


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(KeyError):
        hermes(3)
    with pytest.raises(KeyError):
        reram_cmo(0.02)
