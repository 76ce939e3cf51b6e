"""A calibrated chip as training sees it: surrogates, geometry, and the best ranges that the data sheet allows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from labrig.placement import geometry_of_calibration, place
from labrig.training.datasets import ImageSet
from labrig.training.network import accuracy, analog_network, deploy, tile_names
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.backend import NominalBackend, SurrogateBackend
from labrig_surrogates.layers import set_backend
from labrig_surrogates.parameters import ChipParameters, ConverterRange
from labrig_surrogates.tilemap import ArrayGeometry

# Part of the weights, and of the inputs, that is clipped: the grid from which deployment takes the best.
_QUANTILES = (1.0, 0.999, 0.99, 0.97)


@dataclass(frozen=True)
class ChipModel:
    """A calibrated chip.

    Attributes:
        chip_id: Which chip.
        surrogates: Fitted arrays by index.
        geometry: Size and ranges of its arrays.
        converters: DAC and ADC.
    """

    chip_id: str
    surrogates: dict[int, ArraySurrogate]
    geometry: ArrayGeometry
    converters: ConverterRange

    @classmethod
    def of(cls, chip: ChipParameters) -> ChipModel:
        """Builds the surrogates of every fitted array."""
        first = next(iter(chip.arrays.values()))
        return cls(
            chip_id=chip.chip_id,
            surrogates={index: ArraySurrogate(array) for index, array in chip.arrays.items()},
            geometry=geometry_of_calibration(first.converters, first.rows, first.columns),
            converters=first.converters,
        )

    def placement(self, network: nn.Module) -> dict[str, int]:
        """An array for each tile of a network."""
        return place(tile_names(network), sorted(self.surrogates))

    def backend(self, network: nn.Module, generator: torch.Generator) -> SurrogateBackend:
        """The surrogate backend of a network."""
        return SurrogateBackend(self.surrogates, self.placement(network), generator)


def deployed_network(digital: nn.Sequential, chip: ChipModel, data: ImageSet, hidden: int) -> nn.Sequential:
    """The digital weights on analog layers, with the best ranges that can be chosen without measuring the chip.

    Every combination of clipping weights and inputs is tried on the data sheet's chip (exact conductances behind the
    real converters), and the one with the best training accuracy is kept.
    """
    nominal = NominalBackend(chip.converters)
    best: tuple[float, nn.Sequential] | None = None
    for weight_quantile, input_quantile in product(_QUANTILES, repeat=2):
        network = analog_network(data.train_x.shape[1], hidden, data.classes, chip.geometry)
        deploy(digital, network, data, weight_quantile=weight_quantile, input_quantile=input_quantile)
        set_backend(network, nominal)
        score = accuracy(network, data.train_x, data.train_y)
        if best is None or score > best[0]:
            best = (score, network)
    assert best is not None
    return best[1]
