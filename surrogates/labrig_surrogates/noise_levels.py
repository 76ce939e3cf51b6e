"""What "10 % noise" means: the definitions in use, as standard deviations for a given weight or output.

The same number under two definitions differs by a factor of two to ten in effect, so that a level without its
definition, timing and location says nothing. `NoiseSpec` holds all of them and prints like a row of a table.

| definition | standard deviation for a level N | who uses it |
| --- | --- | --- |
| `wmax` | N times the largest magnitude of W | NeuRRAM's code, aihwkit ADD_NORMAL, Joshi 2020 |
| `wrange` | N (max W - min W) | Noisy Machines (arXiv 2001.04974) |
| `wmult` | N times the magnitude of each weight | analog diffusion transformers, 2026 |
| `wrms` | N times the standard deviation of W | theory |
| `ostd` | N times the standard deviation of the clean output | labrig |
| `ofs` | N times the full scale of the ADC | data sheets |
| `aihwkit` | N times (largest input times largest weight), on the output | Rasch 2023 (arXiv 2302.08469) |
| `abs` | N itself | walking noise, VANT (weights there clamped to -1 ... 1) |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from labrig_surrogates.faults import refuse, told
from labrig_surrogates.quantization import wide

Definition = Literal["wmax", "wrange", "wmult", "wrms", "ostd", "ofs", "aihwkit", "abs"]
"""How a level becomes a standard deviation."""

Timing = Literal["program", "read"]
"""`program`: one draw for each chip instance, kept for the whole test set; `read`: a fresh one at every MVM."""

Location = Literal["weight", "tile", "layer"]
"""Where it enters: on each weight; on each tile's output before the digital sum; once on the layer's output."""

Granularity = Literal["tensor", "column", "tile"]
"""Over what the maximum or the deviation is taken: the layer, one output column or channel, one tile."""

Law = Literal["gaussian", "poisson"]
"""`poisson`: Gaussian with variance `sigma**2 |y| / E|y|`, the same power, in proportion to the signal (shot noise)."""

WEIGHT_DEFINITIONS = frozenset({"wmax", "wrange", "wmult", "wrms"})
OUTPUT_DEFINITIONS = frozenset({"ostd", "ofs", "aihwkit"})

_WORDS = {
    "wmax": "of max|W|",
    "wrange": "of the range of W",
    "wmult": "of each weight",
    "wrms": "of the std of W",
    "ostd": "of the output's std",
    "ofs": "of the ADC's full scale",
    "aihwkit": "of max|x| max|W|",
}
_PLACES = {"weight": "on the weights", "tile": "on each tile's output", "layer": "on the layer's output"}


@dataclass(frozen=True)
class NoiseSpec:
    """One noise, fully said: `str(spec)` is its entry in a table.

    `NoiseSpec(0.10, "wmax", "program", "weight")` is the default weight noise at 10 %, and
    `NoiseSpec(0.10, "ostd", "read", "layer")` the default activation noise.

    Attributes:
        level: N, as a fraction: 0.10 is 10 %. For `abs` in the unit of the weight or output.
        definition: How N becomes a standard deviation.
        timing: When it is drawn.
        location: Where it enters.
        per: Over what the scale of the definition is taken.
        tile_rows: Inputs of one tile; needed by `per="tile"` and `location="tile"`, refused elsewhere.
        tile_columns: Signed outputs of one tile, for `per="tile"` on weights; `None` is all of them.
        law: Distribution.

    Raises:
        SurrogateError: The parts do not go together; every fault is named.
    """

    level: float
    definition: Definition
    timing: Timing
    location: Location
    per: Granularity = "tensor"
    tile_rows: int | None = None
    tile_columns: int | None = None
    law: Law = "gaussian"

    def __post_init__(self) -> None:
        refuse("noise", _word_faults(self) or _combination_faults(self))

    def __str__(self) -> str:
        number = f"{self.level:.4g}" if self.definition == "abs" else f"{100 * self.level:.4g} %"
        words = _WORDS.get(self.definition, "absolute")
        per = "" if self.per == "tensor" else f" of each {self.per}"
        size = f", tiles of {self.tile_rows} rows" if self.tile_rows is not None else ""
        law = "" if self.law == "gaussian" else f", {self.law.capitalize()}"
        return f"{self.definition}/{self.timing} {number} {words}{per}, {_PLACES[self.location]}{size}{law}"

    def at(self, level: float) -> NoiseSpec:
        """The same noise at another level, for a schedule or a robustness curve."""
        return replace(self, level=level)

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in dB of an output noise given by `ostd` on the layer: -20 log10 N.

        Raises:
            SurrogateError: The definition does not fix the ratio, or the level is zero.
        """
        faults = []
        if (self.definition, self.location) != ("ostd", "layer"):
            faults.append(f"{self.definition} at the {self.location} does not fix it; ostd at the layer does")
        if self.level == 0:
            faults.append("without noise it is infinite")
        refuse("signal-to-noise ratio", faults)
        return -20.0 * math.log10(self.level)


