"""A layer's arrays with their wires and crosstalk."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import ProgrammedWeights
from labrig_surrogates.cell_pairs import WeightCells
from labrig_surrogates.tilemap import TileMap
from labrig_surrogates.wiring import Wiring, wired_transfer


@dataclass(frozen=True)
class WiringEffect:
    """Voltage drop and crosstalk on the lines of every tile: an entry of `AnalogConfig.weight_effects`, the last one.

    Lines are linear in the voltages, so that their effect on a tile is one on its cells, found anew whenever these
    change: each cell counts with the share of its current that reaches the output. Unused cells of an array load its
    lines too, and so does what the effects before this one have made of the cells. Noise of reading a cell goes out
    with the share that its current has; noise that a config adds later (`weight_noise`) does not load the lines.

    Attributes:
        wiring: The lines; `solution="first-order"` for training where they lose up to a tenth.
    """

    wiring: Wiring

    @property
    def fresh_at_read(self) -> bool:
        """False: wires draw no numbers."""
        return False

    @property
    def needs_conductances(self) -> bool:
        """True: what wires lose depends on the conductances, which `AnalogConfig.geometry` has to name."""
        return True

    def on_cells(self, cells: WeightCells, known: ProgrammedWeights) -> WeightCells:
        """The cells that the arrays act like."""
        geometry = known.geometry
        assert geometry is not None, "AnalogConfig refuses wires without conductances"
        outputs, unit = len(cells.of_weights) // known.groups, cells.of_weights[0, 0].numel()
        own, reference = (part.flatten(1).chunk(known.groups) for part in (cells.of_weights, cells.of_references))
        tiles = TileMap(outputs, own[0].shape[1], geometry, scheme=known.scheme, input_unit=unit)
        ideal = [torch.stack(tiles.place(*group)) for group in zip(own, reference, strict=True)]
        lost = [wired_transfer(siemens, self.wiring) - siemens for siemens in ideal]
        own_lost, reference_lost = _lifted(tiles, lost, cells)
        span_s = geometry.conductance_span_s
        wired = replace(
            cells,
            of_weights=cells.of_weights + own_lost / span_s,
            of_references=cells.of_references + reference_lost / span_s,
        )
        if cells.read_variance is None:
            return wired
        # A cell without a conductance has no noise.
        safe = [torch.where(siemens > 0, siemens, 1.0) for siemens in ideal]
        shares = [1.0 + part / siemens for part, siemens in zip(lost, safe, strict=True)]
        own_share, reference_share = _lifted(tiles, shares, cells)
        own_variance, reference_variance = cells.read_variance
        variance = (own_variance * own_share.square(), reference_variance * reference_share.square())
        return replace(wired, read_variance=variance)


def _lifted(tiles: TileMap, values: list[Tensor], like: WeightCells) -> tuple[Tensor, Tensor]:
    """Values of the cells of all groups, `[tiles, rows, columns]` each, in the shapes of the cells."""
    own, reference = zip(*(tiles.lift([*group]) for group in values), strict=True)
    return torch.cat(own).view_as(like.of_weights), torch.cat(reference).view_as(like.of_references)
