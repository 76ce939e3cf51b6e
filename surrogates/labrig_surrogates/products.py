"""The products that arrays compute, as one contract: matrix by vector, and convolutions with their kernel as weights.

Convolutions are never unfolded: programming noise acts on the kernel, converters act on the feature maps, and noise of
each cell needs one more convolution (`labrig_surrogates.composed`). Layers larger than an array are split over input
channels, in each group alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from labrig_surrogates.passes import applied

Block = tuple[int, int]


class Product(Protocol):
    """A bilinear product of inputs and weights."""

    @property
    def channel_axis(self) -> int:
        """Axis of inputs and outputs along which channels, and with them converters, lie."""
        ...

    @property
    def groups(self) -> int:
        """Groups of channels that have nothing to do with one another."""
        ...

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The exact product."""
        ...

    def inputs(self, x: Tensor, block: Block, blocks: int) -> Tensor:
        """The part of the inputs that one block of rows sees."""
        ...

    def weights(self, weight: Tensor, block: Block, blocks: int) -> Tensor:
        """The part of the weights in one block of rows."""
        ...

    def columns(self, values: Tensor) -> Tensor:
        """Values for each output (`[outputs]`, `[outputs, 1, ...]`) or for all (one element), to go with outputs."""
        ...

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of `sum(grad * plain(x, weight))` in the inputs."""
        ...

    def weight_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of `sum(grad * plain(x, weight))` in the weights."""
        ...

    def output_shape(self, x: Tensor, weight_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the product with weights of that shape."""
        ...


@dataclass(frozen=True)
class LinearProduct:
    """`x @ weight.T`, for inputs `[..., inputs]` and weights `[outputs, inputs]`; all channels are one group."""

    channel_axis: int = -1
    groups: int = 1

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Product.plain`."""
        return functional.linear(x, weight, bias)

    def inputs(self, x: Tensor, block: Block, blocks: int) -> Tensor:
        """See `Product.inputs`."""
        return x if blocks == 1 else x[..., block[0] : block[1]]

    def weights(self, weight: Tensor, block: Block, blocks: int) -> Tensor:
        """See `Product.weights`."""
        return weight if blocks == 1 else weight[:, block[0] : block[1]]

    def columns(self, values: Tensor) -> Tensor:
        """See `Product.columns`."""
        return values.reshape(-1) if values.numel() > 1 else values.reshape(())

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See `Product.input_gradient`."""
        del x
        return grad @ weight

    def weight_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See `Product.weight_gradient`."""
        del weight
        return grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])

    def output_shape(self, x: Tensor, weight_shape: tuple[int, ...]) -> tuple[int, ...]:
        """See `Product.output_shape`."""
        return (*x.shape[:-1], weight_shape[0])


@dataclass(frozen=True)
class ConvProduct:
    """A convolution over one or two axes, `weight[outputs, inputs / groups, ...]`; zeros at the border.

    Attributes:
        stride: Of each axis.
        padding: Zeros on both sides of each axis.
        dilation: Of each axis.
        groups: Groups of channels.
        channel_axis: Where the channels lie.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    channel_axis: int = 1

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Product.plain`."""
        zeros = [0] * len(self.stride)
        return torch.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, zeros, self.groups)

    def inputs(self, x: Tensor, block: Block, blocks: int) -> Tensor:
        """See `Product.inputs`; the block counts channels of one group."""
        if blocks == 1:
            return x
        if self.groups == 1:
            return x[:, block[0] : block[1]]
        grouped = x.reshape(x.shape[0], self.groups, -1, *x.shape[2:])[:, :, block[0] : block[1]]
        return grouped.reshape(x.shape[0], -1, *x.shape[2:])

    def weights(self, weight: Tensor, block: Block, blocks: int) -> Tensor:
        """See `Product.weights`."""
        return weight if blocks == 1 else weight[:, block[0] : block[1]]

    def columns(self, values: Tensor) -> Tensor:
        """See `Product.columns`."""
        return values.reshape(-1, *[1] * len(self.stride)) if values.numel() > 1 else values.reshape(())

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See `Product.input_gradient`."""
        return self.gradients(grad, x, weight, inputs=True, weights=False)[0]

    def weight_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See `Product.weight_gradient`."""
        return self.gradients(grad, x, weight, inputs=False, weights=True)[1]

    def output_shape(self, x: Tensor, weight_shape: tuple[int, ...]) -> tuple[int, ...]:
        """See `Product.output_shape`."""
        axes = zip(x.shape[2:], weight_shape[2:], self.stride, self.padding, self.dilation, strict=True)
        sizes = [(size + 2 * pad - gap * (taps - 1) - 1) // step + 1 for size, taps, step, pad, gap in axes]
        return (x.shape[0], weight_shape[0], *sizes)

    def joined(self, parts: list[Tensor]) -> Tensor:
        """Inputs (or their gradients) of all blocks as one: the inverse of `inputs`."""
        if len(parts) == 1:
            return parts[0]
        if self.groups == 1:
            return torch.cat(parts, dim=1)
        grouped = [part.reshape(part.shape[0], self.groups, -1, *part.shape[2:]) for part in parts]
        return torch.cat(grouped, dim=2).reshape(parts[0].shape[0], -1, *parts[0].shape[2:])

    def gradients(
        self, grad: Tensor, x: Tensor, weight: Tensor, *, inputs: bool, weights: bool
    ) -> tuple[Tensor, Tensor]:
        """Both gradients in one call; what is not asked for is undefined."""
        zeros, mask = [0] * len(self.stride), [inputs, weights, False]
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, self.dilation, False, zeros, self.groups, mask
        )
        return cast("tuple[Tensor, Tensor]", (found[0], found[1]))


class _BackwardThroughOthers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, other: Tensor, product: Product) -> Tensor:
        ctx.save_for_backward(x, weight, other)
        ctx.product = product  # type: ignore[attr-defined]
        return product.plain(x, weight)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, other = cast("tuple[Tensor, Tensor, Tensor]", ctx.saved_tensors)  # type: ignore[attr-defined]
        product = cast("Product", ctx.product)  # type: ignore[attr-defined]
        (grad,) = grad_outputs
        need_x, need_weight = cast("tuple[bool, bool]", ctx.needs_input_grad[:2])  # type: ignore[attr-defined]
        grad_x = product.input_gradient(grad, x, other) if need_x else None
        grad_weight = product.weight_gradient(grad, x, weight) if need_weight else None
        return grad_x, grad_weight, None, None


def multiply(product: Product, x: Tensor, weight: Tensor, backward_weight: Tensor | None = None) -> Tensor:
    """The product; the gradient of the inputs goes through `backward_weight` where that is given."""
    if backward_weight is None:
        return product.plain(x, weight)
    if not torch.compiler.is_compiling():
        return applied(_BackwardThroughOthers, x, weight, backward_weight, product)
    # Values of the first, gradient in x of the second, gradient in the weights of the third.
    through_x = product.plain(x, backward_weight.detach())
    through_weight = product.plain(x.detach(), weight)
    return through_weight + (through_x - through_x.detach())
