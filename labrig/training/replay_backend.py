"""Recorded passes in the place of the chip: a surrogate that is anchored to what was measured near by.

    y = S(x; W) + rho (y_rec - S(x_rec; W_rec)),   rho = exp(-|W - W_rec| / tau_w - |x - x_rec| / tau_x)

with the recorded vector next to x of the recorded write next to W, and both distances relative to their own size: the
surrogate's error is taken over where something like it was measured, and forgotten where nothing was. The gradient is
the surrogate's. Whatever is trained on it is trained off the policy: on weights that were, not on those that are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from labrig.recording import Recording
from labrig_drivers.errors import StorageError
from labrig_surrogates.backend import SurrogateBackend, TileName


@dataclass(frozen=True)
class RecordedWrite:
    """What was measured of one programming of an array.

    Attributes:
        target_s: What was commanded, `[rows, columns]`.
        voltage_v: Inputs, `[N, rows]`.
        current_a: Outputs, `[N, columns]`.
    """

    target_s: Tensor
    voltage_v: Tensor
    current_a: Tensor


def recorded_writes(path: Path, chip_id: str, arrays: Sequence[int]) -> dict[int, list[RecordedWrite]]:
    """The passes of a recording, by array.

    Raises:
        StorageError: It cannot be read, is of another chip, or has no passes of an array.
    """
    found: dict[int, list[RecordedWrite]] = {}
    with Recording.open(path) as recording:
        if recording.info.chip_id != chip_id:
            raise StorageError(
                f"{path}: holds passes of chip {recording.info.chip_id}, but the calibration is of chip {chip_id}; "
                "chip.replay has to name a recording of that chip"
            )
        for array in arrays:
            if array not in recording.arrays or not recording.committed(array):
                raise StorageError(f"{path}: holds no passes of array {array}")
            data = recording.dataset(array)
            voltage, current = (torch.as_tensor(one, dtype=torch.float32) for one in (data.voltage_v, data.current_a))
            pattern = torch.as_tensor(data.pattern)
            for write in torch.unique(pattern).tolist():
                rows = pattern == write
                target = torch.as_tensor(data.target_conductance_s[write], dtype=torch.float32)
                found.setdefault(array, []).append(RecordedWrite(target, voltage[rows], current[rows]))
    return found


class ReplayBackend:
    """The residual-anchored surrogate.

    Args:
        surrogate: The fitted chip.
        placement: Array of every tile.
        recorded: What was measured, by array.
        weight_scale: tau_w, relative to the size of the recorded weights.
        input_scale: tau_x, relative to the size of the recorded inputs.
    """

    def __init__(
        self,
        surrogate: SurrogateBackend,
        placement: Mapping[TileName, int],
        recorded: Mapping[int, Sequence[RecordedWrite]],
        *,
        weight_scale: float = 0.1,
        input_scale: float = 0.3,
    ) -> None:
        if missing := sorted({array for array in placement.values() if not recorded.get(array)}):
            raise StorageError(f"chip.replay: no passes of array {', '.join(map(str, missing))} were recorded")
        self._surrogate = surrogate
        self._placement = placement
        self._recorded = recorded
        self._weight_scale, self._input_scale = weight_scale, input_scale

    def new_write(self) -> None:
        """Nothing is programmed: what was recorded stays."""

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents; see `Backend.currents`."""
        return self.mean_currents(tile, target_s, voltage_v)

    def mean_currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """The same: what was measured carries its own noise; see `MeanBackend`."""
        mean = self._surrogate.mean_currents(tile, target_s, voltage_v)
        return mean + self._anchor(tile, target_s, voltage_v)

    @torch.no_grad()
    def _anchor(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        writes = self._recorded[self._placement[tile]]
        apart = torch.stack([(one.target_s - target_s).norm() for one in writes])
        nearest = writes[int(apart.argmin())]
        far = apart.min() / nearest.target_s.norm().clamp_min(1e-30)
        distances = torch.cdist(voltage_v, nearest.voltage_v, compute_mode="donot_use_mm_for_euclid_dist")
        distance, row = distances.min(dim=1)
        size = nearest.voltage_v.square().sum(dim=1).mean().sqrt().clamp_min(1e-30)
        rho = torch.exp(-far / self._weight_scale - distance / size / self._input_scale)
        inputs = nearest.voltage_v[row]
        residual = nearest.current_a[row] - self._surrogate.mean_currents(tile, nearest.target_s, inputs)
        return rho.unsqueeze(1) * residual
