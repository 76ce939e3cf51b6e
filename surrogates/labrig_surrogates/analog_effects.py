"""The three places where further effects plug into a layer: on programmed weights, on their cells, on tiles' outputs.

Devices with programming error and drift, stuck cells, wires are `CellEffect`s; whatever has no need of single cells is
a `WeightEffect`; signal-dependent noise and curves of amplifiers are `OutputEffect`s. An effect is a frozen dataclass
with its parameters; it keeps no state, and takes its random numbers from what it is handed, so that equal seeds give
equal layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from labrig_surrogates.cell_pairs import WeightCells, weight_cells
from labrig_surrogates.tilemap import ArrayGeometry, Scheme

Carry = Callable[[str, Callable[[], Tensor], Callable[[Tensor, float], Tensor]], Tensor]
"""A state that goes on with the age of a write, by name: made by the first function, moved by the second, which gets
the old state and the time in s since then."""


@dataclass(frozen=True)
class ProgrammedWeights:
    """What an effect may know beside the weights or cells.

    Attributes:
        limit: Largest weight that the conductances can express, a number or one for each output.
        scheme: How a weight lies on cells.
        geometry: The arrays, where the config names them.
        fresh: Standard normal numbers of a shape, new at every call.
        kept: Standard normal numbers of a shape that stay the same until the next `new_write`; the name tells several
            of one layer apart.
        of_chip: The same, but they stay the same until the next `new_chip`.
        carried: A state that goes on from age to age until the next `new_write`.
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
    carried: Carry
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
        of_chip: Standard normal numbers of a shape that stay the same until the next `new_chip`; the name tells several
            of one tile apart.
        counts: Poisson numbers with these means, new at every call; the means themselves where noise is switched off.
        cells: The cells that `weights` stand in.
        axis: Where the outputs' channels lie.
    """

    inputs: Tensor
    weights: Tensor
    limit: Tensor
    input_max: Tensor | None
    multiply: Callable[[Tensor, Tensor], Tensor]
    fresh: Callable[[Sequence[int]], Tensor]
    of_chip: Callable[[str, Sequence[int]], Tensor]
    counts: Callable[[Tensor], Tensor]
    cells: Callable[[], WeightCells]
    axis: int


class WeightEffect(Protocol):
    """Something that happens to weights when they are programmed, kept or read."""

    @property
    def fresh_at_read(self) -> bool:
        """Whether it draws new numbers at every reading: such weights cannot be programmed once for many passes."""
        ...

    def on_weights(self, weights: Tensor, known: ProgrammedWeights) -> Tensor:
        """The weights that stand in the array instead of `weights`, same shape and unit, differentiable."""
        ...


class CellEffect(Protocol):
    """Something that happens to the cells of weights when they are programmed, kept or read."""

    @property
    def fresh_at_read(self) -> bool:
        """Whether it draws new numbers at every reading; see `WeightEffect`."""
        ...

    def on_cells(self, cells: WeightCells, known: ProgrammedWeights) -> WeightCells:
        """What stands in the array instead of `cells`, differentiable."""
        ...


class OutputEffect(Protocol):
    """Something that happens to the outputs of a tile in front of its integrators and converters."""

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs instead of `outputs`, same shape and unit, differentiable."""
        ...


def affected_weights(
    weights: Tensor, effects: Sequence[WeightEffect | CellEffect], known: ProgrammedWeights
) -> tuple[Tensor, WeightCells | None]:
    """Lets effects happen one after another.

    Returns:
        The weights, and their cells from the first effect on that acted on cells.
    """
    cells: WeightCells | None = None
    for effect in effects:
        # Not `isinstance`: a compiler cannot look into the protocol.
        if hasattr(effect, "on_cells"):
            cells = cast(CellEffect, effect).on_cells(cells_of(weights, known) if cells is None else cells, known)
            weights = cells.weights()
        else:
            weights = effect.on_weights(weights, known)  # pyright: ignore[reportAttributeAccessIssue]
            cells = None if cells is None else cells.moved_to(weights)
    return weights, cells


def cells_of(weights: Tensor, known: ProgrammedWeights) -> WeightCells:
    """The cells that weights are programmed into."""
    return weight_cells(weights, known.limit, known.scheme, known.geometry, known.groups)
