"""Labelled images as arrays, and the part of them that choices are made on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.errors import ConfigError


@dataclass(frozen=True)
class LabelledImages:
    """Images of one split.

    Attributes:
        pixels: Values 0 to 255, uint8, `[N, height, width, channels]`, in the order of their files.
        labels: Classes from 0, int64, `[N]`.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def taken(self, index: NDArray[np.int64]) -> LabelledImages:
        """The images at `index`, in that order."""
        return LabelledImages(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class ImageSplits:
    """A classification task as it is published.

    Attributes:
        name: What messages and tables call it.
        train: The images to learn from.
        test: The images to judge by.
        class_names: Name of each class.
    """

    name: str
    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]


def hold_out(images: LabelledImages, count: int, rng: np.random.Generator) -> tuple[LabelledImages, LabelledImages]:
    """Sets images aside to make choices on, as many of each class as its share of all.

    Args:
        images: What is divided; every image lands in one part, in the order that it had.
        count: Images to set aside.
        rng: Decides which.

    Returns:
        `(kept, held_out)`.

    Raises:
        ConfigError: `count` leaves nothing on one side.
    """
    if not 0 < count < len(images):
        raise ConfigError(f"{count} of {len(images)} images cannot be held out: both parts need some")
    order = rng.permutation(len(images))
    # Sorted by class, every k-th image is an even share of each of them.
    by_class = order[np.argsort(images.labels[order], kind="stable")]
    chosen = np.zeros(len(images), dtype=np.bool_)
    chosen[by_class[(np.arange(count) * len(images)) // count]] = True
    return images.taken(np.flatnonzero(~chosen)), images.taken(np.flatnonzero(chosen))
