"""Layer by layer: what is programmed stays, its measured outputs are kept, and only what follows is trained.

Chip-in-the-loop fine-tuning as in NeuRRAM (Wan et al., Nature 608, 504, 2022): one programming for each layer, right
where writes are slow or wear the devices out. `head` is its last stage alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from labrig.training.arithmetic import GRADIENT, flops_of_an_image
from labrig.training.batches import Batch
from labrig.training.bench import TrainingBench
from labrig.training.methods.base import Method, StepOutcome
from labrig_drivers.errors import ConfigError
from labrig_surrogates.layers import analog_modules

# Images that are sent through the chip at once when the training set is measured.
_IMAGES_OF_A_PASS = 1024


@dataclass
class _Stages:
    """Which part of a sequential network is on the chip, and what it gave for every training image."""

    starts: list[int]
    first: int
    steps: int
    stage: int = 0
    features: Tensor | None = None

    def state(self) -> dict[str, Tensor]:
        """Stage and measured features, for a checkpoint."""
        found = {"stage": torch.tensor(self.stage)}
        return found if self.features is None else {**found, "features": self.features}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        self.stage, self.features = int(state["stage"]), state.get("features")

    def stage_at(self, step: int) -> int:
        """The stage that a step belongs to; all stages get the same number of steps."""
        stages = len(self.starts) - self.first
        return self.first + min(step * stages // max(self.steps, 1), stages - 1)


def layer_by_layer(network: nn.Module, steps: int, which: Literal["progressive", "head"]) -> Method:
    """The method for one network.

    Args:
        network: An `nn.Sequential`, so that what one part gives is all that the next one needs.
        steps: Steps of the whole training.
        which: All stages, or only that of the last analog layer.

    Raises:
        ConfigError: The network is no `nn.Sequential`, or has only one analog layer.
    """
    if not isinstance(network, nn.Sequential):
        raise ConfigError(f"method {which}: needs an nn.Sequential; the model is a {type(network).__name__}")
    starts = [number for number, part in enumerate(network) if analog_modules(part)]
    if len(starts) < 2:
        raise ConfigError(f"method {which}: needs two parts with analog layers; the model has {len(starts)}")
    first = len(starts) - 1 if which == "head" else 0
    stages = _Stages(starts, first, steps)
    flops: dict[int, float] = {}

    def step(bench: TrainingBench, batch: Batch) -> StepOutcome:
        network = bench.stepper.network
        assert isinstance(network, nn.Sequential)
        wanted = stages.stage_at(bench.stepper.step_number)
        if wanted > 0 and (stages.features is None or wanted != stages.stage):
            stages.features = _measured(bench, network[: starts[wanted]])
        stages.stage = wanted
        if stages.features is None:
            return _tail_step(bench, network, batch, bench.flops_of_an_image)
        tail, batch = network[starts[wanted] :], batch.with_inputs(stages.features[batch.indices])
        if wanted not in flops:
            flops[wanted] = flops_of_an_image(tail, batch.x[:1])
        return _tail_step(bench, tail, batch, flops[wanted])

    def physical_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        del probe
        return step(bench, batch)

    return Method(which, physical_step, step, learned=stages)


def _tail_step(bench: TrainingBench, tail: nn.Module, batch: Batch, flops: float) -> StepOutcome:
    """A step on the noisy surrogate for what is not on the chip yet."""
    stepper, surrogate = bench.stepper, bench.surrogate
    stepper.zero_grad()
    surrogate.noise_level = bench.noisy.schedule.level(stepper.step_number)
    bench.backends.use("surrogate")
    surrogate.new_write()
    loss = stepper.loss(tail(batch.x), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    stepper.apply()
    bench.ledger.surrogate_steps += 1
    bench.ledger.digital_flops += GRADIENT * len(batch) * flops
    return StepOutcome(float(loss.detach()))


@torch.no_grad()
def _measured(bench: TrainingBench, head: nn.Module) -> Tensor:
    """What the programmed part gives for every training image; one programming, all images."""
    training = head.training
    head.eval()
    bench.backends.use("physical")
    parts = []
    try:
        for x in torch.split(bench.data.train_x, _IMAGES_OF_A_PASS):
            parts.append(head(x))
            bench.ledger.passes += 1
    finally:
        head.train(training)
    return torch.cat(parts)
