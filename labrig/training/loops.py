"""Gradient steps: digital, on the surrogate, and in the loop with the chip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig.training.datasets import ImageSet
from labrig.training.physical import PhysicalBackend
from labrig.training.policy import AlternationPolicy
from labrig_surrogates.backend import SurrogateBackend
from labrig_surrogates.layers import analog_layers, set_backend

OnStep = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Optimisation:
    """How gradient steps are taken.

    Attributes:
        batch: Images in a step.
        learning_rate: Adam's step size at the start; it falls to a tenth along a half cosine.
        label_smoothing: Part of the target that is spread over all classes.
    """

    batch: int = 128
    learning_rate: float = 3e-3
    label_smoothing: float = 0.05


def batches(data: ImageSet, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled training batches; a new order at every epoch, the incomplete last batch left out."""
    count = data.train_y.shape[0]
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for first in range(0, count - size + 1, size):
            chosen = order[first : first + size]
            yield data.train_x[chosen], data.train_y[chosen]


def train_digital(
    network: nn.Module,
    data: ImageSet,
    steps: int,
    optimisation: Optimisation,
    generator: torch.Generator,
    on_step: OnStep,
) -> None:
    """Trains a plain network."""
    stepper = _Stepper(network, optimisation, steps)
    for step, (x, y) in zip(range(steps), batches(data, optimisation.batch, generator), strict=False):
        on_step("digital", step + 1, steps, stepper.step(x, y))


def train_surrogate(
    network: nn.Module,
    backend: SurrogateBackend,
    data: ImageSet,
    steps: int,
    optimisation: Optimisation,
    generator: torch.Generator,
    on_step: OnStep,
) -> None:
    """Trains an analog network on the surrogate; every step meets a new programming and new noise."""
    set_backend(network, backend)
    stepper = _Stepper(network, optimisation, steps)
    for step, (x, y) in zip(range(steps), batches(data, optimisation.batch, generator), strict=False):
        backend.new_write()
        on_step("surrogate", step + 1, steps, stepper.step(x, y))


def train_in_loop(
    network: nn.Module,
    surrogate: SurrogateBackend,
    physical: PhysicalBackend,
    policy: AlternationPolicy,
    data: ImageSet,
    optimisation: Optimisation,
    generator: torch.Generator,
    on_step: OnStep,
) -> None:
    """Alternates surrogate steps with physical passes as the policy says."""
    steps = policy.count("surrogate") + policy.count("physical")
    stepper = _Stepper(network, optimisation, steps)
    source = batches(data, optimisation.batch, generator)
    for step, kind in enumerate(policy.steps()):
        x, y = next(source)
        if kind == "surrogate":
            surrogate.new_write()
            set_backend(network, surrogate)
            physical.ledger.surrogate_steps += 1
        else:
            set_backend(network, physical)
            physical.ledger.passes += 1
        on_step("in-loop", step + 1, steps, stepper.step(x, y))


class _Stepper:
    """One optimiser with its schedule; clips analog weights after each step, as conductances do."""

    def __init__(self, network: nn.Module, optimisation: Optimisation, steps: int) -> None:
        self._network = network
        self._optimiser = torch.optim.Adam(network.parameters(), lr=optimisation.learning_rate)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self._optimiser, max(steps, 1), eta_min=0.1 * optimisation.learning_rate
        )
        self._loss = nn.CrossEntropyLoss(label_smoothing=optimisation.label_smoothing)

    def step(self, x: Tensor, y: Tensor) -> float:
        self._optimiser.zero_grad()
        loss = self._loss(self._network(x), y)
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        for layer in analog_layers(self._network):
            layer.clip_weights()
        return float(loss.detach())
