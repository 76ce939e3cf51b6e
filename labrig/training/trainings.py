"""The three trainings of one seed: digital, on the surrogate, in the loop with the chip."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from labrig.training.assembly import DATA_STREAM, NOISE_STREAM, assemble, generator_of
from labrig.training.batches import Sampler
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet
from labrig.training.ledger import Ledger
from labrig.training.models import TWO_LAYER, build_model
from labrig.training.optimisation import Stepper
from labrig.training.physical import BlockingBoard, PhysicalBackend
from labrig.training.plan import Plan
from labrig.training.ranks import ALONE, Ranks
from labrig.training.recipe import Recipe
from labrig.training.session import Line

OnStep = Callable[[str, int, int, float], None]


def digital_baseline(
    data: ImageSet,
    recipe: Recipe,
    seed: int,
    on_step: OnStep,
    *,
    model: str = TWO_LAYER,
    base: Path | str | None = None,
) -> nn.Module:
    """Trains the digital network.

    Args:
        data: The task.
        recipe: How.
        seed: Seed of this training.
        on_step: Called after each step with phase, step, steps and loss.
        model: `two-layer`, or an import path; see `build_model`.
        base: Folder that import paths start from.
    """
    generator = generator_of(seed, DATA_STREAM)
    network = build_model(model, data, recipe.hidden, generator, None if base is None else Path(base))
    stepper = Stepper(network, recipe.optimisation, recipe.digital_steps)
    sampler = Sampler(data, recipe.optimisation.batch, generator)
    for step in range(recipe.digital_steps):
        on_step("digital", step + 1, recipe.digital_steps, stepper.step(sampler.next()))
    return network


def surrogate_trained(
    start: nn.Module,
    chip: ChipModel,
    data: ImageSet,
    recipe: Recipe,
    seed: int,
    on_step: OnStep,
    ranks: Ranks = ALONE,
) -> tuple[nn.Module, Ledger]:
    """Trains a copy of a deployed network on the surrogate, in one of several processes where `ranks` says so."""
    plan = Plan(method="surrogate", steps=recipe.surrogate_steps, optimisation=recipe.optimisation)
    return _trained(start, chip, data, plan, seed, on_step, None, lambda: None, ranks)


def in_loop_trained(
    start: nn.Module,
    chip: ChipModel,
    board: BlockingBoard,
    data: ImageSet,
    recipe: Recipe,
    seed: int,
    on_step: OnStep,
    meter_j: Callable[[], float | None],
) -> tuple[nn.Module, Ledger]:
    """Trains a copy of a network, alternating surrogate steps with passes through the chip.

    Args:
        start: Where it starts, usually the surrogate-trained network.
        chip: The calibrated chip.
        board: The chip itself.
        data: The task.
        recipe: How.
        seed: Seed of this training.
        on_step: Called after each step.
        meter_j: Reads the energy meter in J, None without one.
    """
    return _trained(start, chip, data, recipe.in_loop, seed, on_step, board, meter_j)


def physical_backend(network: nn.Module, chip: ChipModel, board: BlockingBoard, seed: int) -> PhysicalBackend:
    """The chip as the backend of a network, with an empty ledger."""
    surrogate = chip.backend(network, generator_of(seed, NOISE_STREAM))
    return PhysicalBackend(board, surrogate, chip.placement(network), Ledger())


def _trained(
    start: nn.Module,
    chip: ChipModel,
    data: ImageSet,
    plan: Plan,
    seed: int,
    on_step: OnStep,
    board: BlockingBoard | None,
    meter_j: Callable[[], float | None],
    ranks: Ranks = ALONE,
) -> tuple[nn.Module, Ledger]:
    network = copy.deepcopy(start)

    def journal(line: Line) -> None:
        loss = line["loss"]
        assert isinstance(loss, float)
        on_step(plan.method, session.step, session.steps, loss)

    session = assemble(network, chip, data, plan, seed, board=board, meter_j=meter_j, ranks=ranks)
    session.run(journal)
    return network, session.bench.ledger
