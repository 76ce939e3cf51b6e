"""Crosstalk between neighbouring lines, as a banded matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from labrig_surrogates.errors import SurrogateError

Coupling = Tensor | Sequence[float]
"""Share of a line's signal that appears on each neighbour at distance 1, 2, ...: `[distances]`, pure numbers."""


def apply_crosstalk(signal: Tensor, coupling: Coupling, *, conserving: bool) -> Tensor:
    """Lets every line's signal appear on its neighbours: the product with `crosstalk_matrix`, without the matrix.

        out_j = own_j in_j + sum_d c_d (in_j-d + in_j+d)

    Differentiable in the signal and, where it is a tensor, in the coupling. Costs a pass over the signal for each
    distance.

    Args:
        signal: Currents or voltages of the lines, `[..., lines]`.
        coupling: Shares `c_d`. Those beyond the last line have no effect.
        conserving: Whether what the neighbours get is missing on the line: a leak, `own_j` is one minus the shares of
            the neighbours that line j has. Else it is picked up without loss, `own_j` is one.

    Returns:
        Signals with crosstalk, the shape of `signal`.

    Raises:
        SurrogateError: Coupling that is not one row of finite numbers, or a signal without lines.
    """
    if signal.ndim < 1 or signal.shape[-1] < 1:
        raise SurrogateError(f"crosstalk is between lines, and the signal has the shape {tuple(signal.shape)}")
    shares = _shares(coupling, signal)
    lines = signal.shape[-1]
    out = signal
    for distance, share in enumerate(shares[: lines - 1].unbind(), start=1):
        near, far = signal[..., :-distance], signal[..., distance:]
        if conserving:
            # What flows between two lines is lost by one and gained by the other.
            flow = share * (near - far)
            out = out + pad(flow, (distance, 0)) - pad(flow, (0, distance))
        else:
            out = out + share * (pad(near, (distance, 0)) + pad(far, (0, distance)))
    return out


def crosstalk_matrix(lines: int, coupling: Coupling, *, conserving: bool, like: Tensor | None = None) -> Tensor:
    """The banded matrix of `apply_crosstalk`: `out = signal @ matrix`.

    Args:
        lines: Number of lines.
        coupling: Shares at distance 1, 2, ....
        conserving: Whether a line loses what its neighbours get; every row then adds up to one.
        like: Type and device; float32 on the CPU without it.

    Returns:
        Symmetric matrix, `[lines, lines]`.

    Raises:
        SurrogateError: As `apply_crosstalk`.
    """
    unit = torch.eye(lines) if like is None else torch.eye(lines, dtype=like.dtype, device=like.device)
    return apply_crosstalk(unit, coupling, conserving=conserving)


def _shares(coupling: Coupling, like: Tensor) -> Tensor:
    if isinstance(coupling, Tensor):
        shares = coupling.to(like)
    else:
        if not all(math.isfinite(share) for share in coupling):
            raise SurrogateError(f"coupling is {tuple(coupling)}; it has to be finite")
        shares = torch.tensor(list(coupling), dtype=like.dtype, device=like.device)
    if shares.ndim != 1:
        raise SurrogateError(f"coupling has to be one row, a share for each distance, and is {tuple(shares.shape)}")
    return shares
