"""`labrig train`: a network for a chip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption, LiveOption, LiveOptions, shown_live
from labrig.commands.mqtt import published
from labrig.extras import demand_extra
from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig.events import EventBus
    from labrig.training.ranks import Ranks


def train(
    file: Annotated[
        Path | None, typer.Argument(help="Training file (TOML).", metavar="TRAIN.toml", show_default=False)
    ] = None,
    rig: Annotated[Path | None, typer.Option(help="Rig file, in place of chip.rig.")] = None,
    recording: Annotated[
        Path | None,
        typer.Option(help="Recording of a calibration sweep, in place of the file's chip: trains without a rig."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with an interrupted run from its last checkpoint.", metavar="RUN")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="Take the steps of a finished run again, from its recording.", metavar="RUN/training.h5"),
    ] = None,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
) -> None:
    """Train a network: digital, on the surrogate of a chip, or in the loop with the chip.

    Examples: labrig train train.toml --recording calibration.h5; labrig train --resume runs/digits
    """
    given = [name for name, one in (("TRAIN.toml", file), ("--resume", resume), ("--replay", replay)) if one]
    if len(given) != 1:
        raise typer.BadParameter("give one of TRAIN.toml, --resume RUN and --replay RUN/training.h5")
    if file is None and (rig or recording):
        raise typer.BadParameter("--rig and --recording go with a training file")
    demand_extra("train", "train")
    from labrig.events import EventBus
    from labrig.progress import ProgressListener
    from labrig.threads import one_thread
    from labrig.training.ranks import torchrun_ranks

    bus = EventBus()
    with interruptible(), one_thread(), ProgressListener() as progress, torchrun_ranks() as ranks:
        if ranks.size > 1 and file is None:
            raise ConfigError(
                "only a new run can be shared between processes: start --resume and --replay without them"
            )
        if ranks.rank == 0:
            bus.subscribe(progress)
        page = LiveOptions(live, live_at, live_access) if ranks.rank == 0 else LiveOptions()
        if replay is not None:
            with shown_live(bus, page, "train", title=str(replay), doing="TRAINING"):
                lines = _replayed(replay, bus)
        else:
            lines = _trained(file, rig, recording, resume, bus, ranks, page)
    for line in lines if ranks.rank == 0 else ():
        print(line)


def _trained(
    file: Path | None,
    rig: Path | None,
    recording: Path | None,
    resume: Path | None,
    bus: EventBus,
    ranks: Ranks,
    page: LiveOptions,
) -> list[str]:
    from labrig.config import load_rig
    from labrig.run_control import RunControl
    from labrig.training.config import load_training
    from labrig.training.run import resume_run, train_run
    from labrig.training.run_folder import load_origin

    if file is not None:
        config = load_training(file).overridden(rig=rig, recording=recording)
    else:
        assert resume is not None
        config = load_origin(resume)
    # Several processes wait for each other in every step, and only the first one is told to pause.
    control = RunControl() if ranks.size == 1 else None
    title = str(file or resume)
    with (
        published(None if config.rig is None else load_rig(config.rig), bus),
        shown_live(bus, page, "train", title=title, doing="TRAINING", control=control),
    ):
        result = train_run(config, bus, ranks, control) if file is not None else resume_run(config, bus, control)
    folder, method = result.config.folder, result.config.file.training.method
    return [
        f"{folder}: trained {method}; the digital network has {100 * result.digital_accuracy:.1f} %",
        f"next: labrig evaluate {folder}",
    ]


def _replayed(recording: Path, bus: EventBus) -> list[str]:
    from labrig.training.replay_run import replay_run

    again = replay_run(recording, bus)
    same = "every weight is the same to the last bit"
    verdict = same if again.different == 0.0 else f"weights differ by up to {again.different:.3g}"
    return [f"{again.folder}: {again.steps} steps from the recording; {verdict}"]
