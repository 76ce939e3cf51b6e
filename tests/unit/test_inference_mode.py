"""What is drawn, measured and programmed in inference mode serves the training that follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.calibrate_ranges import calibrate_ranges
from labrig_surrogates.cell_traces import CellTrace
from labrig_surrogates.convert import to_analog
from labrig_surrogates.device_effect import DeviceEffect
from labrig_surrogates.device_presets import pcm_like
from labrig_surrogates.drift_compensation import compensate_drift, note_response
from labrig_surrogates.effect_settings import Adc, Dac, NoiseDraws, OutputNoise, WeightNoise, WeightQuantization
from labrig_surrogates.mismatch import CellMismatch, ColumnMismatch
from labrig_surrogates.model_tools import new_write, program, set_age
from labrig_surrogates.noise_traces import Flicker

RUNG = AnalogConfig(
    dac=Dac(input_max=3.0),
    weight_quantization=WeightQuantization(4),
    weight_noise=WeightNoise(0.05, timing="program"),
    output_noise=OutputNoise(0.06, "products"),
    adc=Adc(),
)
CELLS = AnalogConfig(
    dac=Dac(),
    weight_effects=(DeviceEffect(pcm_like(), read="program"), CellTrace(Flicker(0.1, (1.0,))), CellMismatch(0.1, 0.1)),
    output_effects=(ColumnMismatch(0.1, 0.1),),
)
MEASURED = replace(RUNG, adc=Adc(range="calibrated"), output_noise=OutputNoise(0.1, "ostd"))


def measure(model: nn.Module, x: Tensor) -> None:
    calibrate_ranges(model, [x])


def age(model: nn.Module, x: Tensor) -> None:
    del x
    noted = note_response(model)
    set_age(model, 100.0)
    set_age(model, 200.0)
    compensate_drift(model, noted)


def write(model: nn.Module, x: Tensor) -> None:
    del x
    program(model)
    new_write(model)


def nothing(model: nn.Module, x: Tensor) -> None:
    del model, x


@pytest.mark.parametrize(
    ("config", "first"),
    [
        (RUNG, nothing),
        (RUNG, write),
        (replace(RUNG, path="composed", draws=NoiseDraws("exact")), write),
        (CELLS, nothing),
        (CELLS, age),
        (CELLS, write),
        (MEASURED, measure),
        (replace(MEASURED, output_noise=OutputNoise(0.1, "ostd", law="poisson")), measure),
    ],
)
def test_training_goes_on_after_an_evaluation_in_inference_mode(
    config: AnalogConfig, first: Callable[[nn.Module, Tensor], None]
) -> None:
    torch.manual_seed(0)
    model, x = to_analog(nn.Linear(20, 10), config), torch.randn(4, 20)
    with torch.inference_mode():
        first(model, x)
        model.eval()(x)
    for mode in (True, False):
        model.zero_grad()
        model.train(mode)(x.clone().requires_grad_()).square().sum().backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert bool(torch.isfinite(parameter.grad).all())
