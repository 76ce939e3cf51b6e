"""Where an image training is after each epoch, in one file that is replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from labrig.recording.whole_files import write_whole
from labrig.studies.vision.optimiser import ImageOptimiser
from labrig.training.averaging import MovingAverage


def save_epoch(path: Path, epoch: int, network: nn.Module, optimiser: ImageOptimiser, average: MovingAverage) -> None:
    """Writes the state after so many epochs.

    Raises:
        StorageError: It cannot be written; what was there stays.
    """
    parts = {"network": network.state_dict(), "optimiser": optimiser.state(), "average": average.shadow}
    tensors = {
        f"{part}/{name}": one.detach().contiguous().clone()
        for part, ones in parts.items()
        for name, one in ones.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(tensors, {"labrig": json.dumps({"epoch": epoch})}))


def load_epoch(path: Path, network: nn.Module, optimiser: ImageOptimiser, average: MovingAverage) -> int:
    """Puts everything where it was and returns how many epochs are done: zero without a file, or with a damaged one."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            epoch = int(json.loads(file.metadata()["labrig"])["epoch"])
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return 0
    network.load_state_dict(_part(found, "network"))
    optimiser.load_state(_part(found, "optimiser"))
    average.shadow = {name: one.to(optimiser.parameters[name].device) for name, one in _part(found, "average").items()}
    return epoch


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): one for key, one in tensors.items() if key.startswith(f"{name}/")}
