"""The parts that image studies are made of, each of which any process can compute: trainings, and chips to judge them.

A part is a configuration as JSON can hold it. Trainings leave a network in the store and can be interrupted after any
epoch; judgements leave accuracies. Both are named by what they depend on, so that they are done once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch

from labrig.images.labelled import ImageSplits, LabelledImages
from labrig.images.registry import read_images
from labrig.studies.vision.activations import layer_divergences
from labrig.studies.vision.chips import score_chips
from labrig.studies.vision.images import Images, ImageTask
from labrig.studies.vision.methods import Method
from labrig.studies.vision.noise import Noise
from labrig.studies.vision.optimiser import Rates
from labrig.studies.vision.store import NetworkStore
from labrig.studies.vision.summary import folds
from labrig.studies.vision.training import DigitalJob, Job, MethodJob, Trained, train_digital, train_method
from labrig_drivers.errors import ConfigError, StorageError

SCORING: Final = 1
"""Raised when judging the same network begins to mean something else."""

_ACTIVATION_IMAGES: Final = 1000

ENLARGED_DIGITS: Final = "digits-32"
"""Name of the set that needs no files: scikit-learn's digits, four times as large; it shows that everything works."""

Part = Mapping[str, object]


@dataclass(frozen=True)
class Place:
    """Where an image study finds and leaves things.

    Attributes:
        data_name: Which image set; see `IMAGE_SETS`.
        data: Folder with its published files; None for `ENLARGED_DIGITS`.
        networks: Folder of trained networks.
        device: What computes, as torch names it.
        images: Training images of each part, at most; None: all.
    """

    data_name: str
    data: Path | None
    networks: Path
    device: str = "cpu"
    images: int | None = None


@dataclass(frozen=True)
class Judgement:
    """How a trained network is judged.

    Attributes:
        job: Its training.
        noise: Of the chips.
        chips: How many.
        folds: Parts that the images are cut into; chip number k sees part k modulo so many.
        test: Whether the test images are looked at, and not those held out for choices.
        seed: Of the chips.
        shuffled: Whether the labels are permuted.
    """

    job: MethodJob
    noise: Noise
    chips: int
    folds: int = 1
    test: bool = True
    seed: int = 0
    shuffled: bool = False


def training_part(job: Job) -> dict[str, object]:
    """The part that trains a network."""
    return {"part": "training", "job": asdict(job)}


def judging_part(place: Place, judgement: Judgement) -> dict[str, object]:
    """The part that judges a network, which has to be in the store already.

    Raises:
        StorageError: It is not there, or cannot be read.
    """
    path = NetworkStore(place.networks).path(judgement.job)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); train the network first") from error
    return {
        "part": "judging",
        "scoring": SCORING,
        "images": place.images,
        "network": digest,
        "judgement": asdict(judgement),
    }


def activations_part(place: Place, judgement: Judgement) -> dict[str, object]:
    """The part that compares a chip's activations with those meant; it looks at the images held out for choices.

    Raises:
        StorageError: The network is not there, or cannot be read.
    """
    return {**judging_part(place, judgement), "part": "activations"}


def compute(place: Place, part: Part) -> dict[str, float]:
    """The numbers of a part: how many steps a training took, or the accuracy of each chip in %.

    Args:
        place: Where it finds and leaves things; nothing depends on the folders.
        part: See `training_part` and `judging_part`.
    """
    if part["part"] == "training":
        job = job_of(cast("dict[str, object]", part["job"]))
        return {"steps": float(trained(place, job, lambda _step, _steps, _loss: None))}
    raw = cast("dict[str, object]", part["judgement"])
    job = job_of(cast("dict[str, object]", raw["job"]))
    assert isinstance(job, MethodJob)
    noise = Noise.from_document(raw["noise"])
    rest = {key: value for key, value in raw.items() if key not in {"job", "noise"}}
    judgement = Judgement(job, noise, **cast("dict[str, int]", rest))  # type: ignore[arg-type]
    return diverged(place, judgement) if part["part"] == "activations" else judged(place, judgement)


