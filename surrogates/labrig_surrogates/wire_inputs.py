"""What the functions on wires accept: shapes, precisions, resistances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from labrig_surrogates.errors import SurrogateError

Ohm = Tensor | float
"""Resistance of one segment in ohm: a number, or a tensor whose shape broadcasts with the batch of conductances."""


def demand_array(conductance_s: Tensor) -> None:
    """Refuses conductances that are no floating-point tensor `[..., rows, columns]`.

    Raises:
        SurrogateError: They are not.
    """
    if conductance_s.ndim < 2 or 0 in conductance_s.shape[-2:] or not conductance_s.is_floating_point():
        raise SurrogateError(
            f"conductances have to be floating point of shape [..., rows, columns], and are {conductance_s.dtype} "
            f"{tuple(conductance_s.shape)}"
        )


def demand_voltages(voltage_v: Tensor, rows: int) -> None:
    """Refuses voltages that are no floating-point tensor `[..., rows]`.

    Raises:
        SurrogateError: They are not.
    """
    if voltage_v.ndim < 1 or voltage_v.shape[-1] != rows or not voltage_v.is_floating_point():
        raise SurrogateError(
            f"an array of {rows} word lines takes voltages of shape [..., {rows}], and got {voltage_v.dtype} "
            f"{tuple(voltage_v.shape)}"
        )


def working_type(*tensors: Tensor) -> torch.dtype:
    """The widest type of the tensors, at least float32: half precision cannot hold the effect of a wire."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off where it is on; without it, nothing is entered."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def as_resistance(name: str, ohm: Ohm, like: Tensor) -> Tensor:
    """A resistance as a tensor on the device and of the type of `like`.

    Raises:
        SurrogateError: A number that is negative or not finite. Tensors are not looked into.
    """
    if isinstance(ohm, Tensor):
        return ohm.to(like)
    if not (math.isfinite(ohm) and ohm >= 0.0):
        raise SurrogateError(f"{name} is {ohm}; a resistance has to be finite and not negative")
    return torch.full((), ohm, dtype=like.dtype, device=like.device)


def broadcast_batch(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The common shape of leading dimensions.

    Raises:
        SurrogateError: They do not broadcast.
    """
    length = max(len(shape) for shape in shapes)
    sizes = [{*column} - {1} for column in zip(*([1] * (length - len(s)) + list(s) for s in shapes), strict=True)]
    if any(len(size) > 1 for size in sizes):
        raise SurrogateError(
            "leading dimensions of conductances, resistances and masks do not broadcast: "
            + ", ".join(str(tuple(shape)) for shape in shapes)
        )
    return tuple(size.pop() if size else 1 for size in sizes)
