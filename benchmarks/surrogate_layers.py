"""The layers that `benchmarks.surrogates` and `benchmarks.surrogate_memory` measure, and what is done with them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, sync
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import Adc, Dac, NoiseDraws, OutputNoise, WeightNoise, WeightQuantization
from labrig_surrogates.model_tools import program

INPUT_MAX = 3.0
WEIGHT_NOISE, OUTPUT_NOISE, BOUND = 0.05, 0.06, 10.0

CONFIG = AnalogConfig(
    dac=Dac(bits=8, input_max=INPUT_MAX),
    weight_quantization=WeightQuantization(bits=4),
    weight_noise=WeightNoise(WEIGHT_NOISE, relative_to="wmax", timing="read"),
    output_noise=OutputNoise(OUTPUT_NOISE, relative_to="products"),
    adc=Adc(bits=8, range="products", bound_products=BOUND),
)


@dataclass(frozen=True)
class Problem:
    """One layer and its inputs."""

    name: str
    layer: nn.Linear | nn.Conv2d
    x: Tensor

    @classmethod
    def linear(cls, size: int, batch: int = 128) -> Problem:
        """A square linear layer."""
        torch.manual_seed(0)
        return cls(f"linear {size}", nn.Linear(size, size), torch.randn(batch, size))

    @classmethod
    def convolution(cls, batch: int = 64) -> Problem:
        """A 3x3 convolution of 64 channels on 32 x 32 positions."""
        torch.manual_seed(0)
        return cls("conv 64-64", nn.Conv2d(64, 64, 3, padding=1), torch.randn(batch, 64, 32, 32))


class StraightThrough(nn.Module):
    """What one writes in an afternoon: quantised forward, gradient as if nothing had been."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs with everything on."""
        weight = self.layer.weight
        largest = weight.detach().abs().max()
        x = _quantised(x, INPUT_MAX, 127)
        weight = _quantised(weight, largest, 7)
        weight = weight + WEIGHT_NOISE * largest * torch.randn_like(weight)
        if isinstance(self.layer, nn.Conv2d):
            y = nn.functional.conv2d(x, weight, padding=self.layer.padding)
        else:
            y = nn.functional.linear(x, weight)
        product = INPUT_MAX * largest
        y = _quantised(y + OUTPUT_NOISE * product * torch.randn_like(y), BOUND * product, 127)
        assert self.layer.bias is not None
        return y + (self.layer.bias[:, None, None] if isinstance(self.layer, nn.Conv2d) else self.layer.bias)


def _quantised(x: Tensor, largest: Tensor | float, levels: int) -> Tensor:
    top = torch.as_tensor(largest)
    step = top / levels
    clipped = torch.clamp(x, -top, top)
    return clipped + ((clipped / step).round() * step - clipped).detach()


def lightning(problem: Problem) -> nn.Module | None:
    """aihwkit-lightning's layer with the same weights; None where it is not installed."""
    if importlib.util.find_spec("aihwkit_lightning") is None:
        return None
    modules: Any = importlib.import_module("aihwkit_lightning.nn")
    configs: Any = importlib.import_module("aihwkit_lightning.simulator.configs")
    enums: Any = importlib.import_module("aihwkit_lightning.simulator.parameters.enums")
    config = configs.TorchInferenceRPUConfig()
    config.forward.inp_res = config.forward.out_res = 254
    config.forward.out_bound, config.forward.out_noise = BOUND, OUTPUT_NOISE
    config.forward.out_noise_per_channel = True
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.init_value, config.pre_post.input_range.init_from_data = INPUT_MAX, 0
    config.modifier.quantization_type = enums.WeightQuantizationType.DISCRETIZE_PER_CHANNEL
    config.modifier.res, config.modifier.std_dev = 14, WEIGHT_NOISE
    config.modifier.noise_type = enums.WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
    config.mapping.max_input_size = -1
    plain = problem.layer
    made: nn.Module
    if isinstance(plain, nn.Conv2d):
        made = modules.AnalogConv2d(plain.in_channels, plain.out_channels, 3, padding=1, rpu_config=config)
    else:
        made = modules.AnalogLinear(plain.in_features, plain.out_features, rpu_config=config)
    made.load_state_dict(plain.state_dict(), strict=False)
    return made


def layers_of(problem: Problem, *, compiled: bool) -> dict[str, nn.Module]:
    """Every way to compute the layer, by name; the plain one first."""
    exact = replace(CONFIG, draws=NoiseDraws(source="exact"))
    found: dict[str, nn.Module | None] = {
        "plain": problem.layer,
        "labrig": to_analog(problem.layer, CONFIG),
        "labrig, every number drawn": to_analog(problem.layer, exact),
        "labrig, programmed once": _programmed(to_analog(problem.layer, CONFIG)),
        "straight-through": StraightThrough(problem.layer),
        "aihwkit-lightning": lightning(problem),
    }
    if compiled:
        # One forward, compiled for three layers in two modes with and without gradients.
        dynamo: Any = importlib.import_module("torch._dynamo")
        dynamo.config.recompile_limit = 64
        found["labrig, compiled"] = torch.compile(to_analog(problem.layer, CONFIG), fullgraph=True)  # type: ignore[assignment]
        found["straight-through, compiled"] = torch.compile(StraightThrough(problem.layer))  # type: ignore[assignment]
    return {name: layer for name, layer in found.items() if layer is not None}


def _programmed(layer: nn.Module) -> nn.Module:
    """In evaluation with the weights that were written once, as on a chip; noise of reading as ever."""
    program(layer)
    return layer


def cases_of(problem: Problem, layers: dict[str, nn.Module]) -> list[Case]:
    """A training step and an inference of each."""
    x = problem.x.clone().requires_grad_()
    weight = torch.randn_like(problem.layer(problem.x).detach())

    def step(layer: nn.Module) -> Callable[[], object]:
        leaves = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x), leaves, weight, allow_unused=True)

    def infer(layer: nn.Module) -> Callable[[], object]:
        @torch.inference_mode()
        def call() -> object:
            return layer(problem.x)

        return call

    cases = []
    for what, make, training in (("step", step, True), ("inference", infer, False)):
        reference = None
        for name, layer in layers.items():
            case_name = f"{problem.name} {what}: {name}"
            cases.append(Case(case_name, _in_mode(layer, make(layer), training=training), reference=reference))
            reference = reference or case_name
    return cases


def _in_mode(layer: nn.Module, call: Callable[[], object], *, training: bool) -> Callable[[], Any]:
    def run() -> object:
        if layer.training is not training:
            layer.train(training)
        return call()

    return sync(run)


def problems_of(*, quick: bool) -> list[Problem]:
    """The layers of a run."""
    return [Problem.linear(64, 16)] if quick else [Problem.linear(512), Problem.linear(1024), Problem.convolution()]
