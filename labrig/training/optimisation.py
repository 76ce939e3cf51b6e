"""One optimiser with its schedule: gradient steps on analog weights, clipped as conductances are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from labrig.training.batches import Batch
from labrig.training.task_loss import Loss, TaskLoss
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.model_tools import clip_weights


@dataclass(frozen=True)
class Optimisation:
    """How gradient steps are taken.

    Attributes:
        batch: Images in a step.
        learning_rate: Adam's step size at the start; it falls to a tenth along a half cosine.
        loss: Of a batch.
        clip_sigmas: Weights beyond so many standard deviations of their layer are clipped after each step; zero
            clips only at the conductance range.
    """

    batch: int = 128
    learning_rate: float = 3e-3
    loss: Loss = field(default_factory=TaskLoss)
    clip_sigmas: float = 0.0

    def rate(self, step: int, steps: int) -> float:
        """Step size at a step from zero on."""
        low = 0.1 * self.learning_rate
        return low + 0.5 * (self.learning_rate - low) * (1.0 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))


class Stepper:
    """Adam with its schedule.

    Args:
        network: What is trained: its parameters that need a gradient.
        optimisation: How.
        steps: Steps that the schedule is laid out for.
        step: Steps that were taken already.
    """

    def __init__(self, network: nn.Module, optimisation: Optimisation, steps: int, step: int = 0) -> None:
        self.network = network
        self.optimisation = optimisation
        self.steps = steps
        self.step_number = step
        self.loss = optimisation.loss
        self._named = [(name, one) for name, one in network.named_parameters() if one.requires_grad]
        self._optimiser = torch.optim.Adam([one for _, one in self._named], lr=optimisation.learning_rate)

    @property
    def rate(self) -> float:
        """Step size of the next step."""
        return self.optimisation.rate(self.step_number, self.steps)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return dict(self._named)

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        self._optimiser.zero_grad()

    def apply(self) -> None:
        """Takes one step with the gradients that are there, and clips."""
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate
        self._optimiser.step()
        self.step_number += 1
        if self.optimisation.clip_sigmas > 0.0:
            clip_to_sigmas(self.network, self.optimisation.clip_sigmas)
        clip_weights(self.network)

    def step(self, batch: Batch) -> float:
        """One step on a batch with the backends that the layers have; returns its loss."""
        self.zero_grad()
        loss = self.loss(self.network(batch.x), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.apply()
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """Moments of every parameter, for a checkpoint."""
        found = {}
        for name, parameter in self._named:
            for key, value in self._optimiser.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = torch.as_tensor(value).detach().clone()
        return found

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """Goes on from a checkpoint."""
        self.step_number = step
        for name, parameter in self._named:
            prefix = f"{name}/"
            mine = {key.removeprefix(prefix): one.clone() for key, one in state.items() if key.startswith(prefix)}
            if mine:
                self._optimiser.state[parameter] = mine


@torch.no_grad()
def clip_to_sigmas(network: nn.Module, sigmas: float) -> None:
    """Clips the analog weights of each layer to so many of their standard deviations, in place."""
    for matrix in weight_matrices(network):
        limit = sigmas * float(matrix.weight.std(correction=0))
        matrix.weight.clamp_(-limit, limit)
