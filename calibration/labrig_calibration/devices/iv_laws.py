"""Laws of a current over a voltage, and their parameters in scaled units.

| law | current | parameters |
| --- | --- | --- |
| ohmic | G V | ln G |
| odd cubic | G (V - a V**3) | ln G, a |
| cubic | G (V + p V**2 + q V**3) | ln G, p, q |
| Poole-Frenkel | c V exp(b sqrt(abs(V))) | ln c, b |

Poole-Frenkel's b is q / (k T) sqrt(q / (pi d eps)), as Joksas et al. (Adv. Sci. 2022) fit it; the odd cubic is the
curve of CrossSim 3.2.0 (`Analytical_Devices.py`), the full one that of Milo's ReRAM there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.current_noise import BOLTZMANN_J_PER_K, ELEMENTARY_CHARGE_C

LAWS: dict[str, int] = {"ohmic": 1, "odd cubic": 2, "cubic": 3, "Poole-Frenkel": 2}
"""Number of parameters of each law."""


def scaled_current(law: str, parameters: Tensor, voltage: Tensor) -> Tensor:
    """Current of a law, both in units of the curve's largest.

    Args:
        law: One of `LAWS`.
        parameters: `[parameters of the law, ...]`.
        voltage: `[n]`.
    """
    straight = torch.exp(parameters[0]) * voltage
    if law == "odd cubic":
        return straight * (1.0 - parameters[1] * voltage**2)
    if law == "cubic":
        return straight * (1.0 + parameters[1] * voltage + parameters[2] * voltage**2)
    if law == "Poole-Frenkel":
        return straight * torch.exp(parameters[1] * voltage.abs().clamp(min=1e-30).sqrt())
    return straight


@dataclass(frozen=True)
class Unscaled:
    """What the parameters of a law are called, their units, and the factors out of scaled units.

    Attributes:
        names: One for each parameter; the first is that whose logarithm was fitted.
        units: SI units.
        powers: Power of the voltage scale in each; the first has the current scale over it as well.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    powers: tuple[float, ...]


UNSCALED = {
    "ohmic": Unscaled(("G",), ("S",), (-1.0,)),
    "odd cubic": Unscaled(("G", "a"), ("S", "1/V^2"), (-1.0, -2.0)),
    "cubic": Unscaled(("G", "p", "q"), ("S", "1/V", "1/V^2"), (-1.0, -1.0, -2.0)),
    "Poole-Frenkel": Unscaled(("c", "b"), ("S", "1/V^0.5"), (-1.0, -0.5)),
}
"""For each law."""


def thickness_permittivity_f(slope: float, temperature_k: float) -> float:
    """`d eps` in F from Poole-Frenkel's b in 1/V^0.5; infinite where the slope is not positive.

    Args:
        slope: b.
        temperature_k: Temperature in K.
    """
    if not slope > 0.0:
        return math.inf
    thermal_v = BOLTZMANN_J_PER_K * temperature_k / ELEMENTARY_CHARGE_C
    return ELEMENTARY_CHARGE_C / (math.pi * (slope * thermal_v) ** 2)
