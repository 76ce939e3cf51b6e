"""Images per second of a CIFAR network of the airbench class: analog layers beside the same network in plain torch.

Forward and backward passes with kernels channels last, in bfloat16 where the processor has it; 4-bit weights and
inputs, noise on weights and outputs fresh at every pass. The goal is 1.4 times the plain network's time at most. "By
hand" is what one writes in an afternoon, with every Gaussian drawn; aihwkit-lightning is measured where it is
installed.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Case, sync
from benchmarks.report import Script, Suite, main
from labrig.studies.vision.arrays import calibrate_inputs, on_arrays, set_noise
from labrig.studies.vision.methods import METHODS
from labrig.studies.vision.networks import build_network, channels_last
from labrig.studies.vision.products import fast_products

LEVEL = 0.2


class ByHand(nn.Module):
    """A convolution with everything on, written out."""

    def __init__(self, conv: nn.Conv2d, input_max: float, output_std: float) -> None:
        super().__init__()
        self.conv, self.input_max, self.output_std = conv, input_max, output_std

    def forward(self, x: Tensor) -> Tensor:
        """Quantised inputs, quantised noisy weights, noisy outputs."""
        weight, largest = self.conv.weight, self.conv.weight.detach().abs().max()
        x = x + (_rounded(x, torch.tensor(self.input_max / 15), 0, 15) - x).detach()
        weight = weight + (_rounded(weight, largest / 7, -7, 7) - weight).detach()
        weight = weight + LEVEL * largest * torch.randn_like(weight)
        y = functional.conv2d(x, weight, stride=self.conv.stride, padding=self.conv.padding)
        return y + LEVEL * self.output_std * torch.randn_like(y)


def _rounded(x: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    return torch.clamp(torch.round(x / step), lowest, highest) * step


def by_hand(network: nn.Module) -> nn.Module:
    """The network with every convolution but the first written out."""
    made = copy.deepcopy(network)
    convolutions = [(name, one) for name, one in made.named_modules() if isinstance(one, nn.Conv2d)]
    for name, conv in convolutions[1:]:
        parent, _, child = name.rpartition(".")
        setattr(made.get_submodule(parent), child, ByHand(conv, 3.0, 1.0))
    return channels_last(made)


def lightning(network: nn.Module) -> nn.Module | None:
    """The network in aihwkit-lightning's layers with noise of the same kinds; None where it is not installed."""
    if importlib.util.find_spec("aihwkit_lightning") is None:
        return None
    convert: Any = importlib.import_module("aihwkit_lightning.nn.conversion")
    configs: Any = importlib.import_module("aihwkit_lightning.simulator.configs")
    enums: Any = importlib.import_module("aihwkit_lightning.simulator.parameters.enums")
    config = configs.TorchInferenceRPUConfig()
    config.forward.inp_res, config.forward.out_noise = 14, LEVEL
    config.modifier.quantization_type = enums.WeightQuantizationType.DISCRETIZE
    config.modifier.res, config.modifier.std_dev = 14, LEVEL
    config.modifier.noise_type = enums.WeightNoiseInjectionType.ADD_NORMAL
    config.mapping.max_input_size = -1
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.init_value, config.pre_post.input_range.init_from_data = 3.0, 0
    ours = copy.deepcopy(network)
    for conv in ours.modules():
        if isinstance(conv, nn.Conv2d):
            # Its convolutions look at kernels as rows, which those that lie channels last are not.
            conv.weight = nn.Parameter(conv.weight.detach().contiguous())
            if conv.padding == "same":
                conv.padding = ((conv.kernel_size[0] - 1) // 2, (conv.kernel_size[1] - 1) // 2)
    made: nn.Module = convert.convert_to_analog(ours, config)
    return made


def networks(name: str, x: Tensor) -> dict[str, nn.Module]:
    """Every form of the network, by name; the plain one first."""
    plain = build_network(name, 10, torch.Generator().manual_seed(0), images=x)
    analog = on_arrays(plain, METHODS["ours"], 0)
    calibrate_inputs(analog, [x])
    set_noise(analog, LEVEL, LEVEL)
    quiet = on_arrays(plain, METHODS["QAT"], 0)
    calibrate_inputs(quiet, [x])
    found = {
        "plain torch": plain,
        "labrig, 4 bits": quiet,
        "labrig, 4 bits and noise": analog,
        "by hand": by_hand(plain),
        "aihwkit-lightning": lightning(plain),
    }
    return {key: one for key, one in found.items() if one is not None}


def step_of(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Forward and backward pass of a batch."""
    parameters = [one for one in network.parameters() if one.requires_grad]

    def step() -> object:
        network.train()
        with fast_products("cpu"):
            outputs = network(x)
        return torch.autograd.grad(functional.cross_entropy(outputs.float(), y), parameters, allow_unused=True)

    return step


def inference_of(network: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward pass of a batch in evaluation, with a fresh draw of everything."""

    def infer() -> object:
        network.eval()
        with torch.inference_mode(), fast_products("cpu"):
            return network(x)

    return infer


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Sets the cases up."""
    name, batch = ("airbench-tiny", 8) if quick else ("airbench", 250)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,), generator=generator)
    cases: list[Case] = []
    made = networks(name, x)
    for what in ("step", "inference"):
        reference = None
        for form, network in made.items():
            case = f"{what}: {form}"
            run = step_of(network, x, y) if what == "step" else inference_of(network, x)
            cases.append(Case(case, sync(run), batch, reference=reference))
            reference = reference or case
    yield Suite("A CIFAR network on arrays, beside itself in plain torch", "image", cases)


if __name__ == "__main__":
    main(Script("benchmarks.cifar", prepare, ("torch", "aihwkit-lightning"), threads=2))
