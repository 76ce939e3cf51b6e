"""The networks that are trained: the two-layer one, and own ones by import path."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from labrig.training.datasets import ImageSet
from labrig.training.objects import load_callable
from labrig_drivers.errors import ConfigError

TWO_LAYER = "two-layer"


def digital_network(pixels: int, hidden: int, classes: int, generator: torch.Generator) -> nn.Sequential:
    """Two `nn.Linear` layers, `hidden` and `output`, with a ReLU between; initial weights from `generator`."""
    layers: list[tuple[str, nn.Module]] = [
        ("hidden", nn.Linear(pixels, hidden)),
        ("relu", nn.ReLU()),
        ("output", nn.Linear(hidden, classes)),
    ]
    network = nn.Sequential(OrderedDict(layers))
    with torch.no_grad():
        for layer in (module for module in network if isinstance(module, nn.Linear)):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
    return network


def build_model(
    name: str, data: ImageSet, hidden: int, generator: torch.Generator, base: Path | None = None
) -> nn.Module:
    """The digital network before training.

    Args:
        name: `two-layer`, or an import path of a function `(input_shape, classes) -> nn.Module`.
        data: The task.
        hidden: Hidden units of the two-layer network.
        generator: Source of the initial weights, also of those that an own model draws from torch's generator.
        base: Folder of the training file; the working folder when None.

    Raises:
        ConfigError: There is no such model, or it cannot be made, or does not take these images to these classes.
    """
    if name == TWO_LAYER:
        return digital_network(prod(data.input_shape), hidden, data.classes, generator)
    make = load_callable(name, base or Path())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        try:
            model = make(data.input_shape, data.classes)
        except Exception as error:  # an own function may fail in any way
            raise ConfigError(f"model {name}: cannot be made ({type(error).__name__}: {error})") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name}: returns something of type {type(model).__name__}; a torch module is needed")
    try:
        with torch.no_grad():
            outputs = model.eval()(data.train_x[:2])
    except Exception as error:  # an own model may fail in any way
        raise ConfigError(
            f"model {name}: does not take images of {_by(data.input_shape)} ({type(error).__name__}: {error})"
        ) from error
    if tuple(outputs.shape) != (min(2, len(data.train_x)), data.classes):
        raise ConfigError(f"model {name}: gives {_by(outputs.shape)} outputs for 2 images, not 2 x {data.classes}")
    return model.train()


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Part of the images that the network classifies rightly; in evaluation, whatever its mode."""
    return float((predictions(network, x) == y).float().mean())


@torch.no_grad()
def predictions(network: nn.Module, x: Tensor) -> Tensor:
    """The class that the network gives each image, `[N]`; in evaluation, whatever its mode."""
    training = network.training
    network.eval()
    try:
        found: Tensor = network(x).argmax(dim=1)
    finally:
        network.train(training)
    return found
