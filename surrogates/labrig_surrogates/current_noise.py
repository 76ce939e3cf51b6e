"""Noise that physics gives to currents: thermal noise of conductances, shot noise of charges.

Entries of `AnalogConfig.output_effects`, for layers with a DAC. Each has the variance of its law, fresh for every input
vector; outputs that share a reference column share its noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import TileOutput
from labrig_surrogates.faults import refuse, value_faults
from labrig_surrogates.physical_units import TileCells, per_output, tile_cells
from labrig_surrogates.tilemap import ArrayGeometry

BOLTZMANN_J_PER_K: Final = 1.380649e-23
"""Exact since 2019 (SI)."""
ELEMENTARY_CHARGE_C: Final = 1.602176634e-19
"""Exact since 2019 (SI)."""


def thermal_variance_a2(conductance_s: Tensor, bandwidth_hz: float, temperature_k: float) -> Tensor:
    """Variance in A^2 of the current of conductances at rest, `4 k T G df` (Johnson 1928, Nyquist 1928)."""
    return 4.0 * BOLTZMANN_J_PER_K * temperature_k * bandwidth_hz * conductance_s


def shot_variance_a2(current_a: Tensor, bandwidth_hz: float) -> Tensor:
    """Variance in A^2 of a current of independent charges, `2 q |I| df` (Schottky 1918)."""
    return 2.0 * ELEMENTARY_CHARGE_C * bandwidth_hz * current_a.abs()


def poisson_current(current_a: Tensor, integration_s: float, generator: torch.Generator) -> Tensor:
    """A mean current as whole charges counted over a time: exact where they are few.

    The bandwidth of an integration over T is `1 / (2 T)`.

    Args:
        current_a: Mean current in A.
        integration_s: T in s.
        generator: Source of the counts.
    """
    charges = current_a.abs() * (integration_s / ELEMENTARY_CHARGE_C)
    counted = torch.poisson(charges, generator=generator)
    return torch.sign(current_a) * counted * (ELEMENTARY_CHARGE_C / integration_s)


@dataclass(frozen=True)
class ThermalNoise:
    """Thermal noise of all cells on a line, whatever drives them.

    Attributes:
        geometry: Conductances and voltages of the arrays.
        bandwidth_hz: Of the integrators in Hz.
        temperature_k: Of the cells in K.

    Raises:
        SurrogateError: A value is out of range; every fault is named.
    """

    geometry: ArrayGeometry
    bandwidth_hz: float
    temperature_k: float = 300.0

    def __post_init__(self) -> None:
        refuse("thermal noise", _faults(bandwidth_hz=self.bandwidth_hz, temperature_k=self.temperature_k))

    @property
    def needs_dac(self) -> bool:
        """True: it is a law of volts."""
        return True

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs with noise."""
        cells = tile_cells(known, self.geometry, "thermal noise")

        def variance_a2(cells_s: Tensor) -> Tensor:
            line_s = cells_s.flatten(1).sum(dim=1)
            shape = list(outputs.shape)
            shape[known.axis] = len(line_s)
            each = thermal_variance_a2(line_s, self.bandwidth_hz, self.temperature_k)
            return per_output(each, known).expand(shape)

        return outputs + cells.noise(variance_a2(cells.plus_s), variance_a2(cells.minus_s))


@dataclass(frozen=True)
class ShotNoise:
    """Shot noise of the current through every cell: what flows one way and back on a line adds up here.

    Attributes:
        geometry: Conductances and voltages of the arrays.
        bandwidth_hz: Of the integrators in Hz.
        fano: Measured over full shot noise: 1 where charges are independent, 1/3 in a diffusive conductor.
        law: `gaussian`, or `poisson` for whole charges counted over an integration of `1 / (2 bandwidth_hz)`, which
            matters where they are few.

    Raises:
        SurrogateError: A value is out of range, or charges that are not independent are to be counted; every fault is
            named.
    """

    geometry: ArrayGeometry
    bandwidth_hz: float
    fano: float = 1.0
    law: Literal["gaussian", "poisson"] = "gaussian"

    def __post_init__(self) -> None:
        faults = value_faults(self) + _faults(bandwidth_hz=self.bandwidth_hz, fano=self.fano)
        if self.law == "poisson" and self.fano != 1.0:
            faults.append(f"fano = {self.fano}: charges that are counted are independent, which is a Fano factor of 1")
        refuse("shot noise", faults)

    @property
    def needs_dac(self) -> bool:
        """True: it is a law of volts."""
        return True

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs with noise."""
        cells = tile_cells(known, self.geometry, "shot noise")
        if self.law == "poisson":
            return outputs + self._counting_error(cells)
        size_v = cells.voltage_v.abs()
        plus_a2, minus_a2 = (
            self.fano * shot_variance_a2(known.multiply(size_v, cells_s), self.bandwidth_hz)
            for cells_s in (cells.plus_s, cells.minus_s)
        )
        return outputs + cells.noise(plus_a2, minus_a2)

    def _counting_error(self, cells: TileCells) -> Tensor:
        """Whole charges minus their mean, in the unit of the outputs."""
        known, charges_per_a = cells.known, 1.0 / (2.0 * self.bandwidth_hz * ELEMENTARY_CHARGE_C)

        def error_a(cells_s: Tensor) -> Tensor:
            # Charges that come and charges that go are counted by themselves, in a type that holds many of them.
            ways = []
            for way in (1.0, -1.0):
                current_a = known.multiply((way * cells.voltage_v).clamp(min=0.0), cells_s)
                mean = charges_per_a * current_a.clamp(min=0.0).double()
                ways.append(way * (known.counts(mean) - mean))
            return ((ways[0] + ways[1]) / charges_per_a).to(known.inputs)

        reference_a = error_a(cells.minus_s)
        if cells.reference_of is not None:
            reference_a = reference_a.index_select(known.axis, cells.reference_of)
        return cells.output_per_a * (error_a(cells.plus_s) - reference_a)


def _faults(**values: float) -> list[str]:
    return [f"{name} = {value} must be positive" for name, value in values.items() if not value > 0]
