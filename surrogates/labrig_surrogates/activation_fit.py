"""The specification's activation, fitted to a measured transfer curve by least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.activations import AsymmetricActivation, Orientation, log_saturation
from labrig_surrogates.faults import refuse

_MOST_STEPS = 200
_SMALLEST_IMPROVEMENT = 1e-12


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
    (variable projection; Golub and Pereyra, 1973). In float64. Started from several widths, the best is kept.

    Args:
        x: Where it was measured, `[measurements]`.
        y: What was measured, `[measurements]`.

    Raises:
        SurrogateError: Fewer than five measurements, not finite ones, or constant ones.
    """
    faults = []
    if x.dim() != 1 or x.shape != y.shape or x.numel() < 5:
        faults.append(f"x and y are [measurements], five or more, not {tuple(x.shape)} and {tuple(y.shape)}")
    elif not (bool(torch.isfinite(x).all()) and bool(torch.isfinite(y).all())):
        faults.append("some measurements are not finite")
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
    gain, offset = _linear_part(found, sign, wide_x, wide_y)[1].tolist()
    log_a, log_width = found.tolist()
    activation = AsymmetricActivation(gain=gain, offset=offset, width=math.exp(log_width), orientation=sign)
    with torch.no_grad():
        activation.log_a.fill_(log_a)
    total = float(((wide_y - wide_y.mean()) ** 2).sum())
    return ActivationFit(activation, 1.0 - squares / total, math.sqrt(squares / x.numel()))


def _linear_part(free: Tensor, sign: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals after the best gain and offset for given ln a and ln width, and these two."""
    curve = sign * log_saturation(sign * x * torch.exp(-free[1]), free[0])
    centred = curve - curve.mean()
    gain = (centred * (y - y.mean())).sum() / torch.clamp((centred**2).sum(), min=1e-300)
    offset = y.mean() - gain * curve.mean()
    return y - gain * curve - offset, torch.stack([gain, offset]).detach()


def _descend(x: Tensor, y: Tensor, sign: Orientation, start: Tensor) -> tuple[float, Orientation, Tensor]:
    free, damping = start, 1e-2
    squares = float((_linear_part(free, sign, x, y)[0] ** 2).sum())
    for _ in range(_MOST_STEPS):
        jacobian = torch.func.jacfwd(lambda value: _linear_part(value, sign, x, y)[0])(free)
        residual = _linear_part(free, sign, x, y)[0]
        normal = jacobian.T @ jacobian
        scaled = normal + damping * torch.diag(torch.diag(normal) + 1e-12)
        step = torch.linalg.lstsq(scaled, -(jacobian.T @ residual).unsqueeze(1)).solution[:, 0]
        trial = free + torch.clamp(step, -2.0, 2.0)
        new = float((_linear_part(trial, sign, x, y)[0] ** 2).sum())
        if not new < squares:
            damping *= 8.0
            if damping > 1e12:
                break
            continue
        improvement = (squares - new) / max(squares, 1e-300)
        free, squares, damping = trial, new, max(damping / 5.0, 1e-12)
        if improvement < _SMALLEST_IMPROVEMENT:
            break
    return squares, sign, free
