"""One training of an image study: a digital network from its start, or a method from a digital network on."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from labrig.studies.vision.arrays import RangeRule, calibrate_inputs, input_ranges, on_arrays, set_noise
from labrig.studies.vision.checkpoint import load_epoch, save_epoch
from labrig.studies.vision.images import ImageTask, epoch_batches
from labrig.studies.vision.methods import Method
from labrig.studies.vision.networks import build_network, outputs_of
from labrig.studies.vision.optimiser import ImageOptimiser, Rates
from labrig.studies.vision.products import fast_products
from labrig.studies.vision.terms import PhysicsTerms, set_residuals, with_residuals, without_residuals
from labrig.training.averaging import MovingAverage
from labrig.training.batches import Batch
from labrig.training.normalisation import reestimate_batch_norm
from labrig.training.optimisation import clip_to_sigmas
from labrig.training.task_loss import TaskLoss
from labrig_surrogates.convert import to_digital
from labrig_surrogates.layers import analog_modules
from labrig_surrogates.model_tools import seed_noise
from labrig_surrogates.stochastic_residual import reseed

FORMAT: Final = 1
"""Part of every job's name: raised when the same settings begin to mean something else."""

_NORM_IMAGES: Final = 8000
_CLIP_START: Final = 4.0
_CLIP_PART: Final = 0.15
_STREAM: Final = 1_000_033

OnStep = Callable[[int, int, float], None]
"""Called after each step with its number, the number of all steps, and the loss."""

OnEpoch = Callable[[int, nn.Module], None]
"""Called after each epoch with how many are done, and the network."""


@dataclass(frozen=True)
class DigitalJob:
    """The training of a digital network, which every method of its seed begins with.

    Attributes:
        network: See `NETWORKS`.
        data: Name of the image set.
        seed: Of weights and order.
        epochs: Times that every image is seen.
        batch: Images in a step.
        activation: See `ACTIVATIONS`.
        label_smoothing: Part of the target that is spread over all classes.
        rates: Sizes of steps.
    """

    network: str
    data: str
    seed: int
    epochs: int
    batch: int = 500
    activation: str = "relu"
    label_smoothing: float = 0.2
    rates: Rates = field(default_factory=Rates)

    @property
    def name(self) -> str:
        """Of its files: the same for equal settings, and other ones for other settings."""
        return f"{self.network}-{self.data}-digital-{self.seed}-{_digest(self)}"


@dataclass(frozen=True)
class MethodJob:
    """A method's training from a digital network on.

    Attributes:
        start: The digital network that it begins with.
        method: How it is trained.
        level: N that it is trained for; see `Method`.
        epochs: Times that every image is seen.
        rates: Sizes of steps.
        ranges: How the ranges of the inputs' converters are measured, at the beginning of every epoch.
    """

    start: DigitalJob
    method: Method
    level: float
    epochs: int
    rates: Rates = field(default_factory=lambda: Rates(kernels=0.06, matrices=0.15, vectors=0.0125))
    ranges: RangeRule = "network"

    @property
    def name(self) -> str:
        """Of its files; see `DigitalJob.name`."""
        label = self.method.name.replace(",", "").replace(" ", "-").lower()
        return f"{self.start.network}-{self.start.data}-{label}-{100 * self.level:g}-{self.start.seed}-{_digest(self)}"


