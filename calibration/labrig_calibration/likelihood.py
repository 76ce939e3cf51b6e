"""What one output says: a normal likelihood, censored where the ADC clipped, with a class for readings gone wrong.

A clipped output only says that the current lay beyond the rail (Tobit: Tobin, Econometrica 26, 1958). A reading gone
wrong, by a cable or a glitch, may lie anywhere in the ADC's range: outputs are a mixture of the normal likelihood and a
uniform one with a small share. What an output counts for is the probability that it is of the first kind, which is one
within four standard deviations and zero beyond six: clean data are not touched.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

OUTLIER_SHARE = 1e-4
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Outputs(NamedTuple):
    """A block of outputs.

    Attributes:
        current_a: Measured in A, `[n, columns]`.
        rail: +1 where clipped at the upper rail, -1 at the lower one, else 0, `[n, columns]`; None without any.
        low_a: Below this the ADC clips, in A, `[columns]`; minus infinity without an ADC.
        high_a: Above this it clips, in A, `[columns]`.
        keep: One for MVMs that count, `[n, 1]`.
        range_a: Range in A over which wrong readings are spread, `[columns]`.
    """

    current_a: Tensor
    rail: Tensor | None
    low_a: Tensor
    high_a: Tensor
    keep: Tensor
    range_a: Tensor


class Pull(NamedTuple):
    """What the outputs ask of their predicted means.

    Attributes:
        score: Derivative of the log likelihood by the mean, in 1/A, `[n, columns]`.
        weight: Its negative expected derivative, in 1/A^2, `[n, columns]`.
        loss: Negative log likelihood without constants, `[n, columns]`.
        genuine: Probability that the output is no reading gone wrong, `[n, columns]`.
    """

    score: Tensor
    weight: Tensor
    loss: Tensor
    genuine: Tensor


def pull(outputs: Outputs, mean_a: Tensor, variance_a2: Tensor) -> Pull:
    """Score, weight and loss of every output at a mean and a variance, each `[n, columns]` (or broadcast)."""
    residual = outputs.current_a - mean_a
    squared = residual**2 / variance_a2
    # log of (1 - share) * normal and of share * uniform, both times the range.
    log_normal = math.log1p(-OUTLIER_SHARE) - _HALF_LOG_2PI - 0.5 * (squared + torch.log(variance_a2))
    log_wrong = math.log(OUTLIER_SHARE) - torch.log(outputs.range_a)
    genuine = torch.sigmoid(log_normal - log_wrong)
    loss = -torch.logaddexp(log_normal, log_wrong.expand_as(log_normal))
    score, weight = genuine * residual / variance_a2, genuine / variance_a2
    if outputs.rail is not None:
        score, weight, loss, genuine = _clipped(outputs, mean_a, variance_a2, Pull(score, weight, loss, genuine))
    return Pull(score * outputs.keep, weight * outputs.keep, loss * outputs.keep, genuine)


def _clipped(outputs: Outputs, mean_a: Tensor, variance_a2: Tensor, inside: Pull) -> Pull:
    rail = outputs.rail
    assert rail is not None
    clipped = rail != 0
    edge = torch.where(rail > 0, outputs.high_a, outputs.low_a)
    sigma = torch.sqrt(variance_a2).expand_as(mean_a)
    # How far beyond the rail the mean lies, in standard deviations; far below it the tail has a known form.
    beyond = torch.where(clipped, rail * (mean_a - edge) / sigma, torch.zeros_like(mean_a)).clamp(-30.0, 30.0)
    log_tail = torch.special.log_ndtr(beyond)
    mills = torch.exp(-0.5 * beyond**2 - _HALF_LOG_2PI - log_tail)
    return Pull(
        torch.where(clipped, rail * mills / sigma, inside.score),
        torch.where(clipped, (mills * (mills + beyond)).clamp(min=0.0) / sigma**2, inside.weight),
        torch.where(clipped, -log_tail, inside.loss),
        torch.where(clipped, torch.ones_like(mean_a), inside.genuine),
    )


def negative_log_likelihood(outputs: Outputs, mean_a: Tensor, variance_a2: Tensor) -> Tensor:
    """Negative log likelihood in nats of each MVM, in units of 1 A for what was not clipped, `[n]`."""
    return pull(outputs, mean_a, variance_a2).loss.sum(dim=1)
