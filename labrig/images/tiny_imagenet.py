"""The Tiny ImageNet folder (Stanford, course CS231N): 64 x 64 JPEG files of up to 200 classes.

`wnids.txt` lists the classes, `words.txt` their names; training images lie in `train/WNID/images/`, validation images
in `val/images/` with their classes in `val/val_annotations.txt`. The published test images have no labels, so the
validation images are the ones to judge by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labrig.extras import demand_extra
from labrig.images.files import demand_files, read_bytes, read_lines
from labrig.images.labelled import ImageSplits, LabelledImages
from labrig_drivers.errors import StorageError

_SIDE: Final = 64

Progress = Callable[[int, int], None]


def read_tiny_imagenet(folder: Path, *, classes: int | None = None, progress: Progress | None = None) -> ImageSplits:
    """Tiny ImageNet, or its first classes.

    Args:
        folder: The unpacked `tiny-imagenet-200`.
        classes: How many classes to read, in the order of `wnids.txt`; None for all.
        progress: Called with the number of files read and of all.

    Raises:
        StorageError: Files are missing, or are no 64 x 64 images.
        MissingExtraError: Pillow is not installed.
    """
    demand_extra("study", "images")
    demand_files(folder, ("wnids.txt", "words.txt", "val/val_annotations.txt"), "Tiny ImageNet")
    wnids = read_lines(folder / "wnids.txt")[:classes]
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    words = dict(_pair(line, folder / "words.txt") for line in read_lines(folder / "words.txt"))
    train = [(path, label_of[wnid]) for wnid in wnids for path in _images_of(folder / "train" / wnid / "images")]
    annotations = folder / "val" / "val_annotations.txt"
    val = [
        (folder / "val" / "images" / name, label_of[wnid])
        for name, wnid in (_pair(line, annotations) for line in read_lines(annotations))
        if wnid in label_of
    ]
    if not train or not val:
        raise StorageError(f"{folder}: holds no training or no validation images of its {len(wnids)} classes")
    total = len(train) + len(val)
    splits = [
        _decoded(train, lambda done: None if progress is None else progress(done, total)),
        _decoded(val, lambda done: None if progress is None else progress(len(train) + done, total)),
    ]
    return ImageSplits("tiny-imagenet", splits[0], splits[1], tuple(words.get(wnid, wnid) for wnid in wnids))


def _images_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise StorageError(f"{folder}: no such folder; unpack tiny-imagenet-200.zip again")
    return sorted(folder.glob("*.JPEG"), key=lambda path: (len(path.name), path.name))


def _pair(line: str, path: Path) -> tuple[str, str]:
    fields = line.split("\t")
    if len(fields) < 2:
        raise StorageError(f"{path}: a line without a tab: {line[:60]!r}")
    return fields[0], fields[1]


def _decoded(files: Sequence[tuple[Path, int]], report: Callable[[int], None]) -> LabelledImages:
    pixels = np.empty((len(files), _SIDE, _SIDE, 3), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(_decode, [path for path, _ in files])):
            pixels[index] = image
            report(index + 1)
    return LabelledImages(pixels, np.array([label for _, label in files], dtype=np.int64))


def _decode(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(BytesIO(read_bytes(path))) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StorageError(f"{path}: not an image that can be read ({error}); copy it again") from error
    if pixels.shape != (_SIDE, _SIDE, 3):
        raise StorageError(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {_SIDE} x {_SIDE}")
    return pixels
