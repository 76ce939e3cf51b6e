"""The fast path is the composed one, and both have the derivative of the physics that they stand for."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import labrig_surrogates.fused
import labrig_surrogates.passes
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.effect_settings import (
    Adc,
    BackwardPass,
    Dac,
    Mapping,
    NoiseDraws,
    OutputNoise,
    WeightNoise,
    WeightQuantization,
    WeightSpread,
)
from labrig_surrogates.products import ConvProduct, LinearProduct
from labrig_surrogates.tilemap import ArrayGeometry

RUNG = AnalogConfig(
    dac=Dac(input_max=1.5),
    adc=Adc(bound_products=3.0),
    weight_quantization=WeightQuantization(4),
    weight_noise=WeightNoise(0.05),
    output_noise=OutputNoise(0.02, "ofs"),
)

CONFIGS = {
    "rung": RUNG,
    "fixed range": replace(RUNG, mapping=Mapping("fixed")),
    "sigma range of each column": replace(RUNG, mapping=Mapping("sigma", 2.0, per_column=True)),
    "no levels": replace(RUNG, weight_quantization=None),
    "no levels, clipped": replace(RUNG, weight_quantization=None, mapping=Mapping("sigma", 1.5)),
    "stochastic rounding": replace(RUNG, weight_quantization=WeightQuantization(4, rounding="stochastic")),
    "fresh backward": replace(RUNG, backward=BackwardPass("fresh")),
    "clean backward": replace(RUNG, backward=BackwardPass("clean")),
    "wmult": replace(RUNG, weight_noise=WeightNoise(0.1, "wmult")),
    "wrms of each column": replace(RUNG, weight_noise=WeightNoise(0.1, "wrms", per_column=True)),
    "wrange": replace(RUNG, weight_noise=WeightNoise(0.1, "wrange"), mapping=Mapping(per_column=True)),
    "wmax, columns apart": replace(RUNG, mapping=Mapping(per_column=True)),
    "abs": replace(RUNG, weight_noise=WeightNoise(0.01, "abs")),
    "products, columns apart": replace(
        RUNG, mapping=Mapping(per_column=True), output_noise=OutputNoise(0.02, "products")
    ),
    "products, calibrated": replace(
        RUNG,
        mapping=Mapping(per_column=True),
        output_noise=OutputNoise(0.02, "products"),
        adc=Adc(range="calibrated"),
    ),
    "products, columns apart, no ADC": replace(
        RUNG, mapping=Mapping(per_column=True), output_noise=OutputNoise(0.02, "products"), adc=None
    ),
    "ostd, columns apart": replace(RUNG, mapping=Mapping(per_column=True), output_noise=OutputNoise(0.1, "ostd")),
    "abs noise, columns apart": replace(RUNG, mapping=Mapping(per_column=True), output_noise=OutputNoise(0.1, "abs")),
    "unsigned inputs": replace(RUNG, dac=Dac(input_max=1.5, signed=False)),
    "no DAC": replace(RUNG, dac=None, adc=Adc(range="calibrated"), output_noise=OutputNoise(0.1, "ostd")),
    "no ADC": replace(RUNG, adc=None, output_noise=OutputNoise(0.1, "products")),
    "output noise alone": AnalogConfig(output_noise=OutputNoise(0.1, "abs")),
    "spread": replace(RUNG, spread=WeightSpread()),
    "learned step": replace(RUNG, weight_quantization=WeightQuantization(4, learned_step=True)),
    "exact draws": replace(RUNG, draws=NoiseDraws("exact")),
    "programmed": replace(RUNG, weight_noise=WeightNoise(0.05, timing="program")),
}

SHAPES: dict[str, tuple[LinearProduct | ConvProduct, tuple[int, ...], tuple[int, ...], int]] = {
    "linear": (LinearProduct(), (5, 6), (7, 6), 4),
    "sequence": (LinearProduct(), (3, 4, 6), (7, 6), 4),
    "conv2d": (ConvProduct((1, 2), (1, 0), (1, 1)), (3, 4, 6, 5), (6, 4, 3, 2), 12),
    "groups": (ConvProduct((1, 1), (1, 1), (1, 2), groups=2), (3, 8, 6, 7), (6, 4, 3, 2), 12),
    "conv1d": (ConvProduct((2,), (1,), (1,)), (3, 4, 9), (6, 4, 3), 6),
}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts small tensors as large ones are."""
    monkeypatch.setattr(labrig_surrogates.passes, "PIECE", 64)
    monkeypatch.setattr(labrig_surrogates.fused, "CONV_PART", 40)


