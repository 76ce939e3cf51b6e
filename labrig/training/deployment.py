"""A digital network onto the arrays of a chip: which weight and which input use the full range."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from labrig.training.datasets import ImageSet
from labrig.training.models import accuracy
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.backend import Backend
from labrig_surrogates.convert import to_analog
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.effect_settings import DigitalColumns, Mapping
from labrig_surrogates.layers import set_backend, weight_matrices
from labrig_surrogates.tilemap import ArrayGeometry

# Part of the weights, and of the inputs, that is clipped: the grid from which deployment takes the best.
_QUANTILES = (1.0, 0.999, 0.99, 0.97)
# Inputs that a quantile is taken of; torch's own takes no more than 2**24.
_MOST_INPUTS = 1_000_000


def analog_copy(digital: nn.Module, geometry: ArrayGeometry) -> nn.Module:
    """The same network on analog layers of one geometry, ready for a backend; ranges are still those of its weights.

    Everything that is not ideal about the arrays is the business of the backend that it runs on.

    Raises:
        SurrogateError: A layer has no analog form, or does not fit the arrays.
    """
    config = AnalogConfig(geometry=geometry, mapping=Mapping(weight_range="fixed"), digital=DigitalColumns(scale=True))
    return to_analog(digital, config)


@torch.no_grad()
def observed_inputs(analog: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Magnitudes of what every weight matrix is given for the images `x`, in float, by the name of its core."""
    cores = [matrix.core for matrix in weight_matrices(analog)]
    seen: dict[str, list[Tensor]] = {core.name: [] for core in cores}

    def observe(core: AnalogCore, inputs: Tensor, weight: Tensor) -> None:
        del weight
        seen[core.name].append(inputs.detach().abs().flatten())

    training, before = analog.training, [(core.observer, core.backend) for core in cores]
    analog.eval()
    try:
        for core in cores:
            core.observer, core.backend = observe, None
        analog(x)
    finally:
        analog.train(training)
        for core, (observer, backend) in zip(cores, before, strict=True):
            core.observer, core.backend = observer, backend
    return {name: _thinned(torch.cat(parts)) for name, parts in seen.items()}


@torch.no_grad()
def set_quantile_ranges(
    analog: nn.Module, inputs: dict[str, Tensor], weight_quantile: float, input_quantile: float
) -> None:
    """Fixes the ranges of every weight matrix; what lies beyond is clipped.

    Args:
        analog: The network.
        inputs: Magnitudes of the inputs of each matrix; see `observed_inputs`.
        weight_quantile: Quantile of |weight| that uses the full conductance range.
        input_quantile: Quantile of |input| that uses the full voltage range.
    """
    for matrix in weight_matrices(analog):
        core, magnitudes = matrix.core, _thinned(matrix.weight.abs().flatten())
        core.set_ranges(
            weight_max=max(float(torch.quantile(magnitudes, weight_quantile)), 1e-6),
            input_max=max(float(torch.quantile(inputs[core.name], input_quantile)), 1e-6),
        )
        core.clip(matrix.weight)


def deployed_network(digital: nn.Module, geometry: ArrayGeometry, nominal: Backend, data: ImageSet) -> nn.Module:
    """The digital weights on analog layers, with the best ranges that can be chosen without measuring the chip.

    Every combination of clipping weights and inputs is tried on the data sheet's chip, and the one with the best
    training accuracy is kept.

    Args:
        digital: The trained network.
        geometry: The arrays.
        nominal: The chip of the data sheet.
        data: Whose training images say how large activations are.
    """
    inputs = observed_inputs(analog_copy(digital, geometry), data.train_x)
    best: tuple[float, nn.Module] | None = None
    for weight_quantile, input_quantile in product(_QUANTILES, repeat=2):
        network = analog_copy(digital, geometry)
        set_quantile_ranges(network, inputs, weight_quantile, input_quantile)
        set_backend(network, nominal)
        score = accuracy(network, data.train_x, data.train_y)
        if best is None or score > best[0]:
            best = (score, network)
    assert best is not None
    return best[1]


def _thinned(values: Tensor) -> Tensor:
    return values if values.numel() <= _MOST_INPUTS else values[:: values.numel() // _MOST_INPUTS + 1]
