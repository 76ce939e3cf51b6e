"""From a layer's weights to the cells of its arrays: at every forward pass, or programmed once and read many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.cells import (
    ArrayWeights,
    StreamedWeights,
    WeightState,
    noise_sigma,
    one_width,
    weight_limit,
    with_noise,
)
from labrig_surrogates.cells_composed import composed_cells
from labrig_surrogates.cells_fused import fused_cells, fused_rows
from labrig_surrogates.draws import Draw
from labrig_surrogates.effect_settings import WeightNoise
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.passes import Number
from labrig_surrogates.quantization import wide

STREAMED_FROM = 2**16
"""Elements of the smallest weight matrix whose noisy copy is not worth its memory."""


def array_weights(weight: Tensor, config: AnalogConfig, state: WeightState) -> list[ArrayWeights]:
    """The weights as they stand in the arrays: one set of cells, or one for each slice of the bits.

    In this order: clipped to the range, quantised, spread, `weight_effects`, `weight_noise`.

    Args:
        weight: The layer's weights, `[outputs, ...]`.
        config: Which effects are on.
        state: Ranges, parameters and random numbers.
    """
    limit = weight_limit(weight, config, state.weight_max, state.step)
    if torch.compiler.is_compiling() or composed_weights_only(config):
        return composed_cells(weight, config, state, limit)
    return [fused_cells(wide(weight), config, state, limit)]


def streamed_weights(weight: Tensor, config: AnalogConfig, state: WeightState) -> ArrayWeights | StreamedWeights:
    """The same for one product without a gradient, a few rows at a time where that can be; fused weights only."""
    limit = weight_limit(weight, config, state.weight_max, state.step)
    return fused_rows(wide(weight), config, state, limit)


def composed_weights_only(config: AnalogConfig) -> bool:
    """Whether the weights need more than scaling, rounding, clipping and Gaussian noise."""
    quantization = config.weight_quantization
    special = quantization is not None and (
        quantization.learned_step or not quantization.symmetric or quantization.slice_bits is not None
    )
    return special or config.spread is not None or bool(config.weight_effects)


@dataclass(frozen=True)
class StoredWeights:
    """Weights that were programmed once and are read many times.

    Attributes:
        cells: What was programmed, errors of programming included.
        noise: Noise of every later reading; None without.
        sigma: Its standard deviation in units of the cells; None where it is relative to each weight.
    """

    cells: ArrayWeights
    noise: WeightNoise | None
    sigma: Number | None

    def read(self, source: Tensor, fresh: Callable[[Sequence[int]], Draw] | None) -> ArrayWeights:
        """The cells with the noise of one reading.

        Args:
            source: Takes the gradient.
            fresh: Normal numbers of a shape; None reads without noise.
        """
        codes = self.cells.codes
        if self.noise is not None and fresh is not None:
            codes = with_noise(codes, self.noise, fresh(codes.shape), self.sigma)
        return self.cells._replace(source=source, codes=codes)

    def streamed(self, source: Tensor, fresh: Callable[[Sequence[int]], Draw] | None) -> ArrayWeights | StreamedWeights:
        """The same for one product without a gradient, a few rows at a time where that can be."""
        codes, sigma = self.cells.codes, self.sigma
        if self.noise is None or fresh is None or sigma is None or not one_width(sigma):
            return self.read(source, fresh)
        draw, width, inputs = fresh(codes.shape), sigma, codes.shape[1]

        def rows(first: int, last: int) -> Tensor:
            return draw.added_to(codes[first:last], width, first * inputs)

        return StreamedWeights(tuple(codes.shape), self.cells.unit, self.cells.limit, rows)


def store_weights(weight: Tensor, config: AnalogConfig, state: WeightState) -> list[StoredWeights]:
    """Programs the weights: everything that happens once happens now, noise of reading later."""
    noise = config.drawn_weight_noise
    if noise is not None and noise.timing == "program":
        noise = None
    once = config if noise is None else config.without("weight_noise")
    cells = array_weights(weight.detach(), once, state)
    return [StoredWeights(one, noise, None if noise is None else _reading_sigma(noise, one)) for one in cells]


def _reading_sigma(noise: WeightNoise, cells: ArrayWeights) -> Number | None:
    """Standard deviation of weight noise on noiseless cells, in their unit; None where relative to each weight."""
    if noise.relative_to == "wmult":
        return None
    if noise.relative_to == "range" or cells.sliced:
        return noise.level * cells.limit / cells.unit
    return noise_sigma(noise, cells.codes.detach(), cells.unit)


class WeightPrior(NamedTuple):
    """What the hardware makes likely of each weight: the p(W) of a KL term, without a gradient.

    Attributes:
        mean: The programmable level nearest to the weight (`weight_quantization`; without it the clipped weight).
        std: Standard deviation of `weight_noise` there, of the shape of the weights.
    """

    mean: Tensor
    std: Tensor


def weight_prior(weight: Tensor, config: AnalogConfig, state: WeightState) -> WeightPrior:
    """The prior of a layer's weights, as its quantisation and its weight noise imply it.

    Args:
        weight: The weights.
        config: Which effects are on.
        state: Ranges and parameters; without random numbers.

    Raises:
        SurrogateError: Weight noise is off, or weights are in slices of bits.
    """
    noise, quantization = config.weight_noise, config.weight_quantization
    if noise is None or (quantization is not None and quantization.slice_bits is not None):
        raise SurrogateError("a weight prior takes its width from weight_noise, and needs weights that are not sliced")
    quiet = config.without("weight_noise", "spread", "weight_effects")
    (cells,) = array_weights(weight.detach(), quiet, state)
    mean, sigma = cells.codes.detach() * cells.unit, _reading_sigma(noise, cells)
    std = noise.level * mean.abs() if sigma is None else torch.as_tensor(sigma * cells.unit).to(mean).expand_as(mean)
    return WeightPrior(mean, std)
