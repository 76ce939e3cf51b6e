"""Spreads H(x) of a stochastic residual layer: tied to the hardware, fitted to residuals, or free.

With the task loss alone a free H learns nothing: noise only hurts, so H goes to zero. `TiedSpread` is a multiple, never
below one, of the standard deviation that calibration found; `HeadSpread` is a small network that is fitted to recorded
residuals and that the task loss cannot reach; `FreeSpread` is the free one, for comparison. Each takes the layer's
inputs and its weight and gives standard deviations, the shape of the layer's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import refuse
from labrig_surrogates.quantization import wide

Product = Callable[[Tensor, Tensor], Tensor]
"""The layer's product of inputs and weights, such as `torch.nn.functional.linear` or a `partial` of `conv2d`."""


class HardwareSpread(nn.Module):
    """The calibrated standard deviation of a layer's output, sigma_hw(x, W).

    `sigma**2 = amplifier + shot * sum |x w| + conductance * sum (x w)**2 + lsb**2 / 12`: thermal and amplifier noise,
    shot noise, read noise of the conductances, and the ADC's rounding, as calibration fits them. In the units of the
    layer's output.

    Args:
        amplifier: Variance that does not depend on the signal.
        shot: Variance for each unit of sum |x w|; zero leaves the term, and its product, out.
        conductance: Relative variance of the conductances, a pure number; likewise.
        lsb: Step of the ADC.
        product: The layer's product.
        differentiable: Whether gradients pass through the spread to inputs and weights. Each of the two terms costs a
            product of its own; without gradients it costs that product's forward pass only.

    Raises:
        SurrogateError: A coefficient is negative, or nothing is left of the spread where the input is zero.
    """

    amplifier: Tensor
    shot: Tensor | None
    conductance: Tensor | None

    def __init__(
        self,
        *,
        amplifier: float,
        shot: float = 0.0,
        conductance: float = 0.0,
        lsb: float = 0.0,
        product: Product = nn.functional.linear,
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        numbers = {"amplifier": amplifier, "shot": shot, "conductance": conductance, "lsb": lsb}
        bad = [name for name, value in numbers.items() if not (math.isfinite(value) and value >= 0)]
        faults = [f"{name} is {numbers[name]}: it is finite and not negative" for name in bad]
        if amplifier == 0 and lsb == 0:
            faults.append("amplifier and lsb are both zero: without input there would be no spread")
        refuse("spread of the hardware", faults)
        self.product = product
        self.differentiable = differentiable
        self.register_buffer("amplifier", torch.tensor(amplifier + lsb**2 / 12.0))
        self.register_buffer("shot", torch.tensor(float(shot)) if shot else None)
        self.register_buffer("conductance", torch.tensor(float(conductance)) if conductance else None)

    def forward(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Standard deviations, the shape of the layer's output, or one for all where nothing depends on the signal.

        Raises:
            SurrogateError: There is no weight.
        """
        if self.shot is None and self.conductance is None:
            return torch.sqrt(self.amplifier)
        if weight is None:
            raise SurrogateError("the spread of the hardware needs the layer's weight: name it with weight='...'")
        with torch.autocast(x.device.type, enabled=False):
            if not self.differentiable:
                x, weight = x.detach(), weight.detach()
            x, weight = wide(x), wide(weight)
            variance = self.amplifier
            if self.conductance is not None:
                variance = variance + self.conductance * self.product(x * x, weight * weight)
            if self.shot is not None:
                variance = variance + self.shot * self.product(x.abs(), weight.abs())
            return torch.sqrt(variance)


class TiedSpread(nn.Module):
    """H = g sigma, with g >= 1: as noisy as the hardware, or noisier, never less.

    g is learned through ln(g - 1). The task loss pulls it towards one; its Kullback-Leibler term, towards the spread
    that training should assume, holds it up. Add `kl_divergence` to the loss (`PhysicsInformedLoss` does).

    Args:
        calibrated: sigma(x, W): a module that takes the inputs and the weight, `HardwareSpread` for one.
        gain: Initial and prior gain, more than one. Training at about twice the noise of the test is what NeuRRAM's
            published table favours.
        channels: One gain for all, or one for each channel.
        channel_dim: Which dimension of the output counts the channels.

    Raises:
        SurrogateError: The gain is not more than one.
    """

    prior_gain: Tensor

    def __init__(self, calibrated: nn.Module, *, gain: float = 1.5, channels: int = 1, channel_dim: int = 1) -> None:
        super().__init__()
        refuse("tied spread", [] if 1 < gain < math.inf else [f"the initial gain is {gain}: it is more than one"])
        self.calibrated = calibrated
        self.channel_dim = channel_dim
        self.log_excess = nn.Parameter(torch.full((channels,), math.log(gain - 1.0)))
        self.register_buffer("prior_gain", torch.tensor(float(gain)))

    @property
    def gain(self) -> Tensor:
        """The gain g of each channel, `[channels]`."""
        return 1.0 + torch.exp(self.log_excess)

    def forward(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Standard deviations of the layer's output, never below the calibrated ones."""
        sigma: Tensor = self.calibrated(x, weight)
        gain = self.gain
        if gain.shape[0] > 1:
            shape = [1] * sigma.dim()
            shape[self.channel_dim] = -1
            gain = gain.reshape(shape)
        return gain * sigma

    def kl_divergence(self) -> Tensor:
        """KL of N(0, (g sigma)**2) from N(0, (g_prior sigma)**2), summed over the gains: it needs no sigma."""
        log_ratio = torch.log(self.gain / self.prior_gain)
        return 0.5 * (torch.expm1(2.0 * log_ratio) - 2.0 * log_ratio).sum()


class FreeSpread(nn.Module):
    """H = softplus(head(x)): free to vanish, and under a task loss it does. For comparison only.

    Args:
        head: A module from the layer's input to one number for each output.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Standard deviations of the layer's output."""
        del weight
        return nn.functional.softplus(self.head(x))


class HeadSpread(nn.Module):
    """H = floor + softplus(head(x)), fitted to recorded residuals; the task loss does not reach it.

    Args:
        head: A module from the layer's input to one number for each output.
        floor: Smallest standard deviation, more than zero.

    Raises:
        SurrogateError: The floor is not more than zero.
    """

    def __init__(self, head: nn.Module, *, floor: float) -> None:
        super().__init__()
        refuse("spread from residuals", [] if 0 < floor < math.inf else [f"the floor is {floor}: more than zero"])
        self.head = head
        self.floor = floor

    def forward(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Standard deviations of the layer's output, without gradient."""
        del weight
        return self._sigma(x.detach()).detach()

    def negative_log_likelihood(self, x: Tensor, residual: Tensor) -> Tensor:
        """Mean Gaussian negative log-likelihood in nat of recorded residuals, measured minus predicted.

        Args:
            x: Inputs of the layer at which they were recorded.
            residual: Residuals, the shape of the layer's output.
        """
        sigma = self._sigma(x.detach())
        return (0.5 * (residual.detach() / sigma) ** 2 + torch.log(sigma)).mean() + 0.5 * math.log(2.0 * math.pi)

    def _sigma(self, x: Tensor) -> Tensor:
        return self.floor + nn.functional.softplus(self.head(x))
