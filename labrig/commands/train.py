"""`labrig train`: a network for a chip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.commands.mqtt import published
from labrig.extras import demand_extra


def train(
    file: Annotated[Path, typer.Argument(help="Training file (TOML).", metavar="TRAIN.toml")],
    rig: Annotated[Path | None, typer.Option(help="Rig file, in place of chip.rig.")] = None,
    recording: Annotated[
        Path | None,
        typer.Option(help="Recording of a calibration sweep, in place of the file's chip: trains without a rig."),
    ] = None,
) -> None:
    """Train a network: digital, on the surrogate of a chip, or in the loop with the chip.

    Example: labrig train train.toml --recording calibration.h5
    """
    demand_extra("train", "train")
    from labrig.config import load_rig
    from labrig.events import EventBus
    from labrig.progress import ProgressListener
    from labrig.threads import one_thread
    from labrig.training.config import load_training
    from labrig.training.run import train_run

    config = load_training(file).overridden(rig=rig, recording=recording)
    bus = EventBus()
    with interruptible(), one_thread(), ProgressListener() as progress:
        bus.subscribe(progress)
        with published(None if config.rig is None else load_rig(config.rig), bus):
            result = train_run(config, bus)
    print(f"{result.folder}: trained {result.method}; the digital network has {100 * result.digital_accuracy:.1f} %")
    print(f"next: labrig evaluate {result.folder}")