def made(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def core_of(config: AnalogConfig, product: LinearProduct | ConvProduct, weight: Tensor) -> AnalogCore:
    core = AnalogCore(weight, product, config, name="layer", seed=3, stream=1)
    if core.output_max is not None:
        core.set_ranges(output_max=5.0)
    if core.output_std is not None:
        core.set_ranges(output_std=1.0)
    return core


def outcome(core: AnalogCore, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of a fixed sum of them in everything that learns."""
    leaves = [one.clone().requires_grad_() for one in (x, weight, bias)]
    y = core(*leaves)
    grad = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *core.parameters()], grad)]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", CONFIGS)
def test_both_paths_give_the_same_outputs_and_gradients(name: str) -> None:
    for shape, (product, x_shape, weight_shape, rows) in SHAPES.items():
        x, weight, bias = made(x_shape, 1), made(weight_shape, 2), made(weight_shape[:1], 3)
        for geometry in (None, ArrayGeometry.relative(rows=rows, columns=40)):
            config = replace(CONFIGS[name], geometry=geometry)
            fused = core_of(config, product, weight)
            composed = core_of(replace(config, path="composed"), product, weight)
            assert ("fused" in fused.path, composed.path) == (True, "composed")
            assert fused.tiles_of_an_output == (1 if geometry is None else 2), shape
            for a, b in zip(outcome(fused, x, weight, bias), outcome(composed, x, weight, bias), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=f"{name}, {shape}, {geometry}")


def physics(x: Tensor, weight: Tensor, noise: Tensor, output_noise: Tensor, top: float) -> Tensor:
    """The same layer without levels: what a straight-through gradient is the derivative of."""
    outputs = torch.clamp(x, -1.5, 1.5) @ (torch.clamp(weight, -1.0, 1.0) + noise).T + output_noise
    end = top * (1.0 + 0.5 / 127)  # up to half a level further out the ADC rounds and does not clip
    return torch.clamp(outputs, -end, end)


@given(batch=st.integers(1, 4), inputs=st.integers(1, 6), outputs=st.integers(1, 5), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_gradients_agree_with_finite_differences_of_the_physics(
    batch: int, inputs: int, outputs: int, seed: int
) -> None:
    # On levels of both converters rounding does nothing, and the straight-through gradient is the true derivative.
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-160, 161, (batch, inputs), generator=generator).double() * (1.5 / 127)
    weight = torch.randint(-9, 10, (outputs, inputs), generator=generator).double() / 7
    x[x.abs() == 1.5] = 0.0  # at the very end of the range a derivative has two sides
    weight[weight.abs() == 1.0] = 0.0
    config = replace(RUNG, mapping=Mapping("fixed"), weight_noise=WeightNoise(0.05, "range"))
    core = AnalogCore(weight, LinearProduct(), config, name="layer", seed=seed, stream=0)
    core.set_ranges(weight_max=1.0)
    top = 3.0 * 1.5
    noise = 0.05 * core.stream.normal(weight.shape, weight).tensor()
    output_noise = 0.02 * top * core.stream.normal((batch, outputs), x).tensor()
    core.stream.restart(seed, 0)
    leaves = (x.clone().requires_grad_(), weight.clone().requires_grad_())
    y = core(*leaves)
    exact = physics(x, weight, noise, output_noise, top)
    assert (y - exact).abs().max() <= 0.5 * top / 127 + 1e-9
    assert y.abs().max() <= top + 1e-9
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(y, leaves, grad)
    step = 1e-6
    for number, values in enumerate((x, weight)):
        for place in range(values.numel()):
            sides = []
            for sign in (1.0, -1.0):
                moved = [x.clone(), weight.clone()]
                moved[number].view(-1)[place] += sign * step
                sides.append(float((grad * physics(moved[0], moved[1], noise, output_noise, top)).sum()))
            slope = (sides[0] - sides[1]) / (2.0 * step)
            assert found[number].view(-1)[place].item() == pytest.approx(slope, abs=2e-6, rel=1e-6)


def test_gradients_of_smooth_effects_agree_with_finite_differences() -> None:
    config = AnalogConfig(output_noise=OutputNoise(0.1, "abs"), weight_noise=WeightNoise(0.05, "abs"))
    for product, x_shape, weight_shape, _ in SHAPES.values():
        x, weight, bias = made(x_shape, 1), made(weight_shape, 2), made(weight_shape[:1], 3)
        core = core_of(config, product, weight)

        def layer(*values: Tensor, core: AnalogCore = core) -> Tensor:
            core.stream.restart(0, 0)
            result: Tensor = core(*values)
            return result

        leaves = tuple(one.requires_grad_() for one in (x, weight, bias))
        assert torch.autograd.gradcheck(layer, leaves, fast_mode=True)


def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    core, x = core_of(RUNG, LinearProduct(), made((7, 6), 2)), made((5, 6), 1).requires_grad_()
    weight = made((7, 6), 2).requires_grad_()
    y = core(x, weight).square().sum()
    first = torch.autograd.grad(y, (x, weight), retain_graph=True)
    second = torch.autograd.grad(y, (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", ["linear", "conv2d"])
def test_what_is_no_number_stays_none_in_outputs_and_gradients(shape: str) -> None:
    product, x_shape, weight_shape, _ = SHAPES[shape]
    x, weight, bias = made(x_shape, 1), made(weight_shape, 2), made(weight_shape[:1], 3)
    x[0] = float("nan")
    for path in ("fused", "composed"):
        y, grad_x, grad_weight, _ = outcome(core_of(replace(RUNG, path=path), product, weight), x, weight, bias)
        assert bool(y[0].isnan().all())
        assert not bool(y[1:].isnan().any())
        assert not bool(grad_x[1:].isnan().any())
        assert bool(grad_weight.isnan().all()), path


def test_in_single_precision_both_paths_differ_by_rare_single_levels_only() -> None:
    x, weight = made((64, 96), 1).float(), made((80, 96), 2).float()
    outputs = []
    for path in ("fused", "composed"):
        core = core_of(replace(RUNG, path=path), LinearProduct(), weight)
        with torch.no_grad():
            outputs.append(core(x, weight))
    lsb = 3.0 * 1.5 * weight.abs().max() / 127
    difference = (outputs[0] - outputs[1]).abs() / lsb
    assert difference.max() < 1.001
    assert (difference > 0.5).float().mean() < 2e-3


def test_channels_last_images_keep_their_layout_and_their_values() -> None:
    config = replace(RUNG, weight_noise=None, output_noise=None)
    product, weight = ConvProduct((1, 1), (1, 1), (1, 1)), made((6, 8, 3, 3), 2)
    x = made((4, 8, 10, 10), 1)
    rows, last = x.clone(), x.to(memory_format=torch.channels_last)
    results = []
    for images in (rows, last):
        images.requires_grad_()
        y = core_of(config, product, weight)(images, weight)
        results.append((y, torch.autograd.grad(y.square().sum(), images)[0]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)
