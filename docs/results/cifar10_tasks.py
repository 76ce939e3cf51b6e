"""The two CIFAR-10 tasks of training-runs.md; the published binary files lie in `cifar10/` beside this file."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from labrig.images.labelled import LabelledImages
from labrig.images.registry import read_images
from labrig.training.datasets import ImageSet

PUBLISHED = Path(__file__).with_name("cifar10")
PATCHES, SIZE, CENTRES, FEATURES = 100_000, 6, 200, 128


def features() -> ImageSet:
    """128 numbers an image, made without classes; kept beside this file, since they take a minute."""
    kept = Path(__file__).with_name("cifar10-features.pt")
    if not kept.exists():
        torch.save(_features(train=10_000, test=2_000), kept)
    x, y, test_x, test_y = torch.load(kept, weights_only=True)
    return ImageSet("cifar10 features", x, y, test_x, test_y, 10)


def pixels() -> ImageSet:
    """The images themselves; each channel less its mean, over the deviation of what is left."""
    splits = read_images("cifar10", PUBLISHED)
    x, test_x = _pixels(splits.train, 4_000) / 255.0, _pixels(splits.test, 500) / 255.0
    x, test_x = (one - one.mean((2, 3), keepdim=True) for one in (x, test_x))
    x, test_x = (one / one.std((1, 2, 3), keepdim=True).clamp_min(0.05) for one in (x, test_x))
    y, test_y = torch.as_tensor(splits.train.labels[:4_000]), torch.as_tensor(splits.test.labels[:500])
    return ImageSet("cifar10", x, y, test_x, test_y, 10)


def convolution(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """One convolution and one linear layer."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 24, 5, stride=3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 5 * 5, classes),
    )


def shuffled_features() -> ImageSet:
    """The first negative control: nothing can be learned."""
    return features().shuffled_labels(torch.Generator().manual_seed(0))


def shuffled_pixels() -> ImageSet:
    """The same for the images."""
    return pixels().shuffled_labels(torch.Generator().manual_seed(0))


def _pixels(images: LabelledImages, count: int) -> Tensor:
    return torch.as_tensor(images.pixels[:count]).permute(0, 3, 1, 2).float()


def _normal(patches: Tensor) -> Tensor:
    return (patches - patches.mean(1, keepdim=True)) / torch.sqrt(patches.var(1, keepdim=True) + 10.0)


def _features(train: int, test: int) -> tuple[Tensor, ...]:
    """Whitened patches against k-means centres, pooled over quarters (Coates, Lee and Ng, AISTATS 2011); then PCA."""
    splits, generator = read_images("cifar10", PUBLISHED), torch.Generator().manual_seed(0)
    images = _pixels(splits.train, train)
    chosen = torch.randint(train, (PATCHES,), generator=generator)
    top, left = (torch.randint(33 - SIZE, (PATCHES,), generator=generator) for _ in range(2))
    places = zip(chosen, top, left, strict=True)
    patches = _normal(torch.stack([images[n, :, i : i + SIZE, j : j + SIZE].flatten() for n, i, j in places]))
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    whiten = vectors @ torch.diag(1.0 / torch.sqrt(values + 0.1)) @ vectors.T
    patches = (patches - mean) @ whiten
    centres = patches[torch.randperm(PATCHES, generator=generator)[:CENTRES]].clone()
    for _ in range(20):
        nearest = torch.cdist(patches, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, patches)
        counts = torch.bincount(nearest, minlength=CENTRES).unsqueeze(1)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)

    def encoded(part: Tensor) -> Tensor:
        seen = functional.unfold(part, SIZE).transpose(1, 2)
        apart = torch.cdist((_normal(seen.flatten(0, 1)) - mean) @ whiten, centres)
        near = (apart.mean(1, keepdim=True) - apart).clamp_min(0.0)
        grid = near.reshape(len(part), 33 - SIZE, 33 - SIZE, CENTRES).permute(0, 3, 1, 2)
        return functional.adaptive_avg_pool2d(grid, 2).flatten(1)

    x = torch.cat([encoded(part) for part in torch.split(images, 50)])
    test_x = torch.cat([encoded(part) for part in torch.split(_pixels(splits.test, test), 50)])
    centre, spread = x.mean(0), x.std(0)
    x, test_x = (x - centre) / spread, (test_x - centre) / spread
    axes = torch.linalg.svd(x, full_matrices=False)[2][:FEATURES].T
    x, test_x = x @ axes, test_x @ axes
    scale = x.std(0)
    x, test_x = (0.25 * (one / scale).clamp(-4.0, 4.0) for one in (x, test_x))
    return x, torch.as_tensor(splits.train.labels[:train]), test_x, torch.as_tensor(splits.test.labels[:test])
