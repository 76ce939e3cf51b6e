"""What the specification's loss has beside the task: held-up spreads and the statistics of the chip's activations.

`labrig_surrogates.losses` says what each term is and how it is made well-posed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from labrig.studies.vision.arrays import set_noise
from labrig.studies.vision.methods import Method
from labrig.studies.vision.networks import outputs_of
from labrig_surrogates.activation_statistics import (
    LayerStatistics,
    RecordedStatistics,
    record_statistics,
    statistics_distance,
)
from labrig_surrogates.convolution import AnalogConv2d
from labrig_surrogates.layers import AnalogLinear, analog_modules
from labrig_surrogates.losses import weight_kl
from labrig_surrogates.model_tools import replace_modules
from labrig_surrogates.residual_spreads import HardwareSpread, TiedSpread
from labrig_surrogates.stochastic_residual import StochasticResidual


class PhysicsTerms:
    """The terms of one training that stand beside its task loss.

    Args:
        network: On arrays.
        method: Which terms there are, and their weights.
        level: N of the chips whose activations are the reference.
        train_size: Training images: the Kullback-Leibler term is one for all of them.
    """

    def __init__(self, network: nn.Module, method: Method, level: float, train_size: int) -> None:
        self._network = network
        self._method = method
        self._level = level
        self._train_size = train_size
        self._layers = [name for name, _ in analog_modules(network)]
        self._hardware: RecordedStatistics | None = None
        self._seen: dict[str, LayerStatistics] = {}

    @torch.no_grad()
    def measure(self, x: Tensor, at_epoch: int) -> None:
        """Records the statistics of a chip with the present weights, where the method compares with them."""
        if not self._method.statistics:
            return
        set_noise(self._network, self._level, self._level)
        with record_statistics(self._network, self._layers) as chip:
            outputs_of(self._network, x)
        self._hardware = chip.recorded(float(at_epoch))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sees the statistics of the network's own passes, where the method needs them."""
        if not self._method.statistics:
            yield
            return
        with record_statistics(self._network, self._layers) as own:
            yield
        self._seen = own.layers

    def value(self, weights_level: float) -> Tensor | None:
        """The sum of the terms; None where there is none.

        Args:
            weights_level: N that the weights have at this step: without noise there is no prior to hold a spread.
        """
        parts = []
        if self._method.kl and weights_level > 0.0:
            divergence = weight_kl(self._network)
            if divergence is not None:
                parts.append(divergence * (self._method.kl / self._train_size))
        if self._method.statistics and self._hardware is not None:
            distance = statistics_distance(self._seen, self._hardware.layers, "mean_variance")
            parts.append(distance * (self._method.statistics / len(self._layers)))
        return torch.stack(parts).sum() if parts else None


def with_residuals(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Puts a stochastic residual layer around each analog layer, as noisy as its outputs on the chip, or noisier.

    `set_residuals` says how noisy that is.

    Args:
        network: On arrays, without output noise of its own; changed in place.
        generator: Source of the draws.
    """
    made: dict[int, nn.Module] = {}
    for _, layer in analog_modules(network):
        assert isinstance(layer, AnalogConv2d | AnalogLinear)
        spread = TiedSpread(HardwareSpread(amplifier=1.0), gain=1.25)
        made[id(layer)] = StochasticResidual(layer, spread, generator=generator)
    return replace_modules(network, made)


@torch.no_grad()
def set_residuals(network: nn.Module, level: float) -> None:
    """Gives each residual layer the chip's standard deviation: N times that of the layer's clean outputs."""
    for module in network.modules():
        if isinstance(module, StochasticResidual) and isinstance(module.spread, TiedSpread):
            calibrated = module.spread.calibrated
            assert isinstance(calibrated, HardwareSpread)
            assert isinstance(module.mean, AnalogConv2d | AnalogLinear)
            std = module.mean.core.output_std
            assert std is not None
            calibrated.amplifier.copy_((level * std.max()) ** 2)


def without_residuals(network: nn.Module) -> nn.Module:
    """The network without the residual layers around its analog ones, in place."""
    made = {id(one): one.mean for one in network.modules() if isinstance(one, StochasticResidual)}
    return replace_modules(network, made)
