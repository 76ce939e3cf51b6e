"""The networks of the studies: their published sizes, their start, and that one call puts them on arrays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog, to_digital
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import analog_modules
from labrig_surrogates.models import (
    Airbench,
    AirbenchShape,
    ResNet,
    ResNetShape,
    principal_filters,
    resnet18,
    resnet20,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights_of(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_sizes_are_those_that_were_published() -> None:
    assert weights_of(Airbench()) == 1_970_464  # "1.97M weights"
    assert sum(p.numel() for p in resnet18().parameters()) == 11_173_962  # the usual CIFAR ResNet-18
    # He et al. say 0.27 million; 16 x 32 + 32 x 64 of these are the shortcuts, which have no weights there.
    assert weights_of(resnet20()) == 268_336 + 16 * 32 + 32 * 64
    assert len([m for m in resnet20().modules() if isinstance(m, nn.Conv2d)]) == 19 + 2


@pytest.mark.parametrize(
    "model",
    [
        Airbench(AirbenchShape(widths=(8, 16, 16)), seeded()),
        ResNet(ResNetShape((1, 1), (8, 16)), seeded()),
    ],
    ids=["airbench", "resnet"],
)
def test_one_call_puts_them_on_arrays_and_back(model: nn.Module) -> None:
    images = torch.randn(4, 3, 32, 32, generator=seeded(1))
    model.eval()
    analog = to_analog(model, AnalogConfig())
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(analog_modules(analog)) == len(layers)
    assert torch.equal(analog(images), model(images))
    digital = to_digital(analog)
    assert all(torch.equal(a, b) for a, b in zip(digital.parameters(), model.parameters(), strict=True))


def test_the_seed_decides_the_start() -> None:
    for make in (lambda seed: Airbench(generator=seeded(seed)), lambda seed: resnet20(generator=seeded(seed))):
        first, again, other = (make(seed).head.weight for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_convolutions_begin_by_handing_on() -> None:
    network = Airbench(AirbenchShape(widths=(32, 32, 40)), seeded())
    conv = network.get_submodule("blocks.1.conv1")
    x = torch.randn(1, 32, 8, 8, generator=seeded(3))
    assert torch.allclose(conv(x), x, atol=1e-6)


def test_whitened_patches_are_white() -> None:
    mixed = torch.randn(3, 3, generator=seeded(4))
    images = torch.einsum("ij,njhw->nihw", mixed, torch.randn(200, 3, 16, 16, generator=seeded(5)))
    network = Airbench()
    network.whiten(images)
    lengths = network.whitening.weight.flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.ones(24), atol=1e-5)  # one range serves all of them on an array
    out = network.first_norm(network.whitening(images))[:, :12].permute(1, 0, 2, 3).reshape(12, -1)
    covariance = out @ out.T / out.shape[1]
    assert torch.allclose(covariance, torch.eye(12), atol=2e-2)
    assert torch.equal(network.whitening.weight[:12], -network.whitening.weight[12:])
    assert not network.whitening.weight.requires_grad
    with pytest.raises(SurrogateError, match="no patches of 3 x 3"):
        principal_filters(torch.zeros(1, 3, 2, 8), 3)


def test_shapes_that_make_no_sense_are_refused() -> None:
    for make in (
        lambda: AirbenchShape(widths=(0, 1, 1)),
        lambda: ResNetShape((1, 2), (8,)),
        lambda: ResNetShape((1,), (0,)),
    ):
        with pytest.raises(SurrogateError):
            make()
