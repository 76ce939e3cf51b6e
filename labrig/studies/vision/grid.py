"""Trains what is missing and judges everything: from methods, noises and seeds to accuracies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from labrig.studies.cache import Cache, Numbers
from labrig.studies.parts import Workers, computed
from labrig.studies.running import Report, StudySettings
from labrig.studies.vision.arrays import RangeRule
from labrig.studies.vision.methods import Method
from labrig.studies.vision.networks import KEEPS_RANGES
from labrig.studies.vision.noise import Noise
from labrig.studies.vision.parts import Judgement, Place, activations_part, compute, judging_part, training_part
from labrig.studies.vision.store import NetworkStore
from labrig.studies.vision.summary import CellScores
from labrig.studies.vision.training import DigitalJob, MethodJob
from labrig_drivers.errors import ConfigError

Key = tuple[str, Noise]
"""Name of a method, and the noise of the chips."""


@dataclass(frozen=True)
class Size:
    """How large an image study is.

    Attributes:
        network: See `NETWORKS`.
        digital_epochs: Epochs of the digital network.
        epochs: Epochs of each method from there on.
        chips: Chips that each network is judged on.
        folds: Parts of the test images; each chip sees one of them.
        batch: Images in a step.
        images: Training images at most; None: all.
    """

    network: str = "airbench"
    digital_epochs: int = 12
    epochs: int = 10
    chips: int = 25
    folds: int = 5
    batch: int = 500
    images: int | None = None

    def digital(self, data: str, seed: int, activation: str = "relu") -> DigitalJob:
        """The digital network of a seed."""
        return DigitalJob(self.network, data, seed, self.digital_epochs, self.batch, activation)

    def job(self, data: str, seed: int, method: Method, level: float) -> MethodJob:
        """A method's training."""
        ranges: RangeRule = "layer by layer" if self.network in KEEPS_RANGES else "network"
        return MethodJob(self.digital(data, seed, method.activation), method, level, self.epochs, ranges=ranges)


def sized(usual: Size, settings: StudySettings) -> Size:
    """The size that is asked for: a quick one, or the usual one, with another network or other epochs where named.

    Args:
        usual: The usual one of a study.
        settings: How it is run.
    """
    if settings.quick:
        return QUICK
    digital_epochs, epochs = settings.epochs or (usual.digital_epochs, usual.epochs)
    return replace(usual, network=settings.network or usual.network, digital_epochs=digital_epochs, epochs=epochs)


QUICK: Final = Size("airbench-tiny", digital_epochs=1, epochs=1, chips=2, folds=1, batch=100, images=400)
"""Shows that everything works."""


