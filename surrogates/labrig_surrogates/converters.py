"""What converters and integrators do beside rounding: integral nonlinearity and saturation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Nonlinearity:
    """Integral nonlinearity (INL) of converters: how far the real transfer curve is from the straight line, in LSB.

    A DAC puts out `code + inl(code)`. An ADC reads `x + inl(x)` in place of `x`, both in LSB, and rounds that.

    Attributes:
        polynomial_lsb: Coefficients in ascending powers of `code / highest code`, the same for all converters.
        table_lsb: One row for all converters, or one row for each (a layer's inputs for DACs, its outputs for ADCs);
            each row has a value for every code, the lowest first. Between codes it is interpolated.
    """

    polynomial_lsb: tuple[float, ...] = ()
    table_lsb: tuple[tuple[float, ...], ...] = ()

    def faults(self, name: str, codes: int) -> Iterator[str]:
        """What is wrong with the values, for converters of that many codes."""
        if bool(self.polynomial_lsb) == bool(self.table_lsb):
            yield f"{name} needs either polynomial_lsb or table_lsb"
        wrong = sorted({len(row) for row in self.table_lsb} - {codes})
        if wrong:
            yield f"{name}.table_lsb has rows of {wrong} values; the converter has {codes} codes"

    def at(self, codes: Tensor, lowest: int, highest: int, axis: int) -> Tensor:
        """The nonlinearity in LSB at (not necessarily whole) codes; carries no gradient.

        Args:
            codes: Codes in LSB, any shape; converters of their own lie along `axis`.
            lowest: Lowest code; what is below is taken to be there.
            highest: Highest code.
            axis: Where the converters lie.
        """
        at = torch.clamp(codes.detach(), lowest, highest)
        if self.polynomial_lsb:
            relative = at / highest
            total = torch.zeros_like(relative)
            for coefficient in reversed(self.polynomial_lsb):
                total = total * relative + coefficient
            return total
        table = torch.tensor(self.table_lsb, dtype=at.dtype, device=at.device)
        before = torch.clamp(torch.floor(at), max=highest - 1)
        index = (before - lowest).long()
        if table.shape[0] > 1:
            rows = torch.arange(table.shape[0], device=at.device) * table.shape[1]
            shape = [1] * at.dim()
            shape[axis] = -1
            index = index + rows.reshape(shape)
        flat = table.reshape(-1)
        return flat[index] + (at - before) * (flat[index + 1] - flat[index])


def saturate(x: Tensor, limit: Tensor, shape: str) -> Tensor:
    """An integrator that cannot go beyond `limit`: a hard `clip`, or `limit * tanh(x / limit)`."""
    if shape == "tanh":
        return limit * torch.tanh(x / limit)
    return torch.minimum(torch.maximum(x, -limit), limit)
