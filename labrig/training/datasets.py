"""Image sets for training, as tensors between 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labrig_drivers.errors import ConfigError

# Every result on digits uses this one split: a quarter of each class for the test.
_DIGITS_TEST_PART = 0.25
_DIGITS_SPLIT_SEED = 20240


@dataclass(frozen=True)
class ImageSet:
    """A classification task.

    Attributes:
        name: What messages and files call it.
        train_x: Training images, float32 in 0 .. 1, `[N, pixels]`.
        train_y: Classes, int64, `[N]`.
        test_x: Test images, `[M, pixels]`.
        test_y: Classes, `[M]`.
        classes: Number of classes.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    def shuffled_labels(self, generator: torch.Generator) -> ImageSet:
        """The same images with permuted training labels: nothing can be learned, so accuracy must fall to chance."""
        order = torch.randperm(self.train_y.shape[0], generator=generator)
        return ImageSet(self.name, self.train_x, self.train_y[order], self.test_x, self.test_y, self.classes)


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


def load_images(name: str) -> ImageSet:
    """Loads a set by name.

    Raises:
        ConfigError: No such set.
    """
    if name != "digits":
        raise ConfigError(f"data set {name!r} is not known; this version has 'digits'")
    return load_digits()
