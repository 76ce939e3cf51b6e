"""`labrig plan`: design a calibration, and say what it will tell, before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.arguments import RigArgument
from labrig.commands.interruptible import NOTHING_WRITTEN, interruptible, run_interruptible


def plan(
    rig: RigArgument,
    precision: Annotated[
        str | None,
        typer.Option(metavar="PERCENT", help="Find the smallest design whose relative errors are at most this: 1%."),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(metavar="MVMS", help="Most MVMs, over all arrays; alone: make the best of them.")
    ] = None,
    goals: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="PARAMETER",
            help="A parameter whose error counts, as the table names them; repeatable. By default gain, offset, "
            "compression, conductance, noise and programming.",
        ),
    ] = None,
    design: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Judge this plan file, in place of a new design.", show_default=False),
    ] = None,
    writes: Annotated[int | None, typer.Option(help="Programmings of each array; by default it is chosen.")] = None,
    max_writes: Annotated[int, typer.Option(help="Most programmings of each array, to spare the cells.")] = 64,
    arrays: Annotated[
        list[int] | None, typer.Option("--array", help="An array to measure; repeatable. By default all.")
    ] = None,
    chip: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier chip.safetensors: the chip is taken to be like that one."),
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Take a number of the chip to be this (SI units); repeatable."),
    ] = None,
    mvm_s: Annotated[
        float | None,
        typer.Option("--mvm-time", metavar="SECONDS", help="Time between two MVMs, link included: drift needs it."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the design that is looked at, as in labrig sweep.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the plan file that labrig sweep --plan runs."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Design a calibration and predict the standard error of every parameter, before anything is measured.

    The rig is opened to ask the board what it is; no output is touched. Without --precision and --budget the usual plan
    mvm is judged. Exit code 1: a precision cannot be reached, and the best for it is shown.

    Example: labrig plan rig_configs/mock.toml --precision 1% -o plan.toml

    Then: labrig sweep rig_configs/mock.toml --plan plan.toml -o run.h5
    """
    from labrig.commands.plan_options import Given, read_options
    from labrig.commands.plan_text import as_json_text, print_design, write_plan_file
    from labrig.events import EventBus, StepDone
    from labrig.plans.calibration_design import design_calibration
    from labrig.progress import ProgressListener
    from labrig.rig_survey import survey

    options = read_options(
        Given(
            rig, precision, budget, goals, design, writes, max_writes, arrays, chip, assume or [], mvm_s, seed, output
        )
    )
    info = run_interruptible(survey(options.config)).info
    bus = EventBus()

    def progress(stage: str, fraction: float) -> None:
        bus.publish(StepDone(stage, round(100 * fraction), 100, None))

    with interruptible(NOTHING_WRITTEN), ProgressListener() as listener:
        bus.subscribe(listener)
        designed = design_calibration(info, options.request, options.chip_on(info), progress)
    if as_json:
        typer.echo(as_json_text(designed, info))
    else:
        print_design(designed, info, options.config.rig.name)
    if output is not None:
        sweep = write_plan_file(output, designed, info, rig, seed=seed)
        typer.echo(f"{output}: {sweep}", err=as_json)
    if designed.limits:
        raise typer.Exit(1)
