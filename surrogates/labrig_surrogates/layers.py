"""Analog layers: plain modules that ask a backend for their matrix-vector products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labrig_surrogates.backend import Backend, DigitalBackend
from labrig_surrogates.tilemap import ArrayGeometry, TileMap


class AnalogLinear(nn.Module):
    """A linear layer whose product runs on an analog array; bias and column scale stay digital.

    `y = scale * (W x) + bias`, where inputs beyond `input_max` and weights beyond `weight_max` are clipped, as the
    DAC and the conductance range do it. With `DigitalBackend` and wide ranges it equals `torch.nn.Linear`.

    Args:
        inputs: Size of the input.
        outputs: Size of the output.
        geometry: The arrays to map to.
        name: First part of the names of its tiles.
        generator: Source of the initial weights.
    """

    weight_max: Tensor
    input_max: Tensor

    def __init__(
        self, inputs: int, outputs: int, geometry: ArrayGeometry, *, name: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.name = name
        self.tile_map = TileMap(outputs, inputs, geometry)
        self.backend: Backend = DigitalBackend()
        bound = inputs**-0.5
        uniform = torch.rand((outputs, inputs), generator=generator)
        self.weight = nn.Parameter((2.0 * uniform - 1.0) * bound)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = nn.Parameter(torch.ones(outputs))
        self.register_buffer("weight_max", torch.tensor(bound))
        self.register_buffer("input_max", torch.tensor(1.0))

    @property
    def tile_names(self) -> list[str]:
        """Names of the tiles, in the order of the tile map."""
        return [f"{self.name}/{number}" for number in range(len(self.tile_map.tiles))]

    @torch.no_grad()
    def set_ranges(self, *, weight_max: float, input_max: float) -> None:
        """Fixes which weight and which input use the full range of the array; weights beyond are clipped."""
        self.weight_max.fill_(weight_max)
        self.input_max.fill_(input_max)
        self.clip_weights()

    @torch.no_grad()
    def clip_weights(self) -> None:
        """Clips the weights to what the conductances can express; called after each optimiser step."""
        limit = float(self.weight_max)
        self.weight.clamp_(-limit, limit)

    def target_conductances(self) -> dict[str, Tensor]:
        """Target conductances in S of every tile by name."""
        return dict(zip(self.tile_names, self.tile_map.conductances(self.weight, self.weight_max), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[batch, inputs]` to `[batch, outputs]`."""
        scaled = x / self.input_max
        targets = self.target_conductances()
        currents = [
            self.backend.currents(name, targets[name], self.tile_map.voltages(tile, scaled))
            for name, tile in zip(targets, self.tile_map.tiles, strict=True)
        ]
        geometry = self.tile_map.geometry
        per_ampere = self.weight_max * self.input_max / (geometry.conductance_span_s * geometry.voltage_max_v)
        return self.scale * (self.tile_map.collect(currents) * per_ampere) + self.bias


def set_backend(model: nn.Module, backend: Backend) -> None:
    """Gives every analog layer of a model the same backend."""
    for layer in analog_layers(model):
        layer.backend = backend


def analog_layers(model: nn.Module) -> list[AnalogLinear]:
    """The analog layers of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, AnalogLinear)]
