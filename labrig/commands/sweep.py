"""`labrig sweep`: run a plan on a rig and record it."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.arguments import RigArgument
from labrig.commands.interruptible import run_interruptible
from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig.recording import Durability


class DurabilityChoice(Enum):
    """What an acknowledged row survives."""

    PROCESS = "process"
    POWER = "power"


def sweep(
    rig: RigArgument,
    plan: Annotated[str, typer.Option("--plan", help="What to measure: mvm.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The recording; by default sweep-DATE-TIME.h5."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Go on with an interrupted recording of the same rig, plan and chip, in place of a new one.",
        ),
    ] = None,
    durability: Annotated[
        DurabilityChoice,
        typer.Option(help="A committed row survives the death of the process, or of the machine (slower)."),
    ] = DurabilityChoice.PROCESS,
    seed: Annotated[int, typer.Option(min=0, help="Determines every random choice of the plan.")] = 0,
    writes: Annotated[int, typer.Option(min=1, help="Programmings of each array.")] = 4,
) -> None:
    """Run a plan on a rig and record it; Ctrl-C switches the outputs off and closes the file.

    Example: labrig sweep rig_configs/mock.toml --plan mvm -o run.h5
    """
    from labrig.acquisition import run_sweep
    from labrig.config import load_rig
    from labrig.events import EventBus
    from labrig.plans import plan_by_name
    from labrig.progress import ProgressListener

    if resume is not None and output is not None:
        raise ConfigError("--output names a new recording and --resume an old one; give one of them")
    config = load_rig(rig)
    chosen = plan_by_name(plan, seed=seed, writes=writes, max_voltage_v=config.max_read_voltage_v)
    path = resume or output or Path(f"sweep-{datetime.now().astimezone():%Y%m%d-%H%M%S}.h5")
    survives: Durability = "power" if durability is DurabilityChoice.POWER else "process"
    bus = EventBus()
    with ProgressListener() as progress:
        bus.subscribe(progress)
        run_interruptible(run_sweep(config, chosen, path, bus, survives, resume=resume is not None))
    typer.echo(path)
