"""From the levels of a tile's cells and its inputs to siemens and volts, for effects whose laws are of currents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import TileOutput
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.line_noise import difference_noise
from labrig_surrogates.tilemap import ArrayGeometry


@dataclass(frozen=True)
class TileCells:
    """The cells of one tile, and what drives them.

    Attributes:
        plus_s: Conductances in S of the cells that weights add to, of the shape of the tile's weights.
        minus_s: Conductances in S of the cells that are subtracted: of the same shape for pairs, with the reference
            columns in place of the outputs where outputs share them.
        reference_of: Number of the reference column of each output; None for pairs.
        voltage_v: Line voltages in V, of the shape of the tile's inputs.
        output_per_a: Output, in the unit of the layer's, of one ampere of difference: one number, or one for each
            output, made to go with the outputs.
        known: The tile.
    """

    plus_s: Tensor
    minus_s: Tensor
    reference_of: Tensor | None
    voltage_v: Tensor
    output_per_a: Tensor
    known: TileOutput

    def difference(self, plus: Tensor, minus: Tensor) -> Tensor:
        """`plus - minus` for each weight, of values of the cells."""
        return plus - (minus if self.reference_of is None else minus.index_select(0, self.reference_of))

    def noise(self, plus_a2: Tensor, minus_a2: Tensor) -> Tensor:
        """Noise of the outputs, in their unit, from the variances in A^2 of all lines at all vectors."""
        known = self.known
        noise_a = difference_noise(plus_a2, minus_a2, self.reference_of, known.fresh, known.axis)
        return self.output_per_a * noise_a


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
    cells, low_s, span_s = known.cells(), geometry.conductance_min_s, geometry.conductance_span_s
    per_level = torch.as_tensor(cells.weight_per_level).to(known.weights)
    per_a = per_level * (known.input_max / (span_s * geometry.voltage_max_v))
    return TileCells(
        plus_s=low_s + span_s * cells.of_weights,
        minus_s=low_s + span_s * cells.of_references,
        reference_of=cells.reference_of,
        voltage_v=known.inputs * (geometry.voltage_max_v / known.input_max),
        output_per_a=per_output(per_a, known),
        known=known,
    )


def product_of(known: TileOutput, effect: str) -> Tensor:
    """One product in the unit of the outputs, one or for each output, without a gradient.

    Args:
        known: The tile.
        effect: Who asks, for the message.

    Raises:
        SurrogateError: The layer has no DAC.
    """
    if known.input_max is None:
        raise SurrogateError(f"{effect} counts products: the config needs a dac, which says what inputs are")
    return per_output(known.limit.detach(), known) * known.input_max.detach()


def per_output(values: Tensor, known: TileOutput) -> Tensor:
    """Numbers for each output, or one for all, made to go with the outputs of the tile."""
    flat = values.reshape(-1)
    if len(flat) == 1:
        return flat.reshape(())
    # The outputs of a convolution have their positions behind the channels.
    return flat.reshape(-1, *[1] * (known.weights.dim() - 2))
