"""The fast path: DAC, product, output noise and ADC of all tiles in one autograd function with a backward of its own.

It saves the inputs (as a plain layer does), the weights, and a byte for each output that says whether the ADC clipped
it; codes of the DAC are made anew in the backward pass, which is cheaper than keeping them. Where no backward pass can
follow, the weights of a linear layer on one tile are made a few rows at a time. All passes over activations are in
place and in pieces that stay in cache; convolutions go through in parts of the batch, so that a feature map is
converted while it is still there. Numbers are counted in levels (of DAC, weights and ADC), so that scaling is left to
the product itself or to the smaller operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from labrig_surrogates.cells import ArrayWeights, StreamedWeights
from labrig_surrogates.fused_plan import FusedPlan, OutputNoiseDraw
from labrig_surrogates.passes import HALF_LEVEL, Number, applied, inside_pass, pieces
from labrig_surrogates.products import ConvProduct, LinearProduct

CONV_PART = 2**19
"""Elements of the inputs that one part of a convolution's batch has at least."""

NARROW_CONV_PART = 2**23
"""The same where products are in bfloat16: matrix units want large parts more than the passes want small ones."""

STREAMED_PARTS = 2
"""Parts in which streamed weights are made: half a copy of them and one of the inputs is half of what stands anyway."""

STREAMED_PIECE = 2**20
"""Elements of one part at most."""


def fused_outputs(
    x: Tensor,
    weights: ArrayWeights | StreamedWeights,
    bias: Tensor | None,
    plan: FusedPlan,
    noise: Sequence[OutputNoiseDraw] = (),
) -> Tensor:
    """Outputs of all tiles, added up.

    Args:
        x: Inputs, `[batch, inputs]` or `[batch, channels, ...]`.
        weights: What stands in the arrays; the gradient goes to its `source`. Streamed ones serve one tile of a linear
            layer and have none.
        bias: Digital bias, `[outputs]`.
        plan: Everything else.
        noise: Output noise of each block; empty without.
    """
    if isinstance(weights, StreamedWeights):
        return _streamed_forward(x, weights, bias, plan, noise)
    linear = isinstance(plan.product, LinearProduct)
    if not plan.learns:
        forward = _linear_forward if linear else _conv_forward
        return forward(x, weights.codes.detach(), bias, plan, noise)[0]
    function = _FusedLinear if linear else _FusedConv
    return applied(function, x, weights.source, bias, weights, plan, noise)


