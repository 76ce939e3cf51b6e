"""From an analog model to what `EnergyModel` counts: every layer's tiles, products and conversions of one inference."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn

from labrig_surrogates.bit_slicing import slice_count
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.energy_report import LayerLoad
from labrig_surrogates.faults import refuse
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.model_tools import observed
from labrig_surrogates.products import LinearProduct


@torch.no_grad()
def layer_loads(model: nn.Module, batch: Tensor) -> list[LayerLoad]:
    """What one inference of an analog model asks of its arrays, counted while the model runs without noise.

    A layer that is used several times counts as often. Each slice of an input is a product of its own, and its results
    are added and moved by themselves; slices of weights lie on arrays of their own. A digital layer is in no load.

    Args:
        model: A model with analog layers, each with a DAC and an ADC, whose bits decide the energy of a conversion.
        batch: Inputs of the model, examples along the first axis.

    Returns:
        The loads in the order of the model's layers, by the names of their tiles.

    Raises:
        SurrogateError: There is no analog layer, a layer has no converters, or the batch does not reach one; every
            fault is named.
    """
    cores = [matrix.core for matrix in weight_matrices(model)]
    refuse("loads of a model", [*_faults(cores)])
    vectors = dict.fromkeys(cores, 0)

    def count(core: AnalogCore, x: Tensor, weight: Tensor) -> None:
        del weight
        vectors[core] += _vectors(core, x)

    with observed(model, count):
        model(batch)
    unreached = [core.name for core, found in vectors.items() if not found]
    refuse("loads of a model", [f"the batch did not reach {name}" for name in unreached])
    return [_load(core, -(-found // batch.shape[0])) for core, found in vectors.items()]


def _faults(cores: list[AnalogCore]) -> Iterator[str]:
    if not cores:
        yield "there is no analog layer"
    for core in cores:
        for name in ("dac", "adc"):
            if getattr(core.config, name) is None:
                yield f"{core.name} has no {name}, so that nobody knows what a conversion takes"


def _vectors(core: AnalogCore, x: Tensor) -> int:
    """Input vectors that a batch of inputs makes: rows of a matrix, output positions of a convolution."""
    if isinstance(core.product, LinearProduct):
        return x.numel() // core.shape[1]
    shape = core.product.output_shape(x, core.shape)
    return shape[0] * prod(shape[2:])


def _load(core: AnalogCore, vectors: int) -> LayerLoad:
    config, tile_map, groups = core.config, core.tile_map, core.product.groups
    dac, adc, weights, pairs = (
        config.dac,
        config.adc,
        config.weight_quantization,
        tile_map.scheme == "differential_pair",
    )
    assert dac is not None
    assert adc is not None
    input_slices = weight_slices = 1
    if dac.slice_bits is not None:
        input_slices = slice_count(dac.bits - 1 if dac.signed else dac.bits, dac.slice_bits)
    if weights is not None and weights.slice_bits is not None:
        weight_slices = slice_count(weights.bits - 1, weights.slice_bits)
    return LayerLoad(
        name=core.name,
        tiles=len(tile_map.tiles) * groups * weight_slices,
        rows=tile_map.geometry.rows,
        columns=tile_map.geometry.columns // 2 if pairs else tile_map.geometry.columns,
        mvms=vectors * input_slices,
        outputs=tile_map.outputs * groups,
        macs=prod(core.shape) * vectors,
        input_bits=dac.bits if dac.slice_bits is None else dac.slice_bits,
        output_bits=adc.bits,
        devices_per_weight=2 if pairs else 1,
    )
