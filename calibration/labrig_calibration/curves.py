"""Transfer curves of many columns at once from known inputs, with the law of their noise and standard errors.

For whoever drives the amplifiers of a chip directly, or sweeps one input (`labrig sweep --plan transfer`):

    y = height * tanh(rate * (x - centre)) + offset,   var = constant + relative * (y - offset)**2

Three passes of a batched Gauss-Newton, the second and third weighted with the noise found so far, in single precision
on scaled numbers: what this costs in accuracy is a thousandth of a standard error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.faults import not_finite

CURVE = ("height", "rate", "centre", "offset")
_PASSES = 3
_ITERATIONS = (12, 4, 3)
# A step below this part of a standard error ends a pass.
_SMALL_STEP = 0.02


@dataclass(frozen=True)
class CurveFit:
    """Fitted curves.

    Attributes:
        value: Height and offset in the unit of y, centre in that of x, rate in its inverse: `[4, columns]`.
        error: Standard errors, same shape.
        noise: Constant variance, and relative variance: `[2, columns]`.
        noise_error: Their standard errors.
        converged: Columns whose last step was small, bool, `[columns]`.
    """

    value: Tensor
    error: Tensor
    noise: Tensor
    noise_error: Tensor
    converged: Tensor


def fit_curves(x: Tensor, y: Tensor) -> CurveFit:
    """Fits the curve of every column.

    Args:
        x: Inputs, `[N]` or `[columns, N]`.
        y: Outputs, `[columns, N]`.

    Raises:
        ValueError: Fewer than eight samples, shapes that do not fit, or numbers that are not finite.
    """
    if y.ndim != 2 or x.shape not in {y.shape, y.shape[1:]} or y.shape[1] < 8:
        raise ValueError(
            f"curves need x [N] or [columns, N] and y [columns, N >= 8], not {[*x.shape]} and {[*y.shape]}"
        )
    if faults := not_finite(x=x, y=y):
        raise ValueError(f"curves cannot be fitted: {'; '.join(faults)}")
    x_middle, x_scale, across = _scaled(x if x.ndim == 2 else x[None])
    y_middle, y_scale, up = _scaled(y)
    parameters = _start(across, up)
    weight = torch.ones_like(up)
    covariance, step_size = up.new_zeros(up.shape[0], 4, 4), up.new_zeros(up.shape[0])
    noise, noise_error = up.new_zeros(2, up.shape[0]), up.new_zeros(2, up.shape[0])
    for iterations in _ITERATIONS:
        parameters, covariance, step_size = _gauss_newton(across, up, weight, parameters, iterations)
        noise, noise_error, weight, ratio = _noise(across, up, weight, parameters)
        covariance = covariance * ratio[:, None, None]
    height, rate, centre, offset = parameters
    x_scale, x_middle = x_scale[:, 0], x_middle[:, 0]
    y_scale, y_middle = y_scale[:, 0], y_middle[:, 0]
    error = torch.sqrt(covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0)).T
    unit = torch.stack([y_scale, 1.0 / x_scale.expand_as(y_scale), x_scale.expand_as(y_scale), y_scale]).double()
    value = torch.stack([height, rate, centre, offset]).double() * unit
    value[2] += x_middle
    value[3] += y_middle
    variance_unit = torch.stack([y_scale**2, torch.ones_like(y_scale)]).double()
    return CurveFit(
        value, error.double() * unit, noise * variance_unit, noise_error * variance_unit, step_size < 10.0 * _SMALL_STEP
    )


def _scaled(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Middle and half range of each row in double precision, and the row within -1 and 1 in single."""
    low, high = values.aminmax(dim=1, keepdim=True)
    middle, scale = 0.5 * (low + high).double(), (0.5 * (high - low)).double().clamp(min=1e-300)
    return middle, scale, ((values - middle) / scale).float()


def _start(x: Tensor, y: Tensor) -> Tensor:
    """A height of the whole range, and rate and centre from the slope of the middle half: `[4, columns]`."""
    middle = (y.abs() < 0.5).float()
    count = middle.sum(dim=1).clamp(min=1.0)
    x_mean, y_mean = (middle * x).sum(dim=1) / count, (middle * y).sum(dim=1) / count
    across, up = (x - x_mean[:, None]) * middle, (y - y_mean[:, None]) * middle
    slope = (across * up).sum(dim=1) / (across**2).sum(dim=1).clamp(min=1e-6)
    slope = torch.where(slope.abs() < 0.05, torch.full_like(slope, 0.05), slope)
    return torch.stack([torch.ones_like(slope), slope, x_mean - y_mean / slope, torch.zeros_like(slope)])