Job = DigitalJob | MethodJob


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        network: The weights as a digital network, in evaluation mode.
        input_max: Ranges of the inputs' converters that it was trained with, by the name of the layer; empty where
            they are measured anew whenever it is judged (see `RangeRule`).
    """

    network: nn.Module
    input_max: Mapping[str, float] = field(default_factory=dict)


def _digest(job: Job) -> str:
    told = asdict(job)
    if told.get("ranges") == "network":
        del told["ranges"]  # networks had their names before there was another rule
    text = json.dumps({"format": FORMAT, "kind": type(job).__name__, **told}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def train_digital(
    job: DigitalJob,
    task: ImageTask,
    checkpoint: Path,
    on_step: OnStep,
    on_epoch: OnEpoch = lambda _epoch, _network: None,
) -> Trained:
    """Trains a digital network.

    Args:
        job: How.
        task: The images.
        checkpoint: File that each epoch leaves, from which an interrupted training goes on; deleted by the caller.
        on_step: Progress.
        on_epoch: Looks at the network after each epoch.

    Returns:
        The network.
    """
    look = task.range_inputs()
    generator = torch.Generator().manual_seed(job.seed)
    network = build_network(job.network, task.classes, generator, activation=job.activation, images=look)
    network.to(look.device)
    run = _Run(network, job.rates, job.epochs, job, task, MovingAverage(0.0))
    loss = TaskLoss(job.label_smoothing)
    run.go(
        lambda batch, _: loss(outputs_of(network, batch.x), batch), lambda: None, checkpoint, on_step, on_epoch=on_epoch
    )
    return Trained(network.eval())


def train_method(job: MethodJob, digital: nn.Module, task: ImageTask, checkpoint: Path, on_step: OnStep) -> Trained:
    """Trains a network by a method.

    Args:
        job: How.
        digital: The network that it begins with and, where it distils, learns from; left as it is.
        task: The images.
        checkpoint: See `train_digital`.
        on_step: Progress.

    Returns:
        The trained weights, with the batch norm statistics that they have under the noise that they are trained for,
        where the method knows noise.
    """
    method, start = job.method, job.start
    network = copy.deepcopy(digital)
    for one in network.modules():
        if isinstance(one, nn.Conv2d | nn.Linear):
            one.weight.requires_grad_(True)  # filters that were set from the images learn as well from here on
    if method.analog:
        network = on_arrays(network, method, start.seed)
    if method.residual:
        network = with_residuals(network, torch.Generator().manual_seed(_STREAM + start.seed))
    run = _Run(network, job.rates, job.epochs, start, task, MovingAverage(method.average), job.ranges)
    schedules = [method.schedule(times * job.level, run.steps) for times in (method.weight_noise, method.output_noise)]
    loss = TaskLoss(start.label_smoothing, method.distillation, method.temperature)
    terms = PhysicsTerms(network, method, job.level, len(task.train))

    def begin_epoch(epoch: int) -> None:
        terms.measure(task.range_inputs(), epoch)

    def batch_loss(batch: Batch, step: int) -> Tensor:
        weights, outputs = (float(one.draw(step, 1, run.generator)) for one in schedules)
        if method.residual:
            set_residuals(network, outputs)
        if method.analog:
            set_noise(network, weights, 0.0 if method.residual else outputs)
        if method.distillation > 0.0:
            with torch.no_grad():
                batch = Batch(batch.x, batch.y, batch.indices, outputs_of(digital, batch.x))
        with terms.watching():
            found = loss(outputs_of(network, batch.x), batch)
        beside = terms.value(weights)
        return found if beside is None else found + beside

    def after_step() -> None:
        if method.clip_sigmas is not None:
            clip_to_sigmas(network, _clip(method.clip_sigmas, run.step, run.steps))

    run.go(batch_loss, after_step, checkpoint, on_step, begin_epoch)
    run.average.put(network, run.optimiser.parameters)
    if method.clip_sigmas is not None:
        clip_to_sigmas(network, method.clip_sigmas)
    if method.analog:
        set_noise(network, job.level, job.level)
    with fast_products(task.mean.device.type):
        reestimate_batch_norm(network, task.inputs(task.train.pixels[:_NORM_IMAGES]), start.batch)
    network = without_residuals(network).eval()
    if not method.analog:
        return Trained(network)
    if job.ranges == "network":
        return Trained(to_digital(network))
    return Trained(to_digital(network), input_ranges(network))


class _Run:
    """The steps of a training, epoch by epoch."""

    def __init__(
        self,
        network: nn.Module,
        rates: Rates,
        epochs: int,
        job: DigitalJob,
        task: ImageTask,
        average: MovingAverage,
        ranges: RangeRule = "network",
    ) -> None:
        self.network = network
        self.job = job
        self.task = task
        self.epochs = epochs
        self.epoch_steps = len(task.train) // job.batch
        self.steps = epochs * self.epoch_steps
        self.step = 0
        self.optimiser = ImageOptimiser(network, rates, self.steps)
        self.average = average
        self.ranges: RangeRule = ranges
        self.generator = torch.Generator()

    def go(
        self,
        batch_loss: Callable[[Batch, int], Tensor],
        after_step: Callable[[], None],
        checkpoint: Path,
        on_step: OnStep,
        begin_epoch: Callable[[int], None] = lambda _epoch: None,
        on_epoch: OnEpoch = lambda _epoch, _network: None,
    ) -> None:
        """Takes all steps that are left; an epoch depends on the seed and its number, and not on those before."""
        first = load_epoch(checkpoint, self.network, self.optimiser, self.average)
        self.network.train()
        for epoch in range(first, self.epochs):
            self._begin(epoch)
            begin_epoch(epoch)
            for batch in epoch_batches(self.task, self.job.batch, self.job.seed, epoch):
                self.optimiser.zero_grad()
                loss = batch_loss(batch, self.step)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimiser.step(self.step)
                self.step += 1
                after_step()
                self.average.update(self.optimiser.parameters, self.step, self.steps)
                on_step(self.step, self.steps, float(loss.detach()))
            save_epoch(checkpoint, epoch + 1, self.network, self.optimiser, self.average)
            on_epoch(epoch + 1, self.network)

    def _begin(self, epoch: int) -> None:
        self.step = epoch * self.epoch_steps
        seed = _STREAM * (self.job.seed + 1) + epoch
        self.generator.manual_seed(seed)
        if analog_modules(self.network):
            seed_noise(self.network, seed)
            reseed(self.network, torch.Generator().manual_seed(seed))
            calibrate_inputs(self.network, [self.task.range_inputs()], rule=self.ranges)
            self.network.train()


def _clip(end: float, step: int, steps: int) -> float:
    """Where weights are clipped at a step, in standard deviations: ever closer over the first part."""
    done = min(step / max(1.0, _CLIP_PART * steps), 1.0)
    return _CLIP_START + (end - _CLIP_START) * done
