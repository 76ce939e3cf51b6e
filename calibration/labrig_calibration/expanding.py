"""Puts dead columns back among the fitted ones: no gain, and nothing else known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.dataset import MvmDataset
from labrig_calibration.uncertainty import Posterior
from labrig_surrogates.parameters import ArrayParameters, ConverterRange, Estimate

FloatArray = NDArray[np.float64]


def expanded(
    array: ArrayParameters,
    posterior: Posterior,
    alive: NDArray[np.bool_],
    converters: ConverterRange,
    dataset: MvmDataset,
) -> tuple[ArrayParameters, Posterior]:
    """Parameters of all columns from those of the living ones.

    A dead column has gain zero, the offset that it shows, and an infinite error of everything that it does not.
    """

    def spread(values: FloatArray, fill: float, axis: int) -> FloatArray:
        shape = list(values.shape)
        shape[axis] = alive.size
        out = np.full(shape, fill, dtype=values.dtype)
        index: list[slice | NDArray[np.bool_]] = [slice(None)] * values.ndim
        index[axis] = alive
        out[tuple(index)] = values
        return out

    estimates = {
        name: Estimate(spread(one.value, 0.0, 0), spread(one.error, np.inf, 0), one.unit)
        for name, one in array.estimates().items()
        if one.value.shape == (int(alive.sum()),) and name not in {"programming", "wire_ohm"}
    }
    offset = estimates["offset"]
    shown = dataset.current_a[:, ~alive]
    offset.value[~alive], offset.error[~alive] = shown.mean(axis=0), converters.adc_lsb_a[~alive] / np.sqrt(12.0)
    residual = array.residual
    if residual is not None:
        residual = replace(residual, scale_a=spread(residual.scale_a, 1.0, 0))
    whole = replace(
        array.with_estimates(estimates),
        cell_slope=spread(array.cell_slope, 1.0, 1),
        cell_intercept_s=spread(array.cell_intercept_s, 0.0, 1),
        stuck=spread(array.stuck.astype(np.float64), 0.0, 1) > 0.5,
        write_conductance_s=spread(array.write_conductance_s, 0.0, 2),
        write_conductance_error_s=None
        if array.write_conductance_error_s is None
        else spread(array.write_conductance_error_s, np.inf, 2),
        cell_slope_error=None if array.cell_slope_error is None else spread(array.cell_slope_error, np.inf, 1),
        wire_uncertainty=None if array.wire_uncertainty is None else spread(array.wire_uncertainty, 0.0, 0),
        converters=converters,
        residual=residual,
    )
    return whole, replace(
        posterior,
        column_covariance=spread(posterior.column_covariance, 0.0, 0),
        coupling=spread(posterior.coupling, 0.0, 2),
        cell_error_s=spread(posterior.cell_error_s, 0.0, 2),
        noise_covariance=spread(posterior.noise_covariance, 0.0, 0),
    )
