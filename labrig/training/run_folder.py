"""The folder of one training run: what was asked, what came out, and how to evaluate it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from labrig.events import Event, StepDone
from labrig.training.network import analog_network, digital_network
from labrig.training.trainings import generator_of
from labrig_drivers.errors import StorageError
from labrig_surrogates.tilemap import ArrayGeometry

NETWORK = "network.safetensors"
SUMMARY = "run.json"
METRICS = "metrics.jsonl"
CONFIG = "train.toml"
RECORDING = "training.h5"


@dataclass(frozen=True)
class NetworkShape:
    """What it takes to build a network again before its weights are loaded.

    Attributes:
        pixels: Size of the input.
        hidden: Hidden units.
        classes: Size of the output.
        geometry: Arrays that it is mapped to; None for a digital network.
    """

    pixels: int
    hidden: int
    classes: int
    geometry: ArrayGeometry | None

    def build(self) -> nn.Sequential:
        """The network with weights that mean nothing yet."""
        if self.geometry is None:
            return digital_network(self.pixels, self.hidden, self.classes, generator_of(0, 0))
        return analog_network(self.pixels, self.hidden, self.classes, self.geometry)


def create_folder(folder: Path, source_text: str) -> None:
    """Makes the folder of a new run.

    Raises:
        StorageError: It exists already or cannot be made.
    """
    try:
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(source_text, encoding="utf-8")
    except FileExistsError as error:
        raise StorageError(f"{folder}: exists already; choose another run.folder or remove it") from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror})") from error


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file that is either complete or not there.

    Raises:
        StorageError: The folder cannot be written.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error


def save_network(folder: Path, network: nn.Module) -> None:
    """Writes the weights of a network."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    (folder / NETWORK).write_bytes(save(state))


def load_network(folder: Path, shape: NetworkShape) -> nn.Sequential:
    """Builds a network and loads its weights.

    Raises:
        StorageError: The weights are missing, damaged, or of another shape.
    """
    network = shape.build()
    try:
        network.load_state_dict(load_file(folder / NETWORK))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StorageError(f"{folder / NETWORK}: cannot be loaded ({error}); is {folder} a finished run?") from error
    return network


def load_summary(folder: Path) -> dict[str, object]:
    """Reads `run.json`.

    Raises:
        StorageError: There is none: not a run, or one that did not end well.
    """
    try:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder}: no readable {SUMMARY}; not a finished run of `labrig train`") from error
    if not isinstance(content, dict):
        raise StorageError(f"{folder / SUMMARY}: not a summary of a run")
    return content


class MetricsFile:
    """Appends every training step to `metrics.jsonl`; a listener of the event bus."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / METRICS).open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Writes a step; other events are not for this file."""
        if isinstance(event, StepDone):
            line = {"phase": event.phase, "step": event.step, "steps": event.steps, "loss": event.loss}
            self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._file.close()
