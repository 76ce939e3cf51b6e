"""Quantisers as differentiable functions: rounding passes gradients straight through, clipping stops them.

Every function computes in float32 or better, also inside autocast, and draws nothing by itself: stochastic rounding
takes its uniform numbers as an argument.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.passes import applied, largest_number

Level = Tensor | float
Rounding = Literal["nearest", "stochastic"]

FEWEST_BITS = 2
MOST_BITS = 8


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is that already; no smaller type has the resolution of a converter."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def symmetric_levels(bits: int) -> int:
    """Levels on each side of zero of a symmetric quantiser: `2**bits - 1` codes from `-n` to `n`, zero among them.

    Raises:
        SurrogateError: `bits` is not between 2 and 8.
    """
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise SurrogateError(f"bits = {bits}: a quantiser here has {FEWEST_BITS} to {MOST_BITS} bits")
    return int(2 ** (bits - 1) - 1)


def round_codes(codes: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Whole codes: the nearest (ties to even), or at random one of the two neighbours with the right mean.

    Args:
        codes: Real-valued codes, any shape.
        uniform: Uniform numbers in `[0, 1)`, same shape, for stochastic rounding: `floor(codes + uniform)` is `codes`
            on average (Gupta et al., ICML 2015); None rounds to the nearest.
    """
    return torch.round(codes) if uniform is None else torch.floor(codes + uniform)


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, step: Tensor, low: Tensor, high: Tensor, uniform: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, step, low, high)
        rounded = round_codes(x / step, uniform) * step
        return torch.minimum(torch.maximum(rounded, low), high)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, step, low, high = cast("tuple[Tensor, ...]", ctx.saved_tensors)  # type: ignore[attr-defined]
        inside = (x > low - 0.5 * step) & (x < high + 0.5 * step)
        return grad_outputs[0] * inside, None, None, None, None


def quantize(x: Tensor, step: Level, low: Level, high: Level, uniform: Tensor | None = None) -> Tensor:
    """Rounds to multiples of `step` within `[low, high]`; gradient one inside the range, zero outside.

    The straight-through estimator of Bengio, Leonard and Courville (arXiv 1308.3432), with the clipping of a
    saturating converter. What is up to half a step beyond the last level is rounded to it, not clipped, and still
    counts as inside. Always computed in float32 or better, also under autocast.

    Args:
        x: Values in the unit of `step`, any shape.
        step: Distance of two levels, broadcast against `x`.
        low: Lowest level.
        high: Highest level.
        uniform: Uniform numbers in `[0, 1)` of the shape of `x` for stochastic rounding; None rounds to the nearest.

    Returns:
        Quantised values, the shape of `x`.
    """
    values = wide(x)
    distance, lowest, highest = (torch.as_tensor(bound).to(values) for bound in (step, low, high))
    if not torch.compiler.is_compiling():
        return applied(_Quantize, values, distance, lowest, highest, uniform)
    # The same in words that every compiler knows; it fuses what costs passes over the data here.
    clipped = torch.clamp(values, lowest - 0.5 * distance, highest + 0.5 * distance)
    rounded = torch.clamp(round_codes(values.detach() / distance, uniform) * distance, lowest, highest)
    return clipped + (rounded - clipped).detach()


def quantize_symmetric(x: Tensor, bits: int, limit: Level, uniform: Tensor | None = None) -> Tensor:
    """Symmetric quantisation on `2**bits - 1` levels from `-limit` to `limit`.

    Args:
        x: Values, any shape.
        bits: 2 to 8.
        limit: Largest level: a number, or a tensor that broadcasts against `x`, such as one for each column.
        uniform: For stochastic rounding, see `round_codes`.

    Raises:
        SurrogateError: `bits` out of range.
    """
    levels = symmetric_levels(bits)
    bound = torch.as_tensor(limit).to(wide(x)).detach()
    return quantize(x, bound / levels, -bound, bound, uniform)


def quantize_affine(x: Tensor, bits: int, low: Level, high: Level, uniform: Tensor | None = None) -> Tensor:
    """Affine quantisation on `2**bits` levels that cover `[low, high]` and hold zero exactly.

    `x ~ step * (code - zero)` with a whole `zero`, so that a zero input stays zero (Jacob et al., CVPR 2018). The
    range is widened to hold zero, and moves by up to half a step so that zero is a level.

    Args:
        x: Values, any shape.
        bits: 2 to 8.
        low: Lower end of the range, broadcast against `x`.
        high: Upper end of the range.
        uniform: For stochastic rounding, see `round_codes`.

    Raises:
        SurrogateError: `bits` out of range.
    """
    symmetric_levels(bits)
    step, lowest, highest = affine_levels(x, bits, low, high)
    return quantize(x, step, lowest, highest, uniform)


