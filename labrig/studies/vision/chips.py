"""How well a network does on many chips: each programmed once, with batch norm as trained and re-estimated on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from labrig.studies.vision.arrays import calibrate_inputs, on_chip
from labrig.studies.vision.images import Images, ImageTask
from labrig.studies.vision.methods import Method
from labrig.studies.vision.networks import outputs_of
from labrig.studies.vision.noise import Noise
from labrig.studies.vision.products import fast_products
from labrig.training.normalisation import reestimate_batch_norm
from labrig_surrogates.model_tools import program, seed_noise

NORM_IMAGES: Final = 2000
"""Training images, without their classes, that the batch norm of a chip is re-estimated on."""

_BATCH: Final = 500
_SEED: Final = 7_368_787

OnChip = Callable[[int, int], None]
"""Called after each chip with how many are done, and how many there are."""


@dataclass(frozen=True)
class ChipScores:
    """Accuracies in % of one network on some chips, in the order of the chips.

    Attributes:
        as_trained: With the batch norm that the training left.
        re_estimated: With one re-estimated on each chip; the same where the network has none.
    """

    as_trained: tuple[float, ...]
    re_estimated: tuple[float, ...]


def chip_seed(seed: int, number: int) -> int:
    """Seed of the errors of chip number `number` among those of a seed."""
    return _SEED * (seed + 1) + number


def accuracy(network: nn.Module, task: ImageTask, images: Images) -> float:
    """Accuracy in % on some images."""
    right = 0
    with torch.no_grad():
        for first in range(0, len(images), _BATCH):
            part = images.part(slice(first, first + _BATCH))
            right += int((outputs_of(network, task.inputs(part.pixels)).argmax(dim=1) == part.labels).sum())
    return 100.0 * right / len(images)


def score_chips(
    network: nn.Module,
    method: Method,
    noise: Noise,
    task: ImageTask,
    images: Sequence[Images],
    *,
    seed: int,
    kept: Mapping[str, float] | None = None,
    re_estimate: bool = True,
    done: OnChip = lambda _one, _all: None,
) -> ChipScores:
    """A network on chips with equal noise, one for each set of images.

    Chip number k has the same errors whatever the network and the level: methods are compared on the same chips.

    Args:
        network: Digital, with the weights that its method found.
        method: How many bits it has.
        noise: Of the chips.
        task: What converters and batch norm are set with.
        images: What each chip is judged by.
        seed: Of the chips.
        kept: Ranges of the inputs' converters that the network was trained with; None or empty: they are measured.
        re_estimate: Whether batch norm is re-estimated as well; else both scores are the same.
        done: Progress.
    """
    chip = on_chip(network, method, noise, seed)
    calibrate_inputs(chip, [task.range_inputs()], kept=kept)
    chip.eval()
    trained = {name: one.clone() for name, one in chip.state_dict().items()}
    seen = task.inputs(task.train.pixels[-NORM_IMAGES:])
    plain, renewed = [], []
    for number, part in enumerate(images):
        seed_noise(chip, chip_seed(seed, number))
        program(chip)
        plain.append(accuracy(chip, task, part))
        if re_estimate:
            with fast_products(seen.device.type):
                reestimate_batch_norm(chip, seen, _BATCH)
            renewed.append(accuracy(chip, task, part))
            chip.load_state_dict(trained)
        done(number + 1, len(images))
    return ChipScores(tuple(plain), tuple(renewed) if re_estimate else tuple(plain))
