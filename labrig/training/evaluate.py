"""Accuracy on the chip: always over several programmings, since each one lands a little elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from labrig.training.datasets import ImageSet
from labrig.training.models import predictions
from labrig_surrogates.backend import Backend
from labrig_surrogates.layers import set_backend


class ReprogrammableBackend(Backend, Protocol):
    """A backend whose next product comes from a new programming."""

    def new_write(self) -> None:
        """Has every array programmed anew at its next use."""
        ...


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies of one method: `values[seed][write]`, each on all test images.

    Attributes:
        values: Accuracy between 0 and 1 of every training seed and programming.
        images: Number of test images.
    """

    values: tuple[tuple[float, ...], ...]
    images: int

    @property
    def mean(self) -> float:
        """Mean over seeds and programmings."""
        return float(np.mean([np.mean(row) for row in self.values]))

    @property
    def spread_seeds(self) -> float:
        """Standard deviation of the seeds' means; zero with one seed."""
        means = [float(np.mean(row)) for row in self.values]
        return float(np.std(means, ddof=1)) if len(means) > 1 else 0.0

    @property
    def spread_writes(self) -> float:
        """Standard deviation over the programmings of one network, pooled over seeds; zero with one programming."""
        rows = [row for row in self.values if len(row) > 1]
        return float(np.sqrt(np.mean([np.var(row, ddof=1) for row in rows]))) if rows else 0.0

    @property
    def binomial(self) -> float:
        """Standard deviation that the finite number of test images alone gives one accuracy."""
        return float(np.sqrt(self.mean * (1.0 - self.mean) / self.images))

    @property
    def error(self) -> float:
        """Standard error of the mean: seeds (their programmings included) and the finite test set."""
        seeds = max(len(self.values), 1)
        between = self.spread_seeds if seeds > 1 else self.spread_writes / np.sqrt(max(len(self.values[0]), 1))
        return float(np.hypot(between / np.sqrt(seeds), self.binomial))

    def as_dict(self) -> dict[str, object]:
        """For `summary.json`."""
        return {
            "mean": self.mean,
            "error": self.error,
            "spread_seeds": self.spread_seeds,
            "spread_writes": self.spread_writes,
            "binomial": self.binomial,
            "images": self.images,
            "values": [list(row) for row in self.values],
        }


@dataclass(frozen=True)
class Judged:
    """What several programmings of one network gave.

    Attributes:
        accuracies: Test accuracy after each.
        confusion: Test images over all of them, true classes by rows, `[classes, classes]`.
    """

    accuracies: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]


def judge_on(network: nn.Module, backend: ReprogrammableBackend, data: ImageSet, writes: int) -> Judged:
    """Classifies the test images after each of several programmings."""
    set_backend(network, backend)
    accuracies, confusion = [], torch.zeros((data.classes, data.classes), dtype=torch.int64)
    for _ in range(writes):
        backend.new_write()
        said = predictions(network, data.test_x)
        accuracies.append(float((said == data.test_y).float().mean()))
        confusion.index_put_((data.test_y, said), torch.tensor(1), accumulate=True)
    return Judged(tuple(accuracies), tuple(tuple(int(one) for one in row) for row in confusion))


def evaluate_on(network: nn.Module, backend: ReprogrammableBackend, data: ImageSet, writes: int) -> tuple[float, ...]:
    """Test accuracy after each of several programmings."""
    return judge_on(network, backend, data, writes).accuracies


def table(rows: Sequence[Sequence[float]], data: ImageSet) -> AccuracyTable:
    """Joins the seeds of one method."""
    return AccuracyTable(tuple(tuple(row) for row in rows), data.test_y.shape[0])
