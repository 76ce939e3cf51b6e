"""Scores of fitted states on MVMs that they never saw, and whether one is better than another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_calibration.columns import ColumnState, moments
from labrig_calibration.likelihood import negative_log_likelihood
from labrig_calibration.measurements import Measurements

FloatArray = NDArray[np.float64]

# Neighbours in time are not independent: differences are averaged over so many blocks before they are compared.
_TIME_BLOCKS = 20


Correction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What is added to the means, in A: from current before the curve, log age and load."""


def heldout_nll(data: Measurements, state: ColumnState, correction: Correction | None = None) -> FloatArray:
    """Negative log likelihood in nats of each MVM that counts, in the order of blocks."""
    limit_v = data.dataset.converters.voltage_max_v
    scores = []
    for block in data.blocks():
        mean, u, _, variance = moments(block, state)
        if correction is not None:
            load = block.voltage_v.abs().mean(dim=1, keepdim=True) / limit_v
            mean = mean + correction(u, block.log_age, load)
        kept = block.outputs.keep[:, 0] > 0
        scores.append(negative_log_likelihood(block.outputs, mean, variance)[kept])
    return np.asarray(torch.cat(scores).numpy())


def improvement(before: FloatArray, after: FloatArray) -> tuple[float, float]:
    """How much less `after` is, in the mean, and the standard error of that over blocks of time."""
    difference = before - after
    blocks = np.array_split(difference, min(_TIME_BLOCKS, max(difference.size, 1)))
    means = np.array([block.mean() for block in blocks])
    error = means.std(ddof=1) / np.sqrt(means.size) if means.size > 1 else np.inf
    return float(difference.mean()), float(error)
