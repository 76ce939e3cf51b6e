"""The fast way from weights to cells: scaled, rounded, clipped and made noisy in one buffer, piece by piece.

Where nothing has to be kept for a backward pass, the pieces can be made when the product asks for them, so that the
noisy weights never stand in memory as a whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.cells import ArrayWeights, StreamedWeights, WeightState, add_noise, noise_draw, noise_sigma
from labrig_surrogates.draws import Draw
from labrig_surrogates.effect_settings import WeightNoise
from labrig_surrogates.passes import HALF_LEVEL, SLACK, Number, largest_number, pieces


class _Plan(NamedTuple):
    """What the fast path does with the weights; `unit` is a number, or has one element for each output."""

    unit: Number
    levels: float
    rounds: bool
    clips: bool
    uniform: Draw | None
    noise: WeightNoise | None
    draw: Draw | None
    backward: str
    backward_draw: Draw | None

    def known_sigma(self, weight: Tensor) -> float | None:
        """Standard deviation of the noise in levels, where it takes no finished codes to tell it."""
        noise, unit = self.noise, self.unit
        if noise is None:
            return None
        # The largest level is that of the tensor, or that of each column: the same as the noise asks for.
        alike = (isinstance(unit, (int, float)) or unit.numel() == 1) != noise.per_column
        if noise.relative_to == "range" or (noise.relative_to == "wmax" and not self.clips and alike):
            return noise.level * self.levels
        if noise.relative_to == "wmax" and self.uniform is None and alike and isinstance(unit, (int, float)):
            largest = largest_number(weight)
            if isinstance(largest, (int, float)):
                code = largest / unit
                return noise.level * min(float(round(code)) if self.rounds else code, self.levels)
        return noise.level / unit if noise.relative_to == "abs" and isinstance(unit, (int, float)) else None


def _codes(weight: Tensor, plan: _Plan, sigma: float | None, start: int = 0) -> Tensor:
    """Scales, rounds and clips in one buffer, and adds noise if its width is given.

    Args:
        weight: Some rows of the weights.
        plan: What is done with all of them.
        sigma: Standard deviation of the noise in levels; None adds none.
        start: Number of the first row.
    """
    codes = torch.empty_like(weight, memory_format=torch.contiguous_format)
    inverse, first = 1.0 / plan.unit, start * (weight.numel() // weight.shape[0])
    if isinstance(inverse, Tensor) and inverse.dim():
        factors = pieces(inverse[start : start + weight.shape[0]], weight)
    else:
        factors = None
    for index, (source, part) in enumerate(zip(pieces(weight), pieces(codes), strict=True)):
        torch.mul(source, inverse if factors is None else factors[index], out=part)
        if plan.uniform is not None:
            plan.uniform.add_to(part, first=first)
            part.floor_()
        elif plan.rounds:
            part.round_()
        if plan.clips:
            part.clamp_(-plan.levels, plan.levels)
        if plan.draw is not None and sigma is not None:
            plan.draw.add_to(part, sigma, first=first)
        first += part.numel()
    return codes


def _codes_of_both_passes(weight: Tensor, plan: _Plan) -> tuple[Tensor, Tensor | None]:
    """Codes with noise; the second result is for the backward pass."""
    sigma = plan.known_sigma(weight)
    if plan.noise is None or (sigma is not None and plan.backward == "same"):
        return _codes(weight, plan, sigma), None
    codes = _codes(weight, plan, None)
    other = codes.clone() if plan.backward != "same" else None
    width: Number | None = sigma
    if sigma is None and plan.noise.relative_to != "wmult":
        width = noise_sigma(plan.noise, codes, plan.unit)
    for target, draw in ((codes, plan.draw), (other, plan.backward_draw)):
        if target is not None and draw is not None:
            add_noise(target, plan.noise, draw, width)
    return codes, other


def _plan(weight: Tensor, config: AnalogConfig, state: WeightState, limit: Number) -> _Plan | None:
    """What is to be done with the weights; None: nothing."""
    quantization, noise = config.weight_quantization, config.drawn_weight_noise if state.fresh is not None else None
    clips = config.mapping.weight_range != "max"
    if quantization is None and noise is None and not clips:
        return None
    levels = 1.0 if quantization is None else float(quantization.highest)
    stochastic = quantization is not None and quantization.rounding == "stochastic"
    backward = "same" if noise is None else config.backward.weights
    return _Plan(
        unit=limit / levels,
        levels=levels,
        rounds=quantization is not None,
        clips=clips,
        uniform=state.uniform(weight.shape) if stochastic and state.uniform is not None else None,
        noise=noise,
        draw=None if noise is None else noise_draw(noise, weight.shape, state),
        backward=backward,
        backward_draw=state.fresh(weight.shape) if backward == "fresh" and state.fresh is not None else None,
    )


def fused_cells(weight: Tensor, config: AnalogConfig, state: WeightState, limit: Number) -> ArrayWeights:
    """Cells of weights that need no more than clipping, quantisation and Gaussian noise; see `array_weights`."""
    return _cells(weight, _plan(weight, config, state, limit), limit)


def _cells(weight: Tensor, plan: _Plan | None, limit: Number) -> ArrayWeights:
    if plan is None:
        return ArrayWeights(weight, weight.detach(), 1.0, limit)
    codes, other = _codes_of_both_passes(weight.detach(), plan)
    bound = plan.levels + HALF_LEVEL if plan.rounds else plan.levels * (1.0 + SLACK)
    return ArrayWeights(weight, codes, plan.unit, limit, bound if plan.clips else None, other)


def fused_rows(
    weight: Tensor, config: AnalogConfig, state: WeightState, limit: Number
) -> ArrayWeights | StreamedWeights:
    """The same for one product without a gradient: a few rows at a time, unless noise asks for all weights first."""
    plan = _plan(weight, config, state, limit)
    sigma = None if plan is None else plan.known_sigma(weight.detach())
    if plan is None or (plan.noise is not None and sigma is None):
        return _cells(weight, plan, limit)
    values = weight.detach()
    return StreamedWeights(
        tuple(weight.shape), plan.unit, limit, lambda first, last: _codes(values[first:last], plan, sigma, first)
    )
