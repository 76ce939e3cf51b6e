"""Transfer curves of a column amplifier."""

from __future__ import annotations

import torch
from torch import Tensor


def compress(u: Tensor, compression: Tensor) -> Tensor:
    """Compressive curve `tanh(compression * u) / compression`; the identity where compression is zero.

    Args:
        u: Currents in A, `[..., columns]`.
        compression: Reciprocal saturation current in 1/A, `[columns]`.
    """
    safe = torch.where(compression == 0, torch.ones_like(compression), compression)
    return torch.where(compression == 0, u, torch.tanh(safe * u) / safe)


def compress_slope(u: Tensor, compression: Tensor) -> Tensor:
    """Derivative of `compress` by `u`: `1 - tanh(compression * u)**2`."""
    return 1.0 - torch.tanh(compression * u) ** 2
