"""Image sets for training, as tensors between 0 and 1; own ones by import path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labrig.training.objects import is_import_path, load_callable
from labrig_drivers.errors import ConfigError

# Every result on digits uses this one split: a quarter of each class for the test.
_DIGITS_TEST_PART = 0.25
_DIGITS_SPLIT_SEED = 20240


@dataclass(frozen=True)
class ImageSet:
    """A classification task.

    Attributes:
        name: What messages and files call it.
        train_x: Training images, float32, `[N, ...]`; those of labrig's own sets lie in 0 .. 1.
        train_y: Classes, int64, `[N]`.
        test_x: Test images, `[M, ...]`.
        test_y: Classes, `[M]`.
        classes: Number of classes.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.train_x.shape[1:])

    def first(self, train: int, test: int) -> ImageSet:
        """The first images of each part."""
        return replace(
            self,
            train_x=self.train_x[:train],
            train_y=self.train_y[:train],
            test_x=self.test_x[:test],
            test_y=self.test_y[:test],
        )

    def shuffled_labels(self, generator: torch.Generator) -> ImageSet:
        """The same images with permuted training labels: nothing can be learned, so accuracy must fall to chance."""
        order = torch.randperm(self.train_y.shape[0], generator=generator)
        return replace(self, train_y=self.train_y[order])


def load_digits() -> ImageSet:
    """The 1,797 real 8 x 8 digit images that ship with scikit-learn (UCI, Alpaydin and Kaynak), in a fixed split."""
    from sklearn.datasets import load_digits as sklearn_digits

    images, labels = sklearn_digits(return_X_y=True)
    rng = np.random.default_rng(_DIGITS_SPLIT_SEED)
    chosen = np.zeros(labels.shape[0], dtype=np.bool_)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(_DIGITS_TEST_PART * members.size)]] = True
    test = torch.as_tensor(chosen)
    pixels = torch.as_tensor(images / 16.0, dtype=torch.float32)
    classes = torch.as_tensor(labels, dtype=torch.int64)
    return ImageSet("digits", pixels[~test], classes[~test], pixels[test], classes[test], 10)


def load_images(name: str, base: Path | None = None) -> ImageSet:
    """Loads a set by name, or what a function gives back that an import path names.

    Args:
        name: `digits`, or an import path of a function without arguments that returns an `ImageSet`.
        base: Folder of the training file; the working folder when None.

    Raises:
        ConfigError: No such set, or what the function gives back is none.
    """
    if not is_import_path(name):
        if name != "digits":
            raise ConfigError(f"data set {name!r} is not known; this version has 'digits' and import paths")
        return load_digits()
    found = load_callable(name, base or Path())()
    if not isinstance(found, ImageSet):
        raise ConfigError(f"data set {name}: returns something of type {type(found).__name__}; an ImageSet is needed")
    faults = []
    for part, x, y in (("train", found.train_x, found.train_y), ("test", found.test_x, found.test_y)):
        if len(x) != len(y) or not len(x):
            faults.append(f"{len(x)} {part} images and {len(y)} classes")
        if not torch.isfinite(x).all():
            faults.append(f"{part} images that are not finite")
        if y.dtype != torch.int64 or not len(y) or not 0 <= int(y.min()) <= int(y.max()) < found.classes:
            faults.append(f"{part} classes that are not int64 from 0 to {found.classes - 1}")
    if faults:
        raise ConfigError(f"data set {name}: has {'; '.join(faults)}")
    return found
