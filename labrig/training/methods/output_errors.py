"""Two methods that do not wait for the chip layer by layer.

`asyt`: a physical pass of which only the outputs are read, beside a digital one; both output errors go back through
the digital model, half each (AsyT, Nature Communications 2025).

`in-loop-stale`: physics-aware steps that are one behind: while the chip measures a batch at the present weights, the
step of the batch before is taken. The ledger counts every such step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from labrig.training.batches import Batch
from labrig.training.bench import TrainingBench, gradient_cosine
from labrig.training.methods.base import Method, StepOutcome
from labrig_surrogates.layers import weight_matrices


def output_errors() -> Method:
    """See the module: both output errors through the digital model."""

    def physical_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        stepper = bench.stepper
        bench.backends.use("physical")
        with torch.no_grad():
            measured = stepper.network(batch.x)
        bench.ledger.passes += 1
        stepper.zero_grad()
        with bench.backends.using(bench.mean_surrogate):
            modelled = stepper.network(batch.x)
            errors = []
            for outputs in (measured, modelled.detach()):
                leaf = outputs.clone().requires_grad_()
                loss = stepper.loss(leaf, batch)
                errors.append((torch.autograd.grad(loss, leaf)[0], float(loss.detach())))
            modelled.backward(0.5 * (errors[0][0] + errors[1][0]))
        cosine = gradient_cosine(bench, bench.gradient_through(bench.surrogate, batch)) if probe else None
        stepper.apply()
        right = float((measured.argmax(dim=1) == batch.y).float().mean())
        return StepOutcome(errors[0][1], cosine, right)

    return Method("asyt", physical_step)


class _InFlight:
    """The pass that the chip is busy with, on a copy of the network as it was."""

    def __init__(self) -> None:
        self.waiting: Future[tuple[dict[str, Tensor], float]] | None = None
        self.ready: dict[str, Tensor] = {}

    def state(self) -> dict[str, Tensor]:
        """The gradient of the pass that is under way; waits for it."""
        if self.waiting is not None:
            gradients, loss = self.waiting.result()
            self.ready = {**gradients, "loss": torch.tensor(loss)}
            self.waiting = None
        return dict(self.ready)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on with the gradient of a checkpoint."""
        self.ready, self.waiting = dict(state), None


def stale_by_one() -> Method:
    """See the module: each step uses the pass of the weights before the last step."""
    flight = _InFlight()

    def physical_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        del probe  # the gradient belongs to other weights than the ones at hand
        arrived = flight.state()
        flight.ready = {}
        network = _snapshot(bench.stepper.network)
        for matrix in weight_matrices(network):
            matrix.core.use_backend(bench.chip)
        ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="labrig-stale-pass")
        flight.waiting = ahead.submit(_gradients, bench, network, batch)
        ahead.shutdown(wait=False)  # the thread ends with its pass
        if not arrived:
            return StepOutcome(flight.waiting.result()[1])
        loss = float(arrived.pop("loss"))
        bench.stepper.zero_grad()
        for name, parameter in bench.stepper.parameters.items():
            parameter.grad = arrived.get(name)
        bench.stepper.apply()
        bench.ledger.stale_steps += 1
        return StepOutcome(loss)

    def finish(bench: TrainingBench) -> None:
        del bench
        flight.state()

    return Method("in-loop-stale", physical_step, finish=finish, learned=flight)


def _snapshot(network: nn.Module) -> nn.Module:
    """A copy with the values of now, without the backends, which are not copied."""
    cores = [matrix.core for matrix in weight_matrices(network)]
    backends = [core.backend for core in cores]
    try:
        for core in cores:
            core.backend = None
        taken = copy.deepcopy(network)
        taken.zero_grad()  # a copy has the gradients of the last step, too
        return taken
    finally:
        for core, backend in zip(cores, backends, strict=True):
            core.backend = backend


def _gradients(bench: TrainingBench, network: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], float]:
    loss = bench.stepper.loss(network(batch.x), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    bench.ledger.passes += 1
    found = {name: one.grad for name, one in network.named_parameters() if one.grad is not None}
    return found, float(loss.detach())
