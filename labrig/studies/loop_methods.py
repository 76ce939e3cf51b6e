"""The trainings that the break-even study compares, each from the same network and on a chip of the same age."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from labrig.studies.structured_chip import StructuredBoard, StructuredChip
from labrig.training.assembly import assemble
from labrig.training.chip_model import ChipModel
from labrig.training.column_fit import calibrate_columns
from labrig.training.datasets import ImageSet
from labrig.training.evaluate import evaluate_on
from labrig.training.optimisation import Optimisation
from labrig.training.plan import Plan, PolicyPlan
from labrig.training.policy import Budget
from labrig.training.recipe import Recipe
from labrig.training.refit import RefitSettings
from labrig.training.session import Line
from labrig.training.trainings import digital_baseline, physical_backend, surrogate_trained

BATCH = 64
# Programmings that each network is judged on.
_JUDGED_WRITES = 3


@dataclass(frozen=True)
class LoopSize:
    """How long the trainings are.

    Attributes:
        hidden: Hidden units.
        digital_steps: Steps of the digital network.
        surrogate_steps: Steps on the surrogate that all methods start from.
        passes: Device passes of the all-physical training.
        few: Passes of the trainings with few of them.
        steps: Further surrogate steps of the offline method, and steps of the adaptive one, its passes among them.
        calibration_images: Images that the columns are calibrated on.
    """

    hidden: int = 16
    digital_steps: int = 400
    surrogate_steps: int = 300
    passes: int = 100
    few: int = 20
    steps: int = 300
    calibration_images: int = 256


@dataclass(frozen=True)
class Tuned:
    """What is tuned, on chips that no result is of.

    Attributes:
        offline: Learning rate of the further steps on the surrogate.
        pat: That of physics-aware training.
        dat: That of dual adaptive training.
        adaptive: That of the adaptive alternation.
        finale: Part of its passes that it keeps for the end.
    """

    offline: float = 1e-2
    pat: float = 3e-2
    dat: float = 3e-2
    adaptive: float = 2e-2
    finale: float = 0.5


@dataclass(frozen=True)
class Judged:
    """What a method reached.

    Attributes:
        accuracy: On the chip at its last age, in %.
        images: Images that were sent through the chip for it.
    """

    accuracy: float
    images: float


@dataclass(frozen=True)
class Task:
    """One seed: its images, and the network that every method starts from.

    Attributes:
        seed: Of every draw.
        data: The images.
        size: How long the trainings are.
        start: Trained on the surrogate.
        offline: The same with further steps, as many as the adaptive method takes.
    """

    seed: int
    data: ImageSet
    size: LoopSize
    start: nn.Module
    offline: nn.Module


def prepare(chip: StructuredChip, data: ImageSet, size: LoopSize, tuned: Tuned, seed: int) -> Task:
    """Trains what the methods start from: the surrogate knows nothing of the structure, so it is one for all chips."""
    recipe = _recipe(size)
    model = ChipModel.of(chip.calibration())
    digital = digital_baseline(data, recipe, seed, _silent)
    start, _ = surrogate_trained(model.deployed(digital, data), model, data, recipe, seed, _silent)
    return Task(seed, data, size, start, further(start, model, data, size, tuned, seed))


def further(start: nn.Module, model: ChipModel, data: ImageSet, size: LoopSize, tuned: Tuned, seed: int) -> nn.Module:
    """A copy with further steps on a surrogate."""
    network = copy.deepcopy(start)
    plan = Plan(method="surrogate", steps=size.steps, optimisation=Optimisation(BATCH, tuned.offline))
    assemble(network, model, data, plan, seed).run(_unheard)
    return network


def plans(size: LoopSize, tuned: Tuned) -> dict[str, Plan]:
    """The trainings in the loop, by name."""
    physical = Plan(method="in-loop", policy=PolicyPlan(surrogate_steps=0))
    pat = replace(physical, optimisation=Optimisation(BATCH, tuned.pat))
    dat = replace(physical, method="dat", optimisation=Optimisation(BATCH, tuned.dat))
    early = max(round((1.0 - tuned.finale) * size.few), 1)
    adaptive = Plan(
        method="in-loop",
        steps=size.steps,
        policy=PolicyPlan(
            "adaptive",
            surrogate_steps=size.steps // (2 * early),
            budget=Budget(passes=size.few),
            trust=10.0,  # with few passes the weights go further between two of them than a surrogate is good for
            finale=tuned.finale,
            renew_from=2,
        ),
        optimisation=Optimisation(BATCH, tuned.adaptive),
        recalibrate=True,
        refit=RefitSettings(gain_change=0.2, cell_change=0.2, forgetting=0.95, images=32),
    )
    return {
        "PAT": replace(pat, steps=size.passes),
        "PAT, few passes": replace(pat, steps=size.few),
        "DAT": replace(dat, steps=size.passes),
        "DAT, few passes": replace(dat, steps=size.few),
        "adaptive": adaptive,
    }


def trained_in_loop(task: Task, chip: StructuredChip, plan: Plan, *, start: nn.Module | None = None) -> Judged:
    """Trains on a chip that ages meanwhile, and judges at the end."""
    network, board = copy.deepcopy(start or task.start), StructuredBoard(chip)
    model = ChipModel.of(chip.calibration())
    session = assemble(network, model, task.data, plan, task.seed, board=board)

    def older() -> None:
        board.age = session.step / session.steps

    session.run(_unheard, older)
    return Judged(judged(task, chip, network, board), session.bench.ledger.mvms / _tiles(model, network))


def offline(task: Task, chip: StructuredChip, *, calibrated: bool) -> Judged:
    """Judges the offline network on the aged chip, as it is or with its columns calibrated there."""
    network, board = copy.deepcopy(task.offline), StructuredBoard(chip, age=1.0)
    model, images = ChipModel.of(chip.calibration()), 0.0
    if calibrated:
        backend = physical_backend(network, model, board, task.seed)
        calibrate_columns(network, backend, task.data.train_x[: task.size.calibration_images])
        images = backend.ledger.mvms / _tiles(model, network)
    return Judged(judged(task, chip, network, board), images)


def judged(task: Task, chip: StructuredChip, network: nn.Module, board: StructuredBoard) -> float:
    """Accuracy in % on the chip, the mean of a few programmings."""
    backend = physical_backend(network, ChipModel.of(chip.calibration()), board, task.seed)
    found = evaluate_on(network, backend, task.data, _JUDGED_WRITES)
    return 100.0 * sum(found) / len(found)


def all_methods(task: Task, chip: StructuredChip, tuned: Tuned) -> Mapping[str, Judged]:
    """Everything that is compared on one chip, by name."""
    found = {name: trained_in_loop(task, chip, plan) for name, plan in plans(task.size, tuned).items()}
    before = {"offline": offline(task, chip, calibrated=False), "calibrated": offline(task, chip, calibrated=True)}
    return {**before, **found}


def _recipe(size: LoopSize) -> Recipe:
    return Recipe(size.hidden, size.digital_steps, size.surrogate_steps, Optimisation(BATCH))


def _tiles(model: ChipModel, network: nn.Module) -> int:
    return len(model.placement(network))


def _silent(phase: str, step: int, steps: int, loss: float) -> None:
    del phase, step, steps, loss


def _unheard(line: Line) -> None:
    del line
