"""Diffusion: samplers with an exact denoiser against the exact distribution, and the budget of noise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import analog_modules
from labrig_surrogates.models.diffusion import (
    DenoisingNetwork,
    NoiseLevels,
    denoising_loss,
    gaussian_denoiser,
    sample,
    sliced_wasserstein2,
)
from labrig_surrogates.models.hardware_noise import PseudoNormal

LEVELS = NoiseLevels()
MEAN = torch.tensor([0.3, -0.6], dtype=torch.float64)
STD = 0.4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(count: int, high: float, seed: int = 1) -> Tensor:
    return high * torch.randn((count, 2), generator=seeded(seed), dtype=torch.float64)


def spread_after(steps: int, noise_share: float = 0.0) -> float:
    """Standard deviation that the sampler has in the end: with the exact denoiser each of its steps is linear."""
    variance, ladder = LEVELS.high**2, LEVELS.ladder(steps).tolist()
    for high, low in pairwise(ladder):
        kept, share = (low / high) ** 2, STD**2 / (STD**2 + high**2)
        variance = (kept + (1 - kept) * share) ** 2 * variance + low**2 * (1 - kept)
        variance += noise_share * ((1 - kept) * 0.5 * high) ** 2
    return math.sqrt(variance)


def test_the_exact_denoiser_gives_what_its_steps_foretell() -> None:
    ladder = LEVELS.ladder(60)
    x, budget = sample(gaussian_denoiser(MEAN, STD), start(20_000, LEVELS.high), ladder, PseudoNormal(seeded(2)))
    for component in range(2):
        z = ((x[:, component] - MEAN[component]) / spread_after(60)).numpy()
        assert stats.kstest(z, "norm").pvalue > 1e-3
    assert torch.equal(budget.injected, budget.required)
    assert budget.overspent == 0
    # The more steps, the nearer to the data.
    errors = [abs(spread_after(steps) / STD - 1.0) for steps in (15, 60, 240, 960)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.005


def test_noise_of_the_denoiser_is_made_up_for() -> None:
    """With matching the spread is right; without it, and when the wrong amount is counted, it is not."""
    ladder = LEVELS.ladder(40)
    exact, noise = gaussian_denoiser(MEAN, STD), seeded(3)

    def hardware(level: float) -> float:
        return (0.5 * level) ** 2

    def noisy(x: Tensor, level: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=noise, dtype=x.dtype)
        return exact(x, level) + 0.5 * level[:, None] * drawn

    def spread(counted: float | None) -> float:
        variance = None if counted is None else (lambda level: counted * hardware(level))
        x, _ = sample(noisy, start(40_000, LEVELS.high), ladder, PseudoNormal(seeded(4)), hardware_variance=variance)
        return float((x - MEAN).square().mean().sqrt())

    assert spread(1.0) == pytest.approx(spread_after(40), rel=0.01)
    assert spread(None) == pytest.approx(spread_after(40, noise_share=1.0), rel=0.01)
    assert spread(0.3) == pytest.approx(spread_after(40, noise_share=0.7), rel=0.01)
    assert spread_after(40, noise_share=0.7) > 1.02 * spread_after(40)


def test_more_hardware_noise_than_a_step_can_use_is_told() -> None:
    _, budget = sample(
        gaussian_denoiser(MEAN, STD),
        start(10, LEVELS.high),
        LEVELS.ladder(10),
        PseudoNormal(seeded(5)),
        hardware_variance=lambda _: 1.0,
    )
    assert budget.overspent > 0
    assert float(budget.injected.min()) == 0.0
    torch.testing.assert_close(budget.injected, (budget.required - budget.hardware).clamp(min=0.0))


def test_levels_fall_and_end_at_zero() -> None:
    ladder = LEVELS.ladder(12)
    assert float(ladder[0]) == pytest.approx(LEVELS.high)
    assert float(ladder[-2]) == pytest.approx(LEVELS.low)
    assert float(ladder[-1]) == 0.0
    assert bool((ladder.diff() < 0).all())
    drawn = LEVELS.draw(20_000, seeded(6)).log()
    assert float(drawn.mean()) == pytest.approx(LEVELS.log_mean, abs=0.05)
    assert float(drawn.std()) == pytest.approx(LEVELS.log_std, abs=0.05)
    with pytest.raises(SurrogateError, match=r"low = 1 and high = 0\.5 have to be positive and rising"):
        NoiseLevels(low=1.0, high=0.5)


def test_a_trained_denoiser_comes_close_to_the_exact_one() -> None:
    generator = seeded(7)
    network = DenoisingNetwork(2, 32, 2, LEVELS, generator)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(600):
        clean = MEAN.float() + STD * torch.randn((256, 2), generator=generator)
        loss = denoising_loss(network, clean, generator)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    x = torch.randn((500, 2), generator=generator)
    level = torch.full((500,), 0.4)
    exact = gaussian_denoiser(MEAN.float(), STD)(x, level)
    with torch.no_grad():
        assert float((network(x, level) - exact).square().mean().sqrt()) < 0.15 * float(exact.std())


def test_its_linear_layers_go_onto_arrays() -> None:
    network = DenoisingNetwork(2, 8, 3, LEVELS, seeded(8))
    analog = to_analog(network, AnalogConfig())
    assert len(analog_modules(analog)) == 4
    x, level = torch.randn((5, 2), generator=seeded(9)), torch.rand(5, generator=seeded(10)) + 0.1
    assert torch.equal(analog(x, level), network(x, level))


def test_the_distance_of_shifted_samples_is_the_shift() -> None:
    a = torch.randn((4000, 3), generator=seeded(11), dtype=torch.float64)
    shift = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)
    found = sliced_wasserstein2(a, a + shift, seeded(12), directions=4000)
    assert found == pytest.approx(float(shift.square().sum()) / 3, rel=0.05)
    assert sliced_wasserstein2(a, a.clone(), seeded(13)) == 0.0
    other = torch.randn((4000, 3), generator=seeded(14), dtype=torch.float64)
    assert math.sqrt(sliced_wasserstein2(a, other, seeded(15))) < 0.1
