"""What a new write will leave in every cell: slopes, stuck cells, and the law of the programming error.

The conductances of the recorded writes, each with its error, are compared with their targets. A healthy cell follows
`g = slope * target` with a programming error that is drawn anew at every write; a stuck cell does not move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

FloatArray = NDArray[np.float64]

# What chips of this kind are like, for the one question whether a cell follows its target: programming error as a
# part of the highest conductance, spread of the slopes, and the log of the odds (1 : 100) that a cell is stuck at
# some level (of about 20 that can be told apart).
_TYPICAL_PROGRAMMING = 0.04
_TYPICAL_MISMATCH = 0.2
_STUCK_EVIDENCE = 7.6
# Tukey-like bound in robust standard deviations: beyond it a cell does not shape the laws of the others.
_OUTLIER = 5.0


@dataclass(frozen=True)
class CellFit:
    """Cells of one array.

    Attributes:
        gain: Mean slope of the healthy cells of each column, `[columns]`.
        gain_error: Its standard error, `[columns]`.
        slope: Slope of each cell relative to its column's gain, zero where stuck, `[rows, columns]`.
        intercept_s: Conductance at target zero in S (stuck cells: where they sit), `[rows, columns]`.
        stuck: Cells that do not follow, bool, `[rows, columns]`.
        programming: Coefficients of the error's standard deviation over the relative target, `[3]`.
        programming_error: Standard errors, `[3]`.
    """

    gain: FloatArray
    gain_error: FloatArray
    slope: FloatArray
    intercept_s: FloatArray
    stuck: NDArray[np.bool_]
    programming: FloatArray
    programming_error: FloatArray


def fit_cells(
    conductance_s: FloatArray, error_s: FloatArray, target_s: FloatArray, conductance_max_s: float
) -> CellFit:
    """Fits all cells of an array.

    Args:
        conductance_s: Gain times conductance of each write in S, `[writes, rows, columns]`.
        error_s: Standard errors, same shape.
        target_s: Targets in S, same shape; at least two different ones for each cell.
        conductance_max_s: Highest programmable conductance in S.
    """
    stuck = _stuck_cells(conductance_s, error_s, target_s, conductance_max_s)
    healthy = ~stuck
    slope = (target_s * conductance_s).sum(axis=0) / (target_s**2).sum(axis=0)
    gain = np.array([np.median(slope[healthy[:, j], j]) if healthy[:, j].any() else 1.0 for j in range(slope.shape[1])])
    programming, programming_error = np.array([0.02, 0.0, 0.0]), np.full(3, np.inf)
    gain_error = np.full_like(gain, np.inf)
    for _ in range(3):
        sigma_s = _programming_sigma_s(programming, target_s, conductance_max_s) * gain
        weight = 1.0 / (sigma_s**2 + error_s**2)
        information = (weight * target_s**2).sum(axis=0)
        raw = (weight * target_s * conductance_s).sum(axis=0) / information
        spread = _spread_of_slopes(raw / gain, 1.0 / (np.sqrt(information) * gain), healthy)
        gain, gain_error = _column_gains(raw, 1.0 / information, (spread * gain) ** 2, healthy, gain)
        prior = 1.0 / (spread * gain) ** 2
        slope = (raw * information + gain * prior) / (information + prior)
        residual_s = (conductance_s - raw * target_s) / gain
        leverage = weight * target_s**2 / information
        programming, programming_error = _fit_programming(
            residual_s, leverage, error_s / gain, target_s, healthy, conductance_max_s, programming
        )
    return CellFit(
        gain=gain,
        gain_error=gain_error,
        slope=np.where(stuck, 0.0, slope / gain),
        intercept_s=np.where(stuck, conductance_s.mean(axis=0) / gain, 0.0),
        stuck=stuck,
        programming=programming,
        programming_error=programming_error,
    )


def _stuck_cells(
    conductance_s: FloatArray, error_s: FloatArray, target_s: FloatArray, conductance_max_s: float
) -> NDArray[np.bool_]:
    """Compares two stories of each cell by their evidence: it follows its target, or it sits at a constant.

    A cell whose targets hardly differed fits both; the prior then says that it follows.
    """
    slope = (target_s * conductance_s).sum(axis=0) / (target_s**2).sum(axis=0)
    gain = np.median(slope, axis=0)
    sigma_s = np.hypot(_TYPICAL_PROGRAMMING * conductance_max_s * np.abs(gain), error_s)
    information = (target_s**2 / sigma_s**2).sum(axis=0)
    prior = 1.0 / (_TYPICAL_MISMATCH * gain) ** 2
    best = (slope * information + gain * prior) / (information + prior)
    follows = 0.5 * (((conductance_s - best * target_s) / sigma_s) ** 2).sum(axis=0) + 0.5 * prior * (best - gain) ** 2
    constant = (conductance_s / sigma_s**2).sum(axis=0) / (1.0 / sigma_s**2).sum(axis=0)
    sits = 0.5 * (((conductance_s - constant) / sigma_s) ** 2).sum(axis=0)
    return np.asarray(follows - sits > _STUCK_EVIDENCE)


def _spread_of_slopes(relative: FloatArray, error: FloatArray, healthy: NDArray[np.bool_]) -> float:
    """Device-to-device spread of the slopes, their own errors taken out."""
    values = relative[healthy]
    centre = np.median(values)
    robust = 1.4826 * np.median(np.abs(values - centre))
    return float(np.sqrt(max(robust**2 - np.median(error[healthy] ** 2), 1e-6)))


def _column_gains(
    raw: FloatArray,
    variance: FloatArray,
    spread2: FloatArray,
    healthy: NDArray[np.bool_],
    fallback: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """The mean slope of this chip's own cells: the error is that of their slopes, not of their spread."""
    counted = healthy & (np.abs(raw - fallback) < _OUTLIER * np.sqrt(variance + spread2))
    count = counted.sum(axis=0)
    gain = np.where(count > 0, (raw * counted).sum(axis=0) / np.maximum(count, 1), fallback)
    error = np.where(count > 0, np.sqrt((variance * counted).sum(axis=0)) / np.maximum(count, 1), np.inf)
    return gain, error


