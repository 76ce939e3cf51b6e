"""AsyT: a physical pass of which only the outputs are read, beside a digital one (Nature Communications 16, 2025).

There are two copies of the parameters. The digital one trains by itself, on the model alone. The physical one, which is
programmed and judged, takes half of the digital copy's gradient, and half of what the error that was measured at its
outputs gives when it goes back through the digital copy: `dW = (dW_digital + dW_pseudo) / 2`. Nothing inside the chip
is read, and every backward pass happens where all values are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from labrig.training.arithmetic import GRADIENT
from labrig.training.batches import Batch
from labrig.training.bench import TrainingBench, gradient_cosine
from labrig.training.methods.base import Method, StepOutcome
from labrig.training.optimisation import Stepper
from labrig.training.snapshot import snapshot
from labrig_surrogates.layers import set_backend


class _DigitalCopy:
    """The parameters that never see the chip, with an optimiser of their own."""

    def __init__(self) -> None:
        self._stepper: Stepper | None = None

    def begin(self, bench: TrainingBench) -> None:
        """Takes the copy, where there is none yet: at the start both are alike."""
        if self._stepper is not None:
            return
        physical = bench.stepper
        network = snapshot(physical.network)
        self._stepper = Stepper(network, physical.optimisation, physical.steps, physical.step_number)

    @property
    def stepper(self) -> Stepper:
        """The copy with its optimiser."""
        assert self._stepper is not None, "a step before the method has begun"
        return self._stepper

    def bench(self, bench: TrainingBench) -> TrainingBench:
        """What its surrogate steps work with; the account is that of the training."""
        return replace(bench, stepper=self.stepper, backends=bench.backends.of_copy(self.stepper.network))

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments, for a checkpoint; nothing before the first step."""
        if self._stepper is None:
            return {}
        stepper = self._stepper
        found = {f"network/{name}": one.detach().clone() for name, one in stepper.network.state_dict().items()}
        found |= {f"moments/{name}": one for name, one in stepper.state().items()}
        return found | {"steps": torch.tensor(stepper.step_number)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        if not state:
            return
        stepper = self.stepper
        stepper.network.load_state_dict(_part(state, "network"))
        stepper.load_state(_part(state, "moments"), int(state["steps"]))


def output_errors() -> Method:
    """See the module."""
    digital = _DigitalCopy()

    def physical_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        bench.backends.use("physical")
        with torch.no_grad():
            measured = bench.stepper.network(batch.x)
        bench.ledger.passes += 1
        set_backend(digital.stepper.network, bench.mean_surrogate)
        modelled = digital.stepper.network(batch.x)
        bench.computed(len(batch), 1 + 2 * (GRADIENT - 1))  # forward once, two errors back
        physical_error, loss = _error(bench, measured, batch)
        digital_error, _ = _error(bench, modelled.detach(), batch)
        parameters = list(digital.stepper.parameters.values())
        own = torch.autograd.grad(modelled, parameters, digital_error, retain_graph=True, allow_unused=True)
        pseudo = torch.autograd.grad(modelled, parameters, physical_error, allow_unused=True)
        for mine, theirs, one, other in zip(parameters, bench.stepper.parameters.values(), own, pseudo, strict=True):
            mine.grad = one
            theirs.grad = None if one is None or other is None else 0.5 * (one + other)
        cosine = gradient_cosine(bench, bench.gradient_through(bench.surrogate, batch)) if probe else None
        _apply(bench)
        right = float((measured.argmax(dim=1) == batch.y).float().mean())
        return StepOutcome(loss, cosine, right)

    def surrogate_step(bench: TrainingBench, batch: Batch) -> StepOutcome:
        # Without a pass there is no second error: both copies take the gradient of the digital one.
        loss = digital.bench(bench).surrogate_gradient(batch)
        pairs = zip(digital.stepper.parameters.values(), bench.stepper.parameters.values(), strict=True)
        for mine, theirs in pairs:
            theirs.grad = None if mine.grad is None else mine.grad.clone()
        _apply(bench)
        bench.ledger.surrogate_steps += 1
        return StepOutcome(loss)

    def _apply(bench: TrainingBench) -> None:
        bench.stepper.apply()
        digital.stepper.apply()

    return Method("asyt", physical_step, surrogate_step, begin=digital.begin, learned=digital)


def _error(bench: TrainingBench, outputs: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """Gradient of the loss at some outputs, and the loss."""
    leaf = outputs.clone().requires_grad_()
    loss = bench.stepper.loss(leaf, batch)
    return torch.autograd.grad(loss, leaf)[0], float(loss.detach())


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): one for key, one in state.items() if key.startswith(prefix)}
