"""Layers whose arrays have wires, against the solution of every array by itself."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import Mapping
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.tilemap import ArrayGeometry
from labrig_surrogates.wires import crossbar_currents
from labrig_surrogates.wiring import Crosstalk, Wiring
from labrig_surrogates.wiring_effect import WiringEffect

GEOMETRY = ArrayGeometry(rows=24, columns=16, conductance_min_s=2e-6, conductance_max_s=5e-5, voltage_max_v=0.4)
SPAN_S = 4.8e-5


def config(wiring: Wiring, *, per_column: bool = False) -> AnalogConfig:
    return AnalogConfig(
        geometry=GEOMETRY, mapping=Mapping(per_column=per_column), weight_effects=(WiringEffect(wiring),)
    )


def wired_outputs(x: Tensor, weight: Tensor, word_ohm: float, bit_ohm: float) -> Tensor:
    """Tile by tile from the exact currents of full arrays, with cells laid out by hand."""
    outputs, inputs = weight.shape
    largest, total = weight.abs().max(), x.new_zeros(len(x), outputs)
    for first_in in range(0, inputs, 24):
        for first_out in range(0, outputs, 8):
            block = weight[first_out : first_out + 8, first_in : first_in + 24] / largest
            cells = torch.full((24, 16), 2e-6, dtype=torch.float64)
            for output, row in enumerate(block):
                cells[: len(row), 2 * output] += SPAN_S * row.clamp(min=0)
                cells[: len(row), 2 * output + 1] += SPAN_S * (-row).clamp(min=0)
            voltage_v = torch.zeros(len(x), 24, dtype=torch.float64)
            voltage_v[:, : block.shape[1]] = x[:, first_in : first_in + 24]
            current_a = crossbar_currents(cells, voltage_v, word_ohm, bit_ohm)
            difference_a = current_a[:, 0::2] - current_a[:, 1::2]
            total[:, first_out : first_out + 8] += difference_a[:, : len(block)] * largest / SPAN_S
    return total


def test_a_linear_layer_gives_what_its_arrays_give() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(40, 11, bias=False).double()
    x = torch.randn(5, 40, dtype=torch.float64)
    model = to_analog(plain, config(Wiring(3.0, 5.0)))
    expected = wired_outputs(x, plain.weight.detach(), 3.0, 5.0)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(expected, plain(x), rtol=1e-2, atol=1e-3)
    without = to_analog(plain, config(Wiring(0.0, 0.0)))
    torch.testing.assert_close(without(x), plain(x), rtol=1e-10, atol=1e-12)


def test_groups_of_a_convolution_are_arrays_of_their_own() -> None:
    torch.manual_seed(1)
    plain = nn.Conv2d(4, 6, 3, groups=2, bias=False).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    model = to_analog(plain, config(Wiring(3.0, 5.0)))
    limit = plain.weight.detach().abs().max()
    patches = nn.functional.unfold(x, 3).transpose(1, 2).reshape(-1, 4 * 9)
    found = model(x).detach().flatten(2).transpose(1, 2).reshape(-1, 6)
    for group in range(2):
        weight = plain.weight.detach()[3 * group : 3 * group + 3].flatten(1)
        expected = _one_array(patches[:, 18 * group : 18 * group + 18], weight, limit)
        torch.testing.assert_close(found[:, 3 * group : 3 * group + 3], expected, rtol=1e-9, atol=1e-12)


def _one_array(x: Tensor, weight: Tensor, limit: Tensor) -> Tensor:
    cells = torch.full((24, 16), 2e-6, dtype=torch.float64)
    for output, row in enumerate(weight / limit):
        cells[:18, 2 * output] += SPAN_S * row.clamp(min=0)
        cells[:18, 2 * output + 1] += SPAN_S * (-row).clamp(min=0)
    voltage_v = torch.nn.functional.pad(x, (0, 6))
    current_a = crossbar_currents(cells, voltage_v, 3.0, 5.0)
    return (current_a[:, 0:6:2] - current_a[:, 1:6:2]) * limit / SPAN_S


@pytest.mark.parametrize("solution", ["exact", "first-order"])
def test_gradients_go_through_wires_to_weights(solution: Literal["exact", "first-order"]) -> None:
    torch.manual_seed(2)
    plain = nn.Linear(6, 3, bias=False).double()
    with torch.no_grad():
        plain.weight[0, 0] = 0.6  # the largest, kept out of the check: the range follows it
    model = to_analog(plain, config(Wiring(30.0, 50.0, solution=solution)))
    x = torch.randn(4, 6, dtype=torch.float64)
    layer = next(iter(model.modules()))
    fixed = plain.weight.detach()[:1].clone()

    def loss(others: Tensor) -> Tensor:
        weight = torch.cat([fixed, others])
        found: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x,))
        return found.square().sum()

    assert torch.autograd.gradcheck(loss, plain.weight.detach()[1:].clone().requires_grad_(), atol=1e-6)


def test_first_order_is_near_where_little_is_lost_and_columns_may_have_ranges() -> None:
    torch.manual_seed(3)
    plain = nn.Linear(24, 8).double()
    x = torch.randn(50, 24, dtype=torch.float64)
    ideal = plain(x).detach()
    for per_column in (False, True):
        exact, first = (
            to_analog(plain, config(Wiring(1.0, 1.0, solution=solution), per_column=per_column))(x).detach()
            for solution in ("exact", "first-order")
        )
        assert float((first - exact).std()) < 0.05 * float((ideal - exact).std())


def test_crosstalk_is_on_the_arrays_too() -> None:
    plain = nn.Linear(10, 4, bias=False).double()
    coupled = to_analog(plain, config(Wiring(0.0, 0.0, bit_line_crosstalk=Crosstalk((0.01,), conserving=False))))
    x = torch.randn(5, 10, dtype=torch.float64)
    # Of a pair each line takes a hundredth of the other with the opposite sign, and of the pairs beside it.
    with torch.no_grad():
        assert 0.002 < float((coupled(x) - plain(x)).std() / plain(x).std()) < 0.1


@pytest.mark.parametrize("geometry", [None, ArrayGeometry.relative(rows=24, columns=16)])
def test_wires_need_conductances_and_say_so_before_anything_is_converted(geometry: ArrayGeometry | None) -> None:
    with pytest.raises(SurrogateError, match=r"WiringEffect needs AnalogConfig\.geometry with conductances in S"):
        AnalogConfig(geometry=geometry, weight_effects=(WiringEffect(Wiring(1.0, 1.0)),))
