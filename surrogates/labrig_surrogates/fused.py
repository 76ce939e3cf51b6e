"""The fast path: DAC, product, output noise and ADC of all tiles in one autograd function with a backward of its own.

It saves the inputs (as a plain layer does), the weights, and the outputs in front of the ADC; codes of the DAC are
made anew in the backward pass, which is cheaper than keeping them. All passes over activations are in place and in
pieces that stay in cache; convolutions go through in parts of the batch, so that a feature map is converted while it
is still there. Numbers are counted in levels (of DAC, weights and ADC), so that scaling is left to the product itself
or to the smaller operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from labrig_surrogates.cells import ArrayWeights
from labrig_surrogates.fused_plan import FusedPlan, OutputNoiseDraw
from labrig_surrogates.passes import HALF_LEVEL, Number, applied, inside_pass, pieces
from labrig_surrogates.products import ConvProduct, LinearProduct

CONV_PART = 2**19
"""Elements of the inputs that one part of a convolution's batch has at least."""


def fused_outputs(
    x: Tensor,
    weights: ArrayWeights,
    bias: Tensor | None,
    plan: FusedPlan,
    noise: Sequence[OutputNoiseDraw] = (),
) -> Tensor:
    """Outputs of all tiles, added up.

    Args:
        x: Inputs, `[batch, inputs]` or `[batch, channels, ...]`.
        weights: What stands in the arrays; the gradient goes to its `source`.
        bias: Digital bias, `[outputs]`.
        plan: Everything else.
        noise: Output noise of each block; empty without.
    """
    linear = isinstance(plan.product, LinearProduct)
    if not plan.learns:
        forward = _linear_forward if linear else _conv_forward
        return forward(x, weights.codes.detach(), bias, plan, noise)[0]
    function = _FusedLinear if linear else _FusedConv
    return applied(function, x, weights.source, bias, weights, plan, noise)


def _convert(
    outputs: Tensor, plan: FusedPlan, block: int, noise: OutputNoiseDraw | None, bias: Tensor | None, target: Tensor
) -> None:
    """Noise, ADC and bias of one tile's outputs, in pieces.

    Args:
        outputs: In levels of the ADC; changed in place, and left as the ADC sees it where `target` is another tensor.
        plan: Everything else.
        block: Which tile.
        noise: Noise of these outputs.
        bias: Shaped to go with the outputs, or None.
        target: Takes the result; may be `outputs`.
    """
    lsb = None if plan.lsb is None else plan.lsb[block]
    if isinstance(lsb, Tensor):
        lsb = plan.product.columns(lsb)
    if noise is not None and isinstance(noise.sigma, Tensor) and noise.sigma.numel() > 1:
        numbers = torch.zeros_like(outputs)
        noise.draw.add_to(numbers, first=noise.first)
        outputs.addcmul_(numbers, plan.product.columns(noise.sigma))
        noise = None
    first = 0 if noise is None else noise.first
    for part, result in zip(pieces(outputs), pieces(target, outputs), strict=True):
        if noise is not None:
            noise.draw.add_to(part, noise.sigma, first=first)
            first += part.numel()
        if lsb is None:
            if bias is not None:
                torch.add(part, bias, out=result)
            elif result.data_ptr() != part.data_ptr():
                result.copy_(part)
            continue
        torch.round(part, out=result).clamp_(-plan.highest, plan.highest)
        if bias is not None and isinstance(lsb, int | float):
            torch.add(bias, result, alpha=lsb, out=result)
        else:
            result.mul_(lsb)
            if bias is not None:
                result.add_(bias)


def _unconverted(grad: Tensor, seen: Tensor | None, plan: FusedPlan) -> Tensor:
    """Gradient in front of the ADC: what was clipped passes none."""
    if seen is None:
        return grad
    bound = plan.highest + HALF_LEVEL
    return inside_pass(grad, seen, None, -bound, bound)


def _through_dac(grad: Tensor, x: Tensor, plan: FusedPlan, target: Tensor | None = None) -> Tensor:
    """Gradient in front of the DAC, in place or into `target`."""
    if plan.dac is None:
        return grad if target is None else target.copy_(grad)
    low, high = plan.dac.lowest - HALF_LEVEL, plan.dac.highest + HALF_LEVEL
    return inside_pass(grad, x, 1.0 / plan.dac.step, low, high, target=grad if target is None else target)


def _scaled_product(a: Tensor, b: Tensor, scale: Number) -> Tensor:
    """`scale * (a @ b)`, the scale of one element, or one for each column of the result."""
    if isinstance(scale, int | float):
        return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)
    product = a @ b
    return product * (scale.reshape(-1) if scale.numel() > 1 else scale)


