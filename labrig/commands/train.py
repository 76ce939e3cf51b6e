"""`labrig train`: a network for a chip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.interruptible import OFF, interruptible
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
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Train and judge a run for each of these values, such as run.seed=0,1,2; several options, all "
            "combinations.",
            metavar="SECTION.KEY=VALUE,...",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="Runs of a sweep at a time.", min=1)] = 1,
    cluster: Annotated[str | None, typer.Option(help="Train the runs of a sweep as jobs: `slurm`, or `local`.")] = None,
    jobs: Annotated[int, typer.Option(help="How many jobs the runs of a sweep are shared among.", min=1)] = 8,
    cluster_set: Annotated[
        list[str] | None,
        typer.Option("--cluster-set", help="An option of submitit, such as timeout_min=240 or slurm_partition=gpu."),
    ] = None,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
) -> None:
    """Train a network: digital, on the surrogate of a chip, or in the loop with the chip.

    Example: labrig train train.toml --recording calibration.h5

    Example: labrig train --resume runs/digits

    Example: labrig train train.toml --sweep run.seed=0,1,2 --cluster local
    """
    given = [name for name, one in (("TRAIN.toml", file), ("--resume", resume), ("--replay", replay)) if one]
    if len(given) != 1:
        said = f"; given were {', '.join(given)}" if given else ""
        raise ConfigError(f"give one of TRAIN.toml, --resume RUN and --replay RUN/training.h5{said}")
    if file is None and (rig or recording):
        raise ConfigError("--rig and --recording go with a training file")
    if not sweep and (processes > 1 or cluster or cluster_set):
        raise ConfigError("--processes, --cluster and --cluster-set are for the runs of a --sweep")
    if sweep and file is None:
        raise ConfigError("--sweep goes with a training file")
    demand_extra("train", "train")
    from labrig.events import EventBus
    from labrig.progress import ProgressListener
    from labrig.threads import one_thread
    from labrig.training.ranks import torchrun_ranks

    bus = EventBus()
    begun: list[Path] = []

    def after() -> str:
        return f"{OFF}; labrig train --resume {begun[0]} goes on" if begun and begun[0].is_dir() else OFF

    with interruptible(after), one_thread(), ProgressListener() as progress, torchrun_ranks() as ranks:
        if ranks.size > 1 and file is None:
            raise ConfigError(
                "only a new run can be shared between processes: start --resume and --replay without them"
            )
        if ranks.size > 1 and sweep:
            raise ConfigError("a sweep starts processes of its own: use --processes or --cluster, without torchrun")
        if ranks.rank == 0:
            bus.subscribe(progress)
        page = LiveOptions(live, live_at, live_access) if ranks.rank == 0 else LiveOptions()
        if replay is not None:
            with shown_live(bus, page, "train", title=str(replay), doing="TRAINING"):
                lines = _replayed(replay, bus)
        elif sweep:
            assert file is not None
            how = _SweepOptions(sweep, processes, cluster, jobs, cluster_set or [])
            with shown_live(bus, page, "train", title=f"sweep of {file}", doing="TRAINING"):
                lines = _swept(file, rig, recording, how, bus)
        else:
            lines = _trained(file, rig, recording, resume, bus, ranks, page, begun)
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
    begun: list[Path],
) -> list[str]:
    from labrig.config import load_rig
    from labrig.run_control import RunControl
    from labrig.training.config import load_training
    from labrig.training.run import resume_run, train_run
    from labrig.training.run_chip import demand_sources
    from labrig.training.run_folder import load_origin

    if file is not None:
        config = load_training(file, rig=rig, recording=recording)
        if ranks.rank == 0:  # the folder is there as soon as the first process has begun
            demand_sources(config)
    else:
        assert resume is not None
        config = load_origin(resume)
    begun.append(config.folder)
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


@dataclass(frozen=True)
class _SweepOptions:
    """What is varied, and who computes."""

    variations: list[str]
    processes: int
    cluster: str | None
    jobs: int
    cluster_set: list[str]


def _swept(file: Path, rig: Path | None, recording: Path | None, how: _SweepOptions, bus: EventBus) -> list[str]:
    from labrig.events import StepDone
    from labrig.studies.cluster import cluster_of
    from labrig.studies.run_sweep import SWEEP, run_sweep
    from labrig.training.config import load_training

    if how.cluster is not None:
        demand_extra("train --cluster", "cluster")
    config = load_training(file, rig=rig, recording=recording)
    cluster = cluster_of(how.cluster, config.folder / ".jobs", how.jobs, how.cluster_set)
    found = run_sweep(
        config,
        how.variations,
        how.processes if cluster is None else cluster,
        lambda done, total: bus.publish(StepDone("sweep", done, total, None)),
    )
    width = max(len(run.name) for run, _ in found)
    lines = [
        f"{run.name:{width}}  {100 * numbers['accuracy']:6.2f} % ± {100 * numbers['accuracy_error']:.2f}  "
        f"{numbers['passes']:6.0f} passes  {numbers['writes']:6.0f} writes"
        for run, numbers in found
    ]
    return [*lines, f"{config.folder / SWEEP}: all numbers; every run has its folder beside it"]


def _replayed(recording: Path, bus: EventBus) -> list[str]:
    from labrig.training.replay_run import replay_run

    again = replay_run(recording, bus)
    same = "every weight is the same to the last bit"
    verdict = same if again.different == 0.0 else f"weights differ by up to {again.different:.3g}"
    return [f"{again.folder}: {again.steps} steps from the recording; {verdict}"]
