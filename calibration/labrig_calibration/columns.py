"""Batched Gauss-Newton: offset, compression, drift and every write's conductances of all columns at once.

Model of one column (equations in `labrig_surrogates.parameters.ArrayParameters`), with w = gain * g in S:

    u = (1 + age / reference) ** -drift * (v @ w[write]),   y = offset + tanh(kappa u) / kappa

Three parameters belong to the column, `rows` conductances to each write. The normal equations have the shape of an
arrow: one block for each write and a border of three. The border is solved by the Schur complement, which also gives
the standard errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SHARED = ("offset", "compression", "drift")
# A weak prior for recordings too short to see drift: exponents of real devices lie within 0.1 of zero
# (phase-change memory: 0.05 to 0.1). Where drift is seen it changes nothing.
DRIFT_PRIOR = 0.1
# Columns handled together: bounds the memory of the per-column Gram matrices.
_COLUMN_CHUNK = 16
# Relative decrease of the cost (a chi-square of order N) below which the iteration has converged.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ColumnData:
    """Measurements of one array as tensors, float64.

    Attributes:
        voltage_v: Inputs after the DAC in V, `[N, rows]`.
        current_a: Outputs in A, `[N, columns]`.
        log_age: `log(1 + age / reference)`, `[N]`.
        weight: 1 / variance of each output in 1/A^2, zero for saturated ones, `[N, columns]`.
        writes: Indices of the MVMs of each write.
    """

    voltage_v: Tensor
    current_a: Tensor
    log_age: Tensor
    weight: Tensor
    writes: list[Tensor]


@dataclass(frozen=True)
class ColumnFit:
    """Fitted columns.

    Attributes:
        shared: Offset in A, compression in 1/A, drift exponent: `[3, columns]`.
        shared_error: Their standard errors, `[3, columns]`.
        conductance_s: Gain times conductance of each write, `[writes, rows, columns]`.
        conductance_error_s: Standard errors, `[writes, rows, columns]`.
        iterations: Gauss-Newton steps taken by the slowest chunk of columns.
        converged: Whether every chunk ended by the tolerance, not by the limit of steps.
    """

    shared: Tensor
    shared_error: Tensor
    conductance_s: Tensor
    conductance_error_s: Tensor
    iterations: int
    converged: bool


def predict(data: ColumnData, shared: Tensor, conductance_s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean outputs and the currents before the curve.

    Args:
        data: Inputs and ages.
        shared: `[3, columns]`.
        conductance_s: `[writes, rows, columns]`.

    Returns:
        `(y, u)`, each `[N, columns]` in A.
    """
    u = torch.empty((data.voltage_v.shape[0], shared.shape[1]), dtype=data.voltage_v.dtype)
    for write, rows in enumerate(data.writes):
        u[rows] = data.voltage_v[rows] @ conductance_s[write]
    u = torch.exp(-data.log_age[:, None] * shared[2]) * u
    return shared[0] + _curve(u, shared[1]), u


def fit_columns(
    data: ColumnData,
    shared: Tensor,
    conductance_s: Tensor,
    *,
    max_iterations: int = 30,
    progress: Callable[[float], None] | None = None,
) -> ColumnFit:
    """Minimises the weighted squares over all parameters of every column.

    Args:
        data: The measurements.
        shared: Start of offset, compression and drift, `[3, columns]`.
        conductance_s: Start of the conductances, `[writes, rows, columns]`.
        max_iterations: Limit of Gauss-Newton steps.
        progress: Called with the fraction of columns done.
    """
    columns = shared.shape[1]
    parts = []
    for first in range(0, columns, _COLUMN_CHUNK):
        chunk = slice(first, min(first + _COLUMN_CHUNK, columns))
        parts.append(_fit_chunk(_columns_of(data, chunk), shared[:, chunk], conductance_s[..., chunk], max_iterations))
        if progress is not None:
            progress(chunk.stop / columns)
    return ColumnFit(
        shared=torch.cat([part.shared for part in parts], dim=1),
        shared_error=torch.cat([part.shared_error for part in parts], dim=1),
        conductance_s=torch.cat([part.conductance_s for part in parts], dim=2),
        conductance_error_s=torch.cat([part.conductance_error_s for part in parts], dim=2),
        iterations=max(part.iterations for part in parts),
        converged=all(part.converged for part in parts),
    )


def start_values(data: ColumnData) -> tuple[Tensor, Tensor]:
    """Starting values: no compression, no drift, offset and conductances by linear least squares.

    Returns:
        `(shared[3, columns], conductance_s[writes, rows, columns])`.
    """
    columns = data.current_a.shape[1]
    shared = data.current_a.new_zeros((3, columns))
    # An output of half the largest one is compressed little in any chip worth using.
    solutions, offsets = [], []
    for rows in data.writes:
        inputs = torch.cat([data.voltage_v[rows], data.voltage_v.new_ones((rows.shape[0], 1))], dim=1)
        gram = inputs.T @ inputs
        ridge = 1e-9 * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype)
        solution = torch.linalg.solve(gram + ridge, inputs.T @ data.current_a[rows])
        solutions.append(solution[:-1])
        offsets.append(solution[-1])
    shared[0] = torch.stack(offsets).mean(dim=0)
    # Compression of a tenth at the largest output; exactly zero would have no gradient.
    shared[1] = 0.5 / data.current_a.abs().amax(dim=0).clamp(min=1e-15)
    return shared, torch.stack(solutions)


