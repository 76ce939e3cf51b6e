"""The IDX format of MNIST and its relatives (LeCun, Cortes and Burges, "The MNIST database").

Two zero bytes, the type (8 for unsigned bytes), the number of dimensions, each size as a big-endian 32-bit number, then
the values with the last dimension fastest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labrig.images.files import demand_files, read_bytes
from labrig.images.labelled import ImageSplits, LabelledImages
from labrig_drivers.errors import StorageError

_UNSIGNED_BYTES: Final = 8
_PARTS: Final = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes, plain or packed with gzip.

    Raises:
        StorageError: Not an IDX file of unsigned bytes, or longer or shorter than its header says.
    """
    raw = read_bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UNSIGNED_BYTES or not raw[3]:
        raise StorageError(
            f"{path}: not an IDX file of unsigned bytes (it begins with {raw[:4].hex(' ') or 'nothing'})"
        )
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, min(start, len(raw)), 4))
    # Python's integers: the sizes of a damaged header may multiply to anything.
    count = 1
    for size in shape:
        count *= size
    if len(raw) != start + count:
        raise StorageError(
            f"{path}: {len(raw):,} bytes, but its header speaks of {' x '.join(map(str, shape))} values, "
            f"{start + count:,} bytes; copy it again"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def read_mnist(folder: Path) -> ImageSplits:
    """MNIST, or a set in its form, from its four files, each plain or `.gz`.

    Raises:
        StorageError: Files are missing or damaged, or images and labels do not fit together.
    """
    stems = [f"{part}-{kind}" for part in _PARTS.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    found = {stem: name for stem in stems for name in (stem, f"{stem}.gz") if (folder / name).is_file()}
    demand_files(folder, [found.get(stem, stem) for stem in stems], "MNIST (IDX files)")
    train, test = (_part(folder, found, prefix) for prefix in _PARTS.values())
    classes = 1 + max(int(train.labels.max()), int(test.labels.max()))
    return ImageSplits("mnist", train, test, tuple(map(str, range(classes))))


def _part(folder: Path, found: dict[str, str], prefix: str) -> LabelledImages:
    images = folder / found[f"{prefix}-images-idx3-ubyte"]
    labels = folder / found[f"{prefix}-labels-idx1-ubyte"]
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes) or not len(classes):
        raise StorageError(
            f"{images} and {labels.name}: shapes {list(pixels.shape)} and {list(classes.shape)} are not those of "
            "images and their labels"
        )
    return LabelledImages(pixels[..., None], classes.astype(np.int64))
