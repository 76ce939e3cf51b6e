"""Where an image study finds its data and its networks, from what was asked for."""

from __future__ import annotations

import torch

from labrig.studies.running import StudySettings
from labrig.studies.vision.parts import ENLARGED_DIGITS, Place
from labrig_drivers.errors import ConfigError


def place_of(settings: StudySettings, study: str) -> Place:
    """The place of a study.

    Args:
        settings: How it is run; without `data` only a quick run is possible, on enlarged digits.
        study: Its name, for the error.

    Raises:
        ConfigError: A rig is named, or no folder with the data is named, or it is not there.
    """
    if settings.rig is not None:
        raise ConfigError(f"{study} needs many chips of a known noise, which are simulated; give no --rig")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks = settings.networks
    if networks is None:
        raise ConfigError(f"labrig study {study} keeps trained networks: name their folder with --networks")
    if settings.data is None and settings.quick:
        return Place(ENLARGED_DIGITS, None, networks, device)
    if settings.data is None:
        raise ConfigError(
            f"labrig study {study} needs --data FOLDER with the published files of {settings.images}; "
            "--quick runs without, on enlarged digits"
        )
    if not settings.data.is_dir():
        raise ConfigError(f"--data {settings.data}: there is no such folder")
    return Place(settings.images, settings.data, networks, device)