def affine_levels(x: Tensor, bits: int, low: Level, high: Level) -> tuple[Tensor, Tensor, Tensor]:
    """Step, lowest and highest level of `quantize_affine`, in the type of `x`."""
    values = wide(x)
    bottom = torch.clamp(torch.as_tensor(low).to(values).detach(), max=0.0)
    top = torch.clamp(torch.as_tensor(high).to(values).detach(), min=0.0)
    step = torch.clamp((top - bottom) / (2**bits - 1), min=torch.finfo(values.dtype).tiny)
    zero = torch.round(-bottom / step)
    return step, -zero * step, (2**bits - 1 - zero) * step


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        step: Tensor,
        lowest: int,
        highest: int,
        gradient_scale: float,
        uniform: Tensor | None,
    ) -> Tensor:
        scaled = x / step
        codes = torch.clamp(round_codes(scaled, uniform), lowest, highest)
        ctx.save_for_backward(scaled, codes)
        ctx.limits, ctx.gradient_scale, ctx.step_shape = (lowest, highest), gradient_scale, step.shape  # type: ignore[attr-defined]
        return codes * step

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled, codes = cast("tuple[Tensor, Tensor]", ctx.saved_tensors)  # type: ignore[attr-defined]
        (grad,) = grad_outputs
        lowest, highest = cast("tuple[int, int]", ctx.limits)  # type: ignore[attr-defined]
        inside = (scaled > lowest) & (scaled < highest)
        slope = torch.where(inside, codes - scaled, codes)
        grad_step = (grad * slope).sum_to_size(ctx.step_shape) * ctx.gradient_scale  # type: ignore[attr-defined]
        return grad * inside, grad_step, None, None, None, None


def quantize_learned(
    x: Tensor, step: Tensor, lowest: int, highest: int, values_per_step: int, uniform: Tensor | None = None
) -> Tensor:
    """Quantisation with a learned step (LSQ, Esser et al., ICLR 2020, equations 1 to 5).

    The gradient of the step is `-v/s + round(v/s)` inside the range and the bound outside, times
    `1 / sqrt(values_per_step * highest)`; that of `x` passes inside the range only.

    Args:
        x: Values, any shape.
        step: Positive, broadcast against `x`; usually a parameter.
        lowest: Lowest code, `-Q_N` of the paper; zero for an unsigned quantiser.
        highest: Highest code, `Q_P` of the paper.
        values_per_step: How many weights, or how many features of one example, share one step.
        uniform: For stochastic rounding, see `round_codes`.
    """
    values = wide(x)
    scale = (max(values_per_step, 1) * highest) ** -0.5
    if not torch.compiler.is_compiling():
        return applied(_LearnedStep, values, step.to(values), lowest, highest, scale, uniform)
    slow = step.to(values) * scale
    learning = slow + (step.to(values) - slow).detach()
    scaled = values / learning
    codes = torch.clamp(round_codes(scaled.detach(), uniform), lowest, highest)
    inside = (scaled > lowest) & (scaled < highest)
    through = torch.where(inside, scaled, codes)
    found: Tensor = (through + (codes - through).detach()) * learning
    return found


@torch.no_grad()
def learned_step_start(x: Tensor, highest: int) -> Tensor:
    """First value of a learned step: `2 mean|x| / sqrt(Q_P)` (Esser et al., section 2.1)."""
    start: Tensor = 2.0 * wide(x).abs().mean() / highest**0.5
    return start


def largest(x: Tensor, *, per_column: bool = False) -> Tensor:
    """Largest |x|: of the whole tensor, or of each column, which is the first axis of a weight (`[out, 1, ...]`)."""
    values = wide(x.detach())
    if not per_column:
        return torch.as_tensor(largest_number(values)).to(values)
    rows = values.reshape(values.shape[0], -1)
    found = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
    return found.reshape(-1, *[1] * (x.dim() - 1))


def sigma_bound(x: Tensor, sigmas: float, *, per_column: bool = False) -> Tensor:
    """Clipping bound `sigmas` times the standard deviation of `x`, never beyond the largest |x|."""
    values = wide(x.detach())
    rows = values.reshape(values.shape[0] if per_column else 1, -1)
    spread = rows.std(dim=1, correction=0)
    bound = spread.reshape(-1, *[1] * (x.dim() - 1)) if per_column else spread.reshape(())
    return torch.minimum(sigmas * bound, largest(values, per_column=per_column))
