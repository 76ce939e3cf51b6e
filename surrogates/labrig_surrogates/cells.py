"""Weights as they stand in the cells of arrays, and what decides about them: ranges, levels, noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.analog_effects import Carry
from labrig_surrogates.cell_pairs import WeightCells
from labrig_surrogates.draws import Draw, TensorDraw
from labrig_surrogates.effect_settings import WeightNoise
from labrig_surrogates.passes import Number, applied, clipped, inside_pass, largest_number, number
from labrig_surrogates.quantization import largest, sigma_bound, wide


class ArrayWeights(NamedTuple):
    """Weights as they stand in the arrays.

    Attributes:
        source: What the gradient belongs to, in the unit of the weights.
        codes: Weights in units of `unit`, noise included; data without a gradient.
        unit: One level in the unit of the weights, a number or one for each output.
        limit: Largest weight that the conductances can express, in the unit of the weights, likewise.
        clip: The gradient passes where `|source| < clip * unit`; None: everywhere.
        backward: Codes that the backward pass uses for the inputs' gradient; None: `codes`.
        factor: What the outputs of these cells count, a power of two where they hold a slice of the bits.
        sliced: Whether they hold a slice of the bits.
        cells: The cells before weight noise, where an effect has acted on cells.
    """

    source: Tensor
    codes: Tensor
    unit: Number
    limit: Number
    clip: float | None = None
    backward: Tensor | None = None
    factor: float = 1.0
    sliced: bool = False
    cells: WeightCells | None = None

    def gradient(self, grad: Tensor) -> Tensor:
        """Gradient of `source` from that of the weights in the arrays, in their own unit; may use its memory."""
        if self.clip is None:
            return grad
        return inside_pass(grad, self.source.detach(), 1.0 / self.unit, -self.clip, self.clip, target=grad)


class StreamedWeights(NamedTuple):
    """Weights as they stand in the arrays for one product, made a few rows at a time; without a gradient.

    Attributes:
        shape: Of all of them, `[outputs, inputs]`.
        unit: See `ArrayWeights`.
        limit: See `ArrayWeights`.
        rows: The codes of the outputs from the first number up to the second one.
    """

    shape: tuple[int, ...]
    unit: Number
    limit: Number
    rows: Callable[[int, int], Tensor]


class _OwnUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, _source: Tensor, weights: ArrayWeights) -> Tensor:
        ctx.weights = weights  # type: ignore[attr-defined]
        return weights.codes * weights.unit

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        weights = cast("ArrayWeights", ctx.weights)  # type: ignore[attr-defined]
        return weights.gradient(grad_outputs[0].clone()), None


def own_unit(weights: ArrayWeights) -> Tensor:
    """Weights in their own unit, noise included, differentiable."""
    if weights.codes is weights.source:
        return weights.source
    if not torch.compiler.is_compiling():
        return applied(_OwnUnit, weights.source, weights)
    through = weights.source
    if weights.clip is not None:
        through = clipped(through, weights.clip * weights.unit)
    return through + (weights.codes * weights.unit - through).detach()


class WeightState(NamedTuple):
    """What belongs to a layer's weights beside their values.

    Attributes:
        weight_max: The buffer of `weight_range="fixed"`, else None.
        step: The parameter of a learned quantiser, else None.
        log_spread: The parameter of a learnable spread, else None.
        uniform: Uniform numbers of a shape, new at every call; None rounds to the nearest.
        fresh: Normal numbers of a shape, new at every call; None switches noise off.
        kept: Normal numbers that stay until the next `new_write`, by name.
        of_chip: Normal numbers that stay until the next `new_chip`, by name.
        carried: States that go on with the age until the next `new_write`, by name.
        age_s: Time in s since the weights were programmed.
        groups: Groups of a convolution.
    """

    weight_max: Tensor | None
    step: Tensor | None
    log_spread: Tensor | None
    uniform: Callable[[Sequence[int]], Draw] | None
    fresh: Callable[[Sequence[int]], Draw] | None
    kept: Callable[[str, Sequence[int]], Tensor]
    of_chip: Callable[[str, Sequence[int]], Tensor]
    carried: Carry
    age_s: float = 0.0
    groups: int = 1


def weight_limit(weight: Tensor, config: AnalogConfig, weight_max: Tensor | None, step: Tensor | None) -> Number:
    """The range of the weights as the mapping says: one number, or `[outputs, 1, ...]`.

    Args:
        weight: The weights.
        config: Its mapping and quantisation decide.
        weight_max: For `weight_range="fixed"`.
        step: Of a learned quantiser, which decides the range.
    """
    mapping, values = config.mapping, wide(weight.detach())
    found: Number
    if step is not None and config.weight_quantization is not None:
        found = step.detach().abs() * config.weight_quantization.highest
    elif mapping.weight_range == "fixed":
        assert weight_max is not None
        found = weight_max.to(values.dtype)
    elif mapping.weight_range == "sigma":
        found = sigma_bound(values, mapping.clip_sigmas, per_column=mapping.per_column)
    elif mapping.per_column:
        found = largest(values, per_column=True)
    else:
        found = largest_number(values)
    # Weights that are all zero have a range that is no number's neighbour, so that its reciprocal is one too.
    least = 1e8 * torch.finfo(values.dtype).tiny
    limit = number(found) if isinstance(found, Tensor) else found
    return max(limit, least) if isinstance(limit, (int, float)) else torch.clamp(limit, min=least)


def noise_sigma(noise: WeightNoise, clean: Tensor, unit: Number) -> Number:
    """Standard deviation of weight noise in units of `unit`: a number, one element, or one for each output.

    Args:
        noise: Not relative to each weight itself (`wmult`).
        clean: Weights after clipping and quantisation, in units of `unit`; detached.
        unit: In the unit of the weights.
    """
    if noise.relative_to == "abs":
        return noise.level / unit
    one_unit = isinstance(unit, (int, float)) or unit.numel() == 1
    # Per tensor means per tensor in the unit of the weights, also where every column has a unit of its own.
    alike = one_unit or noise.per_column
    size = number(_size(noise, clean if alike else clean * unit))
    return noise.level * size if alike else noise.level * size / unit


def _size(noise: WeightNoise, values: Tensor) -> Tensor:
    rows = values.reshape(values.shape[0] if noise.per_column else 1, -1)
    if noise.relative_to == "wmax":
        size = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
    elif noise.relative_to == "wrange":
        size = rows.amax(dim=1) - rows.amin(dim=1)
    else:
        size = rows.std(dim=1, correction=0)
    return size.reshape(-1, *[1] * (values.dim() - 1)) if noise.per_column else size.reshape(())


def noise_draw(noise: WeightNoise, shape: Sequence[int], state: WeightState) -> Draw:
    """Numbers for the weight noise: new ones, or those that stay until the next `new_write`."""
    assert state.fresh is not None
    return TensorDraw(state.kept("weight_noise", shape)) if noise.timing == "program" else state.fresh(shape)


def one_width(sigma: Number | None) -> bool:
    """Whether noise has the same standard deviation everywhere."""
    return sigma is not None and (isinstance(sigma, (int, float)) or sigma.numel() == 1)


def with_noise(codes: Tensor, noise: WeightNoise, draw: Draw, sigma: Number | None) -> Tensor:
    """A new tensor, `codes` with weight noise; see `add_noise`."""
    if sigma is not None and one_width(sigma):
        return draw.added_to(codes, sigma)
    noisy = codes.clone()
    add_noise(noisy, noise, draw, sigma)
    return noisy


def add_noise(codes: Tensor, noise: WeightNoise, draw: Draw, sigma: Number | None) -> None:
    """Adds weight noise in place; `sigma` is None for noise relative to each weight."""
    if sigma is None:
        codes.addcmul_(codes, draw.tensor(), value=noise.level)
    elif isinstance(sigma, Tensor) and sigma.numel() > 1:
        codes.addcmul_(draw.tensor(), sigma)
    else:
        draw.add_to(codes, sigma)
