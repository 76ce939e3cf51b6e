"""The two-layer network: as a plain digital model, and the same on analog layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labrig.training.datasets import ImageSet
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.effect_settings import DigitalColumns, Mapping
from labrig_surrogates.layers import AnalogLinear, analog_layers
from labrig_surrogates.tilemap import ArrayGeometry


def digital_network(pixels: int, hidden: int, classes: int, generator: torch.Generator) -> nn.Sequential:
    """Two `nn.Linear` layers with a ReLU between; initial weights from `generator`."""
    network = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    with torch.no_grad():
        for layer in (module for module in network if isinstance(module, nn.Linear)):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
    return network


def analog_network(pixels: int, hidden: int, classes: int, geometry: ArrayGeometry) -> nn.Sequential:
    """The same network on analog layers; its weights come from `deploy` or a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    # Everything else about the arrays is the business of the backend that the network runs on.
    config = AnalogConfig(geometry=geometry, mapping=Mapping(weight_range="fixed"), digital=DigitalColumns(scale=True))
    return nn.Sequential(
        AnalogLinear(pixels, hidden, config=config, name="hidden", generator=generator),
        nn.ReLU(),
        AnalogLinear(hidden, classes, config=config, name="output", generator=generator),
    )


def tile_names(network: nn.Module) -> list[str]:
    """Names of all tiles of a network."""
    return [name for layer in analog_layers(network) for name in layer.tile_names]


@torch.no_grad()
def layer_inputs(digital: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each linear layer of the digital network sees for the images `x`."""
    inputs = []
    for module in digital:
        if isinstance(module, nn.Linear):
            inputs.append(x)
        x = module(x)
    return inputs


@torch.no_grad()
def deploy(
    digital: nn.Sequential,
    analog: nn.Sequential,
    data: ImageSet,
    *,
    weight_quantile: float,
    input_quantile: float,
) -> None:
    """Copies digital weights onto analog layers and fixes the ranges.

    Args:
        digital: The trained network.
        analog: The network that gets its weights.
        data: Whose training images say how large activations are.
        weight_quantile: Quantile of |weight| that uses the full conductance range; larger weights are clipped.
        input_quantile: Quantile of the layer's inputs that uses the full voltage range.
    """
    linear = [module for module in digital if isinstance(module, nn.Linear)]
    for source, target, inputs in zip(linear, analog_layers(analog), layer_inputs(digital, data.train_x), strict=True):
        assert target.bias is not None
        assert target.scale is not None
        target.weight.copy_(source.weight)
        target.bias.copy_(source.bias)
        target.scale.fill_(1.0)
        target.set_ranges(
            weight_max=float(torch.quantile(source.weight.abs().flatten(), weight_quantile)),
            input_max=max(float(torch.quantile(inputs.flatten(), input_quantile)), 1e-6),
        )


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Part of the images that the network classifies rightly."""
    return float((network(x).argmax(dim=1) == y).float().mean())
