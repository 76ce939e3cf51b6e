"""Asymmetric activations: the specification's logarithmic one, a true stretched exponential, and a measured curve.

Each is `y = gain * o * f(o * x / width) + offset`, with an orientation o of 1 or -1: -1 reflects the curve in the
origin, which keeps its direction and swaps the side on which it saturates. Gain and offset bring the output to the
range of the converters that follow (an unsigned DAC takes no negative values). Everything is computed in float32 or
better, also under autocast, and returned in the dtype of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from labrig_surrogates.faults import refuse
from labrig_surrogates.monotone_spline import MonotoneSpline
from labrig_surrogates.quantization import wide

Orientation = Literal[1, -1]

_LARGEST_EXPONENT = 80.0
"""exp of it is finite in float32, and exp(-exp(80)) is zero."""


def log_saturation(x: Tensor, log_a: Tensor) -> Tensor:
    """`f(x) = -log(1 + a exp(-x))`, the project's specification, as `logsigmoid(x - ln a)`.

    It rises from minus infinity with slope one and saturates at zero; a = 1 is the log-sigmoid. It is a mirrored
    softplus and not, as it has been called, a stretched exponential. The law is that of a transistor between weak and
    strong inversion (EKV: I ~ softplus(v / 2)**2). Value, slope and curvature are finite for every finite x and ln a.

    Args:
        x: Inputs, any shape.
        log_a: ln a, broadcast against `x`.
    """
    return nn.functional.logsigmoid(x - log_a)


def stretched_exponential(u: Tensor, beta: Tensor, knee: float = 1e-3) -> Tensor:
    """`f(u) = exp(-u**beta)` for u > 0 and 1 below: the relaxation law of Kohlrausch (1854).

    For beta < 1 its slope at zero is infinite, and a training would diverge there: between zero and `knee` the curve is
    replaced by its chord, whose slope is finite and whose ends lie on the curve.

    Args:
        u: Inputs over the time constant, any shape.
        beta: Exponent, more than zero, broadcast against `u`.
        knee: End of the chord.
    """
    exponent = torch.clamp(beta * torch.log(torch.clamp(u, min=knee)), max=_LARGEST_EXPONENT)
    chord = -torch.expm1(-torch.exp(beta * math.log(knee))) / knee
    return torch.where(u > knee, torch.exp(-torch.exp(exponent)), 1.0 - chord * torch.clamp(u, 0.0, knee))


class Placement(nn.Module):
    """Learnable gain and offset, fixed width and orientation, around a curve f: `gain * o * f(o * x / width) + offset`.

    Args:
        channels: Number of gains and offsets: one, or one for each channel.
        gain: Initial gain.
        offset: Initial offset, in the unit of the output.
        width: Scale of the input, in its unit.
        orientation: 1, or -1 to reflect the curve in the origin.
        channel_dim: Which dimension of the input counts the channels.

    Raises:
        SurrogateError: A number is out of its range; every fault is named.
    """

    width: Tensor

    def __init__(
        self,
        channels: int = 1,
        *,
        gain: float = 1.0,
        offset: float = 0.0,
        width: float = 1.0,
        orientation: Orientation = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        faults = [] if channels >= 1 else [f"{channels} channels: at least one"]
        numbers = {"gain": gain, "offset": offset}
        faults += [f"{name} is {value}: not finite" for name, value in numbers.items() if not math.isfinite(value)]
        if not (math.isfinite(width) and width > 0):
            faults.append(f"width is {width}: a width is finite and positive")
        if orientation not in {1, -1}:
            faults.append(f"orientation is {orientation}: 1 or -1")
        if channel_dim == 0:
            faults.append("channel_dim is 0, the batch")
        refuse("activation", faults)
        self.channel_dim = channel_dim
        self.orientation = orientation
        self.gain = nn.Parameter(torch.full((channels,), float(gain)))
        self.offset = nn.Parameter(torch.full((channels,), float(offset)))
        self.register_buffer("width", torch.tensor(float(width)))

    def forward(self, x: Tensor, curve: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies the curve between the linear maps."""
        values = wide(x)
        inner = curve(values * (self.orientation / self.width))
        gain, offset = self.by_channel(self.gain, x.dim()), self.by_channel(self.offset, x.dim())
        return torch.addcmul(offset, gain * self.orientation, inner).to(x.dtype)

    def by_channel(self, values: Tensor, dims: int) -> Tensor:
        """Values of the channels, `[channels]` or `[1]`, in a shape that broadcasts against an input of `dims`."""
        if values.shape[0] == 1:
            return values
        shape = [1] * dims
        shape[self.channel_dim] = -1
        return values.reshape(shape)

    @torch.no_grad()
    def standardise_(self, curve: Callable[[Tensor], Tensor], std: float, mean: float | None) -> None:
        """Sets the gain, and the offset where a mean is asked for, from the curve's moments under x ~ N(0, 1).

        By quadrature over eight standard deviations. The sign of the gain stays as it is.

        Raises:
            SurrogateError: The curve is constant there.
        """
        points = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64, device=self.gain.device)
        shape = [1] * max(2, self.channel_dim + 1)
        shape[0] = points.shape[0]
        x = points.reshape(shape)
        inner = (self.orientation * curve(x * (self.orientation / self.width))).double()
        density = torch.exp(-0.5 * x**2) / torch.exp(-0.5 * points**2).sum()
        first = (density * inner).sum(dim=0, keepdim=True)
        second = (density * (inner - first) ** 2).sum(dim=0)
        constant = bool((second <= 1e-20 * first[0] ** 2).any())
        refuse("standardised activation", ["the curve is constant under N(0, 1)"] if constant else [])
        sign = torch.where(self.gain < 0, -1.0, 1.0)
        self.gain.copy_(sign * (std / torch.sqrt(second)).flatten())
        if mean is not None:
            self.offset.copy_(mean - self.gain * first.flatten())


