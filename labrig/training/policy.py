"""When to spend a physical pass: policies that alternate surrogate steps with passes through the chip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

StepKind = Literal["surrogate", "physical"]


class AlternationPolicy(Protocol):
    """Says for every step whether it runs on the surrogate or on the chip."""

    def steps(self) -> Iterator[StepKind]:
        """The steps of one training, in order."""
        ...

    def count(self, kind: StepKind) -> int:
        """How many steps of one kind there will be; a recording is sized by it."""
        ...


@dataclass(frozen=True)
class FixedRatio:
    """`surrogate_steps` on the surrogate, then one pass through the chip, `cycles` times.

    Attributes:
        cycles: Number of physical passes.
        surrogate_steps: Surrogate steps before each of them.
    """

    cycles: int
    surrogate_steps: int

    def steps(self) -> Iterator[StepKind]:
        """The steps of one training, in order."""
        for _ in range(self.cycles):
            for _ in range(self.surrogate_steps):
                yield "surrogate"
            yield "physical"

    def count(self, kind: StepKind) -> int:
        """How many steps of one kind there will be."""
        return self.cycles if kind == "physical" else self.cycles * self.surrogate_steps