def _noisy_product(a: Tensor, b: Tensor, plan: FusedPlan, block: int, noise: OutputNoiseDraw | None) -> Tensor | None:
    """The product with its output noise, in one call; None where that cannot be."""
    gain = plan.gain(block)
    if noise is None or plan.compute is not None or isinstance(gain, Tensor) or isinstance(noise.sigma, Tensor):
        return None
    whole = noise.draw.whole()
    if whole is None:
        return None
    numbers, sign = whole
    return torch.addmm(numbers, a, b, beta=sign * noise.sigma, alpha=gain)


def _linear_forward(
    x: Tensor, codes: Tensor, bias: Tensor | None, plan: FusedPlan, noise: Sequence[OutputNoiseDraw]
) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and what the ADC of each tile saw, if a backward pass may ask for it."""
    inputs, weights = plan.inputs(x), plan.typed(codes)
    keeps, many = plan.learns and plan.lsb is not None, len(plan.blocks) > 1
    total: Tensor | None = None
    seen: list[Tensor] = []
    for block, (first, last) in enumerate(plan.blocks):
        a, b = (inputs[:, first:last], weights[:, first:last]) if many else (inputs, weights)
        draw = noise[block] if noise else None
        outputs = _noisy_product(a, b.T, plan, block, draw)
        if outputs is None:
            outputs = plan.untyped(_scaled_product(a, b.T, plan.gain(block)))
        else:
            draw = None
        target = torch.empty_like(outputs) if keeps else outputs
        # The digital side adds the bias once.
        _convert(outputs, plan, block, draw, bias if block == 0 else None, target)
        if keeps:
            seen.append(outputs)
        total = target if total is None else total.add_(target)
    assert total is not None
    return total, seen


class _Saved(NamedTuple):
    """What the backward pass needs beside tensors."""

    plan: FusedPlan
    weights: ArrayWeights
    needs: tuple[bool, bool, bool]


def _save(
    ctx: FunctionCtx, x: Tensor, source: Tensor, weights: ArrayWeights, plan: FusedPlan, seen: list[Tensor]
) -> None:
    codes = weights.codes if weights.backward is None else weights.backward
    ctx.save_for_backward(x, source, codes.detach(), *seen)
    needs = cast("tuple[bool, ...]", ctx.needs_input_grad)  # type: ignore[attr-defined]
    # Tensors belong to autograd, which frees them as early as it can.
    nothing = source.new_empty(0)
    bare = weights._replace(source=nothing, codes=nothing, backward=None)
    ctx.saved = _Saved(plan, bare, (needs[0], needs[1], needs[2]))  # type: ignore[attr-defined]


def _saved(ctx: FunctionCtx) -> tuple[_Saved, Tensor, ArrayWeights, list[Tensor | None]]:
    x, source, codes, *seen = cast("tuple[Tensor, ...]", ctx.saved_tensors)  # type: ignore[attr-defined]
    saved = cast("_Saved", ctx.saved)  # type: ignore[attr-defined]
    return saved, x, saved.weights._replace(source=source, codes=codes), [*seen]


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        source: Tensor,
        bias: Tensor | None,
        weights: ArrayWeights,
        plan: FusedPlan,
        noise: Sequence[OutputNoiseDraw],
    ) -> Tensor:
        total, seen = _linear_forward(x, weights.codes.detach(), bias, plan, noise)
        _save(ctx, x, source, weights, plan, seen)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved, x, array, seen = _saved(ctx)
        plan, (need_x, need_weight, need_bias) = saved.plan, saved.needs
        (grad,) = grad_outputs
        inputs = plan.inputs(x) if need_weight else None
        weights = plan.typed(array.codes) if need_x else None
        input_step, many = 1.0 if plan.dac is None else plan.dac.step, len(plan.blocks) > 1
        grad_x = torch.empty_like(x) if need_x and many else None
        grad_weight = torch.empty_like(array.codes) if need_weight and many else None
        for block, (first, last) in enumerate(plan.blocks):
            inner = plan.typed(_unconverted(grad, seen[block] if seen else None, plan))
            if inputs is not None:
                part = plan.untyped(_scaled_product(inner.T, inputs[:, first:last], input_step))
                grad_weight = part if grad_weight is None else _put(grad_weight, part, first, last)
            if weights is not None:
                unit = plan.unit
                if isinstance(unit, Tensor) and unit.numel() > 1:
                    inner, unit = inner * plan.typed(unit.reshape(-1)), 1.0
                part = plan.untyped(_scaled_product(inner, weights[:, first:last], unit))
                grad_x = part if grad_x is None else _put(grad_x, part, first, last)
        if grad_x is not None:
            grad_x = _through_dac(grad_x, x, plan)
        if grad_weight is not None:
            grad_weight = array.gradient(grad_weight)
        return grad_x, grad_weight, grad.sum(dim=0) if need_bias else None, None, None, None


def _put(whole: Tensor, part: Tensor, first: int, last: int) -> Tensor:
    whole[:, first:last] = part
    return whole


def _batch_parts(x: Tensor) -> int:
    """Examples in one part of the batch."""
    return max(1, -(-CONV_PART * x.shape[0] // max(x.numel(), 1)))


def _conv_forward(
    x: Tensor, codes: Tensor, bias: Tensor | None, plan: FusedPlan, noise: Sequence[OutputNoiseDraw]
) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and what the ADC of each tile saw of each part of the batch, if a backward pass may ask for it."""
    product, blocks = plan.product, plan.blocks
    keeps, size = plan.learns and plan.lsb is not None, _batch_parts(x)
    kernels = [
        plan.typed(product.weights(_scaled(codes, plan.gain(n)), block, len(blocks))) for n, block in enumerate(blocks)
    ]
    column_bias = None if bias is None else product.columns(bias)
    total: Tensor | None = None
    seen: list[Tensor] = []
    for first in range(0, x.shape[0], size):
        last = min(first + size, x.shape[0])
        inputs = plan.inputs(x[first:last])
        for block, channels in enumerate(blocks):
            outputs = plan.untyped(product.plain(product.inputs(inputs, channels, len(blocks)), kernels[block]))
            if total is None:
                whole = last == x.shape[0] and not keeps
                total = outputs if whole else _like_batch(outputs, x.shape[0])
            goal = total[first:last]
            target = goal if block == 0 else torch.empty_like(outputs) if keeps else outputs
            draw = noise[block].beginning_at(first * (outputs.numel() // outputs.shape[0])) if noise else None
            _convert(outputs, plan, block, draw, column_bias if block == 0 else None, target)
            if block > 0:
                goal.add_(target)
            if keeps:
                seen.append(outputs)
    assert total is not None
    return total, seen


def _scaled(codes: Tensor, gain: Number) -> Tensor:
    """Weights times a number, or times one for each output."""
    if isinstance(gain, Tensor) and gain.dim():
        return codes * gain.reshape(-1, *[1] * (codes.dim() - 1))
    return codes * gain


class _FusedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        source: Tensor,
        bias: Tensor | None,
        weights: ArrayWeights,
        plan: FusedPlan,
        noise: Sequence[OutputNoiseDraw],
    ) -> Tensor:
        total, seen = _conv_forward(x, weights.codes.detach(), bias, plan, noise)
        _save(ctx, x, source, weights, plan, seen)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved, x, array, seen = _saved(ctx)
        plan, (need_x, need_weight, need_bias) = saved.plan, saved.needs
        product, count = cast("ConvProduct", plan.product), len(plan.blocks)
        (grad,) = grad_outputs
        kernels = [plan.typed(product.weights(array.codes * plan.unit, block, count)) for block in plan.blocks]
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight = torch.zeros_like(array.codes) if need_weight else None
        before, size = iter(seen), _batch_parts(x)
        for first in range(0, x.shape[0], size):
            part = slice(first, min(first + size, x.shape[0]))
            inputs, parts_x = plan.inputs(x[part]), []
            for block, channels in enumerate(plan.blocks):
                inner = plan.typed(_unconverted(grad[part], next(before, None), plan))
                part_x, part_weight = product.gradients(
                    inner, product.inputs(inputs, channels, count), kernels[block], inputs=need_x, weights=need_weight
                )
                if grad_weight is not None:
                    product.weights(grad_weight, channels, count).add_(part_weight)
                if need_x:
                    parts_x.append(plan.untyped(part_x))
            if grad_x is not None:
                _through_dac(product.joined(parts_x), x[part], plan, grad_x[part])
        if grad_weight is not None:
            grad_weight = array.gradient(grad_weight if plan.dac is None else grad_weight.mul_(plan.dac.step))
        grad_bias = grad.sum(dim=[0, *range(2, grad.dim())]) if need_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None


def _like_batch(part: Tensor, batch: int) -> Tensor:
    """An empty tensor for the whole batch with the memory format of a part of it."""
    channels_last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last and not part.is_contiguous() else torch.contiguous_format
    return torch.empty((batch, *part.shape[1:]), dtype=part.dtype, device=part.device, memory_format=layout)
