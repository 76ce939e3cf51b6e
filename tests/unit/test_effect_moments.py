"""Every source of noise has the moments of its equation, measured on 1e5 draws and more."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.analog_effects import ProgrammedWeights, TileOutput
from labrig_surrogates.calibrate_ranges import calibrate_ranges
from labrig_surrogates.convert import to_analog
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.draws import Source
from labrig_surrogates.effect_settings import (
    Adc,
    Dac,
    Mapping,
    NoiseDraws,
    OutputNoise,
    OutputReference,
    ReadNoise,
    Saturation,
    WeightNoise,
    WeightQuantization,
    WeightReference,
    WeightSpread,
)
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLinear
from labrig_surrogates.model_tools import noise_off
from labrig_surrogates.products import ConvProduct, LinearProduct
from labrig_surrogates.tilemap import ArrayGeometry

SIDE = 320
"""SIDE * SIDE = 102,400 draws."""


def core_of(config: AnalogConfig, weight: Tensor, product: LinearProduct | ConvProduct | None = None) -> AnalogCore:
    return AnalogCore(weight, product or LinearProduct(), config, name="layer", seed=5, stream=0)


def standing(core: AnalogCore, weight: Tensor) -> Tensor:
    """The weights as they stand in the array at one reading, in their own unit."""
    (cells,) = core.realise(weight)
    return cells.codes * cells.unit


def demand_normal(errors: Tensor, sigma: Tensor | float) -> None:
    """Errors over their standard deviation have the moments of the normal law."""
    z = (errors / sigma).double().flatten()
    assert z.numel() >= 100_000
    found = [float(z.pow(power).mean()) for power in (1, 2, 3, 4)]
    # Standard errors of the moments of a normal variable; twice that, because a pool repeats its numbers.
    allowed = 5.0 * 2.0 * np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / z.numel())
    assert np.all(np.abs(np.array(found) - [0.0, 1.0, 0.0, 3.0]) < allowed), found


@pytest.mark.parametrize("source", ["pool", "exact"])
@pytest.mark.parametrize("relative_to", ["wmax", "range", "wrange", "wmult", "wrms", "abs"])
def test_weight_noise(relative_to: WeightReference, source: Source) -> None:
    weight = 0.3 * torch.randn((SIDE, SIDE), generator=torch.Generator().manual_seed(0)) + 0.1
    config = AnalogConfig(
        mapping=Mapping("sigma", 2.5), weight_noise=WeightNoise(0.1, relative_to), draws=NoiseDraws(source)
    )
    core = core_of(config, weight)
    limit = 2.5 * weight.std(correction=0)
    clean = weight.clamp(-limit, limit)
    sizes = {
        "wmax": clean.abs().max(),
        "range": limit,
        "wrange": clean.max() - clean.min(),
        "wmult": clean.abs(),
        "wrms": clean.std(correction=0),
        "abs": torch.tensor(1.0),
    }
    demand_normal(standing(core, weight) - clean, 0.1 * sizes[relative_to])


def test_weight_noise_of_each_column_follows_the_column() -> None:
    weight = (
        torch.randn((SIDE, SIDE), generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2.0, SIDE)[:, None]
    )
    core = core_of(AnalogConfig(weight_noise=WeightNoise(0.05, per_column=True)), weight)
    demand_normal(standing(core, weight) - weight, 0.05 * weight.abs().amax(dim=1, keepdim=True))


def test_timing_of_weight_noise() -> None:
    weight = torch.randn((8, 8), generator=torch.Generator().manual_seed(0))
    fresh = core_of(AnalogConfig(weight_noise=WeightNoise(0.1)), weight)
    assert not torch.equal(standing(fresh, weight), standing(fresh, weight))
    kept = core_of(AnalogConfig(weight_noise=WeightNoise(0.1, timing="program")), weight)
    first = standing(kept, weight)
    assert torch.equal(standing(kept, weight), first)
    kept.new_write(weight)
    assert not torch.equal(standing(kept, weight), first)


@pytest.mark.parametrize("per", ["layer", "column", "weight"])
def test_learnable_spread(per: str) -> None:
    weight = torch.randn((SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    spread = WeightSpread(start_range=0.02, per=per)  # type: ignore[arg-type]
    core = core_of(AnalogConfig(spread=spread, weight_noise=WeightNoise(0.5)), weight)
    assert core.log_spread is not None
    assert core.log_spread.shape == {"layer": (), "column": (SIDE, 1), "weight": (SIDE, SIDE)}[per]
    demand_normal((standing(core, weight) - weight).detach(), 0.02 * weight.abs().max())
    # The gradient in log s of sum(g * (w + s * xi)) is sum(g * s * xi).
    core.stream.restart(0, 0)
    (cells,) = core.realise(weight)
    grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((grad * cells.source).sum(), core.log_spread)
    expected = (grad * (cells.source.detach() - weight)).sum_to_size(core.log_spread.shape)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_read_noise_is_that_of_independent_cells_for_every_vector(layer: str, exponent: float) -> None:
    generator = torch.Generator().manual_seed(0)
    config = AnalogConfig(read_noise=ReadNoise(0.05, exponent))
    if layer == "linear":
        weight = torch.randn((4, 12), generator=generator)
        x = torch.randn((1, 12), generator=generator).expand(25_600, 12)
        product: LinearProduct | ConvProduct = LinearProduct()
    else:
        weight = torch.randn((4, 3, 3, 3), generator=generator)
        x = torch.randn((1, 6, 5, 5), generator=generator).expand(3_000, 6, 5, 5)
        product = ConvProduct((2, 2), (1, 1), (1, 1), groups=2)
    core = core_of(config, weight, product)
    limit = weight.abs().max()
    variance = (0.05 * limit * (weight.abs() / limit) ** exponent) ** 2
    errors = core(x, weight) - product.plain(x, weight)
    demand_normal(errors, product.plain(x.square(), variance).sqrt())


def test_read_noise_of_zero_inputs_is_zero_and_has_a_gradient() -> None:
    weight = torch.ones((2, 3))
    core = core_of(AnalogConfig(read_noise=ReadNoise(0.5)), weight)
    x = torch.zeros((4, 3), requires_grad=True)
    y = core(x, weight)
    assert y.abs().max() < 1e-15
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("source", ["pool", "exact"])
@pytest.mark.parametrize("relative_to", ["ostd", "ofs", "products", "abs"])
def test_output_noise(relative_to: OutputReference, source: Source) -> None:
    config = AnalogConfig(
        dac=Dac(input_max=2.0),
        adc=Adc(bound_products=4.0),
        output_noise=OutputNoise(0.05, relative_to),
        draws=NoiseDraws(source),
    )
    weight = torch.full((SIDE, 2), 0.5)
    core = core_of(config, weight)
    if relative_to == "ostd":
        core.set_ranges(output_std=3.0)
    sigma = {"ostd": 0.15, "ofs": 0.05 * 4.0, "products": 0.05, "abs": 0.05}[relative_to]
    with torch.no_grad():
        errors = core(torch.zeros((SIDE, 2)), weight)
    lsb = 4.0 * 2.0 * 0.5 / 127
    assert errors.std().item() == pytest.approx(np.sqrt(sigma**2 + lsb**2 / 12), rel=0.02)
    bare = core_of(replace(config, adc=None), weight) if relative_to != "ofs" else None
    if bare is not None:
        if relative_to == "ostd":
            bare.set_ranges(output_std=3.0)
        with torch.no_grad():
            demand_normal(bare(torch.zeros((SIDE, 2)), weight), sigma)


def test_poisson_noise_of_outputs_has_the_power_of_gaussian_noise_and_follows_the_signal() -> None:
    torch.manual_seed(0)
    config = AnalogConfig(output_noise=OutputNoise(0.1, "ostd", law="poisson"), draws=NoiseDraws("exact"))
    model, x = to_analog(torch.nn.Linear(40, 40, bias=False), config), torch.randn(4000, 40)
    assert isinstance(model, AnalogLinear)
    assert model.core.path == "composed"
    with pytest.raises(SurrogateError, match="no value for output_std, output_mean"):
        model(x)
    calibrate_ranges(model, [x])
    with torch.no_grad(), noise_off(model):
        clean = model(x)
    errors = model(x).detach() - clean
    demand_normal(errors, 0.1 * clean.std() * torch.sqrt(clean.abs() / clean.abs().mean()))
    power = float(errors.square().mean()) / float((0.1 * clean.std()) ** 2)
    assert power == pytest.approx(1.0, rel=0.03)
    assert not bool(model(torch.zeros(3, 40)).any())
    with pytest.raises(SurrogateError, match="does not serve output_noise\\.law='poisson'"):
        replace(config, path="fused")
    with pytest.raises(SurrogateError, match="would need the mean size of each"):
        AnalogConfig(dac=Dac(slice_bits=2), output_noise=OutputNoise(0.1, "products", law="poisson"))
    gaussian = AnalogLinear(4, 4, config=AnalogConfig(output_noise=OutputNoise(0.1, "abs")))
    with pytest.raises(SurrogateError, match="output_mean: no output noise follows the signal"):
        gaussian.core.set_ranges(output_mean=1.0)


@pytest.mark.parametrize("tiles", [1, 4, 9])
def test_noise_of_tiles_adds_as_the_square_root_of_their_number(tiles: int) -> None:
    config = AnalogConfig(
        output_noise=OutputNoise(0.1, "abs"), geometry=ArrayGeometry.relative(rows=4, columns=2 * SIDE)
    )
    weight = torch.zeros((SIDE, 4 * tiles))
    core = core_of(config, weight)
    assert core.tiles_of_an_output == tiles
    with torch.no_grad():
        demand_normal(core(torch.ones((SIDE, 4 * tiles)), weight), 0.1 * tiles**0.5)


def test_stochastic_levels_of_weights_are_right_on_average() -> None:
    weight = torch.full((SIDE, SIDE), 0.43)
    weight[0, 0] = 1.0
    core = core_of(AnalogConfig(weight_quantization=WeightQuantization(4, rounding="stochastic")), weight)
    found = standing(core, weight).flatten()[1:]
    assert torch.unique(torch.round(found * 7)).tolist() == [3.0, 4.0]
    # 0.43 is 3.01 levels: a Bernoulli variable with p = 0.01 in units of 1/7.
    assert found.mean().item() == pytest.approx(0.43, abs=5.0 * np.sqrt(0.01 * 0.99 / found.numel()) / 7)


class Halve:
    """A weight effect with a programming error of its own."""

    fresh_at_read = False

    def on_weights(self, weights: Tensor, known: ProgrammedWeights) -> Tensor:
        return 0.5 * weights + 0.1 * known.limit * known.kept("halve", weights.shape)


class SquareLaw:
    """Signal-dependent noise: a variance proportional to the currents' absolute values, as shot noise."""

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        variance = 0.01 * known.multiply(known.inputs.abs(), known.weights.abs())
        return outputs + variance.sqrt() * known.fresh(outputs.shape)


