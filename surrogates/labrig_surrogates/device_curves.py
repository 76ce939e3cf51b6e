"""Curves of one variable that the published fits of devices are made of: declarative, so that a preset is a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Curve = Callable[[Tensor], Tensor]
"""A number of each device, from its relative conductance or its state in the unit of the fit."""


@dataclass(frozen=True)
class Polynomial:
    """`sum_k coefficients[k] x**k`."""

    coefficients: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """The value at each x."""
        total = torch.full_like(x, self.coefficients[-1])
        for coefficient in reversed(self.coefficients[:-1]):
            total = total * x + coefficient
        return total


@dataclass(frozen=True)
class ClippedLog:
    """`clip(slope ln x + offset, low, high)`, with x no smaller than `floor`."""

    slope: float
    offset: float
    low: float
    high: float
    floor: float = 1e-7

    def __call__(self, x: Tensor) -> Tensor:
        """The value at each x."""
        return torch.clamp(self.slope * torch.log(torch.clamp(x, min=self.floor)) + self.offset, self.low, self.high)


@dataclass(frozen=True)
class InversePower:
    """`min(factor / max(x**exponent, floor), cap)`."""

    factor: float
    exponent: float
    floor: float
    cap: float

    def __call__(self, x: Tensor) -> Tensor:
        """The value at each x."""
        # The smallest x whose power is the floor: a power of zero has no finite slope.
        least = self.floor ** (1.0 / self.exponent)
        return torch.clamp(self.factor / torch.clamp(x, min=least) ** self.exponent, max=self.cap)


@dataclass(frozen=True)
class Branches:
    """`below` for x < border, `above` from there on."""

    border: float
    below: Curve
    above: Curve

    def __call__(self, x: Tensor) -> Tensor:
        """The value at each x."""
        return torch.where(x < self.border, self.below(x), self.above(x))


@dataclass(frozen=True)
class Saturating:
    """`height (1 - exp(-x / scale))`."""

    height: float
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """The value at each x."""
        return -self.height * torch.expm1(-x / self.scale)


@dataclass(frozen=True)
class AtLeastZero:
    """Another curve, and zero where that is negative."""

    curve: Curve

    def __call__(self, x: Tensor) -> Tensor:
        """The value at each x."""
        return torch.clamp(self.curve(x), min=0.0)
