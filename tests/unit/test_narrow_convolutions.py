"""Convolutions under autocast: feature maps stay in bfloat16, converters count as precisely as ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.cells import ArrayWeights
from labrig_surrogates.convolution import AnalogConv2d
from labrig_surrogates.effect_settings import Adc, Dac, OutputNoise, WeightNoise, WeightQuantization
from labrig_surrogates.fused import fused_outputs
from labrig_surrogates.fused_plan import FusedPlan, OutputNoiseDraw
from labrig_surrogates.passes import code_pass

DAC = Dac(bits=4, input_max=2.0, signed=False)
QUANTIZED = AnalogConfig(dac=DAC, weight_quantization=WeightQuantization(4))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(config: AnalogConfig) -> AnalogConv2d:
    made = AnalogConv2d(8, 16, 3, padding=1, config=config, generator=seeded(0))
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def images(count: int = 8) -> Tensor:
    x = torch.rand(count, 8, 12, 12, generator=seeded(1)) * 2.2
    return x.to(memory_format=torch.channels_last).bfloat16()


def passed(conv: AnalogConv2d | nn.Conv2d, x: Tensor, *, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, and gradients of inputs and weights for a fixed gradient of the outputs."""
    inputs = x.clone().to(torch.bfloat16 if autocast else torch.float32).detach().requires_grad_()
    conv.weight.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        outputs = conv(inputs)
    outputs.backward(torch.randn(outputs.shape, generator=seeded(2)).to(outputs.dtype))
    assert inputs.grad is not None
    assert conv.weight.grad is not None
    return outputs.detach(), inputs.grad, conv.weight.grad


def apart(narrow: Tensor, wide: Tensor) -> float:
    """Distance of two results, as part of the second."""
    return float((narrow.float() - wide).norm() / wide.norm())


def test_feature_maps_stay_in_bfloat16_without_an_adc() -> None:
    outputs, grad_x, grad_weight = passed(layer(QUANTIZED), images(), autocast=True)
    assert (outputs.dtype, grad_x.dtype, grad_weight.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert outputs.is_contiguous(memory_format=torch.channels_last)


def test_the_fast_path_sees_bfloat16_without_an_adc_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    def note(
        x: Tensor, weights: ArrayWeights, bias: Tensor | None, plan: FusedPlan, noise: Sequence[OutputNoiseDraw]
    ) -> Tensor:
        seen.append((x.dtype, plan.narrow))
        return fused_outputs(x, weights, bias, plan, noise)

    monkeypatch.setattr("labrig_surrogates.core.fused_outputs", note)
    for config in (QUANTIZED, replace(QUANTIZED, adc=Adc(bits=8, bound_products=4.0))):
        for autocast in (True, False):
            passed(layer(config), images(), autocast=autocast)
    assert seen == [(torch.bfloat16, True), *[(torch.float32, False)] * 3]


def test_values_and_gradients_are_those_of_float32_to_the_precision_of_bfloat16() -> None:
    conv, x = layer(QUANTIZED), images()
    plain = nn.Conv2d(8, 16, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        plain.weight.copy_(conv.weight)
    of_torch = zip(passed(plain, x, autocast=True), passed(plain, x, autocast=False), strict=True)
    ours = zip(passed(conv, x, autocast=True), passed(conv, x, autocast=False), strict=True)
    for (narrow, wide), (plain_narrow, plain_wide) in zip(ours, of_torch, strict=True):
        # Rounding of results to 8 bits, and of the operands of each product: 2**-9 each. Processors without such
        # products sum in bfloat16 as well, in torch's own layer too.
        assert apart(narrow, wide) < max(4e-3, 1.2 * apart(plain_narrow, plain_wide))
    clipped = x > 2.0 * (1.0 + 0.5 / 15)
    assert bool(clipped.any())
    assert not passed(conv, x, autocast=True)[1][clipped].any()


def test_converters_round_in_float32() -> None:
    # 100.5 steps and a bit: bfloat16 would see 100.5, or 100, and round to the even 100.
    x = torch.tensor([100.5 * 0.01]).bfloat16().repeat(4)
    step = float(x[0]) / 100.51
    assert code_pass(x, 1.0 / step, 0, 127).tolist() == [101.0] * 4


def test_noise_has_its_width_and_inputs_of_another_type_are_taken() -> None:
    config = AnalogConfig(
        dac=DAC,
        weight_quantization=WeightQuantization(4),
        output_noise=OutputNoise(0.5, "abs"),
        weight_noise=WeightNoise(0.0, "wmax"),
    )
    conv, x = layer(config), images(64)
    quiet = passed(layer(QUANTIZED), x, autocast=True)[0].float()
    noisy = passed(conv, x, autocast=True)[0].float() - quiet
    assert abs(float(noisy.std()) - 0.5) < 0.01
    assert abs(float(noisy.mean())) < 0.01
    full = x.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conv(full).sum().backward()
    assert full.grad is not None
    assert full.grad.dtype is torch.float32


def test_parts_of_a_batch_and_an_adc_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = layer(QUANTIZED), images()
    whole = passed(conv, x, autocast=True)
    monkeypatch.setattr("labrig_surrogates.fused.NARROW_CONV_PART", 3 * 8 * 12 * 12)
    for a, b in zip(passed(conv, x, autocast=True), whole, strict=True):
        assert float((a.float() - b.float()).norm() / b.float().norm()) < 4e-3
    converted = layer(AnalogConfig(dac=DAC, adc=Adc(bits=8, bound_products=4.0)))
    narrow, wide = (passed(converted, x, autocast=one)[0].float() for one in (True, False))
    assert float((narrow - wide).norm() / wide.norm()) < 8e-3