def test_effects_of_others_plug_in() -> None:
    weight = torch.randn((SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    halved = core_of(AnalogConfig(weight_effects=(Halve(),)), weight)
    first = standing(halved, weight)
    demand_normal(first - 0.5 * weight, 0.1 * weight.abs().max())
    assert torch.equal(standing(halved, weight), first)
    halved.new_write(weight)
    assert not torch.equal(standing(halved, weight), first)
    noisy = core_of(AnalogConfig(output_effects=(SquareLaw(),)), weight)
    x = torch.rand((SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    demand_normal(noisy(x, weight) - x @ weight.T, 0.1 * (x @ weight.abs().T).sqrt())
    noisy.noise = halved.noise = False
    torch.testing.assert_close(noisy(x, weight), x @ weight.T)
    torch.testing.assert_close(standing(halved, weight), 0.5 * weight)


def test_saturation_and_slices_come_in_their_order() -> None:
    weight = torch.tensor([[1.0, 1.0, 1.0]])
    x = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
    clip = core_of(AnalogConfig(dac=Dac(), saturation=Saturation(2.0, "clip")), weight)
    torch.testing.assert_close(clip(x, weight), torch.tensor([[2.0], [-1.0]]))
    smooth = core_of(AnalogConfig(dac=Dac(), saturation=Saturation(2.0)), weight)
    torch.testing.assert_close(smooth(x, weight), 2.0 * torch.tanh(x @ weight.T / 2.0))


@pytest.mark.parametrize(("weight_bits", "input_bits"), [(1, None), (None, 2), (2, 3)])
def test_sliced_weights_and_inputs_give_the_same_product(weight_bits: int | None, input_bits: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn((5, 9), generator=generator).double(), torch.randn((7, 9), generator=generator).double()
    plain = AnalogConfig(dac=Dac(input_max=2.0), weight_quantization=WeightQuantization(5))
    sliced = AnalogConfig(
        dac=Dac(input_max=2.0, slice_bits=input_bits),
        weight_quantization=WeightQuantization(5, slice_bits=weight_bits),
    )
    results = []
    for config in (plain, sliced):
        core = core_of(config, weight)
        leaves = (x.clone().requires_grad_(), weight.clone().requires_grad_())
        y = core(*leaves)
        results.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_slices_are_noisy_and_converted_one_by_one() -> None:
    weight = torch.zeros((SIDE, SIDE))
    weight[0, 0] = 1.0
    config = AnalogConfig(
        dac=Dac(), weight_quantization=WeightQuantization(5, slice_bits=2), weight_noise=WeightNoise(0.1)
    )
    core = core_of(config, weight)
    x = torch.eye(SIDE)[1:]
    errors = core(x, weight)[:, 1:]
    # Two slices of two bits: each cell's range is 3 of 15 levels, the second counts four times.
    demand_normal(errors[:, : SIDE - 2], 0.1 * 3.0 / 15.0 * np.sqrt(1.0 + 16.0))
