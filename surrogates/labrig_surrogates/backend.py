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


class MeanBackend(Protocol):
    """A differentiable model of arrays without noise: what a measured product borrows its gradient from."""

    def mean_currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Mean currents in A, `[batch, columns]`; arguments as in `Backend.currents`."""
        ...


class DigitalBackend:
    """The ideal array: exact conductances, no converters. A layer on it equals `torch.nn.functional.linear`."""

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents of an ideal array; see `Backend.currents`."""
        del tile
        return voltage_v @ target_s

    def mean_currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """The same: an ideal array has no noise; see `MeanBackend`."""
        return self.currents(tile, target_s, voltage_v)


class NominalBackend:
    """The array of the data sheet: exact conductances behind the real converters.

    This is all that can be known of a chip that was never measured; it serves to choose ranges.

    Args:
        converters: Converters and conductance range of the data sheet.
    """

    def __init__(self, converters: ConverterRange) -> None:
        self._converters = converters
        self._lsb_a = torch.as_tensor(converters.adc_lsb_a, dtype=torch.float32)

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents of the nominal array; see `Backend.currents`."""
        del tile
        converters = self._converters
        limit_v = converters.voltage_max_v
        line_v = voltage_v
        if converters.dac_step_v > 0.0:
            line_v = quantize(voltage_v, converters.dac_step_v, -limit_v, limit_v)
        if not bool((self._lsb_a > 0.0).all()):
            return line_v @ target_s
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
        conductance_step_s: Distance in S of two levels that targets are rounded to; zero does not round.
        stochastic: Whether targets are rounded at random to one of both neighbours, so that the mean is right.

    Attributes:
        generator: Source of all draws.
        noise_level: Multiplies programming errors and read noise: 1 is the chip, what a schedule of noise moves.
    """

    def __init__(
        self,
        surrogates: Mapping[int, ArraySurrogate],
        placement: Mapping[TileName, int],
        generator: torch.Generator,
        age_range_s: tuple[float, float] = (0.01, 3.0),
        *,
        conductance_step_s: float = 0.0,
        stochastic: bool = False,
    ) -> None:
        self._placement = placement
        self._surrogates: Mapping[int, ArraySurrogate] = {}
        self.use(surrogates)
        self.generator = generator
        self.noise_level = 1.0
        self._age_range_s = age_range_s
        self._step_s = conductance_step_s
        self._stochastic = stochastic
        self._programming: dict[TileName, Tensor] = {}

    def use(self, surrogates: Mapping[int, ArraySurrogate]) -> None:
        """Goes on with other surrogates of the same arrays, such as refitted ones or those of another chip.

        Raises:
            SurrogateError: An array that a tile is placed on has none; nothing is changed.
        """
        missing = sorted(set(self._placement.values()) - set(surrogates))
        if missing:
            raise SurrogateError(f"the calibration has no fit of arrays {missing}; it has {sorted(surrogates)}")
        self._surrogates = surrogates

    def surrogate_of(self, tile: TileName) -> ArraySurrogate:
        """The surrogate of the array that a tile is placed on."""
        return self._surrogates[self._placement[tile]]

    def new_write(self) -> None:
        """Forgets the programming errors, as programming the chip anew does."""
        self._programming.clear()

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents of the fitted array, with fresh noise; see `Backend.currents`."""
        surrogate = self.surrogate_of(tile)
        if tile not in self._programming:
            self._programming[tile] = torch.randn(target_s.shape, generator=self.generator)
        draw = self.noise_level * self._programming[tile]
        conductance_s = surrogate.new_write(self._rounded(surrogate, target_s), draw)
        read_draw = self.noise_level * torch.randn((voltage_v.shape[0], surrogate.columns), generator=self.generator)
        current_a: Tensor = surrogate(conductance_s, voltage_v, age_s=self._draw_age(), read_draw=read_draw)
        return current_a

    def mean_currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """The noiseless, unquantised surrogate: what a physical forward pass borrows its gradient from."""
        surrogate = self.surrogate_of(tile)
        conductance_s = surrogate.new_write(target_s)
        current_a: Tensor = surrogate(conductance_s, voltage_v, age_s=self._age_range_s[0], convert=False)
        return current_a

    def _rounded(self, surrogate: ArraySurrogate, target_s: Tensor) -> Tensor:
        if self._step_s == 0.0:
            return target_s
        uniform = torch.rand(target_s.shape, generator=self.generator) if self._stochastic else None
        low_s, high_s = surrogate.converters.conductance_min_s, surrogate.converters.conductance_max_s
        return low_s + quantize(target_s - low_s, self._step_s, 0.0, high_s - low_s, uniform)

    def _draw_age(self) -> Tensor:
        low, high = (torch.log(torch.tensor(bound)) for bound in self._age_range_s)
        return torch.exp(low + (high - low) * torch.rand((), generator=self.generator))
