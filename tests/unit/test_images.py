"""Readers of published image files: what was written comes back, and damaged files are refused, never misread."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from labrig.images import IMAGE_SETS, LabelledImages, hold_out, read_images
from labrig.images.idx import read_idx
from labrig_drivers.errors import ConfigError, StorageError

RNG_SEED = 5


def images_of(count: int, side: int, channels: int = 3, classes: int = 10) -> LabelledImages:
    rng = np.random.default_rng(RNG_SEED)
    pixels = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return LabelledImages(pixels, rng.integers(0, classes, count))


def cifar_bytes(images: LabelledImages, coarse: NDArray[np.int64] | None = None) -> bytes:
    """Records written pixel by pixel, not with the reader's transposition."""
    records = bytearray()
    for index in range(len(images)):
        if coarse is not None:
            records.append(int(coarse[index]))
        records.append(int(images.labels[index]))
        for channel in range(3):
            for row in range(32):
                records += bytes(int(value) for value in images.pixels[index, row, :, channel])
    return bytes(records)


def write_cifar10(folder: Path) -> LabelledImages:
    images = images_of(12, 32)
    for number in range(1, 6):
        part = images.taken(np.arange(2 * number - 2, 2 * number))
        (folder / f"data_batch_{number}.bin").write_bytes(cifar_bytes(part))
    (folder / "test_batch.bin").write_bytes(cifar_bytes(images.taken(np.arange(10, 12))))
    (folder / "batches.meta.txt").write_text("\n".join(f"class {label}" for label in range(10)) + "\n\n")
    return images


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.tobytes()


def test_cifar10(tmp_path: Path) -> None:
    written = write_cifar10(tmp_path)
    read = read_images("cifar10", tmp_path)
    assert np.array_equal(read.train.pixels, written.pixels[:10])
    assert np.array_equal(read.train.labels, written.labels[:10])
    assert np.array_equal(read.test.pixels, written.pixels[10:])
    assert read.class_names[3] == "class 3"


def test_cifar100_has_two_labels(tmp_path: Path) -> None:
    images = images_of(4, 32, classes=100)
    coarse = np.array([0, 19, 7, 7])
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(cifar_bytes(images, coarse))
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"fine {label}" for label in range(100)))
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(f"coarse {label}" for label in range(20)))
    fine = read_images("cifar100", tmp_path)
    assert np.array_equal(fine.test.pixels, images.pixels)
    assert np.array_equal(fine.test.labels, images.labels)
    assert np.array_equal(read_images("cifar100-coarse", tmp_path).train.labels, coarse)


def test_faults_of_a_folder_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing: data_batch_1\.bin, .*test_batch\.bin, batches\.meta\.txt"):
        read_images("cifar10", tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(StorageError, match="label 10, but there are 10 classes"):
        read_images("cifar10", tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3000))
    with pytest.raises(StorageError, match="3,000 bytes are not a whole number of records of 3,073"):
        read_images("cifar10", tmp_path)
    with pytest.raises(ConfigError, match="there are cifar10, "):
        read_images("imagenet", tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path: Path, packed: bool) -> None:
    images = images_of(5, 28, channels=1)
    for prefix in ("train", "t10k"):
        for kind, values in (("images-idx3-ubyte", images.pixels[..., 0]), ("labels-idx1-ubyte", images.labels)):
            raw = idx_bytes(values.astype(np.uint8))
            path = tmp_path / f"{prefix}-{kind}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(raw) if packed else raw)
    read = read_images("mnist", tmp_path)
    assert np.array_equal(read.train.pixels, images.pixels)
    assert np.array_equal(read.test.labels, images.labels)
    (tmp_path / f"t10k-labels-idx1-ubyte{'.gz' if packed else ''}").unlink()
    with pytest.raises(StorageError, match="missing: t10k-labels-idx1-ubyte"):
        read_images("mnist", tmp_path)


SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_any_idx_file_comes_back(tmp_path: Path, shape: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "x").write_bytes(idx_bytes(values))
    assert np.array_equal(read_idx(tmp_path / "x"), values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.one_of(st.binary(max_size=40), st.binary(max_size=30).map(lambda tail: b"\0\0\x08" + tail)))
def test_no_bytes_crash_the_idx_reader(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    try:
        values = read_idx(tmp_path / "x")
    except StorageError:
        return
    assert idx_bytes(values) == raw


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_tiny(folder: Path) -> list[int]:
    greys = [20, 90, 160, 230]
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish\nn02\tbullfrog, Rana\n")
    for wnid, levels in (("n02", greys[:2]), ("n01", greys[2:])):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for number, level in zip((2, 10), levels, strict=True):  # 10 comes after 2, not before
            (images / f"{wnid}_{number}.JPEG").write_bytes(jpeg(np.full((64, 64, 3), level, dtype=np.uint8)))
    val = folder / "val" / "images"
    val.mkdir(parents=True)
    (val / "val_0.JPEG").write_bytes(jpeg(np.full((64, 64), 77, dtype=np.uint8)))  # grey, as some published ones are
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t62\t62\nval_1.JPEG\tn09\t0\t0\t1\t1\n")
    return greys


def test_tiny_imagenet(tmp_path: Path) -> None:
    greys = write_tiny(tmp_path)
    read = read_images("tiny-imagenet", tmp_path)
    assert np.abs(read.train.pixels.mean(axis=(1, 2, 3)) - greys).max() < 2.0
    assert list(read.train.labels) == [0, 0, 1, 1]
    assert list(read.test.labels) == [1]
    assert abs(float(read.test.pixels.mean()) - 77.0) < 2.0
    assert read.class_names == ("bullfrog, Rana", "goldfish")


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    broken = tmp_path / "train" / "n01" / "images" / "n01_2.JPEG"
    whole = broken.read_bytes()
    for damaged in (b"", whole[:200], bytes(len(whole)), b"\x89PNG\r\n\x1a\n" + whole):
        broken.write_bytes(damaged)
        with pytest.raises(StorageError, match="n01_2"):
            read_images("tiny-imagenet", tmp_path)
    broken.write_bytes(jpeg(np.zeros((32, 64, 3), dtype=np.uint8)))
    with pytest.raises(StorageError, match="64 x 32 pixels, expected 64 x 64"):
        read_images("tiny-imagenet", tmp_path)


def test_every_class_gives_its_share() -> None:
    labels = np.repeat(np.arange(10), [100, 50, 200, 50, 100, 100, 100, 100, 100, 100])
    images = LabelledImages(np.arange(labels.size, dtype=np.uint8).reshape(-1, 1, 1, 1), labels)
    kept, held = hold_out(images, 100, np.random.default_rng(1))
    assert list(np.bincount(held.labels)) == [10, 5, 20, 5, 10, 10, 10, 10, 10, 10]
    assert len(kept) + len(held) == len(images)
    other = hold_out(images, 100, np.random.default_rng(2))[1]
    assert not np.array_equal(held.pixels, other.pixels)
    for count in (0, labels.size):
        with pytest.raises(ConfigError, match="cannot be held out"):
            hold_out(images, count, np.random.default_rng(1))


CORRUPTIONS: list[Callable[[bytes], bytes]] = [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda _: b""]


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_a_cut_or_grown_batch_is_refused(tmp_path: Path, corrupt: Callable[[bytes], bytes]) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "data_batch_3.bin"
    batch.write_bytes(corrupt(batch.read_bytes()))
    with pytest.raises(StorageError, match=r"data_batch_3\.bin"):
        read_images("cifar10", tmp_path)


def test_each_reader_says_what_its_folder_lacks(tmp_path: Path) -> None:
    for name in IMAGE_SETS:
        with pytest.raises(StorageError, match="missing: "):
            read_images(name, tmp_path)
