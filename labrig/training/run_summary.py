"""What `run.json` says about a finished run, and the network that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from torch import nn

from labrig.training.assembly import DATA_STREAM, generator_of
from labrig.training.config import TrainConfig
from labrig.training.datasets import ImageSet
from labrig.training.deployment import analog_copy
from labrig.training.ledger import Ledger
from labrig.training.models import build_model
from labrig.training.run_folder import NETWORK, SUMMARY, load_network
from labrig.training.writing import Wear
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError
from labrig_surrogates.tilemap import ArrayGeometry


def summary_of(
    config: TrainConfig,
    data: ImageSet,
    digital_accuracy: float,
    ledger: Ledger,
    chip_id: str | None,
    geometry: ArrayGeometry | None,
    info: BoardInfo | None,
    wear: Wear | None,
) -> dict[str, object]:
    """The content of `run.json`."""
    return {
        "method": config.file.training.method,
        "seed": config.file.run.seed,
        "data": data.name,
        "chip_id": chip_id,
        "rig": None if config.rig is None else str(config.rig.resolve()),
        "digital_accuracy": digital_accuracy,
        "ledger": ledger.as_dict(),
        "most_writes_of_a_cell": None if wear is None else wear.most,
        "labrig": version("labrig"),
        "board": None
        if info is None
        else {"program_latency_s": info.program_latency_s, "mvm_latency_s": info.mvm_latency_s},
        "geometry": None if geometry is None else asdict(geometry),
    }


def network_of(config: TrainConfig, summary: Mapping[str, object], data: ImageSet, file: str = NETWORK) -> nn.Module:
    """The network of a run folder, with its trained weights.

    Args:
        config: The training file, with its run folder.
        summary: The content of `run.json`.
        data: The task.
        file: Which weights.

    Raises:
        StorageError: The summary does not say how it is mapped, or the weights are not those of such a network.
    """
    training = config.file.training
    digital = build_model(
        training.model, data, training.hidden, generator_of(config.file.run.seed, DATA_STREAM), config.base
    )
    geometry = _geometry(config.folder, summary)
    network = digital if geometry is None else analog_copy(digital, geometry)
    load_network(config.folder / file, network)
    return network


def _geometry(folder: Path, summary: Mapping[str, object]) -> ArrayGeometry | None:
    content = summary.get("geometry")
    if content is None:
        return None
    try:
        assert isinstance(content, dict)
        return ArrayGeometry(**content)
    except (AssertionError, TypeError, ValueError) as error:
        raise StorageError(f"{folder / SUMMARY}: does not say what arrays the network is on ({error})") from error
