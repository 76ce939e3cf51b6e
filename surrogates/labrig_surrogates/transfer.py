"""Transfer curves of a column amplifier."""

from __future__ import annotations

import torch
from torch import Tensor


def compress(u: Tensor, compression: Tensor, skew: Tensor | None = None) -> Tensor:
    """Compressive curve `tanh(compression * u) / compression`; the identity where compression is zero.

    With a skew s it is `(tanh(compression * u - s) + tanh(s)) * cosh(s)**2 / compression`: value zero and slope one
    at zero as before, but other limits for positive and negative currents.

    Args:
        u: Currents in A, `[..., columns]`.
        compression: Reciprocal saturation current in 1/A, `[columns]`.
        skew: Skew, a pure number, `[columns]`.
    """
    safe = torch.where(compression == 0, torch.ones_like(compression), compression)
    if skew is None:
        return torch.where(compression == 0, u, torch.tanh(safe * u) / safe)
    curve = (torch.tanh(safe * u - skew) + torch.tanh(skew)) * (torch.cosh(skew) ** 2 / safe)
    return torch.where(compression == 0, u, curve)


def compress_slope(u: Tensor, compression: Tensor, skew: Tensor | None = None) -> Tensor:
    """Derivative of `compress` by `u`."""
    if skew is None:
        return 1.0 - torch.tanh(compression * u) ** 2
    slope = (1.0 - torch.tanh(compression * u - skew) ** 2) * torch.cosh(skew) ** 2
    return torch.where(compression == 0, torch.ones_like(u), slope)
