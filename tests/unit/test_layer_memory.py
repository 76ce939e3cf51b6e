"""Memory of a layer: no second copy of the weights without a gradient, and a step within half of a plain one."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks.surrogate_memory import peak_mb
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
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
)
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.model_tools import noise_off, program, seed_noise
from labrig_surrogates.tilemap import ArrayGeometry

RUNG = AnalogConfig(
    dac=Dac(input_max=3.0),
    weight_quantization=WeightQuantization(4),
    weight_noise=WeightNoise(0.05),
    output_noise=OutputNoise(0.06, "products"),
    adc=Adc(),
)

CONFIGS = {
    "rung": RUNG,
    "no levels": replace(RUNG, weight_quantization=None),
    "stochastic rounding": replace(RUNG, weight_quantization=WeightQuantization(4, rounding="stochastic")),
    "columns apart": replace(RUNG, mapping=Mapping(per_column=True), weight_noise=WeightNoise(0.05, per_column=True)),
    "columns apart, noise alike": replace(RUNG, mapping=Mapping(per_column=True)),
    "sigma range": replace(RUNG, mapping=Mapping("sigma", 2.0)),
    "fixed range, largest weight": replace(RUNG, mapping=Mapping("fixed")),
    "sigma range, no levels": replace(RUNG, mapping=Mapping("sigma", 2.0), weight_quantization=None),
    "fixed range": replace(RUNG, mapping=Mapping("fixed"), weight_noise=WeightNoise(0.05, "range")),
    "noise of the weights' own size": replace(RUNG, weight_noise=WeightNoise(0.05, "wrms")),
    "fresh backward": replace(RUNG, backward=BackwardPass("fresh")),
    "once for a write": replace(RUNG, weight_noise=WeightNoise(0.05, timing="program")),
    "drawn": replace(RUNG, draws=NoiseDraws("exact")),
    "no noise": replace(RUNG, weight_noise=None),
    "no ADC": replace(RUNG, adc=None),
    "output noise alone": AnalogConfig(output_noise=OutputNoise(0.1, "abs")),
    "noise of all outputs": replace(RUNG, output_noise=OutputNoise(0.06, "abs"), mapping=Mapping(per_column=True)),
    "tiles": replace(RUNG, geometry=ArrayGeometry.relative(rows=200, columns=500)),
}


def made(config: AnalogConfig) -> tuple[nn.Module, AnalogCore, Tensor]:
    """A layer whose weights can be streamed, and inputs."""
    generator = torch.Generator().manual_seed(1)
    plain = nn.Linear(320, 250)
    with torch.no_grad():
        plain.weight.copy_(torch.randn((250, 320), generator=generator) / 18.0)
        plain.bias.copy_(torch.randn(250, generator=generator))
    layer = to_analog(plain, config, seed=5).eval()
    return layer, weight_matrices(layer)[0].core, torch.randn((3, 7, 320), generator=generator)


@pytest.mark.parametrize("programmed", [False, True], ids=["each pass", "programmed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_inference_is_the_forward_pass_of_a_training_step(name: str, programmed: bool) -> None:
    layer, core, x = made(CONFIGS[name])
    if programmed and CONFIGS[name].weight_noise is not None:
        program(layer)
    for context in (torch.no_grad, torch.inference_mode):
        seed_noise(layer, 3)
        kept = layer(x).detach()
        seed_noise(layer, 3)
        with context():
            streamed = layer(x)
        # Sums of other order, which may move a single level of the ADC; everything else is the same number.
        differs = (kept - streamed).abs() > 1e-4
        assert streamed.shape == kept.shape
        assert float(differs.double().mean()) < 1e-3, core.path
        with noise_off(layer), context():
            assert not torch.equal(layer(x), streamed)


def test_what_is_streamed_needs_no_gradient_of_weights_inputs_or_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, core, x = made(RUNG)
    asked: list[bool] = []
    streams = core._streams

    def note(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        asked.append(streams(x, weight, bias))
        return asked[-1]

    monkeypatch.setattr(core, "_streams", note)
    layer(x)
    with torch.no_grad():
        layer(x)
    layer.requires_grad_(requires_grad=False)
    layer(x)
    layer(x.requires_grad_())
    assert asked == [False, True, True, False]


@pytest.mark.parametrize(
    "mapping", [Mapping(), Mapping("fixed"), Mapping("sigma", 2.0)], ids=lambda one: one.weight_range
)
@pytest.mark.parametrize("programmed", [False, True], ids=["each pass", "programmed"])
def test_memory_is_at_most_half_more_than_that_of_a_plain_layer(programmed: bool, mapping: Mapping) -> None:
    size, batch = 512, 128
    plain, x = nn.Linear(size, size), torch.randn(batch, size)
    analog = to_analog(plain, replace(RUNG, mapping=mapping))
    if programmed:
        program(analog)
    inputs, grad = x.clone().requires_grad_(), torch.randn(batch, size)
    standing_mb = 4e-6 * (x.numel() + plain.weight.numel() + size)

    def step(layer: nn.Module) -> object:
        leaves = [inputs, *layer.parameters()]
        return torch.autograd.grad(layer.train()(inputs), leaves, grad)

    def infer(layer: nn.Module) -> object:
        with torch.inference_mode():
            return layer.eval()(x)

    for call in (step, infer):
        ours_mb, theirs_mb = (standing_mb + peak_mb(partial(call, layer)) for layer in (analog, plain))
        assert theirs_mb > standing_mb
        assert ours_mb <= 1.5 * theirs_mb, call.__name__
