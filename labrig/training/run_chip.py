"""What a training file names, read and found to fit together before anything is fitted, trained or made."""

from __future__ import annotations

from dataclasses import dataclass

from labrig.calibrating import calibrate_recordings
from labrig.config import RigConfig, load_rig
from labrig.events import EventBus
from labrig.portal import LoopPortal
from labrig.recording import Recording
from labrig.recording.whole_files import no_file
from labrig.rig import identify
from labrig.training.config import TrainConfig
from labrig.training.plan import WITHOUT_RIG
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError, IdentityError, StorageError
from labrig_surrogates.io import load_chip
from labrig_surrogates.parameters import ChipParameters


@dataclass(frozen=True)
class Sources:
    """What a training file names.

    Attributes:
        rig: The rig file, where one is named.
        info: What its board says of itself, where the method asks the chip.
        chip: The calibration; None for a training in float.
    """

    rig: RigConfig | None
    info: BoardInfo | None
    chip: ChipParameters | None


def load_sources(config: TrainConfig, bus: EventBus, *, ask_rig: bool = True) -> Sources:
    """Reads everything that a training file names.

    Args:
        config: The training file.
        bus: Gets the progress of a calibration.
        ask_rig: Whether the rig is asked for its board; only one of several processes does.

    Raises:
        ConfigError: See `demand_sources`.
        IdentityError: The rig has another chip than recording and calibration.
        LabrigError: Recording and calibration are of different chips, a file cannot be read, or the rig does not
            answer.
    """
    demand_sources(config)
    method = config.file.training.method
    rig = None if config.rig is None else load_rig(config.rig)
    if method == "digital":
        return Sources(rig, None, None)
    chip = None if config.calibration is None else load_chip(config.calibration)
    chip_id = _chip_id(config, chip)
    info = None
    if rig is not None and method not in WITHOUT_RIG and ask_rig:
        info = demand_chip(rig, chip_id)
    if chip is None:
        assert config.recording is not None
        chip = calibrate_recordings([config.recording], config.file.run.seed, bus).chip
    return Sources(rig, info, chip)


def demand_sources(config: TrainConfig) -> None:
    """Refuses a training that lacks something, before a file is read.

    Raises:
        ConfigError: The method needs something that the file does not name, a file that it names is not there, or the
            folder exists already; every fault is listed.
    """
    method = config.file.training.method
    faults = []
    if method not in WITHOUT_RIG and config.rig is None:
        faults.append(f"the method {method} needs chip.rig (or --rig)")
    if method != "digital" and config.calibration is None and config.recording is None:
        faults.append(f"the method {method} needs chip.calibration or chip.recording (or --recording)")
    if config.folder.exists():
        faults.append(
            f"run.folder {config.folder} exists already; choose another one, or go on with an interrupted run "
            f"by labrig train --resume {config.folder}"
        )
    named = {"rig": config.rig, "recording": config.recording, "calibration": config.calibration}
    for key, path in named.items():
        if path is not None and (absent := no_file(path)) is not None:
            faults.append(f"chip.{key} (or --{key}): {absent}" if key != "calibration" else f"chip.{key}: {absent}")
    if faults:
        raise ConfigError(f"{config.path}: " + "; ".join(faults))


def demand_chip(rig: RigConfig, chip_id: str) -> BoardInfo:
    """Opens the rig once and compares; no output is touched.

    Raises:
        IdentityError: It has another chip.
    """
    with LoopPortal() as portal:  # a notebook has a loop that runs already
        _, info = portal.call(identify(rig))
    if info.chip_id != chip_id:
        raise IdentityError(f"chip {chip_id!r} of the calibration", f"chip {info.chip_id!r}", str(rig.path))
    return info


def _chip_id(config: TrainConfig, chip: ChipParameters | None) -> str:
    """The chip that calibration and recording, of which there is one at least, are of."""
    if config.recording is None:
        assert chip is not None
        return chip.chip_id
    with Recording.open(config.recording) as recording:
        recorded = recording.info.chip_id
    if chip is not None and chip.chip_id != recorded:
        raise StorageError(
            f"{config.recording}: was recorded on chip {recorded}, but {config.calibration} is a calibration of chip "
            f"{chip.chip_id}; name files of one chip"
        )
    return recorded
