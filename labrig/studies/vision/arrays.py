"""Networks on noisy arrays: what their layers are set to in a training, and on a chip that was programmed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor, nn

from labrig.studies.vision.methods import Method
from labrig.studies.vision.networks import channels_last
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.calibrate_ranges import calibrate_ranges
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import Dac, OutputNoise, WeightNoise, WeightQuantization, WeightSpread
from labrig_surrogates.layers import weight_matrices

PIXEL_BITS: Final = 8
"""Images come with as many bits, and the first layer takes them as they are."""

_CLIPPED_INPUTS: Final = 0.002


@dataclass(frozen=True)
class Noise:
    """The noise of a chip in a test.

    Attributes:
        weights: N of `wmax`/program: 0.1 is 10 % of the largest weight of each layer, drawn once for a chip.
        outputs: N of `ostd`/read: 0.1 is 10 % of the standard deviation of each layer's outputs, fresh at every MVM.
    """

    weights: float
    outputs: float = 0.0

    def __str__(self) -> str:
        parts = [f"{100 * self.weights:g} % wmax/program"]
        parts += [f"{100 * self.outputs:g} % ostd/read"] if self.outputs else []
        return " + ".join(parts)


def on_arrays(network: nn.Module, method: Method, seed: int) -> nn.Module:
    """A network as a method trains it: quantised, its noise still at zero, with a fresh draw at every pass.

    Each layer is one array as large as itself, so that a level means the same in every layer. Converters at the
    outputs have as many bits as needed: what comes out is quantised by the converters at the inputs of the next layer.

    Args:
        network: Digital; left as it is.
        method: Which effects are there.
        seed: Of the noise.
    """
    quantization = None if method.weight_bits is None else WeightQuantization(method.weight_bits, method.rounding)
    noisy = method.weight_noise > 0.0 or method.spread
    base = AnalogConfig(
        weight_quantization=quantization,
        weight_noise=WeightNoise(0.0, "wmax", timing="read") if noisy else None,
        output_noise=OutputNoise(0.0, "ostd") if method.output_noise > 0.0 else None,
        spread=WeightSpread(per="layer", beside_weight_noise=True) if method.spread else None,
    )
    return _converted(network, base, method, seed)


def on_chip(network: nn.Module, method: Method, noise: Noise, seed: int) -> nn.Module:
    """A trained network on a chip: programmed with an error of its own, which stays, and read with noise.

    Args:
        network: Digital, with the weights that the method found; left as it is.
        method: How many bits there are.
        noise: Of the chip.
        seed: Of this chip.
    """
    quantization = None if method.weight_bits is None else WeightQuantization(method.weight_bits, "nearest")
    base = AnalogConfig(
        weight_quantization=quantization,
        weight_noise=WeightNoise(noise.weights, "wmax", timing="program") if noise.weights else None,
        output_noise=OutputNoise(noise.outputs, "ostd") if noise.outputs else None,
    )
    return _converted(network, base, method, seed)


def _converted(network: nn.Module, base: AnalogConfig, method: Method, seed: int) -> nn.Module:
    first = next(name for name, one in network.named_modules() if isinstance(one, nn.Conv2d | nn.Linear))

    def choose(name: str, layer: nn.Module) -> AnalogConfig:
        del layer
        if method.activation_bits is None:
            return base
        dac = Dac(PIXEL_BITS) if name == first else Dac(method.activation_bits, signed=False)
        return replace(base, dac=dac)

    return channels_last(to_analog(network, choose, seed=seed))


def set_noise(network: nn.Module, weights: float, outputs: float) -> None:
    """Sets the levels of a network from `on_arrays` whose method has such noise.

    Args:
        network: The network.
        weights: N of `wmax`.
        outputs: N of `ostd`.
    """
    for matrix in weight_matrices(network):
        config = matrix.core.config
        of_weights = None if config.weight_noise is None else replace(config.weight_noise, level=weights)
        of_outputs = None if config.output_noise is None else replace(config.output_noise, level=outputs)
        matrix.core.config = replace(config, weight_noise=of_weights, output_noise=of_outputs)


def calibrate_inputs(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets converters, and the standard deviations that output noise refers to, from some inputs."""
    calibrate_ranges(network, batches, input_quantile=1.0 - _CLIPPED_INPUTS)
