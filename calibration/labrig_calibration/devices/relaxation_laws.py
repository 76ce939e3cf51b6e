"""Laws of what cells do after programming: how mean and spread of the shift grow with the age.

A shift x = g(t) - g(0) has a Student distribution, whose location and scale depend on the conductance that was
programmed through values at a few knots, linear in between, and on the age t through u = ln(1 + t / t_0):

| law | location | scale |
| --- | --- | --- |
| logarithm | a(g) u | s(g) u |
| root of logarithm | a(g) u | s(g) u**0.5, a random walk in the logarithm of the age |
| bent logarithm | a(g) u | s(g) u**h, h free |
| power | a(g) t**h | s(g) t**h |
| drift | g (exp(-nu(g) u) - 1) | g exp(-nu(g) u) s(g) u: g (1 + t / t_0)**-nu with exponents that differ |

The noise of a reading is added to each scale in squares. The tails may change with the age.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor

from labrig_calibration.devices.maximum_likelihood import Terms
from labrig_calibration.devices.values import FloatArray

LAWS = ("logarithm", "root of logarithm", "bent logarithm", "power", "drift")
"""Names of the laws."""


class Shape(NamedTuple):
    """Distribution of shifts: location, scale and degrees of freedom, each `[n]`."""

    location: Tensor
    scale: Tensor
    freedom: Tensor


@dataclass(frozen=True)
class DrawnShapes:
    """Distributions of shifts by several draws of the parameters, `[draws, n]`."""

    location: FloatArray
    scale: FloatArray
    freedom: FloatArray

    @classmethod
    def of(cls, shapes: Sequence[Shape]) -> DrawnShapes:
        """One for each draw."""
        location, scale, freedom = (torch.stack(parts).numpy() for parts in zip(*shapes, strict=True))
        return cls(location, scale, freedom)

    def below(self, shift: FloatArray) -> FloatArray:
        """Probability of less than a shift, over all draws, `[n]`."""
        return np.asarray(special.stdtr(self.freedom, (shift - self.location) / self.scale).mean(axis=0))


@dataclass(frozen=True)
class RelaxationLaw:
    """A law at fixed knots, in scaled units.

    Attributes:
        name: One of `LAWS`.
        knots: Conductances of the knots, ascending, `[knots]`, in units of the shift.
        first: Age that counts as one.
    """

    name: str
    knots: Tensor
    first: float

    @property
    def count(self) -> int:
        """Number of parameters."""
        return 2 * len(self.knots) + 4 + (self.name == "bent logarithm")

    def start(self) -> Tensor:
        """Where a search may begin, `[count]`."""
        own = torch.zeros(2 * len(self.knots), dtype=torch.float64)
        if self.name == "drift":
            own[: len(self.knots)] = 0.02
            own[len(self.knots) :] = math.log(0.02)
        else:
            own[len(self.knots) :] = -1.5
        # Noise of reading, tails and how they change, t_0 or the exponent; the bend.
        rest = [-3.0, 1.5, 0.0, -1.0 if self.name != "power" else math.log(0.15)]
        rest += [math.log(0.6)] if self.name == "bent logarithm" else []
        return torch.cat([own, torch.tensor(rest, dtype=torch.float64)])

    def shape(self, parameters: Tensor, programmed: Tensor, age: Tensor) -> Shape:
        """The distribution of shifts.

        Args:
            parameters: `[count]`.
            programmed: What was programmed, `[n]`.
            age: In s, positive, `[n]`.
        """
        knots = len(self.knots)
        hats = self._hats(programmed)
        middle, spread = hats @ parameters[:knots], torch.exp(hats @ parameters[knots : 2 * knots])
        reading, tails, change, growth = parameters[2 * knots : 2 * knots + 4]
        relative = age / self.first
        power = self.name == "power"
        reach = relative ** torch.exp(growth) if power else torch.log1p(relative * torch.exp(-growth))
        if self.name == "drift":
            kept = programmed * torch.exp(-middle * reach)
            location, scale = kept - programmed, kept * spread * reach
        else:
            location, scale = middle * reach, spread * reach ** self._bend(parameters)
        freedom = 1.0 + torch.exp((tails + change * torch.log1p(relative)).clamp(-3.0, 6.0))
        return Shape(location, torch.sqrt(scale**2 + torch.exp(2.0 * reading)), freedom)

    def terms(self) -> Terms:
        """Of the negative log-likelihood of shifts."""

        def terms(parameters: Tensor, programmed: Tensor, age: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
            return weight * student_loss(self.shape(parameters, programmed, age), shift) + _prior(parameters, weight)

        return terms

    def _bend(self, parameters: Tensor) -> Tensor:
        if self.name == "bent logarithm":
            return torch.exp(parameters[-1])
        return torch.full_like(parameters[-1], 0.5 if self.name == "root of logarithm" else 1.0)

    def _hats(self, programmed: Tensor) -> Tensor:
        """Weights of the knots at each conductance, constant beyond the ends, `[n, knots]`."""
        if len(self.knots) == 1:
            return torch.ones_like(programmed)[:, None]
        inside = programmed.clamp(float(self.knots[0]), float(self.knots[-1]))
        above = torch.searchsorted(self.knots, inside).clamp(1, len(self.knots) - 1)
        share = (inside - self.knots[above - 1]) / (self.knots[above] - self.knots[above - 1])
        places = torch.arange(len(self.knots))
        return (places == above[:, None]) * share[:, None] + (places == above[:, None] - 1) * (1.0 - share)[:, None]


def _prior(parameters: Tensor, weight: Tensor) -> Tensor:
    """Ten units wide: nothing beside data, and an end to flat directions such as a noise that is not there."""
    return (0.5 * (parameters / 10.0) ** 2).sum() / weight.shape[0]


def student_loss(shape: Shape, value: Tensor) -> Tensor:
    """Negative logarithm of Student's density, `[n]`."""
    half = 0.5 * (shape.freedom + 1.0)
    constant = torch.lgamma(0.5 * shape.freedom) - torch.lgamma(half) + 0.5 * torch.log(math.pi * shape.freedom)
    square = ((value - shape.location) / shape.scale) ** 2
    return constant + torch.log(shape.scale) + half * torch.log1p(square / shape.freedom)
