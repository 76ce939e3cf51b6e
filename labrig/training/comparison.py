"""The comparison that labrig exists for: the same networks, deployed in four ways, all judged on the chip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from labrig.plans.base import StreamCapacity
from labrig.training.capacity import PlannedPasses, training_capacity
from labrig.training.chip_model import ChipModel, deployed_network
from labrig.training.datasets import ImageSet
from labrig.training.evaluate import AccuracyTable, evaluate_on, table
from labrig.training.ledger import Ledger
from labrig.training.loops import OnStep
from labrig.training.network import accuracy, analog_network
from labrig.training.physical import BlockingBoard
from labrig.training.recipe import Recipe
from labrig.training.trainings import digital_baseline, in_loop_trained, physical_backend, surrogate_trained

ON_CHIP = ("deployed", "surrogate", "in_loop")


@dataclass(frozen=True)
class Comparison:
    """Result of the comparison.

    Attributes:
        accuracy: One table a method: `digital` (in float, off the chip), `deployed`, `surrogate`, `in_loop`.
        training: What the in-the-loop training of each seed spent.
        evaluation: What judging the three methods of each seed spent.
    """

    accuracy: Mapping[str, AccuracyTable]
    training: tuple[Ledger, ...]
    evaluation: tuple[Ledger, ...]


def comparison_capacity(
    chip: ChipModel, data: ImageSet, recipe: Recipe, seeds: int, writes: int, arrays: int
) -> dict[int, StreamCapacity]:
    """How much the recording of `compare` must hold."""
    network = analog_network(data.train_x.shape[1], recipe.hidden, data.classes, chip.geometry)
    batch = min(recipe.in_loop_optimisation.batch, data.train_y.shape[0])
    cycles = recipe.alternation.count("physical")
    judged = seeds * len(ON_CHIP) * writes
    planned = [
        PlannedPasses(passes=seeds * cycles, images=batch, writes=seeds * cycles),
        PlannedPasses(passes=judged, images=data.test_y.shape[0], writes=judged),
    ]
    return training_capacity(chip.placement(network), planned, arrays)


def compare(
    chip: ChipModel,
    board: BlockingBoard,
    data: ImageSet,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    writes: int,
    on_step: OnStep,
    meter_j: Callable[[], float | None],
) -> Comparison:
    """Trains and judges every method, paired by seed.

    Args:
        chip: The calibrated chip.
        board: The chip itself.
        data: The task.
        recipe: How the networks are trained.
        seeds: One training of each method for each seed; methods of one seed start from the same digital network.
        writes: Programmings in each judgement.
        on_step: Called after each step with phase, step, steps and loss.
        meter_j: Reads the energy meter in J, None without one.
    """
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in ("digital", *ON_CHIP)}
    training, evaluation = [], []
    for number, seed in enumerate(seeds):
        label = f"seed {number + 1} of {len(seeds)}: "

        def step(phase: str, done: int, steps: int, loss: float, label: str = label) -> None:
            on_step(label + phase, done, steps, loss)

        digital = digital_baseline(data, recipe, seed, step)
        rows["digital"].append((accuracy(digital, data.test_x, data.test_y),))
        deployed = deployed_network(digital, chip, data, recipe.hidden)
        surrogate, _ = surrogate_trained(deployed, chip, data, recipe, seed, step)
        in_loop, spent = in_loop_trained(surrogate, chip, board, data, recipe, seed, step, meter_j)
        training.append(spent)
        judged = Ledger()
        before_j = meter_j()
        networks: dict[str, nn.Module] = {"deployed": deployed, "surrogate": surrogate, "in_loop": in_loop}
        for name, network in networks.items():
            backend = physical_backend(network, chip, board, seed)
            rows[name].append(evaluate_on(network, backend, data, writes))
            judged.passes += writes
            judged.mvms += backend.ledger.mvms
            judged.writes += backend.ledger.writes
        after_j = meter_j()
        judged.joules = after_j - before_j if after_j is not None and before_j is not None else None
        evaluation.append(judged)
    return Comparison({name: table(row, data) for name, row in rows.items()}, tuple(training), tuple(evaluation))
