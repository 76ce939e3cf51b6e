"""Reads an array from its other side: the transposed product of the very cells that a layer is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from labrig_drivers.crossbar import FloatArray, MvmResult
from labrig_surrogates.backend import TileName
from labrig_surrogates.backend_product import tile_names
from labrig_surrogates.layers import AnalogLinear


class TwoSidedBoard(Protocol):
    """A board that can be driven from its bit lines."""

    def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch `[batch, columns]` from the bit lines to the word lines."""
        ...


class ReversedReads(nn.Module):
    """W^T u with the cells that a layer's W is on: each pair of bit lines is driven by u and -u, word lines are read.

    The layer has to be programmed: it was evaluated since its weights changed. `weight` is there so that this can
    stand where a linear layer with the transposed weights stood; no product is computed with it.

    Args:
        layer: The layer that the cells belong to, mapped as differential pairs.
        board: Reads them.
        placement: Array of each of its tiles.
        input_max: The u that the highest voltage stands for.
        bias: Added to the products, digitally, `[inputs of the layer]`; None adds nothing.

    Attributes:
        mvms: Products that were read.
    """

    def __init__(
        self,
        layer: AnalogLinear,
        board: TwoSidedBoard,
        placement: Mapping[TileName, int],
        input_max: float,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.weight = nn.Parameter(layer.weight.detach().T.clone(), requires_grad=False)
        self._layer = [layer]  # in a list, so that its parameters are not counted twice
        self._board = board
        self._placement = placement
        self._input_max = input_max
        self.mvms = 0

    @torch.no_grad()
    def forward(self, u: Tensor) -> Tensor:
        """W^T u + bias `[batch, inputs of the layer]` of `u[batch, outputs of the layer]`, as it is read."""
        (layer,) = self._layer
        core = layer.core
        geometry = core.tile_map.geometry
        scaled = (u / self._input_max).clamp(-1.0, 1.0) * geometry.voltage_max_v
        total = u.new_zeros((u.shape[0], core.tile_map.inputs))
        for name, tile in zip(tile_names(core), core.tile_map.tiles, strict=True):
            driven = scaled[:, tile.first_out : tile.last_out]
            lines = u.new_zeros((u.shape[0], geometry.columns))
            lines[:, 0 : 2 * tile.outputs : 2] = driven
            lines[:, 1 : 2 * tile.outputs : 2] = -driven
            read = self._board.mvm_transposed(self._placement[name], lines.double().numpy())
            self.mvms += len(u)
            current = torch.as_tensor(read.current_a[:, : tile.inputs], dtype=u.dtype)
            total[:, tile.first_in : tile.last_in] += current
        limit = torch.as_tensor(core.weight_limit(layer.weight))
        product: Tensor = total * (limit * self._input_max / core.tile_map.product_current_a)
        return product if self.bias is None else product + self.bias
