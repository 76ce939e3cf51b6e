"""In-place passes over large tensors, in pieces that stay in a core's cache.

A layer on an array is a product and a dozen cheap operations on each element. Done one after another over a whole
feature map each of them waits for memory; done piece by piece only the first one does.

A number that scales a tensor is a `Number`: on the CPU it is read out into a float, so that it can be an argument of
an operation in place of one operation more; elsewhere, where reading it would wait for the device, it stays a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Number = float | Tensor

PIECE = 2**18
"""Elements of one piece: 1 MiB in float32, half of it for each of two cores."""

HALF_LEVEL = 0.5
"""A converter rounds what is up to half a level beyond its last level; only what lies further off is clipped."""

SLACK = 1e-6
"""Relative distance from a limit without levels that still counts as inside: rounding of `weight / limit`."""


def number(x: Tensor) -> Number:
    """A tensor of one element as a float where that costs nothing, or else (and with more elements) as it is."""
    free = x.is_cpu and x.numel() == 1 and not torch.compiler.is_compiling()
    return float(x) if free else x


def a_backward_pass_may_follow(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with these tensors; None is no tensor."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def autocast_type(x: Tensor) -> torch.dtype | None:
    """Type in which autocast computes products with `x`; None where it is off."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def largest_number(x: Tensor) -> Number:
    """Largest |x| of a whole tensor."""
    # Two reductions take less time than the one that looks for both, and the second finds its piece in the cache.
    if x.is_cpu and not torch.compiler.is_compiling():
        return max(max(float(part.amax()), -float(part.amin())) for part in pieces(x))
    return torch.maximum(x.amax(), -x.amin())


def pieces(x: Tensor, like: Tensor | None = None) -> Sequence[Tensor]:
    """Parts of a tensor along its first axis, of about `PIECE` elements each; the tensor itself where it is small.

    Args:
        x: Any tensor.
        like: Cuts `x` at the same rows as this tensor, which has the same first axis; None: as itself.
    """
    reference = x if like is None else like
    if reference.numel() <= PIECE:
        return (x,)
    return torch.split(x, max(1, PIECE * reference.shape[0] // reference.numel()))


def flat(x: Tensor) -> Tensor:
    """A dense tensor as a vector in the order of its memory, sharing it; such is every result of an operation here."""
    if x.is_contiguous():
        return x.view(-1)
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.permute(order).view(-1)


def clipped(x: Tensor, bound: Number) -> Tensor:
    """`x` clipped to `bound` on both sides; the gradient passes inside and at the bound."""
    # A tuple here and elsewhere: torch 2.6 compiles no `int | float`.
    if isinstance(bound, (int, float)):
        return torch.clamp(x, -bound, bound)
    return torch.clamp(x, min=-bound, max=bound)


def applied(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """The one result of an autograd function."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def code_pass(x: Tensor, inverse_step: Number, lowest: int, highest: int) -> Tensor:
    """Codes of a converter at `x`: scaled, rounded to the nearest, clipped; a new tensor of the same type.

    Computed in float32 or better, whatever the type.
    """
    codes = torch.empty_like(x)
    narrow = x.dtype in {torch.bfloat16, torch.float16}
    for source, target in zip(pieces(x), pieces(codes), strict=True):
        if narrow:
            target.copy_(source.float().mul_(inverse_step).round_().clamp_(lowest, highest))
        else:
            torch.mul(source, inverse_step, out=target).round_().clamp_(lowest, highest)
    return codes


def inside_pass(
    grad: Tensor, x: Tensor, inverse_step: Number | None, low: float, high: float, *, target: Tensor | None = None
) -> Tensor:
    """`grad` where `low < x * inverse_step < high`, else zero.

    Args:
        grad: A gradient.
        x: Same shape.
        inverse_step: One element, or one for each row; None: one.
        low: Lower bound.
        high: Upper bound.
        target: Takes the result; may be `grad` itself, if nobody else sees it. None: a new tensor.
    """
    passed = torch.empty_like(x) if target is None else target
    if isinstance(inverse_step, (int, float)) and inverse_step > 0.0:
        low, high, inverse_step = low / inverse_step, high / inverse_step, None
    rows = inverse_step if isinstance(inverse_step, Tensor) and inverse_step.dim() else None
    factors = None if rows is None else pieces(rows, x)
    for index, (part, source, result) in enumerate(zip(pieces(grad, x), pieces(x), pieces(passed, x), strict=True)):
        factor = inverse_step if factors is None else factors[index]
        scaled = source if factor is None else source * factor
        torch.ops.aten.hardtanh_backward.grad_input(part, scaled, low, high, grad_input=result)
    return passed
