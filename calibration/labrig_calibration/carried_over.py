"""Would an earlier calibration still do: two fits predict the same MVMs from the targets of their writes alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from labrig_calibration.dataset import MvmDataset
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.parameters import ArrayParameters


@dataclass(frozen=True)
class CarriedOver:
    """Errors of two calibrations on the same MVMs, as if each write were new to them.

    Attributes:
        array: Which array.
        old_rms_a: Root mean square error in A of the earlier calibration.
        new_rms_a: Of the later one.
    """

    array: int
    old_rms_a: float
    new_rms_a: float

    @property
    def ratio(self) -> float:
        """Error of the earlier calibration as a multiple of the later one's."""
        return self.old_rms_a / self.new_rms_a


def carried_over(new: ArrayParameters, old: ArrayParameters, dataset: MvmDataset) -> CarriedOver:
    """Compares how two calibrations predict MVMs of writes of which only the targets are told.

    Args:
        new: The later calibration.
        old: The earlier one, of an array of the same size.
        dataset: The MVMs, best those that the later fit never saw; saturated outputs do not count.
    """
    return CarriedOver(new.array, _rms_a(old, dataset), _rms_a(new, dataset))


def _rms_a(parameters: ArrayParameters, dataset: MvmDataset) -> float:
    surrogate = ArraySurrogate(parameters).double()
    squares, count = 0.0, 0
    with torch.no_grad():
        for write in range(dataset.writes):
            rows = dataset.pattern == write
            target_s = torch.as_tensor(np.asarray(dataset.target_conductance_s[write], dtype=np.float64))
            mean_a, _ = surrogate.moments(
                surrogate.new_write(target_s),
                torch.as_tensor(np.asarray(dataset.voltage_v[rows])),
                age_s=torch.as_tensor(dataset.age_s[rows]),
            )
            error_a = (dataset.current_a[rows] - mean_a.numpy())[~dataset.saturated[rows]]
            error_a = error_a[np.isfinite(error_a)]
            squares, count = squares + float((error_a**2).sum()), count + error_a.size
    return float(np.sqrt(squares / max(count, 1)))
