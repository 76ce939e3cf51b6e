"""Cells whose current is not proportional to the voltage.

Sums of powers of the voltage keep a product fast: `sum_k c_k(G) V**k` is one product for each power. `CellCurves` puts
a curve into `AnalogConfig.output_effects`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import TileOutput
from labrig_surrogates.current_noise import BOLTZMANN_J_PER_K, ELEMENTARY_CHARGE_C
from labrig_surrogates.faults import refuse
from labrig_surrogates.physical_units import TileCells, tile_cells
from labrig_surrogates.tilemap import ArrayGeometry


class Power(NamedTuple):
    """One term of the current of cells: `coefficient |V|**power`, with the sign of V where it is odd.

    Attributes:
        power: Exponent, at least one, a whole or half number.
        odd: Whether the current changes its sign with the voltage.
        coefficient: In A/V^power, one for each cell.
    """

    power: float
    odd: bool
    coefficient: Tensor

    def voltages(self, voltage_v: Tensor) -> Tensor:
        """`|V|**power`, with the sign of V where it is odd."""
        size, whole = voltage_v.abs(), int(self.power)
        found = voltage_v if self.odd else size
        if whole > 1:
            found = found * size.pow(whole - 1)
        # Powers are whole or half; the floor keeps the slope of the root at zero volts a number.
        return found if self.power == whole else found * torch.sqrt(size.clamp(min=1e-30))


class CellCurve(Protocol):
    """The current of a cell as `G V` and powers of V."""

    def powers(self, conductance_s: Tensor) -> Sequence[Power]:
        """What is added to `G V`."""
        ...


@dataclass(frozen=True)
class CubicCurve:
    """`I = G (V - a V**3)` (CrossSim 3.2.0, `devices/custom/Analytical_Devices.py`, there up to 2 V).

    Attributes:
        per_v2: a in 1/V^2.
    """

    per_v2: float = 0.25

    def powers(self, conductance_s: Tensor) -> Sequence[Power]:
        """The third power, in proportion to the conductance."""
        return (Power(3, True, -self.per_v2 * conductance_s),)


@dataclass(frozen=True)
class MiloCurve:
    """ReRAM of Milo et al., IRPS 2021, as CrossSim 3.2.0 fits it (`devices/custom/RRAM_Milo.py`), up to 0.5 V.

    Measured from 62.5 to 110 uS; at 225 uS the fit was told to be straight.
    """

    def powers(self, conductance_s: Tensor) -> Sequence[Power]:
        """The second and third power: a cubic and a parabola in the decimal logarithm of the conductance."""
        decades = torch.log10(conductance_s)
        second = ((1.388e-4 * decades + 1.541e-3) * decades + 5.711e-3) * decades + 7.063e-3
        third = (8.871e-5 * decades + 6.7919e-4) * decades + 1.2968e-3
        return (Power(2, False, second), Power(3, True, third))


def cell_current_a(curve: CellCurve, conductance_s: Tensor, voltage_v: Tensor) -> Tensor:
    """Currents in A of single cells."""
    current_a = conductance_s * voltage_v
    for power in curve.powers(conductance_s):
        current_a = current_a + power.coefficient * power.voltages(voltage_v)
    return current_a


@dataclass(frozen=True)
class CellCurves:
    """Adds what the curves of the cells of a tile bend away from straight lines.

    Attributes:
        curve: The cells.
        geometry: Conductances and voltages of the arrays.
    """

    curve: CellCurve
    geometry: ArrayGeometry

    @property
    def needs_dac(self) -> bool:
        """True: it is a law of volts."""
        return True

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs with the curves' higher powers."""
        cells = tile_cells(known, self.geometry, "a curved cell")
        return outputs + _bent(self.curve, cells)