def trained(place: Place, job: Job, on_step: Callable[[int, int, float], None]) -> int:
    """Trains a network, unless it is there, and keeps it; returns how many steps that took.

    Raises:
        StorageError: Data or store cannot be read or written.
        ConfigError: The digital network that a method begins with is not there.
    """
    store, task = NetworkStore(place.networks), task_of(place)
    if store.path(job).exists():
        return 0
    taken = 0

    def counted(step: int, steps: int, loss: float) -> None:
        nonlocal taken
        taken += 1
        on_step(step, steps, loss)

    if isinstance(job, DigitalJob):
        left = train_digital(job, task, store.checkpoint(job), counted)
    else:
        digital = store.load(job.start, task.classes, torch.device(place.device))
        if digital is None:
            raise ConfigError(f"{store.path(job.start)} is not there: train the digital network first")
        left = train_method(job, digital.network, task, store.checkpoint(job), counted)
    store.save(job, left)
    return taken


def judged(place: Place, judgement: Judgement) -> dict[str, float]:
    """Accuracies in % of a network on chips: `as trained/k` and `re-estimated/k` for chip number k.

    Raises:
        ConfigError: The network is not in the store.
    """
    task, trained = task_of(place), _trained(place, judgement.job)
    images = task.test if judgement.test else task.validation
    if judgement.shuffled:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(judgement.seed))
        images = Images(images.pixels, images.labels[order.to(images.labels.device)])
    cut = [images.part(one) for one in folds(len(images), judgement.folds)]
    seen = [cut[chip % judgement.folds] for chip in range(judgement.chips)]
    scores = score_chips(
        trained.network,
        judgement.job.method,
        judgement.noise,
        task,
        seen,
        seed=judgement.seed,
        kept=trained.input_max,
    )
    return {f"as trained/{chip}": value for chip, value in enumerate(scores.as_trained)} | {
        f"re-estimated/{chip}": value for chip, value in enumerate(scores.re_estimated)
    }


def diverged(place: Place, judgement: Judgement) -> dict[str, float]:
    """Divergences in bits of one chip by layer: `chip/LAYER` from the network meant, `itself/LAYER` of two runs.

    Raises:
        ConfigError: The network is not in the store.
    """
    task, trained = task_of(place), _trained(place, judgement.job)
    images = task.validation.part(slice(0, _ACTIVATION_IMAGES))
    found = layer_divergences(
        trained.network,
        judgement.job.method,
        judgement.noise,
        task,
        images,
        judgement.seed,
        kept=trained.input_max,
    )
    return {f"chip/{layer}": one for layer, (one, _) in found.items()} | {
        f"itself/{layer}": one for layer, (_, one) in found.items()
    }


def _trained(place: Place, job: MethodJob) -> Trained:
    store = NetworkStore(place.networks)
    found = store.load(job, task_of(place).classes, torch.device(place.device))
    if found is None:
        raise ConfigError(f"{store.path(job)} is not there: it was not trained yet")
    return found


def job_of(content: Mapping[str, object]) -> Job:
    """A job from what `dataclasses.asdict` made of it."""
    values = dict(content)
    values["rates"] = Rates(**cast("dict[str, float]", values["rates"]))
    if "start" not in values:
        return DigitalJob(**cast("dict[str, str]", values))  # type: ignore[arg-type]  # as they were, by name
    start = job_of(cast("dict[str, object]", values.pop("start")))
    method = Method(**cast("dict[str, str]", values.pop("method")))  # type: ignore[arg-type]
    assert isinstance(start, DigitalJob)
    return MethodJob(start=start, method=method, **cast("dict[str, int]", values))  # type: ignore[arg-type]


def task_of(place: Place) -> ImageTask:
    """The images of a place, read once by each process.

    Raises:
        ConfigError: No such set.
        StorageError: The folder does not hold it.
    """
    return _task(place.data_name, place.data, place.device, place.images)


@lru_cache(maxsize=1)
def _task(name: str, data: Path | None, device: str, images: int | None) -> ImageTask:
    splits = _enlarged_digits() if data is None else read_images(name, data)
    if images is not None:
        splits = ImageSplits(splits.name, _first(splits.train, images), _first(splits.test, images), splits.class_names)
    return ImageTask.of(splits, torch.device(device))


def _first(images: LabelledImages, count: int) -> LabelledImages:
    return images.taken(np.arange(min(count, len(images))))


def _enlarged_digits() -> ImageSplits:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = (images.reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    large = np.repeat(np.repeat(small, 4, axis=1), 4, axis=2)[..., None].repeat(3, axis=3)
    both = LabelledImages(large, np.asarray(labels, dtype=np.int64))
    order = np.random.default_rng(0).permutation(len(both))
    return ImageSplits(ENLARGED_DIGITS, both.taken(order[:1400]), both.taken(order[1400:]), tuple(map(str, range(10))))
