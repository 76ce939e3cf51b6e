"""Curves of column amplifiers: entries of `AnalogConfig.output_effects` that bend a tile's outputs.

An output is given in products, what one cell gives with its weight and its input at the ends of their ranges, or in
whatever unit a curve was measured in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import TileOutput
from labrig_surrogates.faults import refuse, value_faults
from labrig_surrogates.monotone_spline import Extrapolation, MonotoneSpline, pchip_slopes, spline_at
from labrig_surrogates.physical_units import per_output, product_of
from labrig_surrogates.quantization import wide

Shape = Literal["tanh", "cubic", "rational"]


@dataclass(frozen=True)
class Compression:
    """An amplifier that gives less and less the more it is driven; its slope at zero is one.

    - `tanh`: `L tanh(y / L)`;
    - `cubic`: `y - y**3 / (3 L**2)`, the same to third order, up to its top at `L`, and flat beyond;
    - `rational`: `y / (1 + |y| / L)`, a series resistance in front of a virtual ground (aihwkit 4545f11,
      `rpu_forward_backward_pass.cpp`).

    Attributes:
        limit_products: L in products: one number, or one for each output of the layer.
        shape: Which curve.

    Raises:
        SurrogateError: A limit is not positive.
    """

    limit_products: float | tuple[float, ...]
    shape: Shape = "tanh"

    def __post_init__(self) -> None:
        faults = value_faults(self) + [
            f"limit_products = {one} must be positive" for one in self._limits if not one > 0
        ]
        refuse("compression", faults if self._limits else ["limit_products is empty"])

    @property
    def _limits(self) -> tuple[float, ...]:
        return self.limit_products if isinstance(self.limit_products, tuple) else (self.limit_products,)

    @property
    def columns(self) -> int:
        """Outputs that have a curve of their own; 1 where all have the same."""
        return len(self._limits)

    @property
    def needs_dac(self) -> bool:
        """True: it counts products."""
        return True

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs behind the amplifiers."""
        limits = torch.tensor(self._limits, dtype=outputs.dtype, device=outputs.device)
        limit = product_of(known, "compression") * per_output(limits, known)
        u = outputs / limit
        if self.shape == "tanh":
            return limit * torch.tanh(u)
        if self.shape == "rational":
            return outputs / (1.0 + u.abs())
        inside = torch.clamp(u, -1.0, 1.0)
        return limit * (inside - inside.pow(3) / 3.0)


@dataclass(frozen=True)
class MeasuredTransfer:
    """Amplifiers with a measured curve: a monotone spline through points (`MonotoneSpline`).

    Attributes:
        inputs: What went in at each point, strictly rising.
        outputs: What came out: one row for all outputs of the layer, or one row for each; all rising or all falling.
        per_product: One product in the unit of `inputs` and `outputs`; 1 where they are in products. Of currents in A
            it is the span of conductances in S times the largest voltage in V.
        extrapolation: What happens beyond the ends.

    Raises:
        SurrogateError: Points are too few, not finite, not in order or not monotone, or `per_product` is not positive.
    """

    inputs: tuple[float, ...]
    outputs: tuple[tuple[float, ...], ...]
    per_product: float = 1.0
    extrapolation: Extrapolation = "linear"

    def __post_init__(self) -> None:
        faults = value_faults(self)
        faults += [] if self.per_product > 0 else [f"per_product = {self.per_product} must be positive"]
        faults += [] if self.outputs else ["there is no row of outputs"]
        refuse("measured transfer", faults)
        for row in self.outputs:
            MonotoneSpline(torch.tensor(self.inputs), torch.tensor(row))  # which refuses what is no curve

    @property
    def columns(self) -> int:
        """Outputs that have a curve of their own; 1 where all have the same."""
        return len(self.outputs)

    @property
    def needs_dac(self) -> bool:
        """True: it counts products."""
        return True

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs behind the amplifiers."""
        values = wide(outputs)
        unit = product_of(known, "a measured transfer") / self.per_product
        knots, levels, slopes = _tables(self.inputs, self.outputs, values.dtype, values.device)
        rows = None
        if self.columns > 1:
            rows = per_output(torch.arange(self.columns, device=values.device), known)
        return spline_at(values / unit, knots, levels, slopes, self.extrapolation, rows) * unit


@lru_cache(maxsize=64)
def _tables(
    inputs: tuple[float, ...], outputs: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Knots, and values and slopes of every row: constants."""
    knots = torch.tensor(inputs, dtype=torch.float64)
    levels = torch.tensor(outputs, dtype=torch.float64)
    slopes = torch.stack([pchip_slopes(knots, row) for row in levels])
    return knots.to(device, dtype), levels.to(device, dtype), slopes.to(device, dtype)