def _bent(curve: CellCurve, cells: TileCells) -> Tensor:
    """What the powers of a curve add to the outputs of a tile."""
    known, bent_a = cells.known, None
    for plus, minus in zip(curve.powers(cells.plus_s), curve.powers(cells.minus_s), strict=True):
        coefficient = cells.difference(plus.coefficient, minus.coefficient)
        part_a = known.multiply(plus.voltages(cells.voltage_v), coefficient)
        bent_a = part_a if bent_a is None else bent_a + part_a
    return cells.output_per_a * (torch.zeros(()) if bent_a is None else bent_a)


@dataclass(frozen=True)
class PooleFrenkelCurve:
    """`I = c V exp(q / (k T) sqrt(q |V| / (pi d eps)))`, c and d eps by the resistance (Joksas et al., Adv. Sci. 2022).

    `ln c` and `ln(d eps)` are linear in `ln R`, as fitted there to devices of many states. The exponential is a series
    in half powers of the voltage, as long as the largest voltage needs for 1e-6.

    Attributes:
        geometry: Conductances and voltages of the arrays.
        ln_prefactor: Constant and slope of ln(c / S) by ln(R / ohm).
        ln_thickness_permittivity: Constant and slope of ln(d eps / F) by ln(R / ohm).
        temperature_k: In K.

    Raises:
        SurrogateError: Cells without a resistance, or an exponent that is too large for a series.
    """

    geometry: ArrayGeometry
    ln_prefactor: tuple[float, float]
    ln_thickness_permittivity: tuple[float, float]
    temperature_k: float = 293.15

    def __post_init__(self) -> None:
        faults = [] if self.temperature_k > 0 else [f"temperature_k = {self.temperature_k} must be positive"]
        if not 0.0 < self.geometry.conductance_min_s < self.geometry.conductance_max_s:
            faults.append("geometry.conductance_min_s must be positive: an open cell has no resistance to go by")
        if not faults and self.largest_exponent > _LARGEST_EXPONENT:
            faults.append(
                f"the exponent reaches {self.largest_exponent:.3g} at {self.geometry.voltage_max_v} V, more than "
                f"{_LARGEST_EXPONENT:g}: a lower voltage_max_v, or another fit"
            )
        refuse("Poole-Frenkel emission", faults)

    @property
    def largest_exponent(self) -> float:
        """Largest exponent within the range of conductances and voltages."""
        ends = (self.geometry.conductance_min_s, self.geometry.conductance_max_s)
        constant, slope = self.ln_thickness_permittivity
        roots = [math.sqrt(_PER_C / math.exp(constant - slope * math.log(end))) for end in ends]
        return max(roots) * math.sqrt(self.geometry.voltage_max_v) * self._per_v()

    def _per_v(self) -> float:
        return ELEMENTARY_CHARGE_C / (BOLTZMANN_J_PER_K * self.temperature_k)

    @property
    def terms(self) -> int:
        """Terms of the series whose rest is below 1e-6 of the current, at the largest exponent and so everywhere."""
        largest = self.largest_exponent
        count, term, total = 1, 1.0, 1.0
        while math.exp(largest) - total > 1e-6 * math.exp(largest):
            term *= largest / count
            total += term
            count += 1
        return count

    def powers(self, conductance_s: Tensor) -> Sequence[Power]:
        """The series, minus `G V`."""
        # Noise may leave the range; the fit does not follow it to where there is no cell.
        ohm = -torch.log(conductance_s.clamp(min=0.1 * self.geometry.conductance_min_s))
        prefactor_s = torch.exp(self.ln_prefactor[0] + self.ln_prefactor[1] * ohm)
        thickness = torch.exp(self.ln_thickness_permittivity[0] + self.ln_thickness_permittivity[1] * ohm)
        rise = self._per_v() * torch.sqrt(_PER_C / thickness)
        coefficient, found = prefactor_s, [Power(1, True, prefactor_s - conductance_s)]
        for number in range(1, self.terms):
            coefficient = coefficient * rise / number
            found.append(Power(1 + 0.5 * number, True, coefficient))
        return found


_PER_C = ELEMENTARY_CHARGE_C / math.pi
_LARGEST_EXPONENT = 12.0
"""Where single precision still holds the sum of the series."""


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
