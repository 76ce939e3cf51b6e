"""`AnalogLinear`, and what all analog layers have in common: the weight matrices that they keep on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.backend import Backend
from labrig_surrogates.backend_product import target_conductances, tile_names
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.products import LinearProduct
from labrig_surrogates.programming import WeightPrior
from labrig_surrogates.tilemap import TileMap


@dataclass(frozen=True)
class WeightMatrix:
    """One weight matrix on arrays.

    Attributes:
        core: Its arrays.
        weight: Its values: a parameter, or the part of one that these arrays hold.
    """

    core: AnalogCore
    weight: Tensor

    @property
    def log_spread(self) -> Tensor | None:
        """Logarithm of the learnable spread, where there is one; broadcasts against `weight`."""
        return self.core.log_spread

    def prior(self) -> WeightPrior:
        """What the hardware makes likely of each weight."""
        return self.core.prior(self.weight)


@runtime_checkable
class AnalogLayer(Protocol):
    """A module that keeps weights on arrays."""

    def matrices(self) -> list[WeightMatrix]:
        """Its weight matrices."""
        ...


def analog_modules(model: nn.Module) -> list[tuple[str, AnalogLayer]]:
    """The analog layers of a model with their names, in the order of its modules."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, AnalogLayer)]


def weight_matrices(model: nn.Module) -> list[WeightMatrix]:
    """Every weight matrix on arrays of a model, in the order of its modules."""
    found = []
    for _, module in analog_modules(model):
        found += module.matrices()
    return found


def noise_seed(generator: torch.Generator | None) -> int:
    """A seed for a new layer's noise: from the generator, or as its first weights from torch's own."""
    return int(torch.randint(2**62, (), generator=generator))


class AnalogLinear(nn.Module):
    """A linear layer whose product runs on analog arrays; bias and column scale stay digital.

    `y = scale * (W x) + bias`, with `W x` as the config says or as a backend computes it. With nothing on it is
    `torch.nn.Linear` to the last bit, with the same names of parameters.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether there is a bias.
        config: What is not ideal about the arrays.
        name: First part of the names of its tiles.
        generator: Source of the initial weights and of the noise's seed; None takes torch's own.

    Raises:
        SurrogateError: The arrays of the config cannot hold the layer.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        config: AnalogConfig | None = None,
        name: str = "linear",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(in_features, out_features) < 1:
            raise SurrogateError(f"cannot map {out_features} x {in_features} weights")
        bound = in_features**-0.5
        uniform = torch.rand((out_features, in_features), generator=generator)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter((2.0 * uniform - 1.0) * bound)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        used = AnalogConfig() if config is None else config
        self.scale = nn.Parameter(torch.ones(out_features)) if used.digital.scale else None
        seed = noise_seed(generator)
        self.core = AnalogCore(self.weight, LinearProduct(), used, name=name, seed=seed, stream=0)

    @classmethod
    def around(cls, linear: nn.Linear, config: AnalogConfig, *, name: str, seed: int, stream: int) -> AnalogLinear:
        """An analog layer with the parameters of a digital one: the same objects, not copies."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = linear.in_features, linear.out_features
        made.weight, made.bias = linear.weight, linear.bias
        made.scale = nn.Parameter(linear.weight.new_ones(linear.out_features)) if config.digital.scale else None
        made.core = AnalogCore(linear.weight, LinearProduct(), config, name=name, seed=seed, stream=stream)
        return made.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`."""
        if self.scale is None:
            return self.core(x, self.weight, self.bias)  # type: ignore[no-any-return]
        outputs: Tensor = self.scale * self.core(x, self.weight)
        return outputs if self.bias is None else outputs + self.bias

    def matrices(self) -> list[WeightMatrix]:
        """Its one weight matrix."""
        return [WeightMatrix(self.core, self.weight)]

    @property
    def name(self) -> str:
        """First part of the names of its tiles."""
        return self.core.name

    @property
    def tile_map(self) -> TileMap:
        """How its weights lie on arrays."""
        return self.core.tile_map

    @property
    def tile_names(self) -> list[str]:
        """Names of the tiles, in the order of the tile map."""
        return tile_names(self.core)

    @property
    def backend(self) -> Backend | None:
        """What computes its product; None: the model of its config."""
        return self.core.backend

    @property
    def weight_max(self) -> Tensor:
        """The weight that uses the full conductance range, where the mapping fixes it."""
        if self.core.weight_max is None:
            raise SurrogateError(
                f"layer {self.name!r} follows its weights: only mapping.weight_range='fixed' has a limit"
            )
        return self.core.weight_max

    @property
    def input_max(self) -> Tensor:
        """The input that uses the full range of the DAC."""
        return self.core.input_max

    @property
    def log_weight_spread(self) -> nn.Parameter | None:
        """Logarithm of the learnable spread of the weights, where the config has one; broadcasts against `weight`."""
        return self.core.log_spread

    def weight_prior(self) -> WeightPrior:
        """What the hardware makes likely of each weight; see `labrig_surrogates.programming.weight_prior`."""
        return self.core.prior(self.weight)

    def set_ranges(self, *, weight_max: float, input_max: float) -> None:
        """Fixes which weight and which input use the full range of the array; weights beyond are clipped."""
        self.core.set_ranges(weight_max=weight_max, input_max=input_max)
        self.clip_weights()

    def clip_weights(self) -> None:
        """Clips the weights to what the conductances can express; called after each optimiser step."""
        self.core.clip(self.weight)

    def target_conductances(self) -> dict[str, Tensor]:
        """Target conductances in S of every tile by name."""
        return target_conductances(self.core, self.weight)

    def extra_repr(self) -> str:
        """Sizes and path."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.core.path}"


def set_backend(model: nn.Module, backend: Backend | None) -> None:
    """Has a backend compute the products of every analog layer; None: the models of their configs.

    Args:
        model: With analog layers.
        backend: What computes `y = W x`.

    Raises:
        SurrogateError: A layer has effects on that only the model of its config knows; nothing is changed.
    """
    cores = [matrix.core for matrix in weight_matrices(model)]
    before = [core.backend for core in cores]
    try:
        for core in cores:
            core.use_backend(backend)
    except SurrogateError:
        for core, old in zip(cores, before, strict=True):
            core.backend = old
        raise


def analog_layers(model: nn.Module) -> list[AnalogLinear]:
    """The linear analog layers of a model, in the order of its modules.

    Args:
        model: Any module.
    """
    return [module for module in model.modules() if isinstance(module, AnalogLinear)]
