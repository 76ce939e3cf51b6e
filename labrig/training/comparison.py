"""The comparison that labrig exists for: the same networks, deployed in four ways, all judged on the chip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from labrig.plans.base import StreamCapacity
from labrig.training.capacity import PlannedPasses, training_capacity
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet
from labrig.training.evaluate import AccuracyTable, evaluate_on, table
from labrig.training.ledger import Ledger, total
from labrig.training.models import accuracy
from labrig.training.physical import BlockingBoard
from labrig.training.recipe import Recipe
from labrig.training.trainings import (
    OnStep,
    digital_baseline,
    in_loop_trained,
    physical_backend,
    surrogate_trained,
)

ON_CHIP = ("deployed", "surrogate", "in_loop")


@dataclass(frozen=True)
class Prepared:
    """The networks of one seed that need no chip to be trained.

    Attributes:
        seed: Their seed.
        digital: The digital network.
        deployed: Its weights on analog layers, with the best nominal ranges.
        surrogate: The same, trained on the surrogate.
        surrogate_ledger: What that training took.
    """

    seed: int
    digital: nn.Module
    deployed: nn.Module
    surrogate: nn.Module
    surrogate_ledger: Ledger


@dataclass(frozen=True)
class Comparison:
    """Result of the comparison.

    Attributes:
        accuracy: One table a method: `digital` (in float, off the chip), `deployed`, `surrogate`, `in_loop`.
        surrogate_training: What the surrogate training of each seed took; no pass through the chip.
        training: What the in-the-loop training of each seed spent on the chip.
        evaluation: What judging the three methods of each seed spent on the chip.
    """

    accuracy: Mapping[str, AccuracyTable]
    surrogate_training: tuple[Ledger, ...]
    training: tuple[Ledger, ...]
    evaluation: tuple[Ledger, ...]


def comparison_capacity(
    network: nn.Module, chip: ChipModel, data: ImageSet, recipe: Recipe, seeds: int, writes: int, arrays: int
) -> dict[int, StreamCapacity]:
    """How much the recording of `compare` must hold, for networks like this one."""
    batch = min(recipe.in_loop.optimisation.batch, data.train_y.shape[0])
    cycles = recipe.in_loop.most_passes()
    judged = seeds * len(ON_CHIP) * writes
    planned = [
        PlannedPasses(passes=seeds * cycles, images=batch, writes=seeds * cycles),
        PlannedPasses(passes=judged, images=data.test_y.shape[0], writes=judged),
    ]
    return training_capacity(chip.placement(network), planned, arrays)


def prepare(
    chip: ChipModel, data: ImageSet, recipe: Recipe, seeds: Sequence[int], on_step: OnStep
) -> tuple[Prepared, ...]:
    """Trains everything that needs no chip, so that the rig's supply is off meanwhile."""
    prepared = []
    for number, seed in enumerate(seeds):
        step = _labelled(on_step, number, seeds)
        digital = digital_baseline(data, recipe, seed, step)
        deployed = chip.deployed(digital, data)
        surrogate, ledger = surrogate_trained(deployed, chip, data, recipe, seed, step)
        prepared.append(Prepared(seed, digital, deployed, surrogate, ledger))
    return tuple(prepared)


def compare(
    prepared: Sequence[Prepared],
    chip: ChipModel,
    board: BlockingBoard,
    data: ImageSet,
    recipe: Recipe,
    *,
    writes: int,
    on_step: OnStep,
    meter_j: Callable[[], float | None],
) -> Comparison:
    """Trains in the loop and judges every method on the chip, paired by seed.

    Args:
        prepared: The networks that are there already; in-the-loop training starts from the surrogate-trained one.
        chip: The calibrated chip.
        board: The chip itself.
        data: The task.
        recipe: How the networks are trained.
        writes: Programmings in each judgement.
        on_step: Called after each step with phase, step, steps and loss.
        meter_j: Reads the energy meter in J, None without one.
    """
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in ("digital", *ON_CHIP)}
    training, evaluation = [], []
    for number, one in enumerate(prepared):
        step = _labelled(on_step, number, prepared)
        in_loop, spent = in_loop_trained(one.surrogate, chip, board, data, recipe, one.seed, step, meter_j)
        training.append(spent)
        rows["digital"].append((accuracy(one.digital, data.test_x, data.test_y),))
        judged, before_j = Ledger(), meter_j()
        for name, network in zip(ON_CHIP, (one.deployed, one.surrogate, in_loop), strict=True):
            backend = physical_backend(network, chip, board, one.seed)
            rows[name].append(evaluate_on(network, backend, data, writes))
            judged = total([judged, backend.ledger, Ledger(passes=writes)])
        after_j = meter_j()
        judged.joules = after_j - before_j if after_j is not None and before_j is not None else None
        evaluation.append(judged)
    return Comparison(
        {name: table(row, data) for name, row in rows.items()},
        tuple(one.surrogate_ledger for one in prepared),
        tuple(training),
        tuple(evaluation),
    )


def _labelled(on_step: OnStep, number: int, seeds: Sequence[object]) -> OnStep:
    def step(phase: str, done: int, steps: int, loss: float) -> None:
        on_step(f"seed {number + 1} of {len(seeds)}: {phase}", done, steps, loss)

    return step
