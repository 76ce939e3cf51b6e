"""Noise that physics gives to currents: thermal noise of conductances, shot noise of charges.

Entries of `AnalogConfig.output_effects`, for layers with differential pairs and a DAC. Each is Gaussian with the
variance of its law, fresh for every input vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import TileOutput
from labrig_surrogates.faults import refuse
from labrig_surrogates.physical_units import per_output, tile_cells
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

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs with noise."""
        cells = tile_cells(known, self.geometry, "thermal noise")
        line_s = (cells.plus_s + cells.minus_s).flatten(1).sum(dim=1)
        sigma = thermal_variance_a2(line_s, self.bandwidth_hz, self.temperature_k).sqrt()
        scale = per_output(cells.output_per_a.reshape(-1) * sigma, known)
        return outputs + scale * known.fresh(outputs.shape)


@dataclass(frozen=True)
class ShotNoise:
    """Shot noise of the current through every cell: what flows one way and back on a line adds up here.

    Attributes:
        geometry: Conductances and voltages of the arrays.
        bandwidth_hz: Of the integrators in Hz.
        fano: Measured over full shot noise: 1 where charges are independent, 1/3 in a diffusive conductor.

    Raises:
        SurrogateError: A value is out of range; every fault is named.
    """

    geometry: ArrayGeometry
    bandwidth_hz: float
    fano: float = 1.0

    def __post_init__(self) -> None:
        refuse("shot noise", _faults(bandwidth_hz=self.bandwidth_hz, fano=self.fano))

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs with noise."""
        cells = tile_cells(known, self.geometry, "shot noise")
        current_a = known.multiply(cells.voltage_v.abs(), cells.plus_s + cells.minus_s)
        # The square root of nothing has no slope.
        variance_a2 = (self.fano * shot_variance_a2(current_a, self.bandwidth_hz)).clamp(min=1e-36)
        return outputs + per_output(cells.output_per_a, known) * variance_a2.sqrt() * known.fresh(outputs.shape)


def _faults(**values: float) -> list[str]:
    return [f"{name} = {value} must be positive" for name, value in values.items() if not value > 0]
