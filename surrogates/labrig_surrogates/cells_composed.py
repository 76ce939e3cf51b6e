"""The way from weights to cells that serves every effect, in operations that autograd and compilers know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.analog_effects import ProgrammedWeights, affected_weights
from labrig_surrogates.bit_slicing import slice_weights, slices_of
from labrig_surrogates.cells import ArrayWeights, WeightState, noise_draw, noise_sigma
from labrig_surrogates.draws import Draw
from labrig_surrogates.effect_settings import WeightNoise
from labrig_surrogates.passes import SLACK, Number, clipped
from labrig_surrogates.quantization import affine_levels, quantize, quantize_learned, wide


def composed_cells(weight: Tensor, config: AnalogConfig, state: WeightState, limit: Number) -> list[ArrayWeights]:
    """Cells of weights, one set for each slice of the bits; see `array_weights`."""
    values = _quantised(wide(weight), config, state, limit)
    quantization, noise = config.weight_quantization, config.drawn_weight_noise if state.fresh is not None else None
    if quantization is not None and quantization.slice_bits is not None:
        return _sliced(values, config, state, limit)
    clean = values
    if state.log_spread is not None and state.fresh is not None:
        values = values + torch.exp(state.log_spread) * state.fresh(values.shape).tensor()
    cells = None
    if config.weight_effects:
        values, cells = affected_weights(values, config.weight_effects, _known(values, config, state, limit))
    if noise is None:
        return [ArrayWeights(values, values, 1.0, limit, cells=cells)]
    noisy = _noisy(values, clean, noise, noise_draw(noise, values.shape, state), limit)
    other = None
    if config.backward.weights == "clean":
        other = clean.detach()
    elif config.backward.weights == "fresh" and state.fresh is not None:
        other = _noisy(clean, clean, noise, state.fresh(clean.shape), limit).detach()
    return [ArrayWeights(noisy, noisy, 1.0, limit, None, other, cells=cells)]


def _quantised(values: Tensor, config: AnalogConfig, state: WeightState, limit: Number) -> Tensor:
    quantization = config.weight_quantization
    if quantization is None and config.mapping.weight_range == "max":
        return values
    if quantization is None:
        inside = clipped(values, limit * (1.0 + SLACK))
        return inside + (clipped(values, limit) - inside).detach()
    stochastic = quantization.rounding == "stochastic" and state.uniform is not None
    uniform = state.uniform(values.shape).tensor() if stochastic and state.uniform is not None else None
    if state.step is not None:
        count = values.numel() // state.step.numel()
        return quantize_learned(values, state.step, -quantization.highest, quantization.highest, count, uniform)
    if not quantization.symmetric:
        rows = values.detach().reshape(values.shape[0] if config.mapping.per_column else 1, -1)
        ends = [end.reshape(-1, *[1] * (values.dim() - 1)) for end in (rows.amin(dim=1), rows.amax(dim=1))]
        step, low, high = affine_levels(values, quantization.bits, *ends)
        return quantize(values, step, low, high, uniform)
    return quantize(values, limit / quantization.highest, -limit, limit, uniform)


def _noisy(values: Tensor, clean: Tensor, noise: WeightNoise, draw: Draw, limit: Number) -> Tensor:
    """Weights in their own unit with noise; its width is measured on the clean weights and carries no gradient."""
    if noise.relative_to == "wmult":
        return values + noise.level * clean.detach() * draw.tensor()
    if noise.relative_to == "range":
        return values + noise.level * limit * draw.tensor()
    sigma = noise_sigma(noise, clean.detach(), 1.0)
    return values + sigma * draw.tensor()


def _sliced(values: Tensor, config: AnalogConfig, state: WeightState, limit: Number) -> list[ArrayWeights]:
    quantization = config.weight_quantization
    assert quantization is not None
    assert quantization.slice_bits is not None
    unit = limit / quantization.highest
    codes = values / unit
    codes = codes + (torch.round(codes) - codes).detach()
    parts = slices_of(codes, quantization.bits - 1, quantization.slice_bits)
    largest_code = 2**quantization.slice_bits - 1
    noise = config.drawn_weight_noise if state.fresh is not None else None
    made = []
    for index, (part, factor) in enumerate(zip(parts, slice_weights(len(parts), quantization.slice_bits), strict=True)):
        cells = part * unit
        if noise is not None and state.fresh is not None:
            kept = noise.timing == "program"
            draw = state.kept(f"weight_noise_{index}", part.shape) if kept else state.fresh(part.shape).tensor()
            cells = cells + noise.level * largest_code * unit * draw
        made.append(ArrayWeights(cells, cells, 1.0, largest_code * unit, factor=factor, sliced=True))
    return made


def _known(values: Tensor, config: AnalogConfig, state: WeightState, limit: Number) -> ProgrammedWeights:
    def fresh(shape: Sequence[int]) -> Tensor:
        return values.new_zeros(tuple(shape)) if state.fresh is None else state.fresh(shape).tensor()

    def kept(name: str, shape: Sequence[int]) -> Tensor:
        return values.new_zeros(tuple(shape)) if state.fresh is None else state.kept(name, shape)

    return ProgrammedWeights(
        limit=torch.as_tensor(limit).to(values),
        scheme=config.mapping.scheme,
        geometry=config.geometry,
        fresh=fresh,
        kept=kept,
        of_chip=state.of_chip,
        carried=state.carried,
        age_s=state.age_s,
        quiet=state.fresh is None,
        groups=state.groups,
    )
