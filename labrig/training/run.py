"""One training run, from a training file to a run folder, and on from where it was interrupted."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from labrig.config import load_rig
from labrig.events import EventBus, Message, StepDone
from labrig.placement import plan_placement
from labrig.recording.whole_files import write_whole
from labrig.run_control import RunControl
from labrig.training.assembly import DATA_STREAM, generator_of
from labrig.training.backends import Backends
from labrig.training.checkpoint import latest_checkpoint, load_checkpoint
from labrig.training.chip_model import ChipModel
from labrig.training.config import TrainConfig
from labrig.training.datasets import ImageSet, load_images
from labrig.training.deployment import analog_copy
from labrig.training.ledger import Ledger
from labrig.training.models import accuracy, build_model
from labrig.training.on_rig import Job, run_session, versioned_chip
from labrig.training.pausing import wait_between_steps
from labrig.training.plan import WITHOUT_RIG
from labrig.training.ranks import ALONE, Ranks
from labrig.training.recipe import Recipe
from labrig.training.run_chip import Sources, demand_chip, load_sources
from labrig.training.run_folder import (
    CHECKPOINTS,
    CHIP,
    DIGITAL,
    METRICS,
    NETWORK,
    START,
    SUMMARY,
    WEAR,
    MetricsFile,
    create_folder,
    keep_metrics_until,
    load_network,
    save_network,
    write_json,
)
from labrig.training.run_report import write_run_report
from labrig.training.run_summary import summary_of
from labrig.training.session import Line
from labrig.training.trainings import OnStep, digital_baseline, surrogate_trained
from labrig_drivers.errors import ConfigError, LabrigError, StorageError
from labrig_surrogates.io import load_chip, save_chip
from labrig_surrogates.layers import set_backend

Checkpoint = tuple[dict[str, Tensor], dict[str, object]]


@dataclass(frozen=True)
class RunResult:
    """A finished training.

    Attributes:
        config: The training file, with its run folder.
        digital_accuracy: Test accuracy of the digital network that it started from.
        ledger: What the method's own steps spent.
    """

    config: TrainConfig
    digital_accuracy: float
    ledger: Ledger


@dataclass(frozen=True)
class _Run:
    """A run in its folder."""

    config: TrainConfig
    bus: EventBus
    data: ImageSet
    recipe: Recipe
    metrics: MetricsFile
    control: RunControl | None

    @property
    def seed(self) -> int:
        return self.config.file.run.seed

    def on_step(self, phase: str, step: int, steps: int, loss: float) -> None:
        self.metrics.write({"phase": phase, "step": step, "steps": steps, "loss": loss})
        self.bus.publish(StepDone(phase, step, steps, loss))
        wait_between_steps(self.bus, self.control, self.metrics.flush)

    def journal(self, line: Line) -> None:
        self.metrics.write(line)
        self.bus.publish(step_event(line))


def step_event(line: Line) -> StepDone:
    """What listeners hear of a line of the log."""
    loss, right = line.get("loss"), line.get("accuracy")
    assert loss is None or isinstance(loss, float)
    assert right is None or isinstance(right, float)
    ledger, gaps = line.get("ledger"), line.get("gaps")
    passes = int(ledger["passes"]) if isinstance(ledger, dict) else None
    gap = max(gaps.values()) if isinstance(gaps, dict) and gaps else None
    return StepDone(str(line["phase"]), int(str(line["step"])), int(str(line["steps"])), loss, right, passes, gap)


def step_publisher(bus: EventBus) -> OnStep:
    """Turns steps into events."""

    def publish(phase: str, step: int, steps: int, loss: float) -> None:
        bus.publish(StepDone(phase, step, steps, loss))

    return publish


def train_run(config: TrainConfig, bus: EventBus, ranks: Ranks = ALONE, control: RunControl | None = None) -> RunResult:
    """Trains as a training file says.

    Everything that the file names is read and compared first; the folder is made only when it all fits together.

    Args:
        config: The training file.
        bus: Gets the progress.
        ranks: Which of several processes this is. All train on the surrogate; what the others than the first write is
            dropped, and the rig is the first one's alone.
        control: Pauses the training, on a rig with the array supply off.

    Raises:
        ConfigError: The method needs something that the file does not name, or cannot be shared between processes; or
            the network does not fit the task, the chip or the board.
        IdentityError: Rig, recording and calibration belong to different chips.
        LabrigError: The rig or a file failed; the run can be resumed.
    """
    method, recipe = config.file.training.method, config.file.recipe()
    if ranks.size > 1 and (method == "digital" or (method != "surrogate" and not recipe.surrogate_steps)):
        raise ConfigError(f"method {method}: has no steps on the surrogate, which alone are shared between processes")
    if ranks.rank > 0:
        with TemporaryDirectory(prefix="labrig-rank-") as folder:
            return _new_run(replace(config, folder=Path(folder) / "run"), bus, ranks)
    return _new_run(config, bus, ranks, control)


def _new_run(config: TrainConfig, bus: EventBus, ranks: Ranks, control: RunControl | None = None) -> RunResult:
    data = load_images(config.file.data.name, config.base)
    sources = load_sources(config, bus, ask_rig=ranks.rank == 0)
    _demand_fit(config, data, sources)
    create_folder(config)
    if sources.chip is not None:
        save_chip(config.folder / CHIP, sources.chip)
    return _train(config, sources, data, bus, None, ranks, control)


def _demand_fit(config: TrainConfig, data: ImageSet, sources: Sources) -> None:
    """Refuses a network that does not fit task, chip or board before hours of steps in float have been taken.

    Raises:
        ConfigError: There is no such model or layer, or it cannot be placed on the board.
    """
    training, generator = config.file.training, generator_of(config.file.run.seed, DATA_STREAM)
    digital = build_model(training.model, data, training.hidden, generator, config.base)
    if sources.chip is None:
        return
    network = analog_copy(digital, ChipModel.of(sources.chip).geometry)
    Backends(network, training.layers)
    if sources.info is not None:
        plan_placement(network, sources.info, data.train_x[:2], arrays=sorted(sources.chip.arrays))


def resume_run(config: TrainConfig, bus: EventBus, control: RunControl | None = None) -> RunResult:
    """Goes on with a run that was interrupted, from its last checkpoint, or from the start where it has none.

    On a board whose time is commanded the continuation is identical to the run that was never interrupted, with the
    same build and number of threads; on any other the arrays are programmed anew.

    Args:
        config: The run folder's own training file; see `load_origin`.
        bus: Gets the progress.
        control: Pauses the training, on a rig with the array supply off.

    Raises:
        StorageError: The run has ended already, or its files cannot be read.
        LabrigError: The rig or a file failed; the run can be resumed again.
    """
    folder, method = config.folder, config.file.training.method
    if (folder / SUMMARY).exists():
        raise StorageError(f"{folder}: the run has ended; there is nothing to resume")
    if method != "digital" and not (folder / CHIP).exists():
        raise StorageError(f"{folder}: was interrupted before its chip was in it; remove the folder and start again")
    chip = None if method == "digital" else load_chip(folder / CHIP)
    rig = None if config.rig is None else load_rig(config.rig)
    info = None if rig is None or chip is None or method in WITHOUT_RIG else demand_chip(rig, chip.chip_id)
    latest = latest_checkpoint(folder / CHECKPOINTS)
    checkpoint = None if latest is None else load_checkpoint(latest)
    if (folder / METRICS).exists():
        # Steps after the checkpoint are taken again, and so are phases that left no network behind.
        keep_metrics_until(folder, method, 0 if checkpoint is None else int(str(checkpoint[1]["step"])))
        for phase, file in (("digital", DIGITAL), ("surrogate", START)):
            if not (folder / file).exists() and phase != method:
                keep_metrics_until(folder, phase, 0)
    step = "the start" if checkpoint is None else f"step {checkpoint[1]['step']}"
    bus.publish(Message(f"{folder}: goes on from {step}"))
    data = load_images(config.file.data.name, config.base)
    return _train(config, Sources(rig, info, chip), data, bus, checkpoint, control=control)


def _train(
    config: TrainConfig,
    sources: Sources,
    data: ImageSet,
    bus: EventBus,
    checkpoint: Checkpoint | None,
    ranks: Ranks = ALONE,
    control: RunControl | None = None,
) -> RunResult:
    with closing(MetricsFile(config.folder)) as metrics:
        run = _Run(config, bus, data, config.file.recipe(), metrics, control)
        network = _digital(run)
        digital_accuracy = accuracy(network, data.test_x, data.test_y)
        ledger, geometry, chip_id, wear = Ledger(), None, None, None
        if sources.chip is not None:
            chip = ChipModel.of(sources.chip)
            geometry, chip_id = chip.geometry, chip.chip_id
            teacher = _teacher(run, network)
            network = _start(run, network, chip, ranks)
            if config.file.training.method != "surrogate":
                if ranks.rank > 0:
                    return RunResult(config, digital_accuracy, ledger)
                ranks = ALONE
            _announce(run, network, sources)
            if checkpoint is not None:
                chip = versioned_chip(config.folder, chip, int(str(checkpoint[1]["version"])))
            rig = None if sources.info is None else sources.rig
            job = Job(config, data, run.recipe.in_loop, chip, rig, teacher, checkpoint, ranks, control)
            try:
                session = run_session(job, network, bus, run.journal, metrics.flush)
            except (LabrigError, KeyboardInterrupt):
                bus.publish(
                    Message(f"the run can go on from its last checkpoint: labrig train --resume {config.folder}")
                )
                raise
            ledger = session.bench.ledger
            if session.bench.physical is not None:
                wear = session.bench.physical.wear
                write_whole(config.folder / WEAR, wear.as_file())
            set_backend(network, None)
    save_network(config.folder / NETWORK, network)
    write_json(
        config.folder / SUMMARY,
        summary_of(config, data, digital_accuracy, ledger, chip_id, geometry, sources.info, wear),
    )
    write_run_report(config.folder)
    return RunResult(config, digital_accuracy, ledger)


def _digital(run: _Run) -> nn.Module:
    """The digital network: trained, or as the interrupted run left it."""
    model, kept = run.config.file.training.model, run.config.folder / DIGITAL
    if kept.exists():
        nothing = replace(run.recipe, digital_steps=0)
        network = digital_baseline(run.data, nothing, run.seed, run.on_step, model=model, base=run.config.base)
        load_network(kept, network)
        return network
    network = digital_baseline(run.data, run.recipe, run.seed, run.on_step, model=model, base=run.config.base)
    save_network(kept, network)
    return network


def _teacher(run: _Run, digital: nn.Module) -> Tensor | None:
    if run.config.file.training.distillation == 0.0:
        return None
    with torch.no_grad():
        outputs: Tensor = digital.eval()(run.data.train_x)
    digital.train()
    return outputs


def _start(run: _Run, digital: nn.Module, chip: ChipModel, ranks: Ranks) -> nn.Module:
    """Where the method starts: the deployed network, trained on the surrogate."""
    kept = run.config.folder / START
    if kept.exists():
        network = analog_copy(digital, chip.geometry)
        load_network(kept, network)
        return network
    network = chip.deployed(digital, run.data)
    if run.recipe.surrogate_steps:
        network, _ = surrogate_trained(network, chip, run.data, run.recipe, run.seed, run.on_step, ranks)
    set_backend(network, None)
    save_network(kept, network)
    return network


def _announce(run: _Run, network: nn.Module, sources: Sources) -> None:
    """Says what passes cost before the first one is made, and refuses what cannot be."""
    if sources.info is None or sources.chip is None:
        return
    plan = run.recipe.in_loop
    placement = plan_placement(network, sources.info, run.data.train_x[:2], arrays=sorted(sources.chip.arrays))
    run.bus.publish(Message(placement.describe(min(plan.optimisation.batch, len(run.data.train_y)))))
    endurance = run.config.file.chip.endurance_writes
    if endurance is not None:
        placement.demand_endurance(plan.most_passes(), endurance)
