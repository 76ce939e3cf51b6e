"""The networks of the image studies by name, each digital and analog by one conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import nn

from labrig.studies.vision.products import fast_products
from labrig_drivers.errors import ConfigError
from labrig_surrogates.activations import AsymmetricActivation
from labrig_surrogates.models import Airbench, AirbenchShape, resnet18, resnet20

Activation = Callable[[], nn.Module]
MakeNetwork = Callable[[int, torch.Generator, Activation], nn.Module]

_HALF_WIDTHS: Final = (32, 128, 128)
_TINY_WIDTHS: Final = (8, 16, 16)


def _airbench(classes: int, generator: torch.Generator, activation: Activation) -> nn.Module:
    return Airbench(AirbenchShape(classes), generator, activation)


def _half_airbench(classes: int, generator: torch.Generator, activation: Activation) -> nn.Module:
    return Airbench(AirbenchShape(classes, widths=_HALF_WIDTHS), generator, activation)


def _tiny_airbench(classes: int, generator: torch.Generator, activation: Activation) -> nn.Module:
    return Airbench(AirbenchShape(classes, widths=_TINY_WIDTHS), generator, activation)


NETWORKS: Final[Mapping[str, MakeNetwork]] = MappingProxyType(
    {
        "airbench": _airbench,
        "airbench-half": _half_airbench,
        "airbench-tiny": _tiny_airbench,
        "resnet18": resnet18,
        "resnet20": resnet20,
    }
)
"""What makes a network of some classes. `airbench-half` has half the channels and takes a quarter of the work;
`airbench-tiny` shows that everything works."""

KEEPS_RANGES: Final = frozenset({"resnet18"})
"""Networks whose residual sums grow behind converters that clip: their ranges are measured layer by layer and kept."""

ACTIVATIONS: Final[Mapping[str, Activation]] = MappingProxyType(
    {
        "relu": nn.ReLU,
        # The mirrored softplus of the specification, turned so that it rises and lifted so that nothing is negative.
        "asymmetric": lambda: AsymmetricActivation(orientation=-1).standardise_(),
    }
)
"""Nonlinearities whose outputs are not negative, as an unsigned converter wants them."""


def build_network(
    name: str, classes: int, generator: torch.Generator, *, activation: str = "relu", images: torch.Tensor | None = None
) -> nn.Module:
    """A network with its initial weights, in the memory format in which convolutions are fast.

    Args:
        name: One of `NETWORKS`.
        classes: Outputs.
        generator: Source of the initial weights.
        activation: One of `ACTIVATIONS`.
        images: Normalised training images `[N, 3, H, W]` for those that look at them first; None leaves that out,
            where weights are loaded anyway.

    Raises:
        ConfigError: No such network or activation.
    """
    faults = [
        f"{what} {value!r} is not known; there are {', '.join(known)}"
        for what, value, known in (("network", name, NETWORKS), ("activation", activation, ACTIVATIONS))
        if value not in known
    ]
    if faults:
        raise ConfigError("; ".join(faults))
    network = NETWORKS[name](classes, generator, ACTIVATIONS[activation])
    if isinstance(network, Airbench) and images is not None:
        network.whiten(images)
    return channels_last(network)


def channels_last(network: nn.Module) -> nn.Module:
    """The network itself, with its kernels in the memory format in which convolutions of small images are fast."""
    # torch's stubs know this argument of tensors only.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def outputs_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits of a batch in float32, with products in `product_type`."""
    with fast_products(x.device.type):
        outputs: torch.Tensor = network(x)
    return outputs.float()
