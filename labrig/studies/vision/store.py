"""Trained networks in files: weights of few bits as two codes in a byte, everything else as it is.

A network of four bits takes about half a byte for each weight, so that those of a headline can lie beside the code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from labrig.recording.header import checkout_commit
from labrig.recording.whole_files import write_whole
from labrig.studies.vision.networks import build_network
from labrig.studies.vision.training import Job, MethodJob, Trained
from labrig_drivers.errors import StorageError

_CODES: Final = "#codes"
_UNIT: Final = "#unit"
_RANGE: Final = "#input_max"
_NIBBLE: Final = 4
_OFFSET: Final = 8


@dataclass(frozen=True)
class NetworkStore:
    """A folder of trained networks, each under the name of its job.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    def path(self, job: Job) -> Path:
        """Where the network of a job is, or will be."""
        return self.folder / f"{job.name}.safetensors"

    def checkpoint(self, job: Job) -> Path:
        """Where a job keeps what it needs to go on."""
        return self.folder / f"{job.name}.epoch"

    def save(self, job: Job, trained: Trained) -> None:
        """Keeps a trained network, and drops the checkpoint of its training.

        Raises:
            StorageError: The folder cannot be written.
        """
        bits = job.method.weight_bits if isinstance(job, MethodJob) else None
        tensors: dict[str, Tensor] = {}
        weights = _array_weights(trained.network)
        for name, one in trained.network.state_dict().items():
            if bits is not None and bits <= _NIBBLE and name in weights:
                codes, unit = _codes(one, bits)
                tensors[name + _CODES], tensors[name + _UNIT] = _packed(codes), unit
            else:
                tensors[name] = one.detach().cpu().contiguous().clone()
        for name, largest in trained.input_max.items():
            tensors[name + _RANGE] = torch.tensor([largest], dtype=torch.float64)
        told = {"job": asdict(job), "name": job.name, "commit": checkout_commit(), "torch": torch.__version__}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.path(job), save(tensors, {"labrig": json.dumps(told, sort_keys=True)}))
        self.checkpoint(job).unlink(missing_ok=True)

    def load(self, job: Job, classes: int, device: torch.device) -> Trained | None:
        """The network of a job on a device; None where it was not trained yet.

        Args:
            job: Which.
            classes: Outputs.
            device: Where it goes.

        Raises:
            StorageError: The file is damaged or of another network.
        """
        path = self.path(job)
        if not path.exists():
            return None
        start = job.start if isinstance(job, MethodJob) else job
        activation = job.method.activation if isinstance(job, MethodJob) else job.activation
        network = build_network(start.network, classes, torch.Generator(), activation=activation)
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            network.load_state_dict(_unpacked(found, network.state_dict()))
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            raise StorageError(
                f"{path}: is damaged or of another network ({error}); delete it to train anew"
            ) from error
        ranges = {name.removesuffix(_RANGE): float(one) for name, one in found.items() if name.endswith(_RANGE)}
        return Trained(network.to(device).eval(), ranges)


def _array_weights(network: nn.Module) -> frozenset[str]:
    layers = [(name, one) for name, one in network.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    return frozenset(f"{name}.weight" for name, _ in layers)


def _codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Whole numbers and the weight of one: what is programmed, nearest to the weights."""
    highest = 2 ** (bits - 1) - 1
    unit = weight.detach().abs().amax().cpu() / highest
    codes = torch.round(weight.detach().cpu() / unit).clamp(-highest, highest)
    return codes.to(torch.int8), unit.reshape(1)


def _packed(codes: Tensor) -> Tensor:
    """Codes from -8 to 7, two in a byte, in the order of `[outputs, inputs, ...]`."""
    flat = (codes.contiguous().reshape(-1).to(torch.int16) + _OFFSET).to(torch.uint8)
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_full((1,), _OFFSET)])
    return flat[0::2] | (flat[1::2] << _NIBBLE)


def _unpacked(found: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    values = {name: one for name, one in found.items() if "#" not in name}
    for name, one in found.items():
        if not name.endswith(_CODES):
            continue
        whole = name.removesuffix(_CODES)
        pairs = torch.stack([one & (2**_NIBBLE - 1), one >> _NIBBLE], dim=1).reshape(-1)
        codes = pairs[: like[whole].numel()].to(torch.float32) - _OFFSET
        values[whole] = codes.reshape(like[whole].shape) * found[whole + _UNIT]
    return values
