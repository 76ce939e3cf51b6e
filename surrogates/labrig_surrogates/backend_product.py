"""A layer's product on a `Backend`: weights as conductances, inputs as voltages, outputs from currents.

This is how a layer runs on a fitted chip or a real one. A convolution is unfolded here, because an array takes one
vector after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.backend import Backend
from labrig_surrogates.passes import Number
from labrig_surrogates.products import ConvProduct, LinearProduct
from labrig_surrogates.quantization import wide
from labrig_surrogates.tilemap import TileMap


class MappedMatrix(Protocol):
    """What a core tells about its weight matrix."""

    @property
    def name(self) -> str:
        """First part of the names of its tiles."""
        ...

    @property
    def product(self) -> LinearProduct | ConvProduct:
        """What the arrays compute."""
        ...

    @property
    def tile_map(self) -> TileMap:
        """The tiles of one group."""
        ...

    @property
    def input_max(self) -> Tensor:
        """The input that the highest voltage stands for."""
        ...

    def weight_limit(self, weight: Tensor) -> Number:
        """The weight that the whole conductance range stands for."""
        ...


def backend_faults(config: AnalogConfig) -> Iterator[str]:
    """Why a config cannot go with a backend: the backend has effects of its own, and needs real arrays."""
    for name in config.effects_on:
        yield f"{name} is on, but a backend computes with its own arrays: leave it None"
    if config.geometry is None:
        yield "config.geometry is None: a backend needs the arrays' size and ranges"


def tile_names(matrix: MappedMatrix) -> list[str]:
    """Names of the tiles: `layer/number`, in grouped convolutions `layer/group.number`."""
    tiles, groups = range(len(matrix.tile_map.tiles)), range(matrix.product.groups)
    if len(groups) == 1:
        return [f"{matrix.name}/{tile}" for tile in tiles]
    return [f"{matrix.name}/{group}.{tile}" for group in groups for tile in tiles]


def target_conductances(matrix: MappedMatrix, weight: Tensor) -> dict[str, Tensor]:
    """Target conductances in S of every tile by name, `[rows, columns]` each."""
    limit, groups = matrix.weight_limit(weight), matrix.product.groups
    per_column = isinstance(limit, Tensor) and limit.numel() > 1
    limits = limit.reshape(-1, 1).chunk(groups) if per_column and isinstance(limit, Tensor) else [limit] * groups
    matrices = wide(weight).flatten(1).chunk(groups)
    targets = [
        target
        for part, bound in zip(matrices, limits, strict=True)
        for target in matrix.tile_map.conductances(part, bound)
    ]
    return dict(zip(tile_names(matrix), targets, strict=True))


def backend_outputs(backend: Backend, matrix: MappedMatrix, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of one batch on a backend; shapes as in `AnalogCore.forward`."""
    tile_map, product = matrix.tile_map, matrix.product
    targets = target_conductances(matrix, weight)
    names, outputs = iter(targets), []
    vectors = _vectors(wide(x), product, weight)
    for group in vectors.chunk(product.groups, dim=1):
        scaled = group / matrix.input_max
        currents = []
        for tile in tile_map.tiles:
            name = next(names)
            currents.append(backend.currents(name, targets[name], tile_map.voltages(tile, scaled)))
        outputs.append(tile_map.collect(currents))
    limit = matrix.weight_limit(weight)
    columns = limit.reshape(-1) if isinstance(limit, Tensor) and limit.numel() > 1 else limit
    found = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
    found = found * (columns * matrix.input_max / tile_map.product_current_a)
    found = found if bias is None else found + bias
    if isinstance(product, LinearProduct):
        return found.view(*x.shape[:-1], -1)
    shape = product.output_shape(x, tuple(weight.shape))
    return found.view(shape[0], -1, shape[1]).transpose(1, 2).reshape(shape)


def _vectors(x: Tensor, product: LinearProduct | ConvProduct, weight: Tensor) -> Tensor:
    """Input vectors `[batch, inputs]`; those of a convolution for every example and position, groups side by side."""
    if isinstance(product, LinearProduct):
        return x.reshape(-1, x.shape[-1])
    planes = x if x.dim() == 4 else x.unsqueeze(2)
    flat = len(product.stride) == 1
    unfolded = functional.unfold(
        planes,
        kernel_size=(1, *weight.shape[2:]) if flat else tuple(weight.shape[2:]),
        dilation=(1, *product.dilation) if flat else product.dilation,
        padding=(0, *product.padding) if flat else product.padding,
        stride=(1, *product.stride) if flat else product.stride,
    )
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])
