"""A calibrated chip as training sees it: surrogates, geometry, converters, and which version of the fit it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from labrig.placement import geometry_of_calibration, model_tiles, place
from labrig.training.datasets import ImageSet
from labrig.training.deployment import deployed_network
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.backend import NominalBackend, SurrogateBackend
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange
from labrig_surrogates.tilemap import ArrayGeometry


@dataclass(frozen=True)
class ChipModel:
    """A calibrated chip.

    Attributes:
        parameters: The fit.
        surrogates: Fitted arrays by index.
        geometry: Size and ranges of its arrays.
        converters: DAC and ADC.
        version: How often the fit was renewed from passes of a training.
    """

    parameters: ChipParameters
    surrogates: dict[int, ArraySurrogate]
    geometry: ArrayGeometry
    converters: ConverterRange
    version: int = 0

    @classmethod
    def of(cls, chip: ChipParameters, version: int = 0) -> ChipModel:
        """Builds the surrogates of every fitted array."""
        first = next(iter(chip.arrays.values()))
        return cls(
            parameters=chip,
            surrogates={index: ArraySurrogate(array) for index, array in chip.arrays.items()},
            geometry=geometry_of_calibration(first.converters, first.rows, first.columns),
            converters=first.converters,
            version=version,
        )

    @property
    def chip_id(self) -> str:
        """Which chip."""
        return self.parameters.chip_id

    def renewed(self, arrays: Mapping[int, ArrayParameters]) -> ChipModel:
        """The same chip, with some arrays fitted anew."""
        return ChipModel.of(replace(self.parameters, arrays={**self.parameters.arrays, **arrays}), self.version + 1)

    def placement(self, network: nn.Module) -> dict[str, int]:
        """An array for each tile of a network."""
        return place(model_tiles(network), sorted(self.surrogates))

    def backend(
        self,
        network: nn.Module,
        generator: torch.Generator,
        *,
        conductance_step_s: float = 0.0,
        stochastic: bool = False,
    ) -> SurrogateBackend:
        """The surrogate backend of a network; the last two as in `SurrogateBackend`."""
        return SurrogateBackend(
            self.surrogates,
            self.placement(network),
            generator,
            conductance_step_s=conductance_step_s,
            stochastic=stochastic,
        )

    def deployed(self, digital: nn.Module, data: ImageSet) -> nn.Module:
        """The digital weights on the arrays, as well as that can be done without measuring the chip."""
        return deployed_network(digital, self.geometry, NominalBackend(self.converters), data)
