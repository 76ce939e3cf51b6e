"""Chips that the calibration allows: training on many of them meets what it does not know for certain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, Estimate

FloatArray = NDArray[np.float64]

_MOVED = ("gain", "offset", "compression", "drift", "skew")
"""Estimates of columns that are drawn; the rest is noise laws, whose errors move no mean."""


def draw_chip(chip: ChipParameters, generator: torch.Generator) -> dict[int, ArraySurrogate]:
    """One chip, every column and cell moved by its standard error.

    A chip file keeps standard errors and no correlations, so that columns and cells move independently;
    `CalibrationResult.sample_chip` draws with the correlations, where the fit is still at hand.
    """
    return {index: ArraySurrogate(_drawn(array, generator)) for index, array in chip.arrays.items()}


def draw_population(
    chip: ChipParameters, count: int, generator: torch.Generator
) -> tuple[dict[int, ArraySurrogate], ...]:
    """So many chips; see `draw_chip`."""
    return tuple(draw_chip(chip, generator) for _ in range(count))


def _drawn(array: ArrayParameters, generator: torch.Generator) -> ArrayParameters:
    estimates = array.estimates()
    changes = {
        name: Estimate(one.value + _error(one.error, generator), one.error, one.unit)
        for name, one in estimates.items()
        if name in _MOVED
    }
    slope = array.cell_slope
    if array.cell_slope_error is not None:
        slope = slope + np.where(array.stuck, 0.0, _error(array.cell_slope_error, generator))
    return replace(array.with_estimates(changes), cell_slope=slope)


def _error(error: FloatArray, generator: torch.Generator) -> FloatArray:
    normal = torch.randn(error.shape, generator=generator, dtype=torch.float64).numpy()
    return np.asarray(np.nan_to_num(error, nan=0.0, posinf=0.0) * normal)
