"""How the errors of the parameters hang together: covariances, named trade-offs, and draws of whole chips."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from labrig_surrogates.parameters import PARTS, ArrayParameters, Estimate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """Covariances of a fit, to second order in the errors.

    Attributes:
        column_names: Names of the parameters that belong to a column.
        column_covariance: Their covariance, `[columns, p, p]`; zero rows for what was not fitted.
        coupling: Change of every recorded cell (gain times conductance, in S) with each of them,
            `[writes, rows, columns, p]`.
        cell_error_s: What is left of the error of those cells, in S, `[writes, rows, columns]`.
        noise_names: Names of the terms of the noise law.
        noise_covariance: Their covariance, `[columns, k, k]`.
        law_names: Names of what all cells share: programming error, mismatch, wires, crosstalk.
        law_covariance: Their covariance, `[m, m]`.
    """

    column_names: tuple[str, ...]
    column_covariance: FloatArray
    coupling: FloatArray
    cell_error_s: FloatArray
    noise_names: tuple[str, ...]
    noise_covariance: FloatArray
    law_names: tuple[str, ...]
    law_covariance: FloatArray


def trade_offs(posterior: Posterior, threshold: float = 0.9) -> list[str]:
    """Pairs of parameters that the data can hardly tell apart, in words; the strongest first."""
    found: list[tuple[float, str]] = []
    groups = (
        (posterior.column_names, posterior.column_covariance, "a typical column"),
        (posterior.noise_names, posterior.noise_covariance, "a typical column"),
        (posterior.law_names, posterior.law_covariance[None], "all cells"),
    )
    for raw, covariance, where in groups:
        names = _told_apart(raw)
        correlation = np.median(_correlation(covariance), axis=0)
        for first in range(len(names)):
            for second in range(first + 1, len(names)):
                strength = float(correlation[first, second])
                if abs(strength) > threshold:
                    found.append((abs(strength), f"{names[first]} and {names[second]} of {where} ({strength:+.2f})"))
    return [text for _, text in sorted(found, reverse=True)]


def _told_apart(names: tuple[str, ...]) -> list[str]:
    """Names of parameters in words, of which several may be parts of one."""
    parts = {family: iter(words) for family, words in PARTS.items()}
    words = [name.replace("_", " ") for name in names]
    return [f"{word} ({next(parts[name])})" if name in parts else word for name, word in zip(names, words, strict=True)]


def draw_array(array: ArrayParameters, posterior: Posterior, generator: torch.Generator) -> ArrayParameters:
    """Draws one chip from the posterior."""
    shared = _normal(posterior.column_covariance, generator)
    noise = _normal(posterior.noise_covariance, generator)
    law = _normal(posterior.law_covariance[None], generator)[0]
    changes: dict[str, Estimate] = {}
    for index, name in enumerate(posterior.column_names):
        changes[name] = _moved(array.estimates()[name], shared[:, index])
    for index, name in enumerate(posterior.noise_names):
        changes[name] = _moved(array.estimates()[name], noise[:, index], least=0.0)
    for name in dict.fromkeys(posterior.law_names):
        places = [index for index, other in enumerate(posterior.law_names) if other == name]
        least = None if name in {"programming", "crosstalk"} else 0.0
        estimate = array.estimates()[name]
        changes[name] = _moved(estimate, law[places].reshape(estimate.value.shape), least=least)
    gain_error = np.nan_to_num(array.gain.error, posinf=0.0)
    changes["gain"] = _moved(array.gain, gain_error * _standard(gain_error.shape, generator))
    cells_s = array.write_conductance_s * array.gain.value
    cells_s = cells_s + np.einsum("prca,ca->prc", posterior.coupling, shared)
    cells_s = cells_s + posterior.cell_error_s * _standard(cells_s.shape, generator)
    slope = array.cell_slope
    if array.cell_slope_error is not None:
        error = np.where(array.stuck, 0.0, np.nan_to_num(array.cell_slope_error, posinf=0.0))
        slope = slope + error * _standard(slope.shape, generator)
    moved = array.with_estimates(changes)
    # A dead column has no gain, and nobody knows its cells.
    gain = moved.gain.value
    known_s = np.divide(cells_s, gain, out=np.zeros_like(cells_s), where=gain != 0.0)
    return replace(moved, cell_slope=slope, write_conductance_s=known_s)


def _moved(estimate: Estimate, step: FloatArray, least: float | None = None) -> Estimate:
    value = estimate.value + step
    return Estimate(value if least is None else np.maximum(value, least), estimate.error, estimate.unit)


def _standard(shape: tuple[int, ...], generator: torch.Generator) -> FloatArray:
    return np.asarray(torch.randn(shape, generator=generator, dtype=torch.float64).numpy())


def _normal(covariance: FloatArray, generator: torch.Generator) -> FloatArray:
    """Draws `[batch, p]` with `covariance[batch, p, p]`, which may be singular; infinite variances stay put."""
    known = np.isfinite(covariance.diagonal(axis1=1, axis2=2))
    clean = np.where(known[:, :, None] & known[:, None, :], covariance, 0.0)
    scale = np.sqrt(np.maximum(clean.diagonal(axis1=1, axis2=2), 1e-300))
    values, vectors = np.linalg.eigh(clean / scale[:, :, None] / scale[:, None, :])
    draws = _standard(scale.shape, generator) * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(np.einsum("bij,bj->bi", vectors, draws) * scale)


def _correlation(covariance: FloatArray) -> FloatArray:
    scale = np.sqrt(np.maximum(covariance.diagonal(axis1=1, axis2=2), 1e-300))
    correlation: FloatArray = np.nan_to_num(covariance / scale[:, :, None] / scale[:, None, :])
    return correlation
