"""Batches of a training set in a shuffled order that a checkpoint can go on with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labrig.training.datasets import ImageSet


@dataclass(frozen=True)
class Batch:
    """Some training images.

    Attributes:
        x: Images, `[batch, ...]`.
        y: Classes, `[batch]`.
        indices: Which images of the training set, `[batch]`.
        teacher: Outputs of a teacher for them, `[batch, classes]`; None without one.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    teacher: Tensor | None = None

    def __len__(self) -> int:
        return int(self.y.shape[0])

    def split(self, parts: int) -> list[Batch]:
        """The batch in so many parts of nearly the same size; fewer, where it has fewer images."""
        if parts == 1:
            return [self]
        sizes = [len(one) for one in torch.arange(len(self)).tensor_split(min(parts, len(self)))]
        teachers = [None] * len(sizes) if self.teacher is None else [*torch.split(self.teacher, sizes)]
        images = (torch.split(one, sizes) for one in (self.x, self.y, self.indices))
        pieces = zip(*images, teachers, strict=True)
        return [Batch(*piece) for piece in pieces]

    def with_inputs(self, x: Tensor) -> Batch:
        """The same images, as something measured saw them."""
        return Batch(x, self.y, self.indices, self.teacher)


class Sampler:
    """Endless shuffled batches; a new order at every epoch, the incomplete last batch left out.

    Args:
        data: The task.
        size: Images in a batch; all of them where there are fewer.
        generator: Source of the orders.
        teacher: Outputs of a teacher for every training image, `[N, classes]`.
    """

    def __init__(self, data: ImageSet, size: int, generator: torch.Generator, teacher: Tensor | None = None) -> None:
        self._data = data
        self._teacher = teacher
        self._count = data.train_y.shape[0]
        self._size = min(size, self._count)
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._first = 0

    @property
    def size(self) -> int:
        """Images in a batch."""
        return self._size

    def next(self) -> Batch:
        """The next batch."""
        if self._first + self._size > len(self._order):
            self._order, self._first = torch.randperm(self._count, generator=self._generator), 0
        chosen = self._order[self._first : self._first + self._size]
        self._first += self._size
        teacher = None if self._teacher is None else self._teacher[chosen]
        return Batch(self._data.train_x[chosen], self._data.train_y[chosen], chosen, teacher)

    def mark(self) -> tuple[Tensor, int, Tensor]:
        """Where it is, for `back`; cheap, whatever the size of the set."""
        return self._order, self._first, self._generator.get_state()

    def back(self, mark: tuple[Tensor, int, Tensor]) -> None:
        """Goes back to a mark, so that the batches since then come again."""
        self._order, self._first = mark[:2]
        self._generator.set_state(mark[2])

    def state(self) -> dict[str, Tensor]:
        """Where it is, for a checkpoint."""
        return {
            "order": self._order.clone(),
            "first": torch.tensor(self._first),
            "generator": self._generator.get_state(),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        self._order, self._first = state["order"].clone(), int(state["first"])
        self._generator.set_state(state["generator"])