def _word_faults(spec: NoiseSpec) -> list[str]:
    allowed = {"definition": Definition, "timing": Timing, "location": Location, "per": Granularity, "law": Law}
    return [
        f"{name} {getattr(spec, name)!r} is none of {', '.join(get_args(words))}"
        for name, words in allowed.items()
        if getattr(spec, name) not in get_args(words)
    ]


def _combination_faults(spec: NoiseSpec) -> list[str]:
    on_weights = spec.location == "weight"
    faults = []
    if not (math.isfinite(spec.level) and spec.level >= 0):
        faults.append(f"level {told(spec.level)}: a level is finite and not negative (10 % is 0.10)")
    if spec.definition in WEIGHT_DEFINITIONS and not on_weights:
        faults.append(f"{spec.definition} is a fraction of weights and cannot enter at the {spec.location}'s output")
    if spec.definition in OUTPUT_DEFINITIONS and on_weights:
        faults.append(f"{spec.definition} is a fraction of outputs and cannot enter on the weights: say tile or layer")
    if not on_weights and spec.timing == "program":
        faults.append("output noise is fresh at every MVM: a frozen error of an output is an offset, to be calibrated")
    if spec.law == "poisson" and on_weights:
        faults.append("Poisson noise follows the signal of an output; weights have none")
    if spec.definition in {"wmult", "abs"} and spec.per != "tensor":
        faults.append(f"{spec.definition} has no scale that could be taken per {spec.per}: leave per out")
    return faults + _tile_faults(spec, on_weights)


def _tile_faults(spec: NoiseSpec, on_weights: bool) -> list[str]:
    faults = []
    tiled = spec.per == "tile" or spec.location == "tile"
    if tiled and spec.tile_rows is None:
        faults.append("a noise per tile needs tile_rows")
    if not tiled and spec.tile_rows is not None:
        faults.append("tile_rows has no effect without per='tile' or location='tile'")
    if spec.tile_columns is not None and not (on_weights and spec.per == "tile"):
        faults.append("tile_columns has an effect on weights with per='tile' only")
    if spec.per == "tile" and spec.location == "layer":
        faults.append("a layer's output is the sum of its tiles and has no scale per tile: say location='tile'")
    if any(size is not None and size < 1 for size in (spec.tile_rows, spec.tile_columns)):
        faults.append("a tile has at least one row and one column")
    return faults


def weight_sigma(spec: NoiseSpec, weight: Tensor) -> Tensor:
    """Standard deviation of a weight noise, broadcast against the weight.

    The scale is a property of the mapping, as a conductance range is: it carries no gradient. Under `wmult` the noise
    follows each weight, and so does the gradient.

    Args:
        spec: A noise whose location is `weight`.
        weight: Weights after clipping and quantisation, `[outputs, inputs, ...]`; a column is one output.

    Returns:
        Shape `[1, 1, ...]` per tensor, `[outputs, 1, ...]` per column, the weight's own per tile and for `wmult`.

    Raises:
        SurrogateError: The noise is not one of weights, or the weight has fewer than two dimensions.
    """
    faults = [] if spec.location == "weight" else [f"{spec} is not a noise of weights: use output_sigma"]
    if weight.dim() < 2 or weight.numel() == 0:
        faults.append(f"weights are [outputs, inputs, ...], not {tuple(weight.shape)}")
    refuse("standard deviation of a weight noise", faults)
    if spec.definition == "wmult":
        return spec.level * weight.abs()
    ones = [1] * (weight.dim() - 2)
    matrix = weight.detach().flatten(1)
    if spec.definition == "abs":
        return torch.full_like(matrix[:1, :1], spec.level).reshape(1, 1, *ones)
    if spec.per == "tile":
        return spec.level * _tile_scales(spec, matrix).reshape(weight.shape)
    scale = _scale(spec.definition, matrix, by_column=spec.per == "column")
    return spec.level * scale.reshape(-1, 1, *ones)


def _scale(definition: Definition, matrix: Tensor, *, by_column: bool) -> Tensor:
    axes = (1,) if by_column else (0, 1)
    if definition == "wmax":
        return matrix.abs().amax(dim=axes, keepdim=True)
    if definition == "wrange":
        return matrix.amax(dim=axes, keepdim=True) - matrix.amin(dim=axes, keepdim=True)
    return wide(matrix).std(dim=axes, correction=0, keepdim=True).to(matrix.dtype)


