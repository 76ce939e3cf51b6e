"""Bit slicing: a code of many bits as several codes of few, each small enough for one cell or one DAC step.

Codes are whole numbers with a sign; a slice holds the same sign and some of the magnitude's bits, as a differential
pair or a bipolar pulse does. The slices times their powers of two add up to the code exactly (floating point holds
every whole number that occurs here).
"""

from __future__ import annotations

import torch
from torch import Tensor

from labrig_surrogates.errors import SurrogateError


def slice_count(magnitude_bits: int, bits_per_slice: int) -> int:
    """How many slices a magnitude of `magnitude_bits` takes.

    Raises:
        SurrogateError: A number of bits is not positive.
    """
    if min(magnitude_bits, bits_per_slice) < 1:
        raise SurrogateError(f"cannot cut {magnitude_bits} bits into slices of {bits_per_slice}: both must be positive")
    return -(-magnitude_bits // bits_per_slice)


def slice_codes(codes: Tensor, magnitude_bits: int, bits_per_slice: int) -> Tensor:
    """Cuts codes into slices, the least significant first.

    Args:
        codes: Whole numbers with |code| < 2**magnitude_bits, any shape; a floating type.
        magnitude_bits: Bits of the magnitude.
        bits_per_slice: Bits of each slice; the last one may have fewer.

    Returns:
        Slices `[slices, ...]`, each a whole number with |slice| < 2**bits_per_slice and the sign of its code.

    Raises:
        SurrogateError: A number of bits is not positive.
    """
    base = float(2**bits_per_slice)
    rest = codes.abs()
    slices = []
    for _ in range(slice_count(magnitude_bits, bits_per_slice)):
        higher = torch.floor(rest / base)
        slices.append(rest - base * higher)
        rest = higher
    return torch.stack(slices) * torch.sign(codes)


def slice_weights(slices: int, bits_per_slice: int) -> list[float]:
    """Power of two that each slice stands for, the least significant first."""
    return [float(2 ** (bits_per_slice * number)) for number in range(slices)]


def join_slices(slices: Tensor, bits_per_slice: int) -> Tensor:
    """Adds slices `[slices, ...]` up, each times its power of two; the inverse of `slice_codes`."""
    weights = torch.tensor(slice_weights(slices.shape[0], bits_per_slice), dtype=slices.dtype, device=slices.device)
    joined: Tensor = torch.tensordot(weights, slices, dims=1)
    return joined


def slices_of(codes: Tensor, magnitude_bits: int, bits_per_slice: int) -> list[Tensor]:
    """Slices that carry the gradient of `codes`: slice k passes `1 / (slices * 2**(bits_per_slice * k))` of its own.

    So their sum, each times its power of two, has the codes as its value and slope one: what goes through all slices
    alike has the gradient that it has without slicing. `codes` may be more than whole numbers only by a
    straight-through gradient.
    """
    parts = slice_codes(codes.detach(), magnitude_bits, bits_per_slice)
    if not codes.requires_grad:
        return list(parts)
    through = codes - codes.detach()
    weights = slice_weights(parts.shape[0], bits_per_slice)
    return [part + through / (len(weights) * weight) for part, weight in zip(parts, weights, strict=True)]
