"""Curves of column amplifiers: their equations, a spline for each column as SciPy draws it, and where they stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.analog_effects import OutputEffect
from labrig_surrogates.convert import to_analog
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.effect_settings import Adc, Dac, Mapping
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.output_transfer import Compression, MeasuredTransfer, Shape
from labrig_surrogates.products import LinearProduct
from labrig_surrogates.tilemap import ArrayGeometry

CURVES: dict[Shape, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "cubic": lambda u: u.clamp(-1, 1) - u.clamp(-1, 1) ** 3 / 3,
    "rational": lambda u: u / (1 + u.abs()),
}
LIMITS = (1.5, 2.0, 4.0)


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config(effect: OutputEffect) -> AnalogConfig:
    return AnalogConfig(dac=Dac(input_max=2.0), output_effects=(effect,), mapping=Mapping(per_column=True))


def codes(*shape: int) -> Tensor:
    """Inputs that an eight-bit DAC gives exactly."""
    return torch.round(made(*shape, seed=1) * 90).clamp(-127, 127) * (2.0 / 127)


def linear(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False).double()


@pytest.mark.parametrize("shape", CURVES)
def test_compression_is_its_equation_for_each_column(shape: Shape) -> None:
    layer = linear(40, 3)
    x = codes(50, 40)
    product = 2.0 * layer.weight.detach().abs().amax(dim=1)
    for limits in (LIMITS, (2.0,)):
        given = limits if len(limits) > 1 else limits[0]
        limit = product * torch.tensor(limits, dtype=torch.float64)
        expected = limit * CURVES[shape](layer(x) / limit)
        found = to_analog(layer, config(Compression(given, shape)))(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert float((expected / layer(x)).detach().min()) < 0.9


@pytest.mark.parametrize("shape", CURVES)
def test_compression_has_slope_one_at_zero_and_its_own_elsewhere(shape: Shape) -> None:
    core = AnalogCore(
        torch.ones(1, 1).double(), LinearProduct(), config(Compression(3.0, shape)), name="a", seed=0, stream=0
    )
    core = core.double()
    weight = torch.ones(1, 1, dtype=torch.float64)

    def curve(x: Tensor) -> Tensor:
        found: Tensor = core(x, weight)
        return found

    x = torch.tensor([[0.0], [64 * 2.0 / 127], [-127 * 2.0 / 127]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(curve(x).sum(), x)
    u = (x.detach() / 6.0).requires_grad_()
    (expected,) = torch.autograd.grad(CURVES[shape](u).sum(), u)
    torch.testing.assert_close(slope, expected)
    assert float(slope[0]) == 1.0


def measured(columns: int, *, falling: bool = False) -> MeasuredTransfer:
    rng = np.random.default_rng(0)
    inputs = tuple(np.linspace(-3.0, 3.0, 9).tolist())
    rises = rng.uniform(0.1, 1.0, (columns, 9)).cumsum(axis=1) - 2.5
    return MeasuredTransfer(inputs, tuple(tuple(row) for row in (-rises if falling else rises).tolist()))


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("columns", [1, 6])
def test_a_measured_curve_is_the_one_that_scipy_draws_of_each_column(columns: int, falling: bool) -> None:
    effect = measured(columns, falling=falling)
    torch.manual_seed(0)
    layer = nn.Conv1d(5, 6, 3, bias=False).double()
    x = codes(20, 5, 12)
    product = 2.0 * layer.weight.detach().abs().amax(dim=(1, 2))
    ideal = (layer(x).detach() / product[:, None]).numpy()
    found = (to_analog(layer, config(effect))(x).detach() / product[:, None]).numpy()
    curves = [PchipInterpolator(effect.inputs, row, extrapolate=False) for row in effect.outputs]
    for channel in range(6):
        curve, values = curves[channel % columns if columns > 1 else 0], ideal[:, channel]
        inside = np.abs(values) <= 3.0
        np.testing.assert_allclose(found[:, channel][inside], curve(values[inside]), rtol=1e-9, atol=1e-12)
        above = values > 3.0
        straight = curve(3.0) + curve.derivative()(3.0) * (values[above] - 3.0)
        np.testing.assert_allclose(found[:, channel][above], straight, rtol=1e-9, atol=1e-12)
    assert (np.abs(ideal) > 3.0).any()


def test_points_may_be_in_amperes_and_gradients_follow_the_curve() -> None:
    products, amperes = measured(1), 1.0e-6
    scaled = MeasuredTransfer(
        tuple(amperes * one for one in products.inputs),
        tuple(tuple(amperes * one for one in row) for row in products.outputs),
        per_product=amperes,
    )
    layer, x = linear(10, 4), codes(7, 10)
    torch.testing.assert_close(
        to_analog(layer, config(scaled))(x), to_analog(layer, config(products))(x), rtol=1e-9, atol=1e-12
    )
    spline = PchipInterpolator(products.inputs, products.outputs[0])
    core = AnalogCore(torch.ones(1, 1).double(), LinearProduct(), config(products), name="a", seed=0, stream=0).double()
    at = torch.tensor([[50 * 2.0 / 127]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(core(at, torch.ones(1, 1, dtype=torch.float64)).sum(), at)
    assert slope.item() == pytest.approx(float(spline.derivative()(at.item() / 2.0)), rel=1e-9)


def test_amplifiers_stand_in_front_of_the_converters_of_every_tile() -> None:
    base = AnalogConfig(
        geometry=ArrayGeometry.relative(rows=2, columns=8),
        dac=Dac(input_max=1.0),
        output_effects=(Compression(1.0),),
        adc=Adc(bits=8, bound_products=2.0),
    )
    weight = torch.ones(1, 4)
    core = AnalogCore(weight, LinearProduct(), base, name="a", seed=0, stream=0)
    # Two tiles of two products each: both compressed by themselves, then rounded to levels of 2 / 127.
    level = 2.0 / 127
    each = round(float(torch.tanh(torch.tensor(2.0))) / level) * level
    torch.testing.assert_close(core(torch.ones(1, 4), weight), torch.tensor([[2.0 * each]]))


def test_curves_that_cannot_be_are_refused_with_every_fault() -> None:
    with pytest.raises(SurrogateError, match="limit_products = 0 must be positive; limit_products = -1 must"):
        Compression((0, 1.0, -1))
    with pytest.raises(SurrogateError, match="per_product = 0 must be positive; there is no row of outputs"):
        MeasuredTransfer((0.0, 1.0), (), per_product=0)
    with pytest.raises(SurrogateError, match="y turns at point"):
        MeasuredTransfer((0.0, 1.0, 2.0), ((0.0, 1.0, 0.5),))
    with pytest.raises(SurrogateError, match="Compression needs a dac"):
        AnalogConfig(output_effects=(Compression(1.0),))
    with pytest.raises(SurrogateError, match="Compression has curves for 3 of 4 outputs"):
        to_analog(nn.Linear(2, 4), replace(config(Compression(LIMITS)), adc=Adc()))