class AsymmetricActivation(nn.Module):
    """`gain * o * f(o * x / width) + offset` with f of `log_saturation` and a learnable a for each channel.

    With orientation 1 it has no negative slope and no value above `offset`; with -1 it is a softplus, without values
    below. All of ln a, gain and offset are parameters; freeze one with `requires_grad_(False)`.

    Args:
        channels: One a, gain and offset for all, or one of each for every channel.
        a: Initial a, positive.
        gain: Initial gain.
        offset: Initial offset.
        width: Scale of the input.
        orientation: 1, or -1 to reflect the curve in the origin.
        channel_dim: Which dimension of the input counts the channels.

    Raises:
        SurrogateError: A number is out of its range.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        a: float = 1.0,
        gain: float = 1.0,
        offset: float = 0.0,
        width: float = 1.0,
        orientation: Orientation = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        refuse("asymmetric activation", [] if a > 0 and math.isfinite(a) else [f"a is {a}: it is finite and positive"])
        self.place = Placement(
            channels, gain=gain, offset=offset, width=width, orientation=orientation, channel_dim=channel_dim
        )
        self.log_a = nn.Parameter(torch.full((channels,), math.log(a)))

    def forward(self, x: Tensor) -> Tensor:
        """Activations, the shape and dtype of `x`."""
        y: Tensor = self.place(x, self._curve(x.dim()))
        return y

    def standardise_(self, *, std: float = 1.0, mean: float | None = None) -> AsymmetricActivation:
        """Sets the gain (and, for a given mean, the offset) so that N(0, 1) inputs leave with that spread."""
        self.place.standardise_(self._curve(max(2, self.place.channel_dim + 1)), std, mean)
        return self

    def _curve(self, dims: int) -> Callable[[Tensor], Tensor]:
        log_a = self.place.by_channel(self.log_a, dims)
        return lambda u: log_saturation(u, log_a)


class StretchedExponential(nn.Module):
    """`gain * o * f(o * x / width) + offset` with f of `stretched_exponential` and a learnable beta for each channel.

    With gain -1 and offset 1, the default, it is `1 - exp(-(x / width)**beta)`: zero below zero, rising, saturating.

    Args:
        channels: One beta, gain and offset for all, or one of each for every channel.
        beta: Initial exponent, positive; below one the decay is stretched.
        gain: Initial gain.
        offset: Initial offset.
        width: Time constant of the decay, in the unit of the input.
        orientation: 1, or -1 to reflect the curve in the origin.
        channel_dim: Which dimension of the input counts the channels.
        knee: See `stretched_exponential`.

    Raises:
        SurrogateError: A number is out of its range.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        beta: float = 0.5,
        gain: float = -1.0,
        offset: float = 1.0,
        width: float = 1.0,
        orientation: Orientation = 1,
        channel_dim: int = 1,
        knee: float = 1e-2,
    ) -> None:
        super().__init__()
        faults = [] if beta > 0 and math.isfinite(beta) else [f"beta is {beta}: it is finite and positive"]
        faults += [] if 0 < knee < 1 else [f"knee is {knee}: it lies between zero and one"]
        refuse("stretched exponential", faults)
        self.place = Placement(
            channels, gain=gain, offset=offset, width=width, orientation=orientation, channel_dim=channel_dim
        )
        self.log_beta = nn.Parameter(torch.full((channels,), math.log(beta)))
        self.knee = knee

    def forward(self, x: Tensor) -> Tensor:
        """Activations, the shape and dtype of `x`."""
        y: Tensor = self.place(x, self._curve(x.dim()))
        return y

    def standardise_(self, *, std: float = 1.0, mean: float | None = None) -> StretchedExponential:
        """Sets the gain (and, for a given mean, the offset) so that N(0, 1) inputs leave with that spread."""
        self.place.standardise_(self._curve(max(2, self.place.channel_dim + 1)), std, mean)
        return self

    def _curve(self, dims: int) -> Callable[[Tensor], Tensor]:
        beta = torch.exp(self.place.by_channel(self.log_beta, dims))
        return lambda u: stretched_exponential(u, beta, self.knee)


