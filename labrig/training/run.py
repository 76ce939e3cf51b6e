"""One training run, from a training file to a run folder; and the evaluation of such a folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from labrig.calibrating import calibrate_recordings
from labrig.config import RigConfig, load_rig
from labrig.events import EventBus, StepDone
from labrig.plans.base import StreamCapacity
from labrig.recording import Recording
from labrig.rig import identify
from labrig.training.capacity import PlannedPasses, training_capacity
from labrig.training.chip_model import ChipModel, deployed_network
from labrig.training.config import TrainConfig, load_training
from labrig.training.datasets import ImageSet, load_images
from labrig.training.evaluate import AccuracyTable, evaluate_on, table
from labrig.training.ledger import Ledger
from labrig.training.live_rig import LiveRig, LiveRun
from labrig.training.loops import OnStep
from labrig.training.network import accuracy
from labrig.training.run_folder import (
    CONFIG,
    RECORDING,
    SUMMARY,
    MetricsFile,
    NetworkShape,
    create_folder,
    load_network,
    load_summary,
    save_network,
    write_json,
)
from labrig.training.trainings import digital_baseline, in_loop_trained, physical_backend, surrogate_trained
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError, IdentityError, StorageError
from labrig_surrogates.io import load_chip, save_chip
from labrig_surrogates.parameters import ChipParameters
from labrig_surrogates.tilemap import ArrayGeometry

CHIP = "chip.safetensors"


@dataclass(frozen=True)
class RunResult:
    """A finished training.

    Attributes:
        folder: The run folder.
        method: How it was trained.
        digital_accuracy: Test accuracy of the digital network that it started from.
        ledger: What the last phase spent.
    """

    folder: Path
    method: str
    digital_accuracy: float
    ledger: Ledger


@dataclass(frozen=True)
class _Sources:
    """What a training file names, read and found to fit together."""

    rig: RigConfig | None
    chip: ChipParameters | None


def train_run(config: TrainConfig, bus: EventBus) -> RunResult:
    """Trains as a training file says.

    Everything that the file names is read and compared first; the folder is made only when it all fits together.

    Raises:
        ConfigError: The method needs something that the file does not name.
        IdentityError: Rig, recording and calibration belong to different chips.
        LabrigError: The rig or a file failed.
    """
    training = config.file.training
    sources = _sources(config, bus)
    data = load_images(config.file.data.name)
    recipe, seed = training.recipe(), config.file.run.seed
    create_folder(config.folder, config.source_text)
    on_step = step_publisher(bus)
    with closing(MetricsFile(config.folder)) as metrics:
        unsubscribe = bus.subscribe(metrics)
        try:
            network: nn.Sequential = digital_baseline(data, recipe, seed, on_step)
            digital_accuracy = accuracy(network, data.test_x, data.test_y)
            ledger, geometry = Ledger(), None
            if training.method != "digital":
                assert sources.chip is not None
                chip = ChipModel.of(sources.chip)
                geometry = chip.geometry
                network = deployed_network(network, chip, data, recipe.hidden)
                network, ledger = surrogate_trained(network, chip, data, recipe, seed, on_step)
                if training.method == "in-loop":
                    assert sources.rig is not None
                    network, ledger = _in_loop(network, chip, sources.rig, config, data, on_step, bus)
        finally:
            unsubscribe()
    if sources.chip is not None:
        save_chip(config.folder / CHIP, sources.chip)
    save_network(config.folder, network)
    summary: dict[str, object] = {
        "method": training.method,
        "seed": seed,
        "data": data.name,
        "chip_id": None if sources.chip is None else sources.chip.chip_id,
        "rig": None if config.rig is None else str(config.rig.resolve()),
        "digital_accuracy": digital_accuracy,
        "ledger": ledger.as_dict(),
        "shape": {
            "pixels": data.train_x.shape[1],
            "hidden": recipe.hidden,
            "classes": data.classes,
            "geometry": None if geometry is None else asdict(geometry),
        },
    }
    write_json(config.folder / SUMMARY, summary)
    return RunResult(config.folder, training.method, digital_accuracy, ledger)


def evaluate_run(folder: Path, rig_path: Path | None, writes: int | None, bus: EventBus) -> tuple[AccuracyTable, str]:
    """Judges the network of a run folder: on the chip where it was trained for one, else in float.

    Args:
        folder: The run folder.
        rig_path: Rig file; the run's own when None.
        writes: Programmings; the training file's number when None.
        bus: Gets the events of the rig.

    Returns:
        The accuracies, and where they were measured in words.

    Raises:
        ConfigError: The network needs a chip and no rig is named.
        IdentityError: The rig has another chip than the run.
        StorageError: Not a finished run, or a file cannot be written.
    """
    summary = load_summary(folder)
    file = load_training(folder / CONFIG).file
    data = load_images(file.data.name)
    network = load_network(folder, _shape(folder, summary))
    if summary["chip_id"] is None:
        result, where = table([(accuracy(network, data.test_x, data.test_y),)], data), "in float, no chip"
    else:
        rig_path = rig_path or (None if summary["rig"] is None else Path(str(summary["rig"])))
        if rig_path is None:
            raise ConfigError(f"{folder}: trained on a recording, so name the rig to judge it on: --rig RIG.toml")
        writes = writes or file.evaluation.writes
        result = _evaluate_on_chip(network, folder, load_rig(rig_path), data, writes, bus)
        where = f"on chip {summary['chip_id']}, {writes} programmings"
    write_json(folder / "evaluation.json", {**result.as_dict(), "where": where})
    return result, where


def step_publisher(bus: EventBus) -> OnStep:
    """Turns steps into events."""

    def publish(phase: str, step: int, steps: int, loss: float) -> None:
        bus.publish(StepDone(phase, step, steps, loss))

    return publish


def _in_loop(
    start: nn.Sequential,
    chip: ChipModel,
    rig: RigConfig,
    config: TrainConfig,
    data: ImageSet,
    on_step: OnStep,
    bus: EventBus,
) -> tuple[nn.Sequential, Ledger]:
    recipe, seed = config.file.training.recipe(), config.file.run.seed
    cycles = recipe.alternation.count("physical")
    planned = PlannedPasses(cycles, min(recipe.in_loop_optimisation.batch, data.train_y.shape[0]), cycles)
    run = LiveRun(
        config=rig,
        chip_id=chip.chip_id,
        path=config.folder / RECORDING,
        plan={"name": "training", "seed": seed, "file": config.source_text},
        capacity=_capacity_of(start, chip, planned),
    )
    with LiveRig(run, bus) as board:
        return in_loop_trained(start, chip, board, data, recipe, seed, on_step, board.joules)


def _evaluate_on_chip(
    network: nn.Sequential, folder: Path, rig: RigConfig, data: ImageSet, writes: int, bus: EventBus
) -> AccuracyTable:
    chip = ChipModel.of(load_chip(folder / CHIP))
    number = 1 + sum(1 for _ in folder.glob("evaluation-*.h5"))
    run = LiveRun(
        config=rig,
        chip_id=chip.chip_id,
        path=folder / f"evaluation-{number}.h5",
        plan={"name": "evaluation", "writes": writes},
        capacity=_capacity_of(network, chip, PlannedPasses(writes, data.test_y.shape[0], writes)),
    )
    with LiveRig(run, bus) as board:
        return table([evaluate_on(network, physical_backend(network, chip, board, 0), data, writes)], data)


def _capacity_of(
    network: nn.Module, chip: ChipModel, planned: PlannedPasses
) -> Callable[[BoardInfo], Mapping[int, StreamCapacity]]:
    """Sizes a recording for one kind of passes, given the board."""
    placement = chip.placement(network)
    return lambda info: training_capacity(placement, [planned], info.arrays)


def _sources(config: TrainConfig, bus: EventBus) -> _Sources:
    method = config.file.training.method
    faults = []
    if method == "in-loop" and config.rig is None:
        faults.append("the method in-loop needs chip.rig (or --rig)")
    if method != "digital" and config.calibration is None and config.recording is None:
        faults.append(f"the method {method} needs chip.calibration or chip.recording (or --recording)")
    if config.folder.exists():
        faults.append(f"run.folder {config.folder} exists already; choose another one or remove it")
    if faults:
        raise ConfigError(f"{config.path}: " + "; ".join(faults))
    rig = None if config.rig is None else load_rig(config.rig)
    if method == "digital":
        return _Sources(rig, None)
    chip = None if config.calibration is None else load_chip(config.calibration)
    chip_id = _chip_id(config, chip)
    if rig is not None and method == "in-loop":
        asyncio.run(_demand_chip(rig, chip_id))
    if chip is None:
        assert config.recording is not None
        chip = calibrate_recordings([config.recording], config.file.run.seed, bus).chip
    return _Sources(rig, chip)


def _chip_id(config: TrainConfig, chip: ChipParameters | None) -> str:
    """The chip that calibration and recording, of which there is one at least, are of."""
    if config.recording is None:
        assert chip is not None
        return chip.chip_id
    with Recording.open(config.recording) as recording:
        recorded = recording.info.chip_id
    if chip is not None and chip.chip_id != recorded:
        raise IdentityError(
            f"chip {chip.chip_id!r} of {config.calibration}", f"chip {recorded!r}", str(config.recording)
        )
    return recorded


async def _demand_chip(rig: RigConfig, chip_id: str) -> None:
    """Opens the rig once before anything is fitted, trained or made, and compares; no output is touched."""
    _, info = await identify(rig)
    if info.chip_id != chip_id:
        raise IdentityError(f"chip {chip_id!r} of the calibration", f"chip {info.chip_id!r}", str(rig.path))


def _shape(folder: Path, summary: Mapping[str, object]) -> NetworkShape:
    shape = summary.get("shape")
    if not isinstance(shape, dict):
        raise StorageError(f"{folder / SUMMARY}: does not say the network's shape")
    try:
        geometry = shape["geometry"]
        return NetworkShape(
            pixels=int(shape["pixels"]),
            hidden=int(shape["hidden"]),
            classes=int(shape["classes"]),
            geometry=None if geometry is None else ArrayGeometry(**geometry),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{folder / SUMMARY}: does not say the network's shape ({error})") from error
