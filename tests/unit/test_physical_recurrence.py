"""The physical recurrence: equal to torch's own, its readout to the normal equations, its noise to a geometric sum."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import OutputNoise
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.models.recurrent import PhysicalRecurrence, noise_growth, scale_spectral_radius


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(states: int = 8, inputs: int = 3, *, leak: float = 1.0) -> PhysicalRecurrence:
    made = PhysicalRecurrence(
        nn.Linear(states, states, bias=False), nn.Linear(inputs, states), nn.Linear(states, 2), leak=leak
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(1)))
    return made


def test_without_a_leak_it_is_the_recurrent_layer_of_torch() -> None:
    made = network()
    twin = nn.RNN(3, 8, batch_first=True)
    weights = made.state_dict()
    twin.load_state_dict(
        {
            "weight_hh_l0": weights["recurrence.weight"],
            "weight_ih_l0": weights["injection.weight"],
            "bias_ih_l0": weights["injection.bias"],
            "bias_hh_l0": torch.zeros(8),
        }
    )
    x = torch.randn((4, 11, 3), generator=seeded(2))
    torch.testing.assert_close(made.states(x), twin(x)[0])
    halves = torch.cat([made.states(x[:, :5]), made.states(x[:, 5:], made.states(x[:, :5])[:, -1])], dim=1)
    torch.testing.assert_close(halves, made.states(x))


def test_a_leak_keeps_part_of_the_state() -> None:
    made = network(leak=0.25)
    x = torch.randn((2, 1, 3), generator=seeded(3))
    start = torch.ones((2, 8))
    full = network().states(x, start)[:, 0]
    torch.testing.assert_close(made.states(x, start)[:, 0], 0.75 * start + 0.25 * full)
    for leak in (0.0, 1.5):
        with pytest.raises(SurrogateError, match="leak"):
            network(leak=leak)


def test_the_readout_is_that_of_a_ridge_regression() -> None:
    made = network()
    states = torch.randn((5, 40, 8), generator=seeded(4), dtype=torch.float64)
    targets = torch.randn((5, 40, 2), generator=seeded(5), dtype=torch.float64)
    made.double().fit_readout(states, targets, ridge=0.1)
    x, y = states.reshape(-1, 8), targets.reshape(-1, 2)
    centred = x - x.mean(dim=0)
    reference = Ridge(alpha=0.1 * float((centred.T @ centred).diagonal().mean())).fit(x.numpy(), y.numpy())
    torch.testing.assert_close(made.readout.weight.detach(), torch.as_tensor(reference.coef_))
    torch.testing.assert_close(made.readout.bias.detach(), torch.as_tensor(reference.intercept_))


@pytest.mark.parametrize("radius", [0.3, 0.9])
def test_noise_grows_as_the_geometric_sum(radius: float) -> None:
    """Linear modes that all decay by `radius`, and noise of one unit in every product."""
    states, steps = 32, 60
    weight = radius * torch.linalg.qr(torch.randn((states, states), generator=seeded(6)))[0]
    plain = nn.Linear(states, states, bias=False)
    with torch.no_grad():
        plain.weight.copy_(weight)
    noisy = to_analog(plain, AnalogConfig(output_noise=OutputNoise(level=1.0, relative_to="abs")))
    silent = nn.Linear(1, states)
    with torch.no_grad():
        silent.weight.zero_()
        silent.bias.zero_()
    made = PhysicalRecurrence(noisy, silent, nn.Linear(states, 1), activation=nn.Identity())
    with torch.no_grad():
        found = made.states(torch.zeros((400, steps, 1))).var(dim=(0, 2), unbiased=False)
    for step in (1, 4, steps):
        expected = noise_growth(radius, step)
        assert float(found[step - 1]) == pytest.approx(expected, rel=5 * (2 / (400 * states)) ** 0.5)
    assert noise_growth(radius, 10_000) == pytest.approx(noise_growth(radius))


def test_a_matrix_is_scaled_to_its_spectral_radius() -> None:
    weight = torch.randn((9, 9), generator=seeded(7))
    scale_spectral_radius(weight, 0.8)
    assert float(torch.linalg.eigvals(weight).abs().max()) == pytest.approx(0.8, rel=1e-5)
    with pytest.raises(SurrogateError, match="other than zero"):
        scale_spectral_radius(torch.zeros((2, 2)), 0.8)
