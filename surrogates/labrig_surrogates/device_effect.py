"""Weights on devices that are programmed with an error, drift, and are read with noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import ProgrammedWeights
from labrig_surrogates.cell_pairs import WeightCells
from labrig_surrogates.device_presets import Device
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import refuse, value_faults

Reading = Literal["program", "read", "vector"]


@dataclass(frozen=True)
class DeviceEffect:
    """Puts the cells of a layer's weights on devices of one kind: an entry of `AnalogConfig.weight_effects`.

    Each cell has its own draws, kept until `new_write`; `set_age` lets them drift. The idle cell of a pair sits at the
    lowest conductance and has its errors too, as on a chip.

    Attributes:
        device: What kind.
        read: Noise of reading, by the law of the device: one draw until `new_write` (`program`: what was accumulated
            since programming, as published evaluations draw it), a fresh one at every forward pass, shared by the
            batch (`read`), or a fresh one for every input vector (`vector`), drawn in the exact closed form of
            `ReadNoise` at the outputs; None without.

    Raises:
        SurrogateError: The device has no law of read noise, or `read` is another word.
    """

    device: Device
    read: Reading | None = None

    def __post_init__(self) -> None:
        refuse("weights on devices", value_faults(self))
        if self.read is not None and self.device.read is None:
            raise SurrogateError(f"the fit of {self.device.name!r} has no read noise: leave `read` out")

    @property
    def fresh_at_read(self) -> bool:
        """Whether the read noise is fresh at every reading of the weights."""
        return self.read == "read"

    @property
    def fresh_for_each_vector(self) -> bool:
        """Whether the read noise is fresh for every input vector."""
        return self.read == "vector"

    def on_cells(self, cells: WeightCells, known: ProgrammedWeights) -> WeightCells:
        """The cells as they are read from the devices at their age."""
        low_s, span_s = self.device.conductance_min_s, self.device.conductance_max_s - self.device.conductance_min_s
        variances: list[Tensor] = []

        def read(name: str, level: Tensor) -> Tensor:
            state_s, sigma_s = self._state_and_sigma(name, low_s + span_s * level, known)
            if sigma_s is not None and self.read == "vector":
                variances.append((sigma_s / span_s).square())
            elif sigma_s is not None:
                kept = self.read == "program"
                draw = known.kept(f"reading of {name}", level.shape) if kept else known.fresh(level.shape)
                state_s = torch.clamp(state_s + sigma_s * draw, min=0.0)
            return (state_s - low_s) / span_s

        found = cells.changed(read)
        return found.with_read_variance(variances[0], variances[1]) if variances else found

    def _state_and_sigma(self, name: str, target_s: Tensor, known: ProgrammedWeights) -> tuple[Tensor, Tensor | None]:
        """Conductances in S, and the standard deviation of reading them; None without noise."""

        def numbers(what: str) -> Tensor:
            return known.kept(f"{what} of {name}", target_s.shape)

        state_s = self.device.state.state_s(target_s, known.age_s, numbers)
        if self.read is None or self.device.read is None or known.quiet:
            return state_s, None
        fresh_s = state_s if known.age_s == 0.0 else self.device.state.state_s(target_s, 0.0, numbers)
        return state_s, self.device.read.sigma_s(state_s, fresh_s, known.age_s)