def _tile_scales(spec: NoiseSpec, matrix: Tensor) -> Tensor:
    rows, columns = spec.tile_rows or matrix.shape[1], spec.tile_columns or matrix.shape[0]
    bands = []
    for band in torch.split(matrix, columns, dim=0):
        blocks = torch.split(band, rows, dim=1)
        bands.append(
            torch.cat([_scale(spec.definition, block, by_column=False).expand_as(block) for block in blocks], dim=1)
        )
    return torch.cat(bands, dim=0)


@dataclass(frozen=True)
class OutputScale:
    """Scales of a layer's clean outputs (before bias and batch-norm), measured once on a fixed set and then frozen.

    Each broadcasts against the outputs: one element, or one for each channel.

    Attributes:
        std: Standard deviation sigma_y.
        mean_magnitude: E|y|, for Poisson noise.
        full_scale: Bound of the ADC in the unit of the output, for `ofs`.
        input_times_weight: Largest input times largest weight, for `aihwkit`.
        per: Over what they were taken.
    """

    std: Tensor
    mean_magnitude: Tensor
    full_scale: Tensor | None = None
    input_times_weight: Tensor | None = None
    per: Literal["tensor", "column"] = "tensor"

    @classmethod
    def measure(
        cls,
        clean: Tensor,
        *,
        per: Literal["tensor", "column"] = "tensor",
        channel_dim: int = 1,
        full_scale: float | None = None,
        input_times_weight: float | None = None,
    ) -> OutputScale:
        """Scales of clean quantised outputs, `[batch, channels, ...]`, without gradient, in float32 or better."""
        values = wide(clean.detach())
        kept = channel_dim % values.dim() if per == "column" else -1
        axes = [axis for axis in range(values.dim()) if axis != kept]
        return cls(
            std=values.std(dim=axes, correction=0, keepdim=True),
            mean_magnitude=values.abs().mean(dim=axes, keepdim=True),
            full_scale=None if full_scale is None else values.new_tensor(full_scale),
            input_times_weight=None if input_times_weight is None else values.new_tensor(input_times_weight),
            per=per,
        )


def output_sigma(spec: NoiseSpec, scale: OutputScale, output: Tensor | None = None) -> Tensor:
    """Standard deviation of an output noise, broadcast against the output; it carries no gradient.

    At `location="tile"` this is the noise of one tile, and `scale` the scale of one tile's outputs.

    Args:
        spec: A noise whose location is `tile` or `layer`.
        scale: Frozen scales of the clean outputs.
        output: The outputs at hand, which a Poisson noise follows.

    Raises:
        SurrogateError: The noise is one of weights, or a scale or the output that it needs is missing.
    """
    needed = {
        "ostd": scale.std,
        "ofs": scale.full_scale,
        "aihwkit": scale.input_times_weight,
        "abs": torch.ones_like(scale.std),
    }
    unit = needed.get(spec.definition)
    faults = []
    if spec.location == "weight":
        faults.append(f"{spec} is a noise of weights: use weight_sigma")
    elif unit is None:
        missing = "full_scale" if spec.definition == "ofs" else "input_times_weight"
        faults.append(f"{spec.definition} needs {missing} of the outputs' scale")
    elif scale.per != ("column" if spec.per == "column" else "tensor"):
        faults.append(f"the noise is per {spec.per}, the scale per {scale.per}: measure it likewise")
    elif spec.per == "column" and unit.numel() != scale.std.numel():
        faults.append(f"{spec.definition} per column needs a value for each of {scale.std.numel()} columns")
    if spec.law == "poisson" and output is None:
        faults.append("Poisson noise needs the outputs themselves")
    refuse("standard deviation of an output noise", faults)
    assert unit is not None
    if spec.law == "gaussian" or output is None:
        return spec.level * unit
    magnitude = output.detach().abs().to(unit.dtype)
    smallest = torch.finfo(unit.dtype).tiny
    return spec.level * unit * torch.sqrt(magnitude / scale.mean_magnitude.clamp_min(smallest))


def accumulated_sigma(spec: NoiseSpec, sigma: Tensor, tiles: int) -> Tensor:
    """Standard deviation on the layer's output, after the digital sum over `tiles` row tiles.

    Independent noises add as the square root: `sqrt(tiles) * sigma` at `location="tile"`, `sigma` at the layer.

    Raises:
        SurrogateError: The noise is one of weights, or there is no tile.
    """
    faults = [f"{spec} enters on the weights, not on an output"] if spec.location == "weight" else []
    if tiles < 1:
        faults.append(f"a layer has at least one tile, not {tiles}")
    refuse("noise of a sum of tiles", faults)
    return sigma * math.sqrt(tiles) if spec.location == "tile" else sigma
