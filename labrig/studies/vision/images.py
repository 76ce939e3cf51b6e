"""Images of a task on a device, and the batches that a training makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from labrig.images.labelled import ImageSplits, LabelledImages, hold_out
from labrig.training.batches import Batch

HELD_OUT: Final = 5000
"""Training images of a full set that choices are made on."""

_SPLIT_SEED: Final = 20


_RANGE_IMAGES: Final = 1000


@dataclass(frozen=True)
class Images:
    """Images of one split.

    Attributes:
        pixels: Values 0 to 255, uint8, `[N, height, width, channels]`.
        labels: Classes, int64, `[N]`.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def part(self, index: Tensor | slice) -> Images:
        """Some of them."""
        return Images(self.pixels[index], self.labels[index])

    @classmethod
    def of(cls, images: LabelledImages, device: torch.device) -> Images:
        """Those that were read, on a device."""
        return cls(torch.from_numpy(images.pixels).to(device), torch.from_numpy(images.labels).to(device))


@dataclass(frozen=True)
class ImageTask:
    """What a network learns and is judged by.

    Attributes:
        name: Of the set.
        train: To learn from.
        validation: Taken from the published training images: every choice is made on it.
        test: Each reported number looks at it once.
        classes: How many.
        mean: Of the training pixels by channel, in 0 to 255.
        std: Their standard deviation.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    classes: int
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, splits: ImageSplits, device: torch.device, *, held_out: int = HELD_OUT) -> ImageTask:
        """A published set, with some of its training images held out; the same ones each time.

        Args:
            splits: As it was read; images of one channel are not taken.
            device: Where it goes.
            held_out: Images held out; a tenth of the training images, if these are less than ten times as many.
        """
        count = min(held_out, len(splits.train) // 10)
        kept, aside = hold_out(splits.train, count, np.random.default_rng(_SPLIT_SEED))
        values = kept.pixels.reshape(-1, kept.pixels.shape[-1]).astype(np.float32)
        return cls(
            name=splits.name,
            train=Images.of(kept, device),
            validation=Images.of(aside, device),
            test=Images.of(splits.test, device),
            classes=len(splits.class_names),
            mean=torch.from_numpy(values.mean(axis=0)).to(device),
            std=torch.from_numpy(values.std(axis=0)).to(device),
        )

    def inputs(self, pixels: Tensor) -> Tensor:
        """Normalised images `[N, channels, height, width]`, channels last in memory, of some pixels."""
        return ((pixels.to(self.mean.dtype) - self.mean) / self.std).permute(0, 3, 1, 2)

    def range_inputs(self) -> Tensor:
        """The inputs that set converters and first layers: a thousand training images, always the same ones."""
        return self.inputs(self.train.pixels[:_RANGE_IMAGES])


def epoch_batches(task: ImageTask, size: int, seed: int, epoch: int, *, shift: int = 2) -> Iterator[Batch]:
    """The batches of one epoch: a new order, shifted by some pixels, mirrored in every second epoch.

    Which images are mirrored is drawn once and turned round at each epoch, as in airbench (arXiv 2404.00498): an image
    is then seen both ways in any two epochs. An epoch depends on the seed and its number only, so that a training can
    go on with any of them. The incomplete last batch is left out.

    Args:
        task: The task.
        size: Images in a batch.
        seed: Of the training.
        epoch: Number of the epoch, from zero.
        shift: Most pixels by which an image is shifted, along both axes; what comes in is mirrored at the border.
    """
    images = task.train
    device, count = images.pixels.device, len(images)
    mirrored = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + epoch)
    order = torch.randperm(count, generator=generator)
    for first in range(0, count - size + 1, size):
        chosen = order[first : first + size]
        moves = torch.randint(-shift, shift + 1, (2, size), generator=generator)
        flips = mirrored[chosen] ^ bool(epoch % 2)
        index = chosen.to(device)
        yield Batch(task.inputs(moved(images.pixels, index, moves, flips)), images.labels[index], index)


def moved(pixels: Tensor, index: Tensor, moves: Tensor, flips: Tensor) -> Tensor:
    """Images shifted and mirrored, in one pass over their pixels.

    Args:
        pixels: All images, `[N, height, width, channels]`.
        index: Which ones, `[batch]`.
        moves: Pixels down and to the right, `[2, batch]`.
        flips: Which of them are mirrored left to right before they are shifted, bool `[batch]`.
    """
    device = pixels.device
    rows = _reflected(pixels.shape[1], moves[0]).to(device)
    columns = _reflected(pixels.shape[2], moves[1])
    columns = torch.where(flips[:, None], pixels.shape[2] - 1 - columns, columns).to(device)
    return pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(size: int, moves: Tensor) -> Tensor:
    """Which line of an image of `size` lines each of its lines shows after a move, `[batch, size]`."""
    line = torch.arange(size)[None, :] - moves[:, None]
    line = torch.where(line < 0, -line, line)
    return torch.where(line >= size, 2 * (size - 1) - line, line)
