"""The transposed product through the cells of a layer, against the transposed weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from labrig.studies.reversed_reads import ReversedReads
from labrig.training.deployment import analog_copy
from labrig_drivers.crossbar import FloatArray, MvmResult
from labrig_surrogates.backend_product import target_conductances, tile_names
from labrig_surrogates.layers import AnalogLinear
from labrig_surrogates.tilemap import ArrayGeometry

GEOMETRY = ArrayGeometry(8, 8, conductance_min_s=4e-6, conductance_max_s=5e-5, voltage_max_v=0.3)


class IdealBoard:
    """Cells that are what they were meant to be, one array for each tile."""

    def __init__(self, layer: AnalogLinear) -> None:
        targets = target_conductances(layer.core, layer.weight)
        self.cells = [one.detach().double().numpy() for one in targets.values()]
        self.highest_v = 0.0

    def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        self.highest_v = max(self.highest_v, float(np.abs(voltage_v).max()))
        current_a = voltage_v @ self.cells[array].T
        batch = len(voltage_v)
        return MvmResult(
            code=np.zeros(current_a.shape, dtype=np.int16),
            current_a=current_a,
            saturated=np.zeros(current_a.shape, dtype=np.bool_),
            time_s=np.zeros(batch),
            write_index=0,
        )


def test_it_is_the_transposed_product_on_however_many_tiles() -> None:
    generator = torch.Generator().manual_seed(3)
    digital = nn.Linear(13, 9)
    with torch.no_grad():
        digital.weight.copy_(torch.randn((9, 13), generator=generator))
    layer = analog_copy(digital, GEOMETRY)
    assert isinstance(layer, AnalogLinear)
    layer.core.set_ranges(weight_max=float(digital.weight.detach().abs().max()), input_max=1.0)
    board = IdealBoard(layer)
    placement = {name: index for index, name in enumerate(tile_names(layer.core))}
    assert len(placement) == 6
    way = ReversedReads(layer, board, placement, input_max=2.0)
    u = 4.0 * torch.rand((5, 9), generator=generator) - 2.0
    torch.testing.assert_close(way(u), u @ layer.weight, rtol=1e-4, atol=1e-4)
    assert way.mvms == 5 * len(placement)
    # What lies beyond the range is held at its end.
    torch.testing.assert_close(way(10.0 * u), (10.0 * u).clamp(-2.0, 2.0) @ layer.weight, rtol=1e-4, atol=1e-4)
    assert board.highest_v <= 0.3 + 1e-6


def test_a_bias_is_added_digitally() -> None:
    digital = nn.Linear(3, 2)
    layer = analog_copy(digital, GEOMETRY)
    assert isinstance(layer, AnalogLinear)
    layer.core.set_ranges(weight_max=float(digital.weight.detach().abs().max()), input_max=1.0)
    placement = {name: index for index, name in enumerate(tile_names(layer.core))}
    bias = torch.tensor([0.5, -1.0, 2.0])
    way = ReversedReads(layer, IdealBoard(layer), placement, input_max=1.0, bias=bias)
    torch.testing.assert_close(way(torch.zeros((1, 2))), bias[None])
    u = torch.tensor([[0.5, -0.25]])
    torch.testing.assert_close(way(u), u @ layer.weight + bias, rtol=1e-4, atol=1e-4)
