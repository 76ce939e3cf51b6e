"""A layer's arrays with their wires and crosstalk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import ProgrammedWeights
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.tilemap import TileMap
from labrig_surrogates.wiring import Wiring, wired_transfer


@dataclass(frozen=True)
class WiringEffect:
    """Voltage drop and crosstalk on the lines of every tile: an entry of `AnalogConfig.weight_effects`, the last one.

    Lines are linear in the voltages, so that their effect on a tile is one on its weights, found anew whenever these
    change. Unused cells of an array load its lines too. What is solved are the cells that the weights stand for: of a
    pair whose cells have both missed their targets, the difference is kept and the sum is not.

    Attributes:
        wiring: The lines; `solution="first-order"` for training where they lose up to a tenth.
    """

    wiring: Wiring

    @property
    def fresh_at_read(self) -> bool:
        """False: wires draw no numbers."""
        return False

    def on_weights(self, weights: Tensor, known: ProgrammedWeights) -> Tensor:
        """The weights that the arrays act like.

        Raises:
            SurrogateError: The config names no arrays of physical conductances.
        """
        geometry = known.geometry
        if geometry is None or geometry.conductance_max_s >= 1.0:
            raise SurrogateError(
                "wires need AnalogConfig.geometry with conductances in S: what they lose depends on them"
            )
        outputs, unit = weights.shape[0] // known.groups, weights[0, 0].numel()
        changed, matrix = [], weights.flatten(1)
        limits = known.limit.expand(weights.shape[0], *[1] * (weights.dim() - 1)).flatten(1)
        for first in range(0, len(matrix), outputs):
            group, limit = matrix[first : first + outputs], limits[first : first + outputs]
            tiles = TileMap(outputs, group.shape[1], geometry, scheme=known.scheme, input_unit=unit)
            cells = torch.stack(tiles.conductances(group, limit))
            lost = tiles.weight([*(wired_transfer(cells, self.wiring) - cells)], limit)
            changed.append(group + lost)
        return torch.cat(changed).view_as(weights)