@dataclass(frozen=True)
class Scores:
    """Accuracies of all cells.

    Attributes:
        as_trained: With the batch norm that the training left.
        re_estimated: With one re-estimated on each chip.
        missing: Cells whose network is not there, where nothing was trained.
    """

    as_trained: Mapping[Key, CellScores]
    re_estimated: Mapping[Key, CellScores]
    missing: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Methods by noises, on several seeds.

    Attributes:
        size: How large it is.
        methods: Each with the level N that it is trained for.
        noises: Of the chips.
        seeds: Of the trainings; the chips of a seed are the same for all methods.
        shuffled: Whether the labels of the test images are permuted: nothing may come out.
    """

    size: Size
    methods: Sequence[tuple[Method, float]]
    noises: Sequence[Noise]
    seeds: Sequence[int]
    shuffled: bool = False

    def scores(self, place: Place, cache: Cache, workers: Workers, report: Report, *, train: bool) -> Scores:
        """Accuracies of all cells.

        Args:
            place: Where images and networks are.
            cache: Keeps judgements.
            workers: What computes.
            report: Progress.
            train: Whether networks that are missing are trained; else their cells stay empty.

        Raises:
            StorageError: Data or networks cannot be read or written.
        """
        data, size = place.data_name, self.size
        jobs = {
            (method.name, seed): size.job(data, seed, method, level)
            for method, level in self.methods
            for seed in self.seeds
        }
        store = NetworkStore(place.networks)
        if train:
            digital = [*dict.fromkeys(job.start for job in jobs.values())]
            for what, wanted in (("digital networks", digital), ("methods", [*jobs.values()])):
                parts = [training_part(job) for job in wanted if not store.path(job).exists()]
                computed(partial(compute, place), parts, Cache(None), workers, _counted(report, what, len(parts)))
        there = [key for key in jobs if store.path(jobs[key]).exists()]
        asked = [
            (name, seed, noise, self._judgement(jobs[name, seed], noise))
            for name, seed in there
            for noise in self.noises
        ]
        parts = [judging_part(place, one) for *_, one in asked]
        numbers = computed(partial(compute, place), parts, cache, workers, _counted(report, "chips", len(parts)))
        found = {(name, seed, noise): one for (name, seed, noise, _), one in zip(asked, numbers, strict=True)}
        return self._collected(found)

    def divergences(
        self, place: Place, cache: Cache, workers: Workers, report: Report, noise: Noise
    ) -> Mapping[str, tuple[float, float]]:
        """Divergence in bits of a chip's activations from those meant, and of the chip from itself, by method.

        Means over the layers of a network, its first chip and the seeds; methods whose networks are missing are left
        out. Arguments as those of `scores`.
        """
        store = NetworkStore(place.networks)
        jobs = [self.size.job(place.data_name, seed, *one) for one in self.methods for seed in self.seeds]
        jobs = [job for job in jobs if store.path(job).exists()]
        parts = [activations_part(place, Judgement(job, noise, 1, seed=job.start.seed)) for job in jobs]
        numbers = computed(partial(compute, place), parts, cache, workers, _counted(report, "activations", len(parts)))
        found: dict[str, tuple[float, float]] = {}
        for method, _ in self.methods:
            mine = [one for job, one in zip(jobs, numbers, strict=True) if job.method.name == method.name]
            if mine:
                found[method.name] = (_mean_of(mine, "chip/"), _mean_of(mine, "itself/"))
        return found

    def _judgement(self, job: MethodJob, noise: Noise) -> Judgement:
        quiet = noise.quiet
        # Without noise all chips are one: two of them show that, and each part of the images is looked at once.
        chips = max(2, self.size.folds) if quiet else self.size.chips
        return Judgement(job, noise, chips, self.size.folds, seed=job.start.seed, shuffled=self.shuffled)

    def _collected(self, found: Mapping[tuple[str, int, Noise], Numbers]) -> Scores:
        cells: dict[str, dict[Key, CellScores]] = {"as trained": {}, "re-estimated": {}}
        missing = []
        for method, _ in self.methods:
            for noise in self.noises:
                of_seeds = [
                    found[method.name, seed, noise] for seed in self.seeds if (method.name, seed, noise) in found
                ]
                if len(of_seeds) < len(self.seeds):
                    missing.append((method.name, noise))
                if not of_seeds:
                    continue
                for kind, ones in cells.items():
                    values = tuple(
                        tuple(value for name, value in one.items() if name.startswith(f"{kind}/")) for one in of_seeds
                    )
                    ones[method.name, noise] = CellScores(values)
        return Scores(cells["as trained"], cells["re-estimated"], tuple(missing))


def controlled_scores(
    grid: Grid, place: Place, settings: StudySettings, report: Report, method: Method, noise: Noise
) -> tuple[Scores, Scores]:
    """Accuracies of all cells, and those of one method at one noise with permuted labels.

    Args:
        grid: What is run.
        place: Where images and networks are.
        settings: How it is run; `evaluate` trains nothing.
        report: Progress.
        method: The method of the control.
        noise: Of its chips.

    Raises:
        ConfigError: Nothing is to be trained, and not one network is there.
        StorageError: Data or networks cannot be read or written.
    """
    cache = Cache(settings.cache, by_code=False)
    scores = grid.scores(place, cache, settings.workers, report, train=not settings.evaluate)
    if not scores.as_trained:
        raise ConfigError(
            f"--evaluate: {place.networks} holds no network of this study; name the folder with --networks, and give "
            "--seeds, --network and --epochs as they were trained with, or leave --evaluate out to train"
        )
    one = replace(grid, methods=[pair for pair in grid.methods if pair[0] == method])
    return scores, shuffled(one, noise).scores(place, cache, settings.workers, report, train=False)


def shuffled(grid: Grid, noise: Noise) -> Grid:
    """The grid with permuted test labels, for one noise."""
    return replace(grid, noises=(noise,), shuffled=True)


def _counted(report: Report, what: str, total: int) -> Callable[[int], None]:
    return lambda done: report(what, done, total)


def _mean_of(numbers: Sequence[Numbers], start: str) -> float:
    values = [value for one in numbers for name, value in one.items() if name.startswith(start)]
    return sum(values) / len(values)
