"""Exponential moving average of the weights over the last part of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from labrig_surrogates.model_tools import clip_weights


@dataclass
class MovingAverage:
    """Averages all parameters that are trained.

    Attributes:
        decay: Weight of the past at each step; zero switches it off.
        start: Part of the training after which it begins.
        shadow: The averages so far.
    """

    decay: float
    start: float = 0.75
    shadow: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int, steps: int) -> None:
        """Takes the weights after a step."""
        if self.decay == 0.0 or step < self.start * steps:
            return
        for name, one in parameters.items():
            if name in self.shadow:
                self.shadow[name].lerp_(one, 1.0 - self.decay)
            else:
                self.shadow[name] = one.detach().clone()

    @torch.no_grad()
    def put(self, network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        """Puts the averages in the place of the weights, clipped as weights are."""
        for name, one in self.shadow.items():
            parameters[name].copy_(one)
        if self.shadow:
            clip_weights(network)
