"""How the networks of the image studies take their steps: orthogonal ones for kernels, plain ones for the rest.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest
semi-orthogonal matrix, found by a few Newton-Schulz iterations. torch's own Muon takes matrices only; kernels are
matrices of their outputs here. A kernel is brought to a fixed length before each step: behind it stands a
normalisation, so that its length would only change the size of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from labrig.studies.vision.products import product_type

# Jordan's coefficients: singular values from 0.01 on come to between 0.7 and 1.2 in a few iterations.
_NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 3


@dataclass(frozen=True)
class Rates:
    """Sizes of steps at the start of a training; all fall to zero in a straight line.

    Attributes:
        kernels: Of convolutions, relative to the length of a row.
        matrices: Of linear layers.
        vectors: Of biases and gains.
        momentum: Of kernels.
        slow_momentum: Of everything else, by Nesterov.
        decay: Weight decay of everything else, relative to the step.
        warm_up: Part of the training over which steps grow from zero.
    """

    kernels: float = 0.12
    matrices: float = 0.335
    vectors: float = 0.025
    momentum: float = 0.6
    slow_momentum: float = 0.85
    decay: float = 1e-3
    warm_up: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """What all sizes are multiplied with at a step from zero on."""
        rise = max(1.0, self.warm_up * steps)
        return min((step + 1) / rise, 1.0) * max(1.0 - step / steps, 0.0)


def semi_orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrix to a matrix `[rows, columns]`: singular values near one."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(product_type(matrix.device.type))
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = x.T if tall else x
    return found


class ImageOptimiser:
    """Takes the steps of one training; parameters without a gradient stay as they are.

    Args:
        network: What is trained.
        rates: Sizes of the steps.
        steps: Steps of the whole training.
    """

    def __init__(self, network: nn.Module, rates: Rates, steps: int) -> None:
        self._rates = rates
        self._steps = steps
        self._parameters = {name: one for name, one in network.named_parameters() if one.requires_grad}
        self._momentum = {name: torch.zeros_like(one) for name, one in self._parameters.items()}

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""
        return self._parameters

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for one in self._parameters.values():
            one.grad = None

    @torch.no_grad()
    def step(self, number: int) -> None:
        """Takes the step of that number, from zero on."""
        factor = self._rates.factor(number, self._steps)
        for name, one in self._parameters.items():
            if one.grad is None:
                continue
            if one.dim() == 4:
                self._orthogonal_step(one, one.grad, self._momentum[name], factor)
            else:
                self._plain_step(one, one.grad, self._momentum[name], factor)

    def state(self) -> dict[str, Tensor]:
        """Momenta by name, for a checkpoint."""
        return dict(self._momentum)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        for name, one in self._momentum.items():
            one.copy_(state[name])

    def _orthogonal_step(self, kernel: nn.Parameter, grad: Tensor, momentum: Tensor, factor: float) -> None:
        momentum.mul_(self._rates.momentum).add_(grad)
        ahead = grad.add(momentum, alpha=self._rates.momentum)
        kernel.mul_(kernel.shape[0] ** 0.5 / kernel.norm())
        move = semi_orthogonal(ahead.reshape(kernel.shape[0], -1)).reshape(kernel.shape)
        kernel.add_(move.to(kernel.dtype), alpha=-self._rates.kernels * factor)

    def _plain_step(self, one: nn.Parameter, grad: Tensor, momentum: Tensor, factor: float) -> None:
        rate = (self._rates.matrices if one.dim() > 1 else self._rates.vectors) * factor
        decayed = grad.add(one, alpha=self._rates.decay)
        momentum.mul_(self._rates.slow_momentum).add_(decayed)
        one.add_(decayed.add(momentum, alpha=self._rates.slow_momentum), alpha=-rate)
