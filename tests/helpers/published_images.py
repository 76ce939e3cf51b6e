"""Writes the image sets of the data folder as the files that their authors publish, which is what the readers take.

The data folder holds CIFAR-10 as lossless pictures of 10,000 images each, MNIST's four files under xz, and the JPEG
files of Tiny ImageNet's first 20 classes without their headers; its README has the forms.

    python tests/helpers/published_images.py DATA_FOLDER NEW_FOLDER
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10_PARTS = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
_PART_IMAGES = 10_000


def write_cifar10(data: Path, folder: Path, parts: tuple[str, ...] = tuple(CIFAR10_PARTS)) -> None:
    """Writes `parts` of CIFAR-10 in the binary version; a part that is not asked for repeats the first that is."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(data / "cifar10" / "labels.npz") as stored:
        labels = {name: stored[name] for name in ("train", "test")}
    for name in parts:
        start = _PART_IMAGES * (int(name[-1]) - 1) if name != "test_batch" else 0
        classes = labels[CIFAR10_PARTS[name]][start : start + _PART_IMAGES]
        picture = np.asarray(Image.open(data / "cifar10" / f"{name}.webp").convert("RGB"))
        tiles = picture.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(_PART_IMAGES, 3072)
        records = np.concatenate([classes.astype(np.uint8)[:, None], tiles], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    for name in set(CIFAR10_PARTS) - set(parts):
        (folder / f"{name}.bin").write_bytes((folder / f"{parts[0]}.bin").read_bytes())
    (folder / "batches.meta.txt").write_text((data / "cifar10" / "classes.txt").read_text())


def write_mnist(data: Path, folder: Path) -> None:
    """Writes MNIST's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "mnist").glob("*-ubyte.xz")):
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))


def write_tiny_imagenet(data: Path, folder: Path, per_class: int | None = None) -> None:
    """Writes the folder of Tiny ImageNet's first 20 classes, or the first `per_class` training images of each."""
    source = data / "tinyimagenet"
    names = (source / "val_names.txt").read_text().split()
    rows = [line.split("\t") for line in (source / "classes.tsv").read_text().splitlines()]
    wnids = {int(row[0]): row[1] for row in rows}
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(wnids[label] for label in sorted(wnids)))
    (folder / "words.txt").write_text("\n".join(f"{row[1]}\t{row[2]}" for row in rows))
    with np.load(source / "index.npz") as index:
        tops = [index["header0"].tobytes(), index["header1"].tobytes()]
        counts = dict.fromkeys(wnids, 0)
        annotations = []
        for split in ("train", "val"):
            body, offsets = (source / f"{split}.bin").read_bytes(), index[f"{split}_off"]
            for number, label in enumerate(map(int, index[f"{split}_label"])):
                jpeg = tops[int(index[f"{split}_head"][number])] + body[offsets[number] : offsets[number + 1]]
                wnid = wnids[label]
                if split == "val":
                    (folder / "val" / "images" / names[number]).write_bytes(jpeg)
                    annotations.append(f"{names[number]}\t{wnid}\t0\t0\t62\t62")
                elif per_class is None or counts[label] < per_class:
                    images = folder / "train" / wnid / "images"
                    images.mkdir(parents=True, exist_ok=True)
                    (images / f"{wnid}_{counts[label]}.JPEG").write_bytes(jpeg)
                    counts[label] += 1
    (folder / "val" / "val_annotations.txt").write_text("\n".join(annotations))


if __name__ == "__main__":
    data_folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    write_cifar10(data_folder, target / "cifar10")
    write_mnist(data_folder, target / "mnist")
    write_tiny_imagenet(data_folder, target / "tiny-imagenet")