def _programming_sigma_s(coefficients: FloatArray, target_s: FloatArray, conductance_max_s: float) -> FloatArray:
    relative = target_s / conductance_max_s
    p0, p1, p2 = coefficients
    return np.asarray(conductance_max_s * np.maximum(p0 + p1 * relative + p2 * relative**2, 1e-4))


def _fit_programming(
    residual_s: FloatArray,
    leverage: FloatArray,
    error_s: FloatArray,
    target_s: FloatArray,
    healthy: NDArray[np.bool_],
    conductance_max_s: float,
    start: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Maximum likelihood of the error law: L-BFGS-B on torch gradients, errors from the Hessian."""
    sigma_s = _programming_sigma_s(start, target_s, conductance_max_s)
    keep = np.broadcast_to(healthy, residual_s.shape) & (np.abs(residual_s) < _OUTLIER * 2.0 * sigma_s)
    # A write's own slope was fitted from the same few numbers: what is left of its variance is (1 - leverage).
    left = torch.tensor(1.0 - leverage[keep])
    squared = torch.tensor((residual_s[keep] / conductance_max_s) ** 2)
    known = torch.tensor((error_s[keep] / conductance_max_s) ** 2)
    relative = torch.tensor(target_s[keep] / conductance_max_s)
    powers = torch.stack([torch.ones_like(relative), relative, relative**2])

    def loss(coefficients: torch.Tensor) -> torch.Tensor:
        sigma = torch.clamp(coefficients @ powers, min=1e-4)
        variance = left * (sigma**2 + known)
        return 0.5 * (squared / variance + torch.log(variance)).sum()

    def value_and_gradient(x: FloatArray) -> tuple[float, FloatArray]:
        coefficients = torch.tensor(x, requires_grad=True)
        value = loss(coefficients)
        (gradient,) = torch.autograd.grad(value, coefficients)
        return float(value.detach()), gradient.numpy()

    solution = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B").x
    at = torch.tensor(solution, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(at), at, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(one, at, retain_graph=True)[0] for one in gradient])
    covariance = torch.linalg.pinv(hessian, hermitian=True)
    # Residuals of one cell share its slope: (writes - 1) / writes of them are independent.
    dependent = residual_s.shape[0] / max(residual_s.shape[0] - 1, 1)
    return solution, np.sqrt(np.maximum(dependent * covariance.diagonal().numpy(), 0.0))
