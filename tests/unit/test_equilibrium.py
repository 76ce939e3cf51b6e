"""Equilibrium layers: the fixed point, its implicit gradient, and the bounds under errors and noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import OutputNoise
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.models.equilibrium import (
    Equilibrium,
    Iteration,
    bound_spectral_norm,
    frozen_error_bound,
    stationary_spread_bound,
)

LONG = Iteration(steps=200, backward_steps=200)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def identity(x: Tensor) -> Tensor:
    return x


def layer(
    states: int = 6,
    inputs: int = 4,
    limit: float = 0.8,
    *,
    seed: int = 0,
    iteration: Iteration = LONG,
    linear: bool = False,
) -> Equilibrium:
    generator = seeded(seed)
    recurrence = nn.Linear(states, states, bias=False).double()
    injection = nn.Linear(inputs, states).double()
    with torch.no_grad():
        recurrence.weight.copy_(torch.randn((states, states), generator=generator, dtype=torch.float64))
        injection.weight.copy_(torch.randn((states, inputs), generator=generator, dtype=torch.float64))
        recurrence.weight.mul_(limit / torch.linalg.matrix_norm(recurrence.weight, 2))
    return Equilibrium(recurrence, injection, identity if linear else torch.tanh, iteration)


def weight_of(equilibrium: Equilibrium) -> Tensor:
    weight = equilibrium.recurrence.weight
    assert isinstance(weight, Tensor)
    return weight


def test_a_linear_fixed_point_and_its_gradient_are_those_of_the_inverse() -> None:
    equilibrium = layer(linear=True)
    x = torch.randn((3, 4), generator=seeded(1), dtype=torch.float64, requires_grad=True)
    z = equilibrium(x)
    weight = weight_of(equilibrium).detach().requires_grad_()
    injection = equilibrium.injection(x)
    expected = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - weight, injection.T).T
    torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-10)
    probe = torch.randn(z.shape, generator=seeded(2), dtype=torch.float64)
    by_x, by_weight = torch.autograd.grad((z * probe).sum(), (x, weight_of(equilibrium)))
    true_x, true_weight = torch.autograd.grad((expected * probe).sum(), (x, weight))
    torch.testing.assert_close(by_x, true_x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(by_weight, true_weight, rtol=1e-9, atol=1e-9)


def test_the_implicit_gradient_is_that_of_finite_differences() -> None:
    equilibrium = layer(seed=3)
    x = torch.randn((2, 4), generator=seeded(4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(equilibrium, (x,), eps=1e-6, atol=1e-7, check_undefined_grad=False)


def test_terms_that_are_left_out_leave_no_more_than_the_bound_foretells() -> None:
    x = torch.randn((5, 4), generator=seeded(5), dtype=torch.float64)

    def by_drive(backward_steps: int) -> Tensor:
        equilibrium = layer(linear=True, iteration=Iteration(steps=200, backward_steps=backward_steps))
        equilibrium(x).sum().backward()
        bias = equilibrium.injection.bias
        assert isinstance(bias, Tensor)
        assert bias.grad is not None
        return bias.grad

    exact = by_drive(200)
    for terms in (0, 4, 8, 16):
        missing = float((by_drive(terms) - exact).norm())
        assert missing <= 0.8 ** (terms + 1) / (1 - 0.8) * 5 * 6**0.5
    assert float((by_drive(0) - exact).norm()) > 0.1 * float(exact.norm())  # the one-step gradient is another one


@given(seed=st.integers(0, 200), scale=st.floats(1e-3, 0.4), states=st.integers(2, 12))
def test_no_programming_error_moves_the_fixed_point_beyond_the_bound(seed: int, scale: float, states: int) -> None:
    equilibrium = layer(states=states, seed=seed)
    x = torch.randn((8, 4), generator=seeded(seed), dtype=torch.float64)
    with torch.no_grad():
        z = equilibrium(x)
        clean = weight_of(equilibrium).clone()
        error = scale / states**0.5 * torch.randn(clean.shape, generator=seeded(seed + 1), dtype=torch.float64)
        weight_of(equilibrium).add_(error)
        moved = torch.linalg.vector_norm(equilibrium(x) - z, dim=1)
    assert bool((moved <= frozen_error_bound(error, clean, z) + 1e-9).all())


def test_the_bound_is_reached_where_it_can_be() -> None:
    equilibrium = layer(states=1, inputs=1, linear=True)
    x = torch.ones((1, 1), dtype=torch.float64)
    with torch.no_grad():
        z = equilibrium(x)
        clean, error = weight_of(equilibrium).clone().abs(), torch.full((1, 1), 0.05, dtype=torch.float64)
        weight_of(equilibrium).copy_(clean)
        z = equilibrium(x)
        weight_of(equilibrium).add_(error)
        moved = torch.linalg.vector_norm(equilibrium(x) - z, dim=1)
    torch.testing.assert_close(moved, frozen_error_bound(error, clean, z))
    assert torch.isinf(frozen_error_bound(error + 1.0, clean, z)).all()


def test_averaging_takes_read_noise_out() -> None:
    sigma, states = 0.05, 32
    config = AnalogConfig(output_noise=OutputNoise(level=sigma, relative_to="abs"))
    spread = {}
    for averaged in (1, 40):
        equilibrium = layer(states=states, limit=0.5, iteration=Iteration(steps=80, averaged=averaged)).float()
        x = torch.randn((64, 4), generator=seeded(7))
        with torch.no_grad():
            clean = equilibrium(x)
            noisy = Equilibrium(
                to_analog(equilibrium.recurrence, config),
                equilibrium.injection,
                iteration=equilibrium.iteration,
            )
            spread[averaged] = float((noisy(x) - clean).square().sum(dim=1).mean().sqrt())
    assert spread[1] <= stationary_spread_bound(sigma, states, 0.5)
    assert spread[40] < 0.3 * spread[1]


def test_weights_are_brought_under_the_bound() -> None:
    weight = torch.randn((7, 7), generator=seeded(8))
    before = float(torch.linalg.matrix_norm(weight, 2))
    assert bound_spectral_norm(weight, 0.9) == pytest.approx(before, rel=1e-5)
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(0.9, rel=1e-5)
    kept = weight.clone()
    bound_spectral_norm(weight, 0.95)
    assert torch.equal(weight, kept)
    for limit in (0.0, 1.0):
        with pytest.raises(SurrogateError, match="no contraction"):
            bound_spectral_norm(weight, limit)
    with pytest.raises(SurrogateError, match="averaged = 4 must lie between 1 and steps = 3"):
        Iteration(steps=3, averaged=4)
    with pytest.raises(SurrogateError, match="drive_reads = 0 must be 1 or more"):
        Iteration(drive_reads=0)


def test_noise_of_the_injection_is_averaged_by_reading_it_more_often() -> None:
    noisy = AnalogConfig(output_noise=OutputNoise(level=0.1, relative_to="abs"))
    spread = {}
    for reads in (1, 16):
        plain = layer(states=32, limit=0.5).float()
        x = torch.randn((64, 4), generator=seeded(9))
        made = Equilibrium(
            plain.recurrence,
            to_analog(plain.injection, noisy),
            iteration=Iteration(steps=60, averaged=40, drive_reads=reads),
        )
        with torch.no_grad():
            spread[reads] = float((made(x) - plain(x)).square().mean().sqrt())
    assert spread[16] == pytest.approx(spread[1] / 4, rel=0.15)