class FittedActivation(nn.Module):
    """A measured curve as an activation: `gain * o * f(o * x / width) + offset` with f a `MonotoneSpline`.

    Args:
        curve: The measured curve, in the units of the measurement.
        channels: One gain and offset for all, or one of each for every channel.
        gain: Initial gain.
        offset: Initial offset.
        width: Scale of the input: what one unit of the measurement is in the network.
        orientation: 1, or -1 to reflect the curve in the origin.
        channel_dim: Which dimension of the input counts the channels.

    Raises:
        SurrogateError: A number is out of its range.
    """

    def __init__(
        self,
        curve: MonotoneSpline,
        channels: int = 1,
        *,
        gain: float = 1.0,
        offset: float = 0.0,
        width: float = 1.0,
        orientation: Orientation = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        self.curve = curve
        self.place = Placement(
            channels, gain=gain, offset=offset, width=width, orientation=orientation, channel_dim=channel_dim
        )

    def forward(self, x: Tensor) -> Tensor:
        """Activations, the shape and dtype of `x`."""
        y: Tensor = self.place(x, self.curve)
        return y

    def inverse(self, y: Tensor) -> Tensor:
        """Inputs that have the activations `y`; see `MonotoneSpline.inverse`.

        Raises:
            SurrogateError: The curve is flat between two points.
        """
        place = self.place
        gain, offset = place.by_channel(place.gain, y.dim()), place.by_channel(place.offset, y.dim())
        values = wide(y)
        x = place.orientation * place.width * self.curve.inverse((values - offset) / (gain * place.orientation))
        return x.to(y.dtype)

    def standardise_(self, *, std: float = 1.0, mean: float | None = None) -> FittedActivation:
        """Sets the gain (and, for a given mean, the offset) so that N(0, 1) inputs leave with that spread."""
        self.place.standardise_(self.curve, std, mean)
        return self
