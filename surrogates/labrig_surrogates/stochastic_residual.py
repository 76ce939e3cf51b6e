"""Layers with a noise of their own: `y = F(x) + eps * H(x)`, with a spread H that the hardware ties down.

`labrig_surrogates.residual_spreads` has the spreads H. The gradient passes through the draw (reparametrisation).

Draws are either handed in, `forward(x, noise)` with the `noise` of `draw`, or come from the layer's `NormalStream`,
whose draw is a registered operator. Both compile as one graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from labrig_surrogates.faults import refuse
from labrig_surrogates.normal_stream import NormalStream
from labrig_surrogates.quantization import wide

Sampling = Literal["training", "always", "never"]
"""When `forward(x)` adds noise: in training mode only, in both modes, or never (the mean)."""


class ResidualNoise(NamedTuple):
    """The normal numbers of one forward pass.

    Attributes:
        independent: One for each output, the shape of F(x).
        common: One for each sample and common mode, `[batch, rank]`; `None` without common modes.
    """

    independent: Tensor
    common: Tensor | None = None


class StochasticResidual(nn.Module):
    """`y = F(x) + eps * H(x)`, and with `skip` `y = x + F(x) + eps * H(x)`; eps ~ N(0, 1).

    With a `loading` L the noise is `eps * H(x) + L z`, z ~ N(0, 1) of `rank` common modes: covariance
    diag(H**2) + L L^T, for what the columns of an array have in common (supply, reference).

    Equal seeds give equal draws on any number of threads, whatever other layers draw. A deep copy continues the same
    draws, and processes of a distributed training that were made of one seed draw alike: `reseed` them. No buffer
    changes in a forward pass, and the `state_dict` is that of F and H (and the loading).

    Args:
        mean: F.
        spread: H, a module that takes the inputs and the weight of F.
        generator: Source of the stream of draws.
        skip: Whether x is added.
        sampling: When `forward(x)` adds noise.
        weight: Name of F's parameter that H depends on (`"weight"`, `"0.weight"`), or `None`.
        loading: L, `[channels, rank]`, in the unit of the output, or `None`; channels are dimension 1.

    Raises:
        SurrogateError: F has no such parameter, or the loading is not a matrix.
    """

    loading: Tensor | None

    def __init__(
        self,
        mean: nn.Module,
        spread: nn.Module,
        *,
        generator: torch.Generator,
        skip: bool = False,
        sampling: Sampling = "training",
        weight: str | None = None,
        loading: Tensor | None = None,
    ) -> None:
        super().__init__()
        named = dict(mean.named_parameters())
        faults = []
        if weight is not None and weight not in named:
            faults.append(f"F has no parameter {weight!r}; it has {', '.join(named) or 'none'}")
        if loading is not None and loading.dim() != 2:
            faults.append(f"the loading is [channels, rank], not {tuple(loading.shape)}")
        if sampling not in {"training", "always", "never"}:
            faults.append(f"sampling {sampling!r} is none of training, always, never")
        refuse("stochastic residual layer", faults)
        self.mean = mean
        self.spread = spread
        self.stream = NormalStream(generator)
        self.skip = skip
        self.sampling: Sampling = sampling
        self.weight_name = weight
        self.register_buffer("loading", loading)

    def forward(self, x: Tensor, noise: ResidualNoise | None = None) -> Tensor:
        """The layer's output, in the dtype of F's.

        Args:
            x: Inputs.
            noise: Draws to use, whatever the mode; `None` draws where `sampling` says so.

        Raises:
            SurrogateError: With skip, inputs and outputs differ in shape; common modes and loading do not go together.
        """
        y: Tensor = self.mean(x)
        if self.skip and x.shape != y.shape:
            sizes = f"inputs {tuple(x.shape)} cannot be added to outputs {tuple(y.shape)}"
            refuse("stochastic residual layer with skip", [sizes])
        if noise is None and (self.sampling == "always" or (self.sampling == "training" and self.training)):
            noise = self.draw(y)
        if noise is None:
            return x + y if self.skip else y
        residual = noise.independent * self.spread(x, self._weight())
        if (self.loading is None) != (noise.common is None):
            refuse("stochastic residual layer", ["common modes need a loading and draws of their own: use draw"])
        if self.loading is not None and noise.common is not None:
            common = noise.common @ self.loading.to(noise.common.dtype).T
            residual = residual + common.reshape(*common.shape, *[1] * (y.dim() - 2))
        noisy: Tensor = (wide(y) + residual).to(y.dtype)
        return x + noisy if self.skip else noisy

    def draw(self, like: Tensor) -> ResidualNoise:
        """Draws the normal numbers of one forward pass.

        Args:
            like: A tensor with the shape of F(x), on the device where they are needed.
        """
        common = (
            None if self.loading is None else self.stream.normal(like.new_empty(like.shape[0], self.loading.shape[1]))
        )
        return ResidualNoise(self.stream.normal(like), common)

    def _weight(self) -> Tensor | None:
        if self.weight_name is None:
            return None
        weight: Tensor = attrgetter(self.weight_name)(self.mean)
        return weight


def reseed(model: nn.Module, generator: torch.Generator) -> None:
    """Gives every stochastic residual layer of a model a stream of its own from one generator."""
    for module in model.modules():
        if isinstance(module, StochasticResidual):
            module.stream = NormalStream(generator)


@contextmanager
def sampling(model: nn.Module, when: Sampling) -> Iterator[None]:
    """Sets when the stochastic residual layers of a model add noise; the former settings come back at the end."""
    layers = [module for module in model.modules() if isinstance(module, StochasticResidual)]
    former: list[Sampling] = [layer.sampling for layer in layers]
    try:
        for layer in layers:
            layer.sampling = when
        yield
    finally:
        for layer, before in zip(layers, former, strict=True):
            layer.sampling = before


@dataclass(frozen=True)
class SampleStatistics:
    """Mean and spread of N evaluations of a noisy model on one batch.

    Attributes:
        mean: Mean over the evaluations, the shape of the output.
        std: Standard deviation over the evaluations (divided by N - 1).
        samples: N.
    """

    mean: Tensor
    std: Tensor
    samples: int

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean."""
        return self.std / math.sqrt(self.samples)


@torch.no_grad()
def evaluate_samples(model: nn.Module, x: Tensor, samples: int) -> SampleStatistics:
    """Evaluates a model several times with fresh noise; memory does not grow with the number (Welford, 1962).

    Stochastic residual layers add noise whatever their setting; training or evaluation mode is left as it is. The
    moments are in float32 or better.

    Args:
        model: The model.
        x: One batch of inputs.
        samples: How often, at least two.

    Raises:
        SurrogateError: Fewer than two samples.
    """
    refuse("evaluation under noise", [] if samples >= 2 else [f"{samples} samples have no spread: two or more"])
    with sampling(model, "always"):
        mean = wide(model(x)).clone()
        squares = torch.zeros_like(mean)
        for count in range(2, samples + 1):
            difference = wide(model(x)) - mean
            mean += difference / count
            squares += difference**2 * ((count - 1) / count)
    return SampleStatistics(mean, torch.sqrt(squares / (samples - 1)), samples)
