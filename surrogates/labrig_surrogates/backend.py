"""Who computes the column currents of a tile: the `Backend` protocol, the ideal backends and the surrogate one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.parameters import ConverterRange
from labrig_surrogates.quantization import quantize

TileName = str


class Backend(Protocol):
    """Answers for the arrays. Switching the backend changes no line of a model."""

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents of one tile.

        Args:
            tile: Name of the tile, `layer/number`.
            target_s: Commanded conductances in S, `[rows, columns]`.
            voltage_v: Commanded voltages in V, `[batch, rows]`.

        Returns:
            Currents in A, `[batch, columns]`, differentiable in both tensors.
        """
        ...


class DigitalBackend:
    """The ideal array: exact conductances, no converters. A layer on it equals `torch.nn.functional.linear`."""

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents of an ideal array; see `Backend.currents`."""
        del tile
        return voltage_v @ target_s


class NominalBackend:
    """The array of the data sheet: exact conductances behind the real converters.

    This is all that can be known of a chip that was never measured; it serves to choose ranges.
    """

    def __init__(self, converters: ConverterRange) -> None:
        self._converters = converters
        self._lsb_a = torch.as_tensor(converters.adc_lsb_a, dtype=torch.float32)

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents of the nominal array; see `Backend.currents`."""
        del tile
        converters = self._converters
        limit_v = converters.voltage_max_v
        line_v = quantize(voltage_v, converters.dac_step_v, -limit_v, limit_v)
        low_a, high_a = converters.code_min * self._lsb_a, converters.code_max * self._lsb_a
        return quantize(line_v @ target_s, self._lsb_a, low_a, high_a)


class SurrogateBackend:
    """The fitted chip: each tile on the surrogate of the array it is placed on.

    Programming errors are drawn once per `new_write()` and kept, read noise is drawn at every call, ages are drawn
    log-uniformly between two bounds: what the chip will meet after its next programming.

    Args:
        surrogates: Fitted arrays by index.
        placement: Array index of every tile name.
        generator: Source of all draws.
        age_range_s: Bounds in s of the time between write and read.
    """

    def __init__(
        self,
        surrogates: Mapping[int, ArraySurrogate],
        placement: Mapping[TileName, int],
        generator: torch.Generator,
        age_range_s: tuple[float, float] = (0.01, 3.0),
    ) -> None:
        missing = sorted(set(placement.values()) - set(surrogates))
        if missing:
            raise SurrogateError(f"the calibration has no fit of arrays {missing}; it has {sorted(surrogates)}")
        self._surrogates = surrogates
        self._placement = placement
        self._generator = generator
        self._age_range_s = age_range_s
        self._programming: dict[TileName, Tensor] = {}

    def new_write(self) -> None:
        """Forgets the programming errors, as programming the chip anew does."""
        self._programming.clear()

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents of the fitted array, with fresh noise; see `Backend.currents`."""
        surrogate = self._surrogates[self._placement[tile]]
        if tile not in self._programming:
            self._programming[tile] = torch.randn(target_s.shape, generator=self._generator)
        conductance_s = surrogate.new_write(target_s, self._programming[tile])
        read_draw = torch.randn((voltage_v.shape[0], surrogate.columns), generator=self._generator)
        current_a: Tensor = surrogate(conductance_s, voltage_v, age_s=self._draw_age(), read_draw=read_draw)
        return current_a

    def mean_currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """The noiseless, unquantised surrogate: what a physical forward pass borrows its gradient from."""
        surrogate = self._surrogates[self._placement[tile]]
        conductance_s = surrogate.new_write(target_s)
        current_a: Tensor = surrogate(conductance_s, voltage_v, age_s=self._age_range_s[0], convert=False)
        return current_a

    def _draw_age(self) -> Tensor:
        low, high = (torch.log(torch.tensor(bound)) for bound in self._age_range_s)
        return torch.exp(low + (high - low) * torch.rand((), generator=self._generator))
