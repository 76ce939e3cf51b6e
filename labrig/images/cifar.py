"""CIFAR-10 and CIFAR-100 in their binary version (Krizhevsky, Learning Multiple Layers of Features, 2009).

A record is its label bytes, then 1,024 bytes each of red, green and blue, row by row
(www.cs.toronto.edu/~kriz/cifar.html, section "Binary version"). CIFAR-100 has two labels: coarse, then fine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from labrig.images.files import demand_files, read_bytes, read_lines
from labrig.images.labelled import ImageSplits, LabelledImages
from labrig_drivers.errors import StorageError

_SIDE: Final = 32
_CHANNELS: Final = 3
_PIXELS: Final = _SIDE * _SIDE * _CHANNELS
_TRAIN_10: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


def read_cifar10(folder: Path) -> ImageSplits:
    """CIFAR-10 from `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin` and `batches.meta.txt`.

    Raises:
        StorageError: Files are missing, of a wrong length, or hold labels that are no classes.
    """
    demand_files(folder, (*_TRAIN_10, "test_batch.bin", "batches.meta.txt"), "CIFAR-10 (binary version)")
    names = tuple(read_lines(folder / "batches.meta.txt"))
    parts = [_records(folder / name, 1, 0, len(names)) for name in _TRAIN_10]
    train = LabelledImages(np.concatenate([p.pixels for p in parts]), np.concatenate([p.labels for p in parts]))
    return ImageSplits("cifar10", train, _records(folder / "test_batch.bin", 1, 0, len(names)), names)


def read_cifar100(folder: Path) -> ImageSplits:
    """CIFAR-100 with its fine labels, from `train.bin`, `test.bin` and `fine_label_names.txt`.

    Raises:
        StorageError: Files are missing, of a wrong length, or hold labels that are no classes.
    """
    return _cifar100(folder, "cifar100", 1, "fine_label_names.txt")


def read_cifar100_coarse(folder: Path) -> ImageSplits:
    """CIFAR-100 with its 20 coarse labels, from `train.bin`, `test.bin` and `coarse_label_names.txt`.

    Raises:
        StorageError: Files are missing, of a wrong length, or hold labels that are no classes.
    """
    return _cifar100(folder, "cifar100-coarse", 0, "coarse_label_names.txt")


def _cifar100(folder: Path, name: str, label: int, names_file: str) -> ImageSplits:
    demand_files(folder, ("train.bin", "test.bin", names_file), "CIFAR-100 (binary version)")
    names = tuple(read_lines(folder / names_file))
    train, test = (_records(folder / part, 2, label, len(names)) for part in ("train.bin", "test.bin"))
    return ImageSplits(name, train, test, names)


def _records(path: Path, label_bytes: int, label: int, classes: int) -> LabelledImages:
    raw = np.frombuffer(read_bytes(path), dtype=np.uint8)
    size = label_bytes + _PIXELS
    if not raw.size or raw.size % size:
        raise StorageError(
            f"{path}: {raw.size:,} bytes are not a whole number of records of {size:,} bytes; copy it again, "
            "and take the binary version, not the one for Python or Matlab"
        )
    records = raw.reshape(-1, size)
    labels = records[:, label].astype(np.int64)
    if int(labels.max()) >= classes:
        raise StorageError(f"{path}: holds label {int(labels.max())}, but there are {classes} classes")
    planes = records[:, label_bytes:].reshape(-1, _CHANNELS, _SIDE, _SIDE)
    return LabelledImages(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)
