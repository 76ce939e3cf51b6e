"""The specification's activation, fitted to a measured transfer curve by least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.activations import AsymmetricActivation, Orientation, log_saturation
from labrig_surrogates.faults import not_finite, refuse

_MOST_STEPS = 200
_SMALLEST_IMPROVEMENT = 1e-12
_LARGEST_DAMPING = 1e12


@dataclass(frozen=True)
class ActivationFit:
    """A fitted activation and how well it follows the measurement.

    Attributes:
        activation: a, gain, offset and width as fitted.
        r_squared: Share of the measured variance that the curve explains.
        rms_error: Root mean square deviation, in the unit of the measurement.
    """

    activation: AsymmetricActivation
    r_squared: float
    rms_error: float


def fit_asymmetric(x: Tensor, y: Tensor) -> ActivationFit:
    """Fits `gain * o * f(o * x / width) + offset` to a measured curve, both orientations tried.

    Levenberg-Marquardt in ln a and ln width; gain and offset, which enter linearly, are solved for at every step
    (variable projection; Golub and Pereyra, 1973, in Kaufman's form). In float64, from several starts.

    Args:
        x: Where it was measured, `[measurements]`.
        y: What was measured, `[measurements]`.

    Raises:
        SurrogateError: Fewer than five measurements, not finite ones, or constant ones.
    """
    faults = []
    if x.dim() != 1 or x.shape != y.shape or x.numel() < 5:
        faults.append(f"x and y are [measurements], five or more, not {tuple(x.shape)} and {tuple(y.shape)}")
    elif bad := not_finite(x=x, y=y):
        faults += bad
    elif float(x.std()) == 0 or float(y.std()) == 0:
        faults.append("all x or all y are equal: there is no curve")
    refuse("fit of an activation", faults)
    wide_x, wide_y = x.detach().double(), y.detach().double()
    span = float(wide_x.max() - wide_x.min())
    signs: tuple[Orientation, Orientation] = (1, -1)
    fits = [
        _descend(wide_x, wide_y, sign, torch.tensor([float(wide_x.mean()) * sign / width, math.log(width)]).double())
        for sign in signs
        for width in (span / 20.0, span / 5.0)
    ]
    squares, sign, found = min(fits, key=lambda fit: fit[0])
    gain, offset, _ = _linear_part(_curve(found, sign, wide_x)[0], wide_y)
    log_a, log_width = found.tolist()
    activation = AsymmetricActivation(gain=gain, offset=offset, width=math.exp(log_width), orientation=sign)
    with torch.no_grad():
        activation.log_a.fill_(log_a)
    total = float(((wide_y - wide_y.mean()) ** 2).sum())
    return ActivationFit(activation, 1.0 - squares / total, math.sqrt(squares / x.numel()))


def _curve(free: Tensor, sign: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The curve for given ln a and ln width, `[measurements]`, and its derivatives by these, `[measurements, 2]`."""
    scaled = sign * x * torch.exp(-free[1])
    slope = torch.sigmoid(free[0] - scaled)
    return sign * log_saturation(scaled, free[0]), -sign * torch.stack([slope, slope * scaled], dim=1)


def _linear_part(curve: Tensor, y: Tensor) -> tuple[float, float, Tensor]:
    """Best gain and offset for a curve, and what they leave of y."""
    centred = curve - curve.mean()
    gain = (centred * (y - y.mean())).sum() / torch.clamp((centred**2).sum(), min=1e-300)
    offset = y.mean() - gain * curve.mean()
    return float(gain), float(offset), y - gain * curve - offset


def _descend(x: Tensor, y: Tensor, sign: Orientation, start: Tensor) -> tuple[float, Orientation, Tensor]:
    free, damping = start, 1e-2
    curve, derivatives = _curve(free, sign, x)
    gain, _, residual = _linear_part(curve, y)
    squares = float((residual**2).sum())
    for _ in range(_MOST_STEPS):
        # Kaufman's form: what a change of gain and offset can undo is taken out of the derivatives.
        plane, _ = torch.linalg.qr(torch.stack([torch.ones_like(curve), curve - curve.mean()], dim=1))
        jacobian = -gain * (derivatives - plane @ (plane.T @ derivatives))
        normal = jacobian.T @ jacobian
        damped = normal + damping * torch.diag(torch.diag(normal) + 1e-300)
        step = torch.linalg.lstsq(damped, -(jacobian.T @ residual).unsqueeze(1)).solution[:, 0]
        trial = free + torch.clamp(step, -2.0, 2.0)
        new_curve, new_derivatives = _curve(trial, sign, x)
        new_gain, _, new_residual = _linear_part(new_curve, y)
        new = float((new_residual**2).sum())
        if not new < squares:
            damping *= 8.0
            if damping > _LARGEST_DAMPING:
                break
            continue
        improvement = (squares - new) / squares
        free, curve, derivatives, gain, residual, squares = (
            trial,
            new_curve,
            new_derivatives,
            new_gain,
            new_residual,
            new,
        )
        damping = max(damping / 5.0, 1e-12)
        if improvement < _SMALLEST_IMPROVEMENT:
            break
    return squares, sign, free
