"""Batches of the image studies: what augmentation does to pixels, and that an epoch can be made again."""

from __future__ import annotations

import numpy as np
import torch

from labrig.images.labelled import ImageSplits, LabelledImages
from labrig.studies.vision.images import ImageTask, epoch_batches, moved

RNG = np.random.default_rng(0)


def task(count: int = 200) -> ImageTask:
    pixels = RNG.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = (np.arange(count) % 4).astype(np.int64)
    images = LabelledImages(pixels, labels)
    splits = ImageSplits("small", images, images.taken(np.arange(40)), ("a", "b", "c", "d"))
    return ImageTask.of(splits, torch.device("cpu"))


def test_a_tenth_is_held_out_evenly_and_inputs_are_normalised() -> None:
    small = task()
    assert (len(small.train), len(small.validation), len(small.test)) == (180, 20, 40)
    assert torch.bincount(small.validation.labels).tolist() == [5, 5, 5, 5]
    x = small.inputs(small.train.pixels)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(x.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)


def test_images_are_mirrored_and_shifted_with_a_reflected_border() -> None:
    pixels = torch.arange(2 * 4 * 4).reshape(2, 4, 4, 1).to(torch.uint8)
    still = moved(pixels, torch.tensor([1, 0]), torch.zeros(2, 2, dtype=torch.int64), torch.tensor([False, True]))
    assert torch.equal(still[0], pixels[1])
    assert torch.equal(still[1], pixels[0].flip(1))
    down = moved(pixels, torch.tensor([0]), torch.tensor([[1], [0]]), torch.tensor([False]))
    assert torch.equal(down[0, 1:], pixels[0, :-1])
    assert torch.equal(down[0, 0], pixels[0, 1])  # mirrored at the border, not repeated
    left = moved(pixels, torch.tensor([0]), torch.tensor([[0], [-2]]), torch.tensor([False]))
    assert torch.equal(left[0, :, :2], pixels[0, :, 2:])
    assert torch.equal(left[0, :, 2:], pixels[0, :, [2, 1]])


def test_an_epoch_can_be_made_again_and_shows_each_image_once() -> None:
    small = task()
    first, again = ([*epoch_batches(small, 30, seed=3, epoch=2)] for _ in range(2))
    assert len(first) == 6
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(first, again, strict=True))
    other = next(epoch_batches(small, 30, seed=4, epoch=2))
    assert not torch.equal(other.x, first[0].x)


def test_an_image_is_mirrored_in_every_second_epoch() -> None:
    small = task(40)
    seen: dict[int, list[torch.Tensor]] = {}
    for epoch in range(4):
        for batch in epoch_batches(small, 36, seed=1, epoch=epoch, shift=0):
            for x in batch.x:
                key = int((x + x.flip(2)).mul(1000).round().sum() * 7)
                seen.setdefault(key, []).append(x)
    assert len(seen) == 36
    for views in seen.values():
        assert torch.equal(views[0], views[2])
        assert torch.equal(views[0], views[1].flip(2))
