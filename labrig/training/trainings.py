"""The three trainings of one seed: digital, on the surrogate, in the loop with the chip."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import nn

from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet
from labrig.training.ledger import Ledger
from labrig.training.loops import OnStep, train_digital, train_in_loop, train_surrogate
from labrig.training.network import digital_network
from labrig.training.physical import BlockingBoard, PhysicalBackend
from labrig.training.recipe import Recipe

# Keeps the streams of one seed apart: initial weights and order of images, noise of the surrogate.
_DATA_STREAM, _NOISE_STREAM = 1, 2


def generator_of(seed: int, stream: int) -> torch.Generator:
    """The generator of one stream of draws of one seed."""
    return torch.Generator().manual_seed(1000 * seed + stream)


def digital_baseline(data: ImageSet, recipe: Recipe, seed: int, on_step: OnStep) -> nn.Sequential:
    """Trains the digital network."""
    generator = generator_of(seed, _DATA_STREAM)
    network = digital_network(data.train_x.shape[1], recipe.hidden, data.classes, generator)
    train_digital(network, data, recipe.digital_steps, recipe.optimisation, generator, on_step)
    return network


def surrogate_trained(
    start: nn.Sequential, chip: ChipModel, data: ImageSet, recipe: Recipe, seed: int, on_step: OnStep
) -> tuple[nn.Sequential, Ledger]:
    """Trains a copy of a deployed network on the surrogate."""
    network = copy.deepcopy(start)
    ledger = Ledger(surrogate_steps=recipe.surrogate_steps)
    backend = chip.backend(network, generator_of(seed, _NOISE_STREAM))
    begin = time.perf_counter()
    train_surrogate(
        network,
        backend,
        data,
        recipe.surrogate_steps,
        recipe.optimisation,
        generator_of(seed, _DATA_STREAM),
        on_step,
    )
    ledger.seconds = time.perf_counter() - begin
    return network, ledger


def in_loop_trained(
    start: nn.Sequential,
    chip: ChipModel,
    board: BlockingBoard,
    data: ImageSet,
    recipe: Recipe,
    seed: int,
    on_step: OnStep,
    meter_j: Callable[[], float | None],
) -> tuple[nn.Sequential, Ledger]:
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
    network = copy.deepcopy(start)
    physical = physical_backend(network, chip, board, seed)
    begin, energy_j = time.perf_counter(), meter_j()
    train_in_loop(
        network,
        chip.backend(network, generator_of(seed, _NOISE_STREAM)),
        physical,
        recipe.alternation,
        data,
        recipe.in_loop_optimisation,
        generator_of(seed, _DATA_STREAM),
        on_step,
    )
    ledger = physical.ledger
    ledger.seconds = time.perf_counter() - begin
    after_j = meter_j()
    ledger.joules = after_j - energy_j if after_j is not None and energy_j is not None else None
    return network, ledger


def physical_backend(network: nn.Module, chip: ChipModel, board: BlockingBoard, seed: int) -> PhysicalBackend:
    """The chip as the backend of a network, with an empty ledger."""
    surrogate = chip.backend(network, generator_of(seed, _NOISE_STREAM))
    return PhysicalBackend(board, surrogate, chip.placement(network), Ledger())
