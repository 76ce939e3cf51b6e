"""What every study is given, and what it says of its conditions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from labrig.recording.header import checkout_commit
from labrig.studies.cluster import Cluster
from labrig.studies.parts import Workers
from labrig.studies.result import Control, Finding, Plot, StudyResult, Table
from labrig.studies.vision.methods import Precision
from labrig.studies.vision.noise import NoiseKind

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class StudySettings:
    """How a study is run.

    Attributes:
        seeds: Independent repetitions, each with a chip, weights and draws of its own.
        seed: The first of them.
        rig: A rig file; None for the simulated chip.
        quick: Whether a much smaller study is enough, which shows that everything works and decides nothing.
        full: Whether a finer and longer one is wanted, by studies that have one.
        processes: Processes that parts are shared between, by studies that have parts.
        cache: Folder for finished parts, from which an interrupted study goes on; None keeps none.
        data: Folder with the published files of an image set, for studies of images.
        images: Name of that set.
        network: Which network, for studies of images; None for the usual one.
        epochs: Epochs of the digital network, and of each method from there on, likewise.
        noise: Which noise chips have, for studies of images; None for the usual one.
        precision: Of weights and inputs there, likewise.
        networks: Folder of trained networks, for studies that keep them; None for the usual one.
        evaluate: Whether networks that are there are judged and none is trained.
        cluster: Computes the parts in place of `processes`, by studies that have parts.
    """

    seeds: int = 5
    seed: int = 0
    rig: Path | None = None
    quick: bool = False
    full: bool = False
    processes: int = 1
    cache: Path | None = None
    data: Path | None = None
    images: str = "cifar10"
    network: str | None = None
    epochs: tuple[int, int] | None = None
    noise: NoiseKind | None = None
    precision: Precision | None = None
    networks: Path | None = None
    evaluate: bool = False
    cluster: Cluster | None = None

    @property
    def workers(self) -> Workers:
        """What computes the parts of a study that has many."""
        return self.processes if self.cluster is None else self.cluster

    @property
    def all_seeds(self) -> range:
        """The seeds of the repetitions."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True)
class Found:
    """What the parts of a study bring together; see `StudyResult`."""

    findings: tuple[Finding, ...]
    controls: tuple[Control, ...]
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    conditions: Mapping[str, str]


def finished(name: str, question: str, settings: StudySettings, found: Found, started_s: float) -> StudyResult:
    """A result with the conditions that all studies share.

    Args:
        name: Of the command.
        question: What it asks.
        settings: How it was run.
        found: What it found.
        started_s: Monotonic clock in s at its beginning.
    """
    shared = {
        "seeds": f"{settings.seeds}, from {settings.seed}",
        "size": "quick: shows that everything works, decides nothing"
        if settings.quick
        else "full"
        if settings.full
        else "usual",
        "labrig": version("labrig"),
        "commit": checkout_commit() or "unknown",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, CPU",
    }
    return StudyResult(
        name=name,
        question=question,
        findings=found.findings,
        controls=found.controls,
        tables=found.tables,
        plots=found.plots,
        conditions={**found.conditions, **shared},
        seconds=time.monotonic() - started_s,
    )
