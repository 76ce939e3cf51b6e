"""Networks on noisy arrays: what their layers are set to in a training, and on a chip that was programmed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, Literal

from torch import Tensor, nn

from labrig.studies.vision.methods import Method
from labrig.studies.vision.networks import channels_last
from labrig.studies.vision.noise import CONVERTER_BITS, Noise
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.calibrate_ranges import Activations, calibrate_ranges
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import Dac, OutputNoise, WeightNoise, WeightQuantization, WeightSpread
from labrig_surrogates.effect_settings import Mapping as WeightMapping
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.quantization import Rounding
from labrig_surrogates.tilemap import ArrayGeometry

PIXEL_BITS: Final = 8
"""Images come with as many bits, and the first layer takes them as they are."""

AFFINE_BITS: Final = 8
"""Weights of so many bits lie between the smallest and the largest; those of fewer are symmetric around zero."""

RangeRule = Literal["network", "layer by layer"]
"""How the ranges of the inputs' converters are measured. `network`: on the network as it is meant, anew whenever it is
judged. `layer by layer`: behind the converters of the layers before, and a network keeps those that it was trained
with; see `calibrate_ranges`."""

_CLIPPED_INPUTS: Final = 0.002
_COLUMNS: Final = 2**20


def on_arrays(network: nn.Module, method: Method, seed: int) -> nn.Module:
    """A network as a method trains it: quantised, its noise still at zero, with a fresh draw at every pass.

    Each layer is one array as large as itself, so that a level means the same in every layer. Converters at the
    outputs have as many bits as needed: what comes out is quantised by the converters at the inputs of the next layer.

    Args:
        network: Digital; left as it is.
        method: Which effects are there.
        seed: Of the noise.
    """
    noisy = method.weight_noise > 0.0 or method.spread
    base = AnalogConfig(
        mapping=_mapping(method),
        weight_quantization=_quantization(method, method.rounding),
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
    rows = noise.kind.tile_rows
    base = AnalogConfig(
        geometry=None if rows is None else ArrayGeometry.relative(rows=rows, columns=_COLUMNS),
        mapping=_mapping(method),
        dac=Dac(CONVERTER_BITS) if noise.outputs and noise.kind.needs_converters else None,
        weight_quantization=_quantization(method, "nearest"),
        weight_noise=noise.of_weights(),
        output_noise=noise.of_outputs(),
        adc=noise.adc(),
    )
    return _converted(network, base, method, seed)


def _quantization(method: Method, rounding: Rounding) -> WeightQuantization | None:
    if method.weight_bits is None:
        return None
    return WeightQuantization(method.weight_bits, rounding, symmetric=method.weight_bits < AFFINE_BITS)


def _mapping(method: Method) -> WeightMapping:
    # Levels from the smallest to the largest weight need a reference column: cells cannot be negative.
    return WeightMapping(scheme="offset_column" if method.weight_bits == AFFINE_BITS else "differential_pair")


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


def calibrate_inputs(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    rule: RangeRule = "network",
    kept: Mapping[str, float] | None = None,
) -> None:
    """Sets converters, and the standard deviations that output noise refers to, from some inputs.

    Args:
        network: On arrays.
        batches: Inputs.
        rule: How converters' ranges are measured where there are none yet.
        kept: The ranges that it was trained with, from `input_ranges`; None or empty: they are measured.
    """
    if not kept:
        activations: Activations = "twin" if rule == "network" else "converted"
        calibrate_ranges(network, batches, input_quantile=1.0 - _CLIPPED_INPUTS, activations=activations)
        return
    for matrix in weight_matrices(network):
        if matrix.core.config.dac is not None:
            matrix.core.set_ranges(input_max=kept[matrix.core.name])
    calibrate_ranges(network, batches, input_quantile=None, activations="converted")


def input_ranges(network: nn.Module) -> dict[str, float]:
    """The largest input of each layer's converters, by the name of the layer; nothing where there are none."""
    cores = [matrix.core for matrix in weight_matrices(network)]
    return {core.name: float(core.input_max) for core in cores if core.config.dac is not None}
