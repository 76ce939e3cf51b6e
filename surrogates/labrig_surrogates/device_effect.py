"""Weights on devices that are programmed with an error, drift, and are read with noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import ProgrammedWeights
from labrig_surrogates.cell_pairs import weight_cells
from labrig_surrogates.device_presets import Device
from labrig_surrogates.effect_settings import Timing
from labrig_surrogates.errors import SurrogateError


@dataclass(frozen=True)
class DeviceEffect:
    """Puts the cells of a layer's weights on devices of one kind: an entry of `AnalogConfig.weight_effects`.

    Each cell has its own draws, kept until `new_write`; `set_age` lets them drift. The idle cell of a pair sits at the
    lowest conductance and has its errors too, as on a chip.

    Attributes:
        device: What kind.
        read: Noise of reading, by the law of the device: one draw until `new_write` (`program`: what was accumulated
            since programming, as published evaluations draw it), or a fresh one at every forward pass, shared by the
            batch (`read`); None without.

    Raises:
        SurrogateError: The device has no law of read noise.
    """

    device: Device
    read: Timing | None = None

    def __post_init__(self) -> None:
        if self.read is not None and self.device.read is None:
            raise SurrogateError(f"the fit of {self.device.name!r} has no read noise: leave `read` out")

    @property
    def fresh_at_read(self) -> bool:
        """Whether the read noise is fresh."""
        return self.read == "read"

    def on_weights(self, weights: Tensor, known: ProgrammedWeights) -> Tensor:
        """The weights as they are read from the devices at their age."""
        device = self.device
        cells = weight_cells(
            weights, known.limit, known.scheme, known.geometry, device.conductance_min_s, device.conductance_max_s
        )
        return cells.changed(lambda name, target_s: self._read(name, target_s, known)).weights()

    def _read(self, name: str, target_s: Tensor, known: ProgrammedWeights) -> Tensor:
        def numbers(what: str) -> Tensor:
            return known.kept(f"{what} of {name}", target_s.shape)

        state_s = self.device.state.state_s(target_s, known.age_s, numbers)
        if self.read is None or self.device.read is None or known.quiet:
            return state_s
        fresh_s = state_s if known.age_s == 0.0 else self.device.state.state_s(target_s, 0.0, numbers)
        draw = numbers("reading") if self.read == "program" else known.fresh(target_s.shape)
        sigma_s = self.device.read.sigma_s(state_s, fresh_s, known.age_s)
        return torch.clamp(state_s + sigma_s * draw, min=0.0)