def _convert(
    outputs: Tensor,
    plan: FusedPlan,
    block: int,
    noise: OutputNoiseDraw | None,
    bias: Tensor | None,
    target: Tensor,
    inside: Tensor | None,
) -> None:
    """Noise, ADC and bias of one tile's outputs, in pieces.

    Args:
        outputs: In levels of the ADC; changed in place.
        plan: Everything else.
        block: Which tile.
        noise: Noise of these outputs.
        bias: Shaped to go with the outputs, or None.
        target: Takes the result; may be `outputs` where `inside` is None.
        inside: Takes a one for each output that the ADC did not clip, else a zero; int8. None: nobody asks.
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
    marks = None if inside is None else pieces(inside, outputs)
    one = None if inside is None else outputs.new_ones(())
    bound = plan.highest + HALF_LEVEL
    for index, (part, result) in enumerate(zip(pieces(outputs), pieces(target, outputs), strict=True)):
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
        if marks is not None and one is not None:
            # Found in floating point and then copied: many times faster than a comparison that yields bytes.
            marks[index].copy_(inside_pass(one.expand_as(part), part, None, -bound, bound, target=part))
        if bias is not None and isinstance(lsb, (int, float)):
            torch.add(bias, result, alpha=lsb, out=result)
        else:
            result.mul_(lsb)
            if bias is not None:
                result.add_(bias)


def _unconverted(grad: Tensor, inside: Tensor | None) -> Tensor:
    """Gradient in front of the ADC: what was clipped passes none."""
    if inside is None:
        return grad
    passed = torch.empty_like(inside, dtype=grad.dtype)
    for part, marks, result in zip(pieces(grad, inside), pieces(inside), pieces(passed, inside), strict=True):
        inside_pass(part, result.copy_(marks), None, HALF_LEVEL, 1.0 + HALF_LEVEL, target=result)
    return passed


def _through_dac(grad: Tensor, x: Tensor, plan: FusedPlan, target: Tensor | None = None) -> Tensor:
    """Gradient in front of the DAC, in place or into `target`."""
    if plan.dac is None:
        return grad if target is None else target.copy_(grad)
    low, high = plan.dac.lowest - HALF_LEVEL, plan.dac.highest + HALF_LEVEL
    return inside_pass(grad, x, 1.0 / plan.dac.step, low, high, target=grad if target is None else target)


def _scaled_product(a: Tensor, b: Tensor, scale: Number) -> Tensor:
    """`scale * (a @ b)`, the scale of one element, or one for each column of the result."""
    if isinstance(scale, (int, float)):
        return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)
    product = a @ b
    return product * (scale.reshape(-1) if scale.numel() > 1 else scale)


def _noise_in_product(plan: FusedPlan, gain: Number, noise: OutputNoiseDraw | None) -> tuple[Tensor, float] | None:
    """What to add to a product so that it has its output noise at once: numbers and factor; None where it cannot."""
    if noise is None or plan.compute is not None or isinstance(gain, Tensor) or isinstance(noise.sigma, Tensor):
        return None
    whole = noise.draw.whole()
    return None if whole is None else (whole[0], whole[1] * noise.sigma)


def _noisy_product(a: Tensor, b: Tensor, plan: FusedPlan, block: int, noise: OutputNoiseDraw | None) -> Tensor | None:
    """The product with its output noise, in one call; None where that cannot be."""
    gain = plan.gain(block)
    added = _noise_in_product(plan, gain, noise)
    if added is None or isinstance(gain, Tensor):
        return None
    return torch.addmm(added[0], a, b, beta=added[1], alpha=gain)


def _linear_forward(
    x: Tensor, codes: Tensor, bias: Tensor | None, plan: FusedPlan, noise: Sequence[OutputNoiseDraw]
) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and which of them the ADC of each tile clipped, if a backward pass may ask for it."""
    inputs, weights = plan.inputs(x), plan.typed(codes)
    keeps, many = plan.learns and plan.lsb is not None, len(plan.blocks) > 1
    total: Tensor | None = None
    inside: list[Tensor] = []
    for block, (first, last) in enumerate(plan.blocks):
        a, b = (inputs[:, first:last], weights[:, first:last]) if many else (inputs, weights)
        draw = noise[block] if noise else None
        outputs = _noisy_product(a, b.T, plan, block, draw)
        if outputs is None:
            outputs = plan.untyped(_scaled_product(a, b.T, plan.gain(block)))
        else:
            draw = None
        target = torch.empty_like(outputs) if keeps else outputs
        marks = torch.empty_like(outputs, dtype=torch.int8) if keeps else None
        # The digital side adds the bias once.
        _convert(outputs, plan, block, draw, bias if block == 0 else None, target, marks)
        if marks is not None:
            inside.append(marks)
        total = target if total is None else total.add_(target)
    assert total is not None
    return total, inside


