"""Converters as differentiable functions: rounding passes gradients straight through."""

from __future__ import annotations

import torch
from torch import Tensor

Level = Tensor | float


def quantize(x: Tensor, step: Level, low: Level, high: Level) -> Tensor:
    """Rounds to multiples of `step` within `[low, high]`; gradient one inside the range, zero outside.

    The straight-through estimator of Bengio, Leonard and Courville (arXiv 1308.3432), with the clipping of a
    saturating converter. Always computed in float32 or better, also under autocast.

    Args:
        x: Values in the unit of `step`, any shape.
        step: Distance of two levels, broadcast against `x`.
        low: Lowest level.
        high: Highest level.

    Returns:
        Quantised values, the shape of `x`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    lowest, highest = torch.as_tensor(low).to(wide), torch.as_tensor(high).to(wide)
    clipped = torch.clamp(wide, lowest, highest)
    rounded = torch.round(clipped.detach() / step) * step
    return clipped + (torch.clamp(rounded, lowest, highest) - clipped.detach())
