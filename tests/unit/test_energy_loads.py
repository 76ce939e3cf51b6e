"""Loads of an analog model are those that one counts by hand, and an energy follows from the model itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import Adc, Dac, Mapping, WeightNoise, WeightQuantization
from labrig_surrogates.energy import EnergyModel, LayerLoad
from labrig_surrogates.energy_loads import layer_loads
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.tilemap import ArrayGeometry

CONFIG = AnalogConfig(
    geometry=ArrayGeometry.relative(rows=256, columns=512),
    dac=Dac(bits=8),
    weight_quantization=WeightQuantization(4),
    weight_noise=WeightNoise(0.05),
    adc=Adc(bits=7),
)


class Net(nn.Module):
    """Convolutions of which one is used twice and one is in groups, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 64, 3, stride=2, groups=4)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.stem(x))))))
        result: Tensor = self.head(torch.relu(self.grouped(x)).mean(dim=(2, 3)))
        return result


def test_a_network_is_what_is_counted_by_hand() -> None:
    model, images = to_analog(Net(), CONFIG), torch.rand(5, 3, 16, 16)
    model.train()
    drawn = weight_matrices(model)[0].core.stream._position.clone()
    found = layer_loads(model, images)
    assert found == [
        LayerLoad.of_matrix("stem", 27, 32, 256, output_bits=7),
        LayerLoad.of_matrix("twice", 288, 32, 2 * 256, output_bits=7),
        LayerLoad("grouped", 4, 256, 256, 49, 64, 49 * 64 * 72, 8, 7, 2),
        LayerLoad.of_matrix("head", 64, 10, output_bits=7),
    ]
    assert model.training
    assert torch.equal(drawn, weight_matrices(model)[0].core.stream._position)
    report = EnergyModel.of_macro("HERMES four-phase").evaluate(found)
    tile_mvms = 256 + 2 * 512 + 4 * 49 + 1
    assert report.tile_mvms == tile_mvms
    assert report.layers[0].parts_j["macro"] == pytest.approx(256 * 2 * 256 * 256 / 2.48e12)


def test_sequences_slices_and_offset_columns_count() -> None:
    sliced = replace(
        CONFIG,
        geometry=ArrayGeometry.relative(rows=16, columns=9),
        mapping=Mapping(scheme="offset_column"),
        dac=Dac(bits=8, slice_bits=2),
        weight_quantization=WeightQuantization(4, slice_bits=2),
    )
    (load,) = layer_loads(to_analog(nn.Linear(20, 12), sliced), torch.rand(3, 7, 20))
    # 2 x 2 tiles for each of two slices of the weights; seven vectors in four slices of two bits.
    assert load == LayerLoad("model", 8, 16, 9, 28, 12, 12 * 20 * 7, 2, 7, 1)
    recurrent = to_analog(nn.LSTM(6, 5, batch_first=True), replace(CONFIG, geometry=None))
    inputs, states = layer_loads(recurrent, torch.rand(4, 9, 6))
    assert [(one.rows, one.columns, one.mvms, one.outputs) for one in (inputs, states)] == [
        (6, 20, 9, 20),
        (5, 20, 9, 20),
    ]


def test_what_cannot_be_counted_is_named() -> None:
    bare = replace(CONFIG, dac=None, adc=None)
    with pytest.raises(SurrogateError, match=r"stem has no dac.*stem has no adc.*head has no adc"):
        layer_loads(to_analog(Net(), bare), torch.rand(1, 3, 8, 8))
    with pytest.raises(SurrogateError, match="there is no analog layer"):
        layer_loads(Net(), torch.rand(1, 3, 8, 8))

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.used(x)
            return result

    with pytest.raises(SurrogateError, match="the batch did not reach idle"):
        layer_loads(to_analog(Idle(), CONFIG), torch.rand(2, 3))
