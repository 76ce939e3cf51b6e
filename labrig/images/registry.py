"""The image sets that labrig reads, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from labrig.images.cifar import read_cifar10, read_cifar100, read_cifar100_coarse
from labrig.images.idx import read_mnist
from labrig.images.labelled import ImageSplits
from labrig.images.tiny_imagenet import read_tiny_imagenet
from labrig_drivers.errors import ConfigError

IMAGE_SETS: Final[Mapping[str, Callable[[Path], ImageSplits]]] = MappingProxyType(
    {
        "cifar10": read_cifar10,
        "cifar100": read_cifar100,
        "cifar100-coarse": read_cifar100_coarse,
        "mnist": read_mnist,
        "tiny-imagenet": read_tiny_imagenet,
    }
)
"""Readers by the name of their set; each is given the folder with the published files."""


def read_images(name: str, folder: Path) -> ImageSplits:
    """Reads a set by its name.

    Args:
        name: One of `IMAGE_SETS`.
        folder: Where its published files lie, unpacked.

    Raises:
        ConfigError: No such set.
        StorageError: The folder does not hold it, or its files are damaged.
    """
    if name not in IMAGE_SETS:
        raise ConfigError(f"image set {name!r} is not known; there are {', '.join(IMAGE_SETS)}")
    return IMAGE_SETS[name](folder)
