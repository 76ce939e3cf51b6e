"""`describe(model)`: what lies on which arrays, how full they are, and what noise each layer has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.bit_slicing import slice_count
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.layers import weight_matrices


@dataclass(frozen=True)
class MatrixDescription:
    """One weight matrix on arrays.

    Attributes:
        name: The layer, and where it has several matrices which of them.
        outputs: Outputs of all groups.
        inputs: Inputs of one group; kernel positions included.
        groups: Groups, each on tiles of its own.
        tiles: Tiles of all groups.
        array_rows: Word lines of one array.
        array_columns: Bit lines of one array.
        utilisation: Part of the cells of those tiles that belong to a weight.
        converters: DAC, weights and ADC in words.
        noise: Noise in words.
        path: What computes it.
    """

    name: str
    outputs: int
    inputs: int
    groups: int
    tiles: int
    array_rows: int
    array_columns: int
    utilisation: float
    converters: str
    noise: str
    path: str


@dataclass(frozen=True)
class ModelDescription:
    """A whole model; `print` shows it as a table.

    Attributes:
        matrices: Every weight matrix on arrays.
        analog_weights: Weights on arrays.
        digital_weights: Parameters that are not: biases, normalisation, embeddings, layers left digital.
    """

    matrices: tuple[MatrixDescription, ...]
    analog_weights: int
    digital_weights: int

    @property
    def tiles(self) -> int:
        """Tiles of all layers."""
        return sum(one.tiles for one in self.matrices)

    def __str__(self) -> str:
        """A table with a line for each matrix and a sum."""
        header = ("layer", "weights", "tiles", "array", "used", "converters", "noise", "path")
        rows = [header] + [
            (
                one.name,
                f"{one.outputs} x {one.inputs}" + (f" in {one.groups} groups" if one.groups > 1 else ""),
                str(one.tiles),
                f"{one.array_rows} x {one.array_columns}",
                f"{100.0 * one.utilisation:.0f} %",
                one.converters,
                one.noise,
                one.path,
            )
            for one in self.matrices
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        share = self.analog_weights / max(self.analog_weights + self.digital_weights, 1)
        lines.append(
            f"{self.tiles} tiles; {self.analog_weights:,} weights analog, {self.digital_weights:,} digital "
            f"({100.0 * share:.1f} % analog)"
        )
        return "\n".join(lines)


def describe(model: nn.Module) -> ModelDescription:
    """Describes the analog layers of a model; print what it returns.

    Args:
        model: With analog layers.
    """
    matrices = weight_matrices(model)
    described = tuple(_describe(matrix.core) for matrix in matrices)
    # A weight that two layers share is stored once. On the meta device there is no place in memory, but a storage.
    weights = [matrix.weight for matrix in matrices]
    stored = {(one.untyped_storage()._cdata, one.storage_offset()): one.numel() for one in weights}
    analog = sum(stored.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    own = sum(parameter.numel() for matrix in matrices for parameter in matrix.core.parameters())
    return ModelDescription(described, analog, total - analog - own)


def _describe(core: AnalogCore) -> MatrixDescription:
    tile_map, groups = core.tile_map, core.product.groups
    slices = _slices(core.config)
    return MatrixDescription(
        name=core.name,
        outputs=tile_map.outputs * groups,
        inputs=tile_map.inputs,
        groups=groups,
        tiles=len(tile_map.tiles) * groups * slices,
        array_rows=tile_map.geometry.rows,
        array_columns=tile_map.geometry.columns,
        utilisation=tile_map.utilisation,
        converters=_converters(core.config),
        noise=_noise(core.config),
        path=core.path,
    )


def _slices(config: AnalogConfig) -> int:
    """Cells (or pairs of them) that hold one weight."""
    quantization = config.weight_quantization
    if quantization is None or quantization.slice_bits is None:
        return 1
    return slice_count(quantization.bits - 1, quantization.slice_bits)


def _converters(config: AnalogConfig) -> str:
    dac, quantization, adc = config.dac, config.weight_quantization, config.adc
    words = [] if dac is None else [f"DAC {dac.bits} b {dac.range}"]
    if quantization is not None:
        sliced = "" if quantization.slice_bits is None else f" in {_slices(config)} x {quantization.slice_bits} b"
        words.append(f"W {quantization.bits} b{sliced}")
    words += [] if adc is None else [f"ADC {adc.bits} b {adc.range}"]
    return ", ".join(words) or "none"


def _noise(config: AnalogConfig) -> str:
    words = []
    if (weight := config.drawn_weight_noise) is not None:
        words.append(f"weights {_percent(weight.level)} of {weight.relative_to} ({weight.timing})")
    if config.spread is not None:
        words.append(f"spread learned per {config.spread.per}")
    if config.read_noise is not None:
        words.append(f"cells {_percent(config.read_noise.level)} of range (every vector)")
    if config.output_noise is not None:
        law = ", Poisson" if config.output_noise.law == "poisson" else ""
        words.append(
            f"outputs {_percent(config.output_noise.level)} of {config.output_noise.relative_to} per tile{law}"
        )
    words += [type(effect).__name__ for effect in (*config.weight_effects, *config.output_effects)]
    return ", ".join(words) or "none"


def _percent(level: float) -> str:
    return f"{100.0 * level:.3g} %"
