"""The two places where further effects plug into a layer: on the programmed weights, and on a tile's outputs.

Devices with programming error and drift, stuck cells and the like are `WeightEffect`s; wires, crosstalk, signal-
dependent noise are `OutputEffect`s. An effect is a frozen dataclass with its parameters; it keeps no state, and takes
its random numbers from what it is handed, so that equal seeds give equal layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from labrig_surrogates.tilemap import ArrayGeometry, Scheme


@dataclass(frozen=True)
class ProgrammedWeights:
    """What a `WeightEffect` may know beside the weights.

    Attributes:
        limit: Largest weight that the conductances can express, a number or one for each output.
        scheme: How a weight lies on cells.
        geometry: The arrays, where the config names them.
        fresh: Standard normal numbers of a shape, new at every call.
        kept: Standard normal numbers of a shape that stay the same until the next `new_write`; the name tells several
            of one layer apart.
        of_chip: The same, but they stay the same until the next `new_chip`.
        age_s: Time in s since the weights were programmed; see `set_age`.
        quiet: Whether noise is switched off: all numbers are zero then.
        groups: Groups of a convolution, each on tiles of its own.
    """

    limit: Tensor
    scheme: Scheme
    geometry: ArrayGeometry | None
    fresh: Callable[[Sequence[int]], Tensor]
    kept: Callable[[str, Sequence[int]], Tensor]
    of_chip: Callable[[str, Sequence[int]], Tensor]
    age_s: float = 0.0
    quiet: bool = False
    groups: int = 1


@dataclass(frozen=True)
class TileOutput:
    """What an `OutputEffect` may know beside the outputs of one tile.

    Attributes:
        inputs: Inputs after the DAC, in the unit of the layer's input.
        weights: Programmed weights of the tile, noise included, in their own unit.
        limit: Largest weight that the conductances can express, a number or one for each output, broadcast against
            `weights`.
        input_max: Largest input of the DAC; None without one.
        multiply: The tile's product for other inputs and weights of these shapes, such as their absolute values.
        fresh: Standard normal numbers of a shape, new at every call.
    """

    inputs: Tensor
    weights: Tensor
    limit: Tensor
    input_max: Tensor | None
    multiply: Callable[[Tensor, Tensor], Tensor]
    fresh: Callable[[Sequence[int]], Tensor]


class WeightEffect(Protocol):
    """Something that happens to weights when they are programmed, kept or read."""

    @property
    def fresh_at_read(self) -> bool:
        """Whether it draws new numbers at every reading: such weights cannot be programmed once for many passes."""
        ...

    def on_weights(self, weights: Tensor, known: ProgrammedWeights) -> Tensor:
        """The weights that stand in the array instead of `weights`, same shape and unit, differentiable."""
        ...


class OutputEffect(Protocol):
    """Something that happens to the outputs of a tile in front of its integrators and converters."""

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs instead of `outputs`, same shape and unit, differentiable."""
        ...