def _columns_of(data: ColumnData, chunk: slice) -> ColumnData:
    return ColumnData(data.voltage_v, data.current_a[:, chunk], data.log_age, data.weight[:, chunk], data.writes)


def _curve(u: Tensor, kappa: Tensor) -> Tensor:
    safe = torch.where(kappa.abs() < 1e-12, torch.full_like(kappa, 1e-12), kappa)
    return torch.tanh(safe * u) / safe


def _cost(data: ColumnData, shared: Tensor, conductance_s: Tensor) -> Tensor:
    y, _ = predict(data, shared, conductance_s)
    return (data.weight * (data.current_a - y) ** 2).sum(dim=0) + (shared[2] / DRIFT_PRIOR) ** 2


def _fit_chunk(data: ColumnData, shared: Tensor, conductance_s: Tensor, max_iterations: int) -> ColumnFit:
    cost = _cost(data, shared, conductance_s)
    damping = torch.full_like(cost, 1e-6)
    done = torch.zeros_like(cost, dtype=torch.bool)
    iterations = 0
    while iterations < max_iterations and not bool(done.all()):
        iterations += 1
        step_shared, step_conductance, _, _ = _solve(data, shared, conductance_s, damping)
        trial_shared, trial_conductance = shared + step_shared, conductance_s + step_conductance
        trial = _cost(data, trial_shared, trial_conductance)
        better = trial < cost
        # At the optimum rounding decides whether a step is better; both answers mean that it has been reached.
        done = done | ((cost - trial).abs() <= _TOLERANCE * cost)
        shared = torch.where(better, trial_shared, shared)
        conductance_s = torch.where(better, trial_conductance, conductance_s)
        cost = torch.where(better, trial, cost)
        damping = torch.where(better, damping * 0.1, damping * 100.0)
    shared = torch.stack([shared[0], shared[1].abs(), shared[2]])  # the curve is the same for both signs
    _, _, shared_error, conductance_error_s = _solve(data, shared, conductance_s, torch.zeros_like(cost))
    return ColumnFit(shared, shared_error, conductance_s, conductance_error_s, iterations, bool(done.all()))


def _solve(
    data: ColumnData, shared: Tensor, conductance_s: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One damped step, and the standard errors at this point: (d shared, d conductance, errors, errors)."""
    y, u = predict(data, shared, conductance_s)
    residual = data.current_a - y
    tanh = torch.tanh(shared[1] * u)
    slope = 1.0 - tanh**2
    # dy/doffset, dy/dkappa, dy/ddrift
    d_kappa = (u * slope - _curve(u, shared[1])) / torch.where(shared[1] == 0, torch.ones_like(u), shared[1])
    border = torch.stack([torch.ones_like(u), d_kappa, -slope * u * data.log_age[:, None]])
    scale = slope * torch.exp(-data.log_age[:, None] * shared[2])
    weighted_border = border * data.weight
    schur = torch.einsum("anc,bnc->cab", weighted_border, border)
    gradient = torch.einsum("anc,nc->ca", weighted_border, residual)
    schur[:, 2, 2] += 1.0 / DRIFT_PRIOR**2
    gradient[:, 2] -= shared[2] / DRIFT_PRIOR**2
    schur = schur * (1.0 + damping[:, None, None] * torch.eye(3, dtype=schur.dtype))
    inverse_blocks, mixed, inner = [], [], []
    for rows in data.writes:
        voltage = data.voltage_v[rows]
        weight = (data.weight[rows] * scale[rows] ** 2).T  # [columns, n]
        gram = (voltage.T[None] * weight[:, None, :]) @ voltage  # [columns, rows, rows]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        floor = 1e-12 * diagonal.mean(dim=1, keepdim=True)
        gram = gram + torch.diag_embed(damping[:, None] * diagonal + floor)
        inverse = torch.linalg.inv(gram)
        cross = torch.einsum("ni,anc->cia", voltage, weighted_border[:, rows] * scale[rows])
        right = torch.einsum("ni,nc->ci", voltage, data.weight[rows] * scale[rows] * residual[rows])
        projected = inverse @ cross
        schur = schur - cross.transpose(1, 2) @ projected
        gradient = gradient - torch.einsum("cia,ci->ca", projected, right)
        inverse_blocks.append(inverse)
        mixed.append(projected)
        inner.append(torch.einsum("cij,cj->ci", inverse, right))
    covariance = torch.linalg.inv(schur)
    step_shared = torch.einsum("cab,cb->ca", covariance, gradient)
    steps, errors = [], []
    for inverse, projected, solution in zip(inverse_blocks, mixed, inner, strict=True):
        steps.append((solution - torch.einsum("cia,ca->ci", projected, step_shared)).T)
        extra = torch.einsum("cia,cab,cib->ci", projected, covariance, projected)
        errors.append(torch.sqrt(inverse.diagonal(dim1=1, dim2=2) + extra).T)
    shared_error = torch.sqrt(covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0)).T
    return step_shared.T, torch.stack(steps), shared_error, torch.stack(errors)
