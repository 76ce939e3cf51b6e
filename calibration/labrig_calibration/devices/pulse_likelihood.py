"""The likelihood of a train of pulses: a curve, and noises that a Kalman filter tells apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class PulseLaw:
    """Which parts a law has.

    Attributes:
        soft: Whether steps shrink on the way.
        cycle: Whether steps have a spread.
        lasting: Whether readings have a noise that lasts.
    """

    soft: bool
    cycle: bool = False
    lasting: bool = False

    @property
    def count(self) -> int:
        """Parameters of a train."""
        return 3 + self.soft + self.cycle + 2 * self.lasting


LAWS = {
    "linear": PulseLaw(soft=False),
    "linear + cycle noise": PulseLaw(soft=False, cycle=True),
    "linear + lasting noise": PulseLaw(soft=False, lasting=True),
    "soft bounds": PulseLaw(soft=True),
    "soft bounds + cycle noise": PulseLaw(soft=True, cycle=True),
    "soft bounds + lasting noise": PulseLaw(soft=True, lasting=True),
}
"""Every law by its name."""


class PulseNumbers(NamedTuple):
    """Start; step and rate of a whole train; logarithms of the noises and of what is forgotten in a pulse."""

    start: Tensor
    step: Tensor
    rate: Tensor
    read: Tensor
    cycle: Tensor
    lasting: Tensor
    forgetting: Tensor


def pulse_numbers(parameters: Tensor, law: PulseLaw) -> PulseNumbers:
    """The parameters of one train by name; what the law does not have is nothing."""
    none = torch.zeros_like(parameters[0])
    rest = list(parameters)
    start, step = rest.pop(0), rest.pop(0)
    rate = rest.pop(0) if law.soft else none
    read = rest.pop(0)
    cycle = rest.pop(0) if law.cycle else none - math.inf
    lasting = rest.pop(0) if law.lasting else none - math.inf
    return PulseNumbers(start, step, rate, read, cycle, lasting, rest.pop(0) if law.lasting else none + math.inf)


def sum_of_powers(rate: Tensor, count: int) -> Tensor:
    """`sum_(i < count) exp(-i rate)`, also where the rate is zero."""
    return torch.exp(-rate * torch.arange(count, dtype=rate.dtype)).sum()


def pulse_terms(law: PulseLaw, *, adjusted: bool = True) -> Callable[..., Tensor]:
    """The likelihood of one train; adjusted, noises are not taken too small for what the curve has followed of them.

    The adjustment is that of Cox and Reid (1987): half the logarithm of the information on the curve.
    """

    def terms(parameters: Tensor, readings: Tensor, weight: Tensor) -> Tensor:
        count = readings.shape[0]
        start, step, rate, log_read, log_cycle, log_lasting, forgetting = pulse_numbers(parameters, law)
        keep, read = torch.exp(-rate / count), torch.exp(2.0 * log_read)
        pulses = torch.arange(count, dtype=readings.dtype)
        # Progress of a unit step, and its slope in the rate.
        powers = torch.exp(-rate / count * pulses)
        progress = torch.cat([pulses[:1], torch.cumsum(powers[:-1], dim=0)]) / count
        slowing = -torch.cat([pulses[:1], torch.cumsum(powers[:-1] * pulses[:-1], dim=0)]) / count**2
        columns = [readings - start - step * progress, torch.ones_like(readings), progress]
        columns += [slowing] if law.soft else []
        before = torch.zeros_like(readings)
        if law.cycle:
            before = _prior_variance(keep, read, torch.exp(2.0 * log_cycle), torch.zeros_like(read), count)
        elif law.lasting:
            keep, whole = torch.exp(-torch.exp(forgetting)), torch.exp(2.0 * log_lasting)
            before = _prior_variance(keep, read, whole * (1.0 - keep**2), whole, count)
        total = before + read
        innovations = _innovations(torch.stack(columns, dim=1), keep, weight * before / total)
        lost = weight * 0.5 * (innovations[:, 0] ** 2 / total + torch.log(2.0 * math.pi * total))
        if not adjusted:
            return lost
        slopes = innovations[:, 1:]
        information = (slopes * (weight / total)[:, None]).T @ slopes
        return torch.cat([lost, 0.5 * _log_determinant(information)[None]])

    return terms


def _log_determinant(matrix: Tensor) -> Tensor:
    """Of a small positive matrix by elimination; NaN where it is none, instead of an error."""
    total = torch.zeros_like(matrix[0, 0])
    while len(matrix):
        total = total + torch.log(matrix[0, 0])
        matrix = matrix[1:, 1:] - matrix[1:, :1] * matrix[:1, 1:] / matrix[0, 0]
    return total


def _innovations(columns: Tensor, keep: Tensor, gain: Tensor) -> Tensor:
    """What a Kalman filter of these gains finds new in each of the columns, `[n, columns]`."""
    # m' = keep (m + gain (y - m)): each step is affine in the mean before it.
    factor = torch.cat([torch.zeros_like(gain[:1]), keep * (1.0 - gain[:-1])])
    offset = torch.cat([torch.zeros_like(columns[:1]), keep * gain[:-1, None] * columns[:-1]])
    return columns - affine_scan(factor[:, None], offset)


def _prior_variance(keep: Tensor, read: Tensor, cycle: Tensor, first: Tensor, count: int) -> Tensor:
    """Variance of the state before each reading: the Riccati recursion from the first, in closed form."""
    # P' = ((keep^2 read + cycle) P + cycle read) / (P + read): a Moebius map with the fixed points high and low.
    half = 0.5 * (keep**2 * read + cycle - read)
    root = torch.sqrt(half**2 + cycle * read)
    high, low = half + root, half - root
    ratio = (low + read) / (high + read)
    power = ratio ** torch.arange(count, dtype=read.dtype)
    # (P - high) / (P - low) shrinks by the ratio at each step.
    share = power * (first - high) / (first - low)
    return (high - low * share) / (1.0 - share)


def affine_scan(factor: Tensor, offset: Tensor) -> Tensor:
    """All `x_t = factor_t x_(t-1) + offset_t` with `x_(-1) = 0`, by doubling."""
    reach = 1
    while reach < len(factor):
        offset = torch.cat([offset[:reach], offset[reach:] + factor[reach:] * offset[:-reach]])
        factor = torch.cat([factor[:reach], factor[reach:] * factor[:-reach]])
        reach *= 2
    return offset
