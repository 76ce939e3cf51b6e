"""The folder of one training run: what was asked, what came out, and how to evaluate it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from labrig.recording.whole_files import write_whole
from labrig.training.config import TrainConfig, parse_training
from labrig.training.tensorboard_file import FOLDER as TENSORBOARD
from labrig.training.tensorboard_file import EventFile, scalars_of
from labrig_drivers.errors import ConfigError, StorageError

NETWORK = "network.safetensors"
START = "start.safetensors"
DIGITAL = "digital.safetensors"
SUMMARY = "run.json"
METRICS = "metrics.jsonl"
CONFIG = "train.toml"
ORIGIN = "origin.json"
CHIP = "chip.safetensors"
WEAR = "wear.safetensors"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"

_SUMMARY_HAS = ("seed", "data", "chip_id", "digital_accuracy", "ledger")


def create_folder(config: TrainConfig) -> None:
    """Makes the folder of a new run, with the training file and what its paths mean.

    Raises:
        StorageError: It exists already or cannot be made.
    """
    folder = config.folder
    try:
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(config.source_text, encoding="utf-8")
    except FileExistsError as error:
        raise StorageError(f"{folder}: exists already; choose another run.folder or remove it") from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror})") from error
    named = {"rig": config.rig, "recording": config.recording, "calibration": config.calibration}
    origin: dict[str, object] = {name: None if path is None else str(path.resolve()) for name, path in named.items()}
    write_json(folder / ORIGIN, {"file": str(config.path.resolve()), **origin})


def configuration_hash(folder: Path) -> str:
    """SHA-256 of what decides the steps of a run: its training file and its calibration.

    Raises:
        StorageError: They cannot be read.
    """
    found = sha256()
    try:
        for name in (CONFIG, CHIP):
            content = (folder / name).read_bytes()
            found.update(f"{name} {len(content)}\n".encode() + content)
    except OSError as error:
        raise StorageError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return found.hexdigest()


def load_origin(folder: Path) -> TrainConfig:
    """The training file of a run folder, with the paths that it had when the run began.

    Raises:
        StorageError: The folder is none of a run.
    """
    file = folder / CONFIG
    try:
        text = file.read_text(encoding="utf-8")
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        file = Path(origin["file"])
        named = any(origin.get(name) is not None for name in ("rig", "recording", "calibration"))
        config = parse_training(text, file, chip_given=named)
        rig, recording, calibration = (
            None if origin[name] is None else Path(origin[name]) for name in ("rig", "recording", "calibration")
        )
    except OSError as error:
        raise StorageError(f"{folder}: not a run of `labrig train` ({_unread(folder, error)})") from error
    except ConfigError as error:
        # Its paths start at the file that it was copied from, but what is wrong stands in the copy.
        faults = str(error).replace(f"{file}:", f"{folder / CONFIG}:")
        raise StorageError(f"{folder}: not a run of `labrig train`:\n{faults}") from error
    except KeyError as error:
        raise StorageError(f"{folder}: not a run of `labrig train` ({ORIGIN} has no {error.args[0]})") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise StorageError(f"{folder}: not a run of `labrig train` ({CONFIG} or {ORIGIN} is damaged)") from error
    return replace(config, folder=folder, rig=rig, recording=recording, calibration=calibration)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file that is either complete or not there.

    Raises:
        StorageError: The folder cannot be written.
    """
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def save_network(path: Path, network: nn.Module) -> None:
    """Writes the weights of a network."""
    write_whole(path, save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}))


def load_network(path: Path, network: nn.Module) -> None:
    """Puts saved weights into a network.

    Raises:
        StorageError: The weights are missing, damaged, or of another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise StorageError(f"{path}: cannot be loaded ({reason}); is {path.parent} a finished run?") from error


def load_summary(folder: Path) -> dict[str, object]:
    """Reads `run.json`.

    Raises:
        StorageError: There is none: not a run, or one that did not end well.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder}: {_no_folder(folder)}; name the folder of a run of `labrig train`")
    try:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{folder}: no readable {SUMMARY}; not a finished run of `labrig train` "
            f"(one that was interrupted goes on with `labrig train --resume {folder}`)"
        ) from error
    absent = [name for name in _SUMMARY_HAS if not isinstance(content, dict) or name not in content]
    if absent:
        raise StorageError(f"{folder / SUMMARY}: not a summary of a run; it has no {', '.join(absent)}")
    assert isinstance(content, dict)
    return content


def _no_folder(path: Path) -> str:
    return "is a file, not a folder" if path.is_file() else "there is no such folder"


def _unread(folder: Path, error: OSError) -> str:
    if not folder.is_dir():
        return _no_folder(folder)
    return f"{Path(str(error.filename)).name}: {error.strerror}"


def load_metrics(folder: Path) -> list[dict[str, object]]:
    """The lines of `metrics.jsonl`; a last one that was cut short is left out.

    Raises:
        StorageError: It cannot be read, or holds something else.
    """
    lines: list[dict[str, object]] = []
    try:
        text = (folder / METRICS).read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder / METRICS}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not (isinstance(content, dict) and {"phase", "step"} <= content.keys()):
            raise StorageError(f"{folder / METRICS}:{number}: is no step of a training, which has phase and step")
        lines.append(content)
    return lines


@dataclass
class MetricsFile:
    """Appends every training step to `metrics.jsonl`, and its numbers to an event file for TensorBoard.

    The event file is begun anew with what `metrics.jsonl` holds, so that both agree also where steps were dropped.

    Attributes:
        folder: The run folder.

    Raises:
        StorageError: They cannot be written.
    """

    folder: Path

    def __post_init__(self) -> None:
        try:
            known = load_metrics(self.folder) if (self.folder / METRICS).exists() else []
            self._file = (self.folder / METRICS).open("a", encoding="utf-8")
            self._events = EventFile(self.folder / TENSORBOARD, "metrics")
        except OSError as error:
            raise StorageError(f"{self.folder / METRICS}: cannot be written ({error.strerror})") from error
        for line in known:
            self._show(line)

    def write(self, line: Mapping[str, object]) -> None:
        """Adds one line."""
        self._file.write(json.dumps(line) + "\n")
        self._show(line)

    def flush(self) -> None:
        """Hands everything to the system."""
        self._file.flush()
        self._events.flush()

    def close(self) -> None:
        """Writes what is left and closes the files."""
        self._file.close()
        self._events.close()

    def _show(self, line: Mapping[str, object]) -> None:
        self._events.scalars(int(str(line["step"])), scalars_of(line))


def keep_metrics_until(folder: Path, phase: str, step: int) -> None:
    """Drops the lines of a phase after a step: they are taken again.

    Raises:
        StorageError: The file cannot be written.
    """
    lines = load_metrics(folder)
    kept = [one for one in lines if one["phase"] != phase or int(str(one["step"])) <= step]
    write_whole(folder / METRICS, "".join(json.dumps(one) + "\n" for one in kept).encode())
