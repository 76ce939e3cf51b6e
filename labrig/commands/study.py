"""`labrig study`: a research study, from its question to a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption, LiveOption, LiveOptions, shown_live
from labrig.extras import demand_extra
from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig.studies.result import StudyResult

_DEFAULT_OUTPUT = Path("studies")


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="Which study: ablation, anchor, break-even, definitions, diffusion, ebm, energy, eqprop, equilibrium, "
            "recurrent, robustness or schedules."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page and the numbers.")] = (
        _DEFAULT_OUTPUT
    ),
    seeds: Annotated[int, typer.Option(help="Independent repetitions.")] = 5,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    rig: Annotated[Path | None, typer.Option(help="Rig file of a chip; the simulated one without it.")] = None,
    quick: Annotated[bool, typer.Option(help="A small run that shows that everything works.")] = False,
    full: Annotated[bool, typer.Option(help="The finer and longer form of a study that has one.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder with the published files of an image set.")] = None,
    images: Annotated[str, typer.Option(help="Which image set is in it.")] = "cifar10",
    network: Annotated[
        str | None,
        typer.Option(
            help="Which network, for studies of images: airbench, airbench-half, resnet18 or resnet20.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(
            metavar="N+M", help="Epochs of its digital form, and of each method from there on.", show_default=False
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Which noise the chips have, as wmax/program+ostd: wmax, wrange, wmult, wrms or abs on the weights, "
            "program or read, ostd, poisson, ofs or aihwkit on the outputs, @256 for arrays of 256 rows.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="BITS", help="Of weights and inputs: 4, 8 or float.", show_default=False),
    ] = None,
    networks: Annotated[
        Path | None, typer.Option(help="Folder of trained networks; OUTPUT/networks without it.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Judge the networks that are there, train none.")
    ] = False,
    processes: Annotated[int, typer.Option(help="Processes for a study that has parts.", min=1)] = 2,
    cluster: Annotated[str | None, typer.Option(help="Compute the parts as jobs: `slurm`, or `local`.")] = None,
    jobs: Annotated[int, typer.Option(help="How many jobs the parts are shared among.", min=1)] = 8,
    cluster_set: Annotated[
        list[str] | None,
        typer.Option("--cluster-set", help="An option of submitit, such as timeout_min=240 or slurm_partition=gpu."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
) -> None:
    """Run a research study: its claims, the figures that decide them, and its negative controls.

    Example: labrig study equilibrium --seeds 5 -o studies
    """
    demand_extra("study", "train", "report")
    from labrig.events import EventBus, StepDone
    from labrig.progress import ProgressListener
    from labrig.studies.cluster import cluster_of
    from labrig.studies.files import write_study
    from labrig.studies.registry import run_study
    from labrig.studies.running import StudySettings
    from labrig.studies.vision.methods import precision_named
    from labrig.studies.vision.noise import NoiseKind
    from labrig.threads import one_thread

    bus = EventBus()
    page = LiveOptions(live, live_at, live_access)
    with (
        interruptible(),
        one_thread(),
        ProgressListener() as progress,
        shown_live(bus, page, "study", title=f"study {name}", doing="STUDYING"),
    ):
        bus.subscribe(progress)
        result = run_study(
            name,
            StudySettings(
                seeds=seeds,
                seed=seed,
                rig=rig,
                quick=quick,
                full=full,
                processes=processes,
                cache=output / ".parts",
                data=data,
                images=images,
                network=network,
                epochs=None if epochs is None else _epochs(epochs),
                noise=None if noise is None else NoiseKind.parsed(noise),
                precision=None if precision is None else precision_named(precision),
                networks=networks or output / "networks",
                evaluate=evaluate,
                cluster=cluster_of(cluster, output / ".jobs", jobs, cluster_set or []),
            ),
            lambda what, done, total: bus.publish(StepDone(f"{name}, {what}", done, total, None)),
        )
    files = write_study(output, result)
    if as_json:
        print(json.dumps(json.loads(files.json.read_text(encoding="utf-8"))))
        return
    print("\n".join(_lines(result)))
    print(f"{files.html}: open it in a browser; the numbers are in {files.json.name}")


def _epochs(text: str) -> tuple[int, int]:
    digital, plus, method = text.partition("+")
    if not (plus and digital.isdecimal() and method.isdecimal()):
        raise ConfigError(f"--epochs {text}: expected two whole numbers such as 12+10")
    return int(digital), int(method)


def _lines(result: StudyResult) -> list[str]:
    lines = [result.question]
    if not result.trusted:
        lines.append("A CONTROL FAILED: nothing below can be trusted.")
    lines += [f"{one.verdict:>14}  {one.claim}: {one.figure}" for one in result.findings]
    lines += [
        f"{'control ok' if one.passed else 'CONTROL FAILED':>14}  {one.name}: {one.expected}; {one.figure}"
        for one in result.controls
    ]
    return lines