def _gauss_newton(
    x: Tensor, y: Tensor, weight: Tensor, parameters: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps of all columns, each shortened where it would not help; covariance at unit variance of the weights."""
    columns = y.shape[0]
    jacobian = torch.empty(columns, 4, y.shape[1])
    loss = torch.full((columns,), float("inf"))
    best, damping = parameters, torch.zeros(columns)
    step, size = torch.zeros_like(parameters), torch.zeros(columns)
    inverse = torch.zeros(columns, 4, 4)
    unit = torch.eye(4)
    for _ in range(iterations):
        residual = _jacobian(x, y, parameters, jacobian)
        weighted = residual * weight
        there = (weighted * residual).sum(dim=1)
        worse = ~(there <= loss * 1.0001)
        if bool(worse.any()):
            # Back to where it was better, with a third of the step.
            step = step * torch.where(worse, 0.3, 1.0)
            damping = torch.where(worse, 10.0 * damping + 1e-3, damping)
            parameters = torch.where(worse, best + step, parameters)
            residual = _jacobian(x, y, parameters, jacobian)
            weighted = residual * weight
            there = (weighted * residual).sum(dim=1)
        loss, best = there, parameters
        information = (jacobian * weight[:, None]) @ jacobian.mT
        score = (jacobian @ weighted[:, :, None])[:, :, 0]
        diagonal = information.diagonal(dim1=1, dim2=2)
        inverse = torch.linalg.inv(information + unit * (damping[:, None] * diagonal + 1e-12)[:, None, :])
        step = (inverse @ score[:, :, None])[:, :, 0].T
        parameters = best + step
        variance = there / weight.sum(dim=1)
        size = torch.sqrt((step.T * score).sum(dim=1).clamp(min=0.0) / variance.clamp(min=1e-30))
        if bool((size < _SMALL_STEP).all()):
            break
    return parameters, inverse, size


def _jacobian(x: Tensor, y: Tensor, parameters: Tensor, out: Tensor) -> Tensor:
    """Residuals `[columns, N]`; derivatives by the four parameters go into `out[columns, 4, N]`."""
    height, rate, centre, offset = parameters[:, :, None]
    away = x - centre
    curve = torch.tanh(rate * away)
    out[:, 0] = curve
    slope = height * (1.0 - curve * curve)
    torch.mul(slope, away, out=out[:, 1])
    torch.mul(slope, -rate, out=out[:, 2])
    out[:, 3] = 1.0
    residual: Tensor = y - (height * curve + offset)
    return residual


def _noise(x: Tensor, y: Tensor, weight: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The law of the squared residuals: `(value, error, weights for the next pass, ratio for the covariance)`.

    A Gamma regression with two non-negative terms (`labrig_calibration.noise_law`), in a few re-weightings.
    """
    height, rate, centre, offset = parameters[:, :, None]
    curve = height * torch.tanh(rate * (x - centre))
    squared, feature = (y - curve - offset) ** 2, curve * curve
    squared = squared * (y.shape[1] / (y.shape[1] - 4.0))
    mean = squared.mean(dim=1)
    law = torch.stack([mean, torch.zeros_like(mean)])
    inverse = torch.zeros(y.shape[0], 2, 2)
    expected = mean[:, None].expand_as(squared)
    for _ in range(4):
        part = mean[:, None] / expected
        part = part * part
        weighted = part * feature
        ones, cross, squares = part.sum(dim=1), weighted.sum(dim=1), (weighted * feature).sum(dim=1)
        right, right_feature = (part * squared).sum(dim=1), (weighted * squared).sum(dim=1)
        determinant = (ones * squares - cross**2).clamp(min=1e-20)
        constant = (squares * right - cross * right_feature) / determinant
        relative = (ones * right_feature - cross * right) / determinant
        constant, relative = (
            torch.where(relative < 0, right / ones, torch.where(constant < 0, torch.zeros_like(mean), constant)),
            torch.where(constant < 0, right_feature / squares, relative.clamp(min=0.0)),
        )
        law = torch.stack([constant, relative])
        inverse = torch.stack([squares, -cross, -cross, ones], dim=1).reshape(-1, 2, 2) / determinant[:, None, None]
        expected = (constant[:, None] + relative[:, None] * feature).clamp_(min=1e-3 * mean[:, None] + 1e-30)
    error = torch.sqrt(2.0 * inverse.diagonal(dim1=1, dim2=2).clamp(min=0.0)).T * mean
    # The covariance of the pass just made was for its own weights; with those of the law the next one is right as is.
    ratio = (weight * squared).mean(dim=1)
    return law.double(), error.double(), mean[:, None] / expected / mean[:, None], ratio
