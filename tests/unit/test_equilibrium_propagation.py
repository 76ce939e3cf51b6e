"""Equilibrium propagation: its estimate against the gradient of the settled loss, and a network that learns."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.models.equilibrium_propagation import EquilibriumPropagation, Relaxation, asymmetry


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(nudge: float, sizes: tuple[int, ...] = (5, 6, 3)) -> EquilibriumPropagation:
    made = EquilibriumPropagation(sizes, seeded(1), Relaxation(200, 200, 0.4, nudge)).double()
    with torch.no_grad():
        for layer in made.layers:
            # Small enough to settle at one place, with units inside 0 ... 1.
            layer.get_parameter("up.weight").mul_(0.3)
            layer.get_parameter("up.bias").fill_(0.4)
    for layer in made._layers():
        layer.tie()
    return made


def settled_loss(made: EquilibriumPropagation, x: Tensor, target: Tensor) -> float:
    return float(0.5 * (made.settle(x)[-1] - target).square().sum(dim=1).mean().detach())


def by_differences(made: EquilibriumPropagation, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Gradient of the loss at the settled state by moving each weight, in both directions of use, a little."""
    found = {}
    for index, layer in enumerate(made._layers()):
        for name in ("weight", "bias"):
            parameter = layer.up.get_parameter(name)
            gradient = torch.zeros_like(parameter)
            for place in range(parameter.numel()):
                losses = []
                for step in (1e-5, -1e-5):
                    with torch.no_grad():
                        parameter.view(-1)[place] += step
                    layer.tie()
                    losses.append(settled_loss(made, x, target))
                    with torch.no_grad():
                        parameter.view(-1)[place] -= step
                layer.tie()
                gradient.view(-1)[place] = (losses[0] - losses[1]) / 2e-5
            found[f"layers.{index}.up.{name}"] = gradient.detach()
    return found


def test_the_estimate_tends_to_the_gradient_as_the_square_of_the_nudge() -> None:
    x = torch.rand((4, 5), generator=seeded(2), dtype=torch.float64)
    target = torch.rand((4, 3), generator=seeded(3), dtype=torch.float64)
    exact = torch.cat([part.flatten() for part in by_differences(network(1.0), x, target).values()])
    errors = []
    for nudge in (0.2, 0.1, 0.05):
        found = torch.cat([part.flatten() for part in network(nudge).gradients(x, target).values()])
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[-1] < 5e-3
    for larger, smaller in pairwise(errors):
        assert 3.0 < larger / smaller < 5.0  # centred: halving the nudge quarters the error


def test_a_wrong_transpose_spoils_the_estimate() -> None:
    """The negative control: with another matrix downwards the difference of phases is no gradient."""
    x = torch.rand((4, 5), generator=seeded(2), dtype=torch.float64)
    target = torch.rand((4, 3), generator=seeded(3), dtype=torch.float64)
    made = network(0.1)
    right = made.gradients(x, target)["layers.0.up.weight"]
    down = made._layers()[1].down.get_parameter("weight")
    with torch.no_grad():
        down.copy_(-down)
    wrong = made.gradients(x, target)["layers.0.up.weight"]
    assert float(functional.cosine_similarity(right.flatten(), wrong.flatten(), dim=0)) < -0.5


def test_digits_are_learned() -> None:
    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images / 16.0, dtype=torch.float32)
    y = torch.as_tensor(labels)
    train, test = torch.split(torch.randperm(len(y), generator=seeded(6)), [1300, 497])
    made = EquilibriumPropagation((64, 48, 10), seeded(4), Relaxation(20, 6, 0.5, 1.0))
    targets = functional.one_hot(y, 10).float()
    generator = seeded(5)
    for _ in range(10):
        for chosen in torch.split(torch.randperm(len(train), generator=generator), 20):
            batch = train[chosen]
            made.descend(made.gradients(x[batch], targets[batch]), (0.2, 0.1))
    accuracy = float((made(x[test]).argmax(dim=1) == y[test]).float().mean())
    assert accuracy > 0.93


def test_asymmetry_is_the_relative_distance_of_the_blocks() -> None:
    weight = torch.randn((4, 3), generator=seeded(6))
    assert asymmetry(weight, weight.T) == 0.0
    assert asymmetry(weight, 0.9 * weight.T) == pytest.approx(0.1)


def test_what_cannot_settle_is_refused() -> None:
    for settings in ({"free_steps": 0}, {"step": 1.5}, {"nudge": 0.0}):
        with pytest.raises(SurrogateError):
            Relaxation(**settings)
    with pytest.raises(SurrogateError, match="fewer than two layers"):
        EquilibriumPropagation((4,), seeded())
    assert isinstance(network(0.1).layers[0], nn.Module)


def test_the_output_can_be_differentiated_through_the_settling() -> None:
    network = EquilibriumPropagation((4, 6, 3), torch.Generator().manual_seed(1))
    with torch.no_grad():  # so that units settle between their bounds
        for name, parameter in network.named_parameters():
            parameter.mul_(0.3).add_(0.2 if name.endswith("bias") else 0.0)
    x = torch.rand((5, 4), generator=torch.Generator().manual_seed(2))
    weight = network.get_parameter("layers.0.up.weight")
    (slope,) = torch.autograd.grad(network(x).sum(), weight)
    with torch.no_grad():
        before = network(x).double().sum()
        weight[0, 0] += 1e-2
        moved = float(network(x).double().sum() - before)
    assert moved == pytest.approx(1e-2 * float(slope[0, 0]), rel=0.02)
    assert abs(moved) > 1e-5
