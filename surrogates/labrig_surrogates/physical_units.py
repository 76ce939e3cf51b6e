"""From the relative weights and inputs of a tile to siemens and volts, for effects whose laws are of currents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labrig_surrogates.analog_effects import TileOutput
from labrig_surrogates.cell_pairs import weight_cells
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.tilemap import ArrayGeometry


@dataclass(frozen=True)
class TileCells:
    """The cells of one tile of differential pairs, and what drives them.

    Attributes:
        plus_s: Conductances in S that are added, of the shape of the tile's weights.
        minus_s: Conductances in S that are subtracted.
        voltage_v: Line voltages in V, of the shape of the tile's inputs.
        output_per_a: Output, in the unit of the layer's, of one ampere of difference: one number, or one for each
            output, broadcast against weights.
    """

    plus_s: Tensor
    minus_s: Tensor
    voltage_v: Tensor
    output_per_a: Tensor


def tile_cells(known: TileOutput, geometry: ArrayGeometry, effect: str) -> TileCells:
    """Conductances and voltages of a tile.

    Args:
        known: The tile.
        geometry: Whose conductances and voltages.
        effect: Who asks, for the message.

    Raises:
        SurrogateError: The layer has no DAC, so that nobody knows which voltage an input is.
    """
    if known.input_max is None:
        raise SurrogateError(
            f"{effect} is a law of volts and amperes: the config needs a dac, which says what inputs are"
        )
    cells = weight_cells(
        known.weights, known.limit, "differential_pair", None, geometry.conductance_min_s, geometry.conductance_max_s
    )
    return TileCells(
        plus_s=cells.of_weights,
        minus_s=cells.of_references,
        voltage_v=known.inputs * (geometry.voltage_max_v / known.input_max),
        output_per_a=cells.weight_per_s * (known.input_max / geometry.voltage_max_v),
    )


def per_output(values: Tensor, known: TileOutput) -> Tensor:
    """Numbers for each output, or one for all, made to go with the outputs of the tile."""
    flat = values.reshape(-1)
    if len(flat) == 1:
        return flat.reshape(())
    # The outputs of a convolution have their positions behind the channels.
    return flat.reshape(-1, *[1] * (known.weights.dim() - 2))
