"""Cells whose current is not proportional to the voltage.

Polynomials in the voltage keep a product fast: `sum_k c_k(G) V**k` is one product for each power. They are entries of
`AnalogConfig.output_effects` as `CellCurves`. Poole-Frenkel emission has no such form and is a function of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import TileOutput
from labrig_surrogates.current_noise import BOLTZMANN_J_PER_K, ELEMENTARY_CHARGE_C
from labrig_surrogates.physical_units import per_output, tile_cells
from labrig_surrogates.tilemap import ArrayGeometry


class CellCurve(Protocol):
    """The current of a cell as `G V + c_2(G) V**2 + c_3(G) V**3`."""

    def second(self, conductance_s: Tensor) -> Tensor:
        """c_2 in A/V^2."""
        ...

    def third(self, conductance_s: Tensor) -> Tensor:
        """c_3 in A/V^3."""
        ...


@dataclass(frozen=True)
class CubicCurve:
    """`I = G (V - a V**3)` (CrossSim 3.2.0, `devices/custom/Analytical_Devices.py`, there up to 2 V).

    Attributes:
        per_v2: a in 1/V^2.
    """

    per_v2: float = 0.25

    def second(self, conductance_s: Tensor) -> Tensor:
        """Zero: the curve is odd."""
        return torch.zeros_like(conductance_s)

    def third(self, conductance_s: Tensor) -> Tensor:
        """In proportion to the conductance."""
        return -self.per_v2 * conductance_s


@dataclass(frozen=True)
class MiloCurve:
    """ReRAM of Milo et al., IRPS 2021, as CrossSim 3.2.0 fits it (`devices/custom/RRAM_Milo.py`), up to 0.5 V.

    Measured from 62.5 to 110 uS; at 225 uS the fit was told to be straight.
    """

    def second(self, conductance_s: Tensor) -> Tensor:
        """A cubic in the decimal logarithm of the conductance."""
        decades = torch.log10(conductance_s)
        return ((1.388e-4 * decades + 1.541e-3) * decades + 5.711e-3) * decades + 7.063e-3

    def third(self, conductance_s: Tensor) -> Tensor:
        """A parabola in the same."""
        decades = torch.log10(conductance_s)
        return (8.871e-5 * decades + 6.7919e-4) * decades + 1.2968e-3


def cell_current_a(curve: CellCurve, conductance_s: Tensor, voltage_v: Tensor) -> Tensor:
    """Currents in A of single cells."""
    square = voltage_v.square()
    return (
        conductance_s * voltage_v
        + curve.second(conductance_s) * square
        + curve.third(conductance_s) * square * voltage_v
    )


@dataclass(frozen=True)
class CellCurves:
    """Adds what the curves of the cells of a tile bend away from straight lines.

    Attributes:
        curve: The cells.
        geometry: Conductances and voltages of the arrays.
    """

    curve: CellCurve
    geometry: ArrayGeometry

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs with the curves' second and third powers."""
        cells = tile_cells(known, self.geometry, "a curved cell")
        square = cells.voltage_v.square()
        bent_a = known.multiply(square, self.curve.second(cells.plus_s) - self.curve.second(cells.minus_s))
        cubic = self.curve.third(cells.plus_s) - self.curve.third(cells.minus_s)
        bent_a = bent_a + known.multiply(square * cells.voltage_v, cubic)
        return outputs + per_output(cells.output_per_a, known) * bent_a


def poole_frenkel_current_a(
    voltage_v: Tensor, prefactor_s: Tensor, thickness_permittivity_f: Tensor, temperature_k: float = 293.15
) -> Tensor:
    """`I = c V exp(q / (k T) sqrt(q |V| / (pi d eps)))`, as fitted to devices by Joksas et al. (Adv. Sci. 2022).

    Args:
        voltage_v: Voltages in V.
        prefactor_s: c in S.
        thickness_permittivity_f: Thickness times permittivity, `d eps`, in F.
        temperature_k: In K.
    """
    size = voltage_v.abs()
    # Its slope at zero volts is infinite in the exponent; the current itself is flat there.
    root = torch.sqrt(ELEMENTARY_CHARGE_C * size.clamp(min=1e-30) / (math.pi * thickness_permittivity_f))
    return prefactor_s * voltage_v * torch.exp(ELEMENTARY_CHARGE_C / (BOLTZMANN_J_PER_K * temperature_k) * root)
