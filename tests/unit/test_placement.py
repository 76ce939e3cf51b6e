"""Tiles of models on the arrays of a board: what they cost, and what is refused with which numbers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from labrig.placement import geometry_of, model_tiles, place, plan_placement
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.backend import DigitalBackend
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import Mapping
from labrig_surrogates.layers import set_backend, weight_matrices

INFO = BoardInfo(
    chip_id="T",
    arrays=3,
    rows=8,
    columns=8,
    conductance_min_s=1e-6,
    conductance_max_s=5e-5,
    voltage_min_v=-0.2,
    voltage_max_v=0.2,
    dac_bits=8,
    adc_bits=8,
    adc_full_scale_a=(1e-4,) * 8,
    mvm_latency_s=1e-5,
    program_latency_s=1e-2,
)


def analog(model: nn.Module, info: BoardInfo = INFO) -> nn.Module:
    config = AnalogConfig(geometry=geometry_of(info), mapping=Mapping(weight_range="fixed"))
    return to_analog(model, config)


def test_a_convolution_and_a_split_layer_are_placed_and_counted() -> None:
    torch.manual_seed(0)
    # 2 channels of 2 x 2: 8 rows, 3 outputs on 8 columns; then 27 inputs in 4 row blocks of 8.
    model = analog(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(27, 4)))
    example = torch.rand((5, 2, 4, 4))
    found = plan_placement(model, INFO, example)
    assert list(found.arrays) == ["0/0", "2/0", "2/1", "2/2", "2/3"]
    assert list(found.arrays.values()) == [0, 1, 2, 2, 2]
    assert found.mvms_per_image == {"0/0": 9, "2/0": 1, "2/1": 1, "2/2": 1, "2/3": 1}
    cost = found.cost(10)
    assert (cost.writes, cost.standing_writes, cost.mvms) == (5, 3, 130)
    assert cost.write_s == pytest.approx(0.05)
    assert cost.mvm_s == pytest.approx(1.3e-3)
    # 8 x 6 cells, then 27 x 8, of five arrays of 64.
    assert found.utilisation == pytest.approx((48 + 27 * 8) / (5 * 64))
    text = found.describe(10)
    assert "array 2 is programmed in turn for 2/1, 2/2, 2/3: 3 writes every pass" in text
    assert "5 writes with changed weights (3 without), 130 MVMs" in text
    # Counting leaves the model as it was, and the mapping itself loses nothing.
    assert all(matrix.core.backend is None for matrix in weight_matrices(model))
    set_backend(model, DigitalBackend())
    plain = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(27, 4))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "core" not in k})
    torch.testing.assert_close(model(example), plain(example), atol=1e-5, rtol=1e-4)


def test_fewest_writes_with_unchanged_weights() -> None:
    tiles = [f"a/{n}" for n in range(5)]
    assert list(place(tiles, [4, 7]).values()) == [4, 7, 7, 7, 7]
    assert list(place(tiles[:2], [4, 7]).values()) == [4, 7]
    with pytest.raises(ConfigError, match="5 tiles need an array"):
        place(tiles, [])


def test_what_cannot_be_placed_is_refused_with_every_number() -> None:
    model = analog(nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 4)))
    example = torch.rand((2, 20))
    with pytest.raises(ConfigError) as caught:
        plan_placement(model, replace(INFO, columns=16, voltage_max_v=0.3), example, arrays=[5])
    assert "layer '0' is mapped to arrays of 8 x 8, the board has 8 x 16" in str(caught.value)
    assert "layer '1' is mapped" in str(caught.value)
    assert "array 5 does not exist: the board has 3" in str(caught.value)
    with pytest.raises(ConfigError, match=r"the board has 1e-06 to 5e-05 S and 0\.3 V"):
        plan_placement(model, replace(INFO, voltage_max_v=0.3), example)
    with pytest.raises(ConfigError, match=r"4 tiles need as many arrays, 3 may be used: 1 too few; .* 2 writes"):
        plan_placement(model, INFO, example, time_multiplexed=False)
    with pytest.raises(ConfigError, match="no analog layer"):
        plan_placement(nn.Linear(3, 3), INFO, torch.rand((1, 3)))
    bare = to_analog(nn.Linear(3, 3), AnalogConfig())
    with pytest.raises(ConfigError, match="made without a geometry"):
        plan_placement(bare, INFO, torch.rand((1, 3)))


def test_passes_that_would_wear_an_array_out_are_refused() -> None:
    model = analog(nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 4)))
    found = plan_placement(model, INFO, torch.rand((2, 20)))
    assert model_tiles(model) == ["0/0", "0/1", "0/2", "1/0"]
    found.demand_endurance(50, 100)
    with pytest.raises(ConfigError, match=r"51 passes with 2 writes .* are 102 writes; it endures 100: 50 passes"):
        found.demand_endurance(51, 100)
