"""The noise law of every column from its residuals: a Gamma regression with identity link, non-negative.

The variance of an output is linear in known features,

    var = amplifier + shot * F1 + conductance * F2 + lsb**2 / 12,

with F1 = slope^2 * sum |v w| and F2 = slope^2 * sum (v w)^2. A squared Gaussian residual is Gamma distributed with
twice its squared mean as variance, so the likelihood is a Gamma one, and its Fisher information gives the errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLaw:
    """Fitted variances: `value[3, columns]` (A^2, A, 1) and their standard errors, same shape."""

    value: Tensor
    error: Tensor


def variance(law: Tensor, features: Tensor, floor_a2: Tensor) -> Tensor:
    """Variance in A^2 of every output, `[N, columns]`, from `law[3, columns]` and `features[3, N, columns]`."""
    return torch.einsum("kc,knc->nc", law, features) + floor_a2


def fit_noise_law(
    squared_residual: Tensor, features: Tensor, floor_a2: Tensor, keep: Tensor, *, iterations: int = 12
) -> NoiseLaw:
    """Fits the law of each column by iteratively re-weighted non-negative least squares.

    Args:
        squared_residual: Residuals squared, corrected for the parameters spent, A^2, `[N, columns]`.
        features: `[3, N, columns]`.
        floor_a2: Known variance of the ADC, `[columns]`.
        keep: False for outputs that do not count, `[N, columns]`.
        iterations: Re-weightings.
    """
    columns = squared_residual.shape[1]
    kept = keep.to(squared_residual.dtype)
    # Scaling makes the three features comparable, so that the small systems are well conditioned.
    scale = ((features * kept).sum(dim=1) / kept.sum(dim=0)).clamp(min=1e-300)
    scaled = features / scale[:, None, :]
    target = squared_residual - floor_a2
    mean = (target * kept).sum(dim=0) / kept.sum(dim=0)
    law = torch.zeros((3, columns), dtype=features.dtype)
    law[0] = mean.clamp(min=1e-30)
    information = torch.empty(0)
    for _ in range(iterations):
        expected = (torch.einsum("kc,knc->nc", law, scaled) + floor_a2).clamp(min=1e-3 * mean.abs() + 1e-30)
        weight = kept / expected**2
        information = torch.einsum("anc,nc,bnc->cab", scaled, weight, scaled)
        right = torch.einsum("anc,nc->ca", scaled, weight * target)
        law = _non_negative_solution(information, right).T
    covariance = 2.0 * torch.linalg.pinv(information, hermitian=True)
    error = torch.sqrt(covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0)).T
    return NoiseLaw(law / scale, error / scale)


def _non_negative_solution(matrix: Tensor, right: Tensor) -> Tensor:
    """Minimises x^T M x / 2 - r^T x over x >= 0 for a batch of 3 x 3 problems, by trying every active set."""
    best = torch.zeros_like(right)
    best_value = torch.zeros(right.shape[0], dtype=right.dtype)
    eye = torch.eye(3, dtype=right.dtype)
    for free in product((False, True), repeat=3):
        if not any(free):
            continue
        mask = torch.tensor(free, dtype=right.dtype)
        reduced = matrix * mask[:, None] * mask[None, :] + eye * (1.0 - mask)
        solution = torch.linalg.solve(reduced, right * mask)
        value = 0.5 * torch.einsum("ca,cab,cb->c", solution, matrix, solution) - (right * solution).sum(dim=1)
        better = (solution >= 0.0).all(dim=1) & (value < best_value)
        best = torch.where(better[:, None], solution, best)
        best_value = torch.where(better, value, best_value)
    return best