def _streamed_forward(
    x: Tensor, weights: StreamedWeights, bias: Tensor | None, plan: FusedPlan, noise: Sequence[OutputNoiseDraw]
) -> Tensor:
    """The outputs, of weights that never stand in memory as a whole."""
    inputs, gain, draw = plan.inputs(x), plan.gain(0), noise[0] if noise else None
    count, width = weights.shape
    size = max(1, min(-(-count // STREAMED_PARTS), STREAMED_PIECE // width))
    outputs = inputs.new_empty((inputs.shape[0], count))
    numbers, beta = _noise_in_product(plan, gain, draw) or (outputs, 0.0)
    alpha = 1.0 if isinstance(gain, Tensor) else gain
    for first in range(0, count, size):
        last = min(first + size, count)
        part = outputs[:, first:last]
        # Nothing names the codes, so that those of one part are gone before the next ones are made.
        torch.addmm(
            numbers[:, first:last], inputs, plan.typed(weights.rows(first, last)).T, beta=beta, alpha=alpha, out=part
        )
    if isinstance(gain, Tensor):
        outputs.mul_(gain)
    result = plan.untyped(outputs)
    _convert(result, plan, 0, draw if numbers is outputs else None, bias, result, None)
    return result


class _Saved(NamedTuple):
    """What the backward pass needs beside tensors."""

    plan: FusedPlan
    weights: ArrayWeights
    needs: tuple[bool, bool, bool]


def _save(
    ctx: FunctionCtx, x: Tensor, source: Tensor, weights: ArrayWeights, plan: FusedPlan, inside: list[Tensor]
) -> None:
    codes = weights.codes if weights.backward is None else weights.backward
    ctx.save_for_backward(x, source, codes.detach(), *inside)
    needs = cast("tuple[bool, ...]", ctx.needs_input_grad)  # type: ignore[attr-defined]
    # Tensors belong to autograd, which frees them as early as it can.
    nothing = source.new_empty(0)
    bare = weights._replace(source=nothing, codes=nothing, backward=None)
    ctx.saved = _Saved(plan, bare, (needs[0], needs[1], needs[2]))  # type: ignore[attr-defined]


def _saved(ctx: FunctionCtx) -> tuple[_Saved, Tensor, ArrayWeights, list[Tensor | None]]:
    x, source, codes, *inside = cast("tuple[Tensor, ...]", ctx.saved_tensors)  # type: ignore[attr-defined]
    saved = cast("_Saved", ctx.saved)  # type: ignore[attr-defined]
    return saved, x, saved.weights._replace(source=source, codes=codes), [*inside]


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
        total, inside = _linear_forward(x, weights.codes.detach(), bias, plan, noise)
        _save(ctx, x, source, weights, plan, inside)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved, x, array, inside = _saved(ctx)
        plan, (need_x, need_weight, need_bias) = saved.plan, saved.needs
        (grad,) = grad_outputs
        weights = plan.typed(array.codes) if need_x else None
        input_step, many = 1.0 if plan.dac is None else plan.dac.step, len(plan.blocks) > 1
        grad_x = torch.empty_like(x) if need_x and many else None
        grad_weight = torch.empty_like(array.codes) if need_weight and many else None
        for block, (first, last) in enumerate(plan.blocks):
            inner = plan.typed(_unconverted(grad, inside[block] if inside else None))
            if need_weight:
                # The codes of the DAC are gone again before the other gradient asks for memory.
                part = plan.untyped(_scaled_product(inner.T, plan.inputs(x[:, first:last]), input_step))
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


def _batch_parts(x: Tensor, plan: FusedPlan) -> int:
    """Examples in one part of the batch."""
    elements = NARROW_CONV_PART if plan.narrow else CONV_PART
    return max(1, -(-elements * x.shape[0] // max(x.numel(), 1)))


def _conv_forward(
    x: Tensor, codes: Tensor, bias: Tensor | None, plan: FusedPlan, noise: Sequence[OutputNoiseDraw]
) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and which of each part of the batch the ADC of each tile clipped, if a backward pass may follow."""
    product, blocks = plan.product, plan.blocks
    keeps, size = plan.learns and plan.lsb is not None, _batch_parts(x, plan)
    kernels = [
        plan.typed(product.weights(_scaled(codes, plan.gain(n)), block, len(blocks))) for n, block in enumerate(blocks)
    ]
    column_bias = None if bias is None else product.columns(bias)
    total: Tensor | None = None
    inside: list[Tensor] = []
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
            marks = torch.empty_like(outputs, dtype=torch.int8) if keeps else None
            _convert(outputs, plan, block, draw, column_bias if block == 0 else None, target, marks)
            if block > 0:
                goal.add_(target)
            if marks is not None:
                inside.append(marks)
    assert total is not None
    return total, inside


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
        total, inside = _conv_forward(x, weights.codes.detach(), bias, plan, noise)
        _save(ctx, x, source, weights, plan, inside)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved, x, array, inside = _saved(ctx)
        plan, (need_x, need_weight, need_bias) = saved.plan, saved.needs
        product, count = cast("ConvProduct", plan.product), len(plan.blocks)
        (grad,) = grad_outputs
        kernels = [plan.typed(product.weights(array.codes * plan.unit, block, count)) for block in plan.blocks]
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight = torch.zeros_like(array.codes) if need_weight else None
        marks, size = iter(inside), _batch_parts(x, plan)
        for first in range(0, x.shape[0], size):
            part = slice(first, min(first + size, x.shape[0]))
            inputs, parts_x = plan.inputs(x[part]), []
            for block, channels in enumerate(plan.blocks):
                inner = plan.typed(_unconverted(grad[part], next(marks, None)))
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
