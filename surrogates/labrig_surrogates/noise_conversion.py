"""One noise under another definition: the level that gives the same standard deviation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labrig_surrogates.faults import refuse
from labrig_surrogates.noise_levels import OUTPUT_DEFINITIONS, WEIGHT_DEFINITIONS, Definition, NoiseSpec, OutputScale


@dataclass(frozen=True)
class WeightScale:
    """The three numbers of a weight tensor that its noise definitions refer to.

    Attributes:
        maximum: Largest weight.
        minimum: Smallest weight, with its sign.
        std: Standard deviation of the weights (divided by n).
    """

    maximum: float
    minimum: float
    std: float

    @classmethod
    def of(cls, weight: Tensor) -> WeightScale:
        """The scale of a weight tensor, after clipping and quantisation."""
        wide = weight.detach().double()
        return cls(float(wide.max()), float(wide.min()), float(wide.std(correction=0)))

    @property
    def largest_magnitude(self) -> float:
        """w_max = max|W|."""
        return max(abs(self.maximum), abs(self.minimum))

    @property
    def crest_factor(self) -> float:
        """Ratio kappa = w_max / sigma_w: relative weight noise under `wmax` is N kappa; clipping at 2 sigma makes it 2.

        Raises:
            SurrogateError: All weights are equal.
        """
        refuse("crest factor", ["all weights are equal"] if self.std == 0 else [])
        return self.largest_magnitude / self.std


def convert(spec: NoiseSpec, to: Definition, scale: WeightScale | OutputScale) -> NoiseSpec:
    """The same noise, said under another definition.

    `wmax`, `wrange`, `wrms` and `abs` convert into each other with a `WeightScale`; `ostd`, `ofs`, `aihwkit` and `abs`
    with an `OutputScale` per tensor. `wmult` gives each weight a standard deviation of its own, and a weight noise
    becomes an output noise only for given inputs: neither is one number, and both are refused.

    Args:
        spec: The noise, per tensor.
        to: The definition wanted.
        scale: Scale of the weights or outputs that the noise acts on.

    Returns:
        A noise with the same standard deviation, timing, location and law.

    Raises:
        SurrogateError: There is no such level; every reason is named.
    """
    faults = _conversion_faults(spec, to, scale)
    refuse(f"{spec.definition} as {to}", faults)
    units = _units(scale)
    missing = [f"the scale does not hold what {name} refers to" for name in (spec.definition, to) if name not in units]
    refuse(f"{spec.definition} as {to}", missing)
    refuse(f"{spec.definition} as {to}", [f"the scale of {to} is zero"] if units[to] == 0 else [])
    return replace(spec, definition=to, level=spec.level * units[spec.definition] / units[to])


def _conversion_faults(spec: NoiseSpec, to: Definition, scale: WeightScale | OutputScale) -> list[str]:
    faults = []
    if "wmult" in {spec.definition, to} and spec.definition != to:
        faults.append(
            "wmult has a standard deviation for each weight, the others one for all: no level makes them equal"
        )
    allowed = WEIGHT_DEFINITIONS if spec.location == "weight" else OUTPUT_DEFINITIONS
    if to not in {*allowed, "abs"}:
        faults.append(f"a noise at location {spec.location} cannot be given by {to}: that depends on the inputs")
    if spec.per != "tensor":
        faults.append(f"per {spec.per} there is a level for each {spec.per}, not one")
    if isinstance(scale, WeightScale) != (spec.location == "weight"):
        wanted = "WeightScale" if spec.location == "weight" else "OutputScale"
        faults.append(f"a noise at location {spec.location} needs {wanted}, not {type(scale).__name__}")
    if isinstance(scale, OutputScale) and scale.std.numel() != 1:
        faults.append(f"the scale has {scale.std.numel()} columns: measure it per tensor")
    return faults


def _units(scale: WeightScale | OutputScale) -> dict[Definition, float]:
    if isinstance(scale, WeightScale):
        span = scale.maximum - scale.minimum
        return {"wmax": scale.largest_magnitude, "wrange": span, "wrms": scale.std, "wmult": 1.0, "abs": 1.0}
    tensors: dict[Definition, Tensor | None] = {
        "ostd": scale.std,
        "ofs": scale.full_scale,
        "aihwkit": scale.input_times_weight,
        "abs": torch.ones(()),
    }
    return {name: float(tensor) for name, tensor in tensors.items() if tensor is not None}
