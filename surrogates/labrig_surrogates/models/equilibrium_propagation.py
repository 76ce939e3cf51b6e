"""Equilibrium propagation: learning from two settled states of one network, without a backward pass.

Scellier and Bengio, Frontiers in Computational Neuroscience 11:24 (2017); with the centred difference of Laborieux et
al., Frontiers in Neuroscience 15:633674 (2021). The network is a layered Hopfield energy

    E(s) = sum_l |s_l|^2 / 2 - sum_l s_l^T W_l s_{l-1} - sum_l b_l s_l,    0 <= s <= 1,

with the input as s_0. Every product W s goes up through a layer, every W^T s down through another: with an array that
can be driven from both sides they are the same cells, else two blocks that were programmed apart, whose difference is
reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import refuse


@dataclass(frozen=True)
class Relaxation:
    """How the network settles and learns.

    Attributes:
        free_steps: Steps of the free phase.
        nudged_steps: Steps of each nudged phase.
        step: Size of a step, above 0 and at most 1.
        nudge: Strength beta with which the output is pulled towards its target, and pushed away.

    Raises:
        SurrogateError: A number lies outside its range.
    """

    free_steps: int = 40
    nudged_steps: int = 10
    step: float = 0.5
    nudge: float = 0.3

    def __post_init__(self) -> None:
        counts = {"free_steps": self.free_steps, "nudged_steps": self.nudged_steps}
        faults = [f"{name} = {count} must be positive" for name, count in counts.items() if count < 1]
        if not 0.0 < self.step <= 1.0:
            faults.append(f"step = {self.step:g} must lie above 0 and not above 1")
        if not self.nudge > 0.0:
            faults.append(f"nudge = {self.nudge:g} must be positive")
        refuse("relaxation", faults)


class SymmetricWeights(nn.Module):
    """One weight matrix, used upwards and downwards through two linear layers that are kept equal.

    Args:
        inputs: Units below.
        outputs: Units above.
        generator: Source of the initial weights.
        downwards: Whether there is a way down; nothing comes down to the input of a network.
    """

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator, *, downwards: bool = True) -> None:
        super().__init__()
        self.up: nn.Module = nn.Linear(inputs, outputs)
        self.down: nn.Module = nn.Linear(outputs, inputs, bias=False) if downwards else nn.Identity()
        with torch.no_grad():
            bound = (6.0 / (inputs + outputs)) ** 0.5
            self.weight.copy_((2.0 * torch.rand((outputs, inputs), generator=generator) - 1.0) * bound)
            self.bias.zero_()
        self.tie()

    @property
    def weight(self) -> Tensor:
        """W, `[outputs, inputs]`, as `up` holds it."""
        return self.up.get_parameter("weight")

    @property
    def bias(self) -> Tensor:
        """B of the units above, `[outputs]`."""
        return self.up.get_parameter("bias")

    @torch.no_grad()
    def tie(self) -> None:
        """Gives `down` the transposed weights of `up`."""
        if not isinstance(self.down, nn.Identity):
            self.down.get_parameter("weight").copy_(self.weight.T)


class EquilibriumPropagation(nn.Module):
    """A layered network that settles instead of being evaluated.

    Args:
        sizes: Units of each layer, the input first and the output last.
        generator: Source of the initial weights.
        relaxation: How it settles and learns.

    Raises:
        SurrogateError: Fewer than two layers.
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator, relaxation: Relaxation | None = None) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise SurrogateError(f"sizes {list(sizes)} name fewer than two layers")
        self.layers = nn.ModuleList(
            SymmetricWeights(below, above, generator, downwards=index > 0)
            for index, (below, above) in enumerate(pairwise(sizes))
        )
        self.relaxation = relaxation or Relaxation()

    def forward(self, x: Tensor) -> Tensor:
        """Output units `[batch, outputs]` after the free phase on inputs `[batch, inputs]` in 0 ... 1.

        It can be differentiated through all steps; learning by `gradients` needs no derivative.
        """
        return self.settle(x)[-1]

    def settle(
        self,
        x: Tensor,
        start: Sequence[Tensor] | None = None,
        *,
        target: Tensor | None = None,
        nudge: float = 0.0,
        steps: int | None = None,
    ) -> list[Tensor]:
        """Lets the units follow minus the gradient of energy and `nudge` times half the squared error, within 0 ... 1.

        Args:
            x: Inputs, `[batch, inputs]`.
            start: Units to begin with, a tensor for each layer above the input; zero where None.
            target: What the output is pulled to, `[batch, outputs]`; none in the free phase.
            nudge: Strength of the pull; below zero it pushes.
            steps: Steps; None for those of the free phase.

        Returns:
            Units of each layer above the input.
        """
        count = self.relaxation.free_steps if steps is None else steps
        layers = self._layers()
        units = [x.new_zeros((x.shape[0], layer.weight.shape[0])) for layer in layers] if start is None else list(start)
        bottom = layers[0].up(x)
        for _ in range(count):
            moved = []
            for index, unit in enumerate(units):
                field = bottom if index == 0 else layers[index].up(units[index - 1])
                if index + 1 < len(units):
                    field = field + layers[index + 1].down(units[index + 1])
                elif target is not None:
                    field = field + nudge * (target - unit)
                moved.append((unit + self.relaxation.step * (field - unit)).clamp(0.0, 1.0))
            units = moved
        return units

    @torch.no_grad()
    def gradients(self, x: Tensor, target: Tensor, *, reads: int = 1) -> dict[str, Tensor]:
        """Estimate of the loss's gradient from a free and two nudged phases, by names of parameters.

        The loss is half the squared distance of the output units from `target`, averaged over the batch.

        Args:
            x: Inputs, `[batch, inputs]`.
            target: `[batch, outputs]`.
            reads: How often each nudged phase is settled; their mean has less read noise.
        """
        settings = self.relaxation
        free = self.settle(x)
        total: dict[str, Tensor] = {}
        for _ in range(reads):
            for sign in (1.0, -1.0):
                nudged = self.settle(x, free, target=target, nudge=sign * settings.nudge, steps=settings.nudged_steps)
                levels = [x, *nudged]
                scale = -sign / (2.0 * settings.nudge * x.shape[0] * reads)
                for index in range(len(self.layers)):
                    below, above = levels[index], levels[index + 1]
                    for name, part in (("weight", above.T @ below), ("bias", above.sum(dim=0))):
                        key = f"layers.{index}.up.{name}"
                        total[key] = total.get(key, torch.zeros_like(part)) + scale * part
        return total

    @torch.no_grad()
    def descend(self, gradients: dict[str, Tensor], rates: Sequence[float], weight_limit: float | None = None) -> None:
        """One step down a gradient, with a rate for each layer; both directions get the same weights."""
        for index, (layer, rate) in enumerate(zip(self._layers(), rates, strict=True)):
            layer.weight.sub_(rate * gradients[f"layers.{index}.up.weight"])
            layer.bias.sub_(rate * gradients[f"layers.{index}.up.bias"])
            if weight_limit is not None:
                layer.weight.clamp_(-weight_limit, weight_limit)
            layer.tie()

    def _layers(self) -> list[SymmetricWeights]:
        return [layer for layer in self.layers if isinstance(layer, SymmetricWeights)]


def asymmetry(up: Tensor, down: Tensor) -> float:
    """How far two blocks are from each other's transpose: |W - V^T| / |W|, of the programmed weights.

    Args:
        up: W, `[outputs, inputs]`.
        down: V, `[inputs, outputs]`.
    """
    return float(torch.linalg.matrix_norm(up - down.T) / torch.linalg.matrix_norm(up))
