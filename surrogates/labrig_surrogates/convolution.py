"""`AnalogConv1d` and `AnalogConv2d`: convolutions whose kernel lies on analog arrays, never unfolded.

One array computes one output position after another; what is simulated is the whole convolution with the kernel as it
stands in the arrays. A kernel with more rows than an array is split over input channels, with converters for each part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.layers import WeightMatrix, noise_seed
from labrig_surrogates.products import ConvProduct
from labrig_surrogates.programming import WeightPrior

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class ConvSettings:
    """A convolution's settings as `torch.nn.Conv1d` and `Conv2d` name them."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: PaddingMode

    @classmethod
    def of(cls, conv: nn.Conv1d | nn.Conv2d) -> ConvSettings:
        """The settings of a digital layer."""
        return cls(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            kernel_size=tuple(conv.kernel_size),
            stride=tuple(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else tuple(conv.padding),
            dilation=tuple(conv.dilation),
            groups=conv.groups,
            padding_mode=conv.padding_mode,
        )

    @property
    def sides(self) -> list[tuple[int, int]]:
        """What is added before and behind each axis."""
        if self.padding == "same":
            totals = [gap * (size - 1) for gap, size in zip(self.dilation, self.kernel_size, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        if isinstance(self.padding, str):
            return [(0, 0)] * len(self.kernel_size)
        return [(pad, pad) for pad in self.padding]

    @property
    def product_pads(self) -> bool:
        """Whether the product adds the border itself: zeros, as many before as behind."""
        return self.padding_mode == "zeros" and all(before == behind for before, behind in self.sides)

    def product(self) -> ConvProduct:
        """What the arrays compute."""
        zeros = (0,) * len(self.kernel_size)
        padding = tuple(before for before, _ in self.sides) if self.product_pads else zeros
        return ConvProduct(self.stride, padding, self.dilation, self.groups)

    def extend(self, x: Tensor) -> Tensor:
        """The inputs with the border that the product does not add itself."""
        if self.product_pads:
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, [size for side in reversed(self.sides) for size in side], mode=mode)

    def __str__(self) -> str:
        """As the digital layer prints itself."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        )


def _convolve(
    settings: ConvSettings, core: AnalogCore, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> Tensor:
    """One batch, or one example without the axis of the batch."""
    single = x.dim() == weight.dim() - 1
    batch = settings.extend(x.unsqueeze(0) if single else x)
    outputs: Tensor
    if scale is None:
        outputs = core(batch, weight, bias)
    else:
        outputs = core(batch, weight) * core.product.columns(scale)
        outputs = outputs if bias is None else outputs + core.product.columns(bias)
    return outputs.squeeze(0) if single else outputs


def _draw_anew(conv: nn.Conv1d | nn.Conv2d, generator: torch.Generator | None) -> None:
    """Initial values as the digital layer has them, from a generator."""
    if generator is None:
        return
    bound = (conv.in_channels // conv.groups * conv.weight[0, 0].numel()) ** -0.5
    with torch.no_grad():
        conv.weight.uniform_(-bound, bound, generator=generator)
        if conv.bias is not None:
            conv.bias.uniform_(-bound, bound, generator=generator)


class AnalogConv2d(nn.Module):
    """A convolution over images on analog arrays; arguments and names of parameters as `torch.nn.Conv2d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Of the kernel, of both axes or of each.
        stride: Likewise.
        padding: Likewise, or `same` or `valid`.
        dilation: Likewise.
        groups: Groups of channels; each lies on arrays of its own.
        bias: Whether there is a (digital) bias.
        padding_mode: What the border is made of.
        config: What is not ideal about the arrays.
        name: First part of the names of its tiles.
        generator: Source of the initial weights and of the noise's seed; None takes torch's own.

    Raises:
        SurrogateError: The arrays of the config cannot hold one channel's kernel.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        config: AnalogConfig | None = None,
        name: str = "conv",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        _draw_anew(conv, generator)
        used = AnalogConfig() if config is None else config
        self._take(conv, used, name=name, seed=noise_seed(generator), stream=0)

    @classmethod
    def around(cls, conv: nn.Conv2d, config: AnalogConfig, *, name: str, seed: int, stream: int) -> Self:
        """An analog layer with the parameters of a digital one: the same objects, not copies."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(conv, config, name=name, seed=seed, stream=stream)
        return made.train(conv.training)

    def _take(self, conv: nn.Conv2d, config: AnalogConfig, *, name: str, seed: int, stream: int) -> None:
        self.settings = ConvSettings.of(conv)
        self.weight, self.bias = conv.weight, conv.bias
        self.scale = nn.Parameter(conv.weight.new_ones(conv.out_channels)) if config.digital.scale else None
        self.core = AnalogCore(conv.weight, self.settings.product(), config, name=name, seed=seed, stream=stream)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[batch, in_channels, height, width]`, or one image, as the digital layer does."""
        return _convolve(self.settings, self.core, x, self.weight, self.bias, self.scale)

    def matrices(self) -> list[WeightMatrix]:
        """Its one kernel."""
        return [WeightMatrix(self.core, self.weight)]

    @property
    def log_weight_spread(self) -> nn.Parameter | None:
        """Logarithm of the learnable spread of the weights, where the config has one; broadcasts against `weight`."""
        return self.core.log_spread

    def weight_prior(self) -> WeightPrior:
        """What the hardware makes likely of each weight; see `labrig_surrogates.programming.weight_prior`."""
        return self.core.prior(self.weight)

    def extra_repr(self) -> str:
        """Sizes and path."""
        return f"{self.settings}, bias={self.bias is not None}, {self.core.path}"


class AnalogConv1d(nn.Module):
    """A convolution over sequences on analog arrays; arguments and names of parameters as `torch.nn.Conv1d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Of the kernel.
        stride: Of the outputs.
        padding: On both sides, or `same` or `valid`.
        dilation: Distance of the kernel's taps.
        groups: Groups of channels; each lies on arrays of its own.
        bias: Whether there is a (digital) bias.
        padding_mode: What the border is made of.
        config: What is not ideal about the arrays.
        name: First part of the names of its tiles.
        generator: Source of the initial weights and of the noise's seed; None takes torch's own.

    Raises:
        SurrogateError: The arrays of the config cannot hold one channel's kernel.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        config: AnalogConfig | None = None,
        name: str = "conv",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        _draw_anew(conv, generator)
        used = AnalogConfig() if config is None else config
        self._take(conv, used, name=name, seed=noise_seed(generator), stream=0)

    @classmethod
    def around(cls, conv: nn.Conv1d, config: AnalogConfig, *, name: str, seed: int, stream: int) -> Self:
        """An analog layer with the parameters of a digital one: the same objects, not copies."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(conv, config, name=name, seed=seed, stream=stream)
        return made.train(conv.training)

    def _take(self, conv: nn.Conv1d, config: AnalogConfig, *, name: str, seed: int, stream: int) -> None:
        self.settings = ConvSettings.of(conv)
        self.weight, self.bias = conv.weight, conv.bias
        self.scale = nn.Parameter(conv.weight.new_ones(conv.out_channels)) if config.digital.scale else None
        self.core = AnalogCore(conv.weight, self.settings.product(), config, name=name, seed=seed, stream=stream)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[batch, in_channels, length]`, or one sequence, as the digital layer does."""
        return _convolve(self.settings, self.core, x, self.weight, self.bias, self.scale)

    def matrices(self) -> list[WeightMatrix]:
        """Its one kernel."""
        return [WeightMatrix(self.core, self.weight)]

    @property
    def log_weight_spread(self) -> nn.Parameter | None:
        """Logarithm of the learnable spread of the weights, where the config has one; broadcasts against `weight`."""
        return self.core.log_spread

    def weight_prior(self) -> WeightPrior:
        """What the hardware makes likely of each weight; see `labrig_surrogates.programming.weight_prior`."""
        return self.core.prior(self.weight)

    def extra_repr(self) -> str:
        """Sizes and path."""
        return f"{self.settings}, bias={self.bias is not None}, {self.core.path}"
