"""The readers on the real sets, written in their published form from the data folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from published_images import write_cifar10, write_mnist, write_tiny_imagenet

from labrig.images import hold_out, read_images


def test_cifar10(data_dir: Path, tmp_path: Path) -> None:
    write_cifar10(data_dir, tmp_path, ("test_batch",))
    splits = read_images("cifar10", tmp_path)
    assert splits.test.pixels.shape == (10_000, 32, 32, 3)
    digest = hashlib.sha256(splits.test.pixels.tobytes() + splits.test.labels.astype(np.uint8).tobytes()).hexdigest()
    published = dict(line.split()[::-1] for line in (data_dir / "arrays.sha256").read_text().splitlines())
    assert digest == published["cifar10/test"]
    assert list(np.bincount(splits.test.labels)) == [1000] * 10
    assert splits.class_names[6] == "frog"
    assert list(np.bincount(hold_out(splits.test, 500, np.random.default_rng(0))[1].labels)) == [50] * 10


def test_mnist(data_dir: Path, tmp_path: Path) -> None:
    write_mnist(data_dir, tmp_path)
    splits = read_images("mnist", tmp_path)
    published = dict(line.split()[::-1] for line in (data_dir / "arrays.sha256").read_text().splitlines())
    for name, part in (("train", splits.train), ("test", splits.test)):
        raw = part.pixels.tobytes() + part.labels.astype(np.uint8).tobytes()
        assert hashlib.sha256(raw).hexdigest() == published[f"mnist/{name}"]


def test_tiny_imagenet(data_dir: Path, tmp_path: Path) -> None:
    write_tiny_imagenet(data_dir, tmp_path / "tiny", per_class=3)
    splits = read_images("tiny-imagenet", tmp_path / "tiny")
    assert splits.train.pixels.shape == (60, 64, 64, 3)
    assert list(np.bincount(splits.train.labels)) == [3] * 20
    assert list(np.bincount(splits.test.labels)) == [50] * 20
    assert splits.class_names[0] == "Egyptian cat"
