"""What a method is, and what most of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from labrig.training.batches import Batch
from labrig.training.bench import TrainingBench, gradient_cosine


@dataclass(frozen=True)
class StepOutcome:
    """What one step gave.

    Attributes:
        loss: Loss of its batch.
        cosine: Cosine between its gradient and that of the noiseless surrogate on the same batch, where it was looked
            at.
        accuracy: Part of its images that the chip classified rightly, where the chip saw them.
    """

    loss: float
    cosine: float | None = None
    accuracy: float | None = None


class SurrogateStep(Protocol):
    """One step without the chip."""

    def __call__(self, bench: TrainingBench, batch: Batch) -> StepOutcome:
        """Takes the step; one that fails has changed no weight."""
        ...


class PhysicalStep(Protocol):
    """One step with the chip."""

    def __call__(self, bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        """Takes the step; one that fails has changed no weight.

        Args:
            bench: What it works with.
            batch: The images.
            probe: Whether the surrogate's gradient is compared on this batch; that takes no further pass.
        """
        ...


class Learned(Protocol):
    """What a method keeps beside the weights of the network."""

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        ...


class Nothing:
    """Of a method that keeps nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing; see `Learned`."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing; see `Learned`."""
        del state


def noisy_step(bench: TrainingBench, batch: Batch) -> StepOutcome:
    """One step on the noisy surrogate."""
    loss = bench.surrogate_gradient(batch)
    bench.stepper.apply()
    bench.ledger.surrogate_steps += 1
    return StepOutcome(loss)


def physics_aware_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
    """One step of physics-aware training: measured values, gradient of the model at the measured inputs."""
    result = bench.physical_gradient(batch)
    cosine = gradient_cosine(bench, bench.gradient_through(bench.surrogate, batch)) if probe else None
    bench.stepper.apply()
    return StepOutcome(result.loss, cosine, result.accuracy)


def _nothing(bench: TrainingBench) -> None:
    del bench


@dataclass(frozen=True)
class Method:
    """Turns batches into steps.

    Attributes:
        name: What training files call it.
        physical_step: One step with the chip; None for a method that never asks it.
        surrogate_step: One step without the chip.
        begin: What comes before the first step, and again when a run goes on.
        finish: What comes after the last step.
        settle: Waits for a pass that is still under way, so that the board is free and everything measured is known.
        learned: What it keeps beside the weights.
    """

    name: str
    physical_step: PhysicalStep | None
    surrogate_step: SurrogateStep = noisy_step
    begin: Callable[[TrainingBench], None] = _nothing
    finish: Callable[[TrainingBench], None] = _nothing
    settle: Callable[[TrainingBench], None] = _nothing
    learned: Learned = field(default_factory=Nothing)
