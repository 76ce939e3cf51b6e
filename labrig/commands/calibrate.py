"""`labrig calibrate`: recordings to a fitted chip and a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption, LiveOption, LiveOptions, shown_live
from labrig.commands.outputs import CHIP, PAGE, PLAN, demand_outputs
from labrig.extras import demand_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from labrig.reports.past import Past
    from labrig.reports.reported import ReportedArray
    from labrig_surrogates.parameters import ChipParameters

_DEFAULT_OUTPUT = Path("chip.safetensors")


def calibrate(
    files: Annotated[list[Path], typer.Argument(help="Recordings of one chip, made by `labrig sweep`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The fitted chip.")] = _DEFAULT_OUTPUT,
    report: Annotated[Path | None, typer.Option(help="Also write an HTML report there.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="OLD", help="An earlier calibration of this chip: say what changed, with significance."),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(metavar="MVMS", min=1, help="Say what is least certain, and what so many more MVMs should be."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --budget: write the plan file of these MVMs there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print verdict, parameters and changes as JSON.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draws in the diagnostics.")] = 0,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
) -> None:
    """Fit the surrogate of a chip to its recordings, and say whether the fit may be used.

    Earlier calibrations of the chip that lie beside the output make the history in the report; the output carries a
    short record of them on, so that writing the same file every morning loses nothing. With --budget the errors of the
    fit decide what is best measured next; labrig plan does the same before anything was measured.

    Example: labrig calibrate today.h5 -o chip.safetensors --report report.html --against yesterday.safetensors
    """
    demand_extra("calibrate", "train", *(["report"] if report is not None else []))
    import numpy as np

    from labrig.calibrating import calibrate_recordings, report_conditions
    from labrig.calibration_history import calibrations_beside, with_history
    from labrig.commands.next_text import next_json, next_mvms, print_next
    from labrig.commands.plan_text import write_plan_file
    from labrig.events import EventBus
    from labrig.progress import ProgressListener
    from labrig.reports.past import past_of
    from labrig.reports.reported import reported
    from labrig.threads import one_thread
    from labrig_drivers.errors import ConfigError
    from labrig_drivers.wording import counted
    from labrig_surrogates.io import save_chip

    if plan is not None and budget is None:
        raise ConfigError(f"--plan {plan}: goes with --budget, which is missing")
    if plan is not None and plan.suffix != ".toml":
        raise ConfigError(f"--plan {plan}: a plan file ends in .toml")
    demand_outputs((output, CHIP), (report, PAGE), (plan, PLAN))
    old = None if against is None else _earlier(against, files)
    bus = EventBus()
    rng = np.random.default_rng(seed)
    page = LiveOptions(live, live_at, live_access)
    with (
        interruptible("every file is whole or not there"),
        one_thread(),
        ProgressListener() as progress,
        shown_live(bus, page, "calibrate", title=", ".join(one.name for one in files), doing="FITTING"),
    ):
        bus.subscribe(progress)
        calibration = calibrate_recordings(files, seed, bus)
        # Whatever lies there is read before it is written over.
        beside = calibrations_beside(output, calibration.chip.chip_id)
        past = past_of(calibration.chip, calibration.fits, beside, old)
        chip = with_history(calibration.chip, past.records)
        save_chip(output, chip)
        if report is None:
            arrays = reported(calibration.fits, rng, chip.provenance)
        else:
            from labrig.reports.calibration import write_report

            arrays = write_report(report, calibration.fits, report_conditions(files), rng, chip=chip, past=past)
        ahead = None if budget is None else next_mvms(files[0], calibration.fits, budget, bus)
    if as_json:
        from labrig.reports.as_json import calibration_json

        print(calibration_json(chip, arrays, past, None if ahead is None else next_json(*ahead)))
    else:
        _print(chip, arrays, past if old is not None else None)
        if ahead is not None:
            print_next(ahead[0])
    if ahead is not None and plan is not None:
        sweep = write_plan_file(plan, ahead[0].designed, ahead[1], Path("rig.toml"), seed=ahead[0].seed)
        if not as_json:
            print(f"{plan}: {sweep}")
    if as_json:
        return
    print(f"{output}: chip {chip.chip_id}, {counted(len(arrays), 'array')}")
    if report is not None:
        print(f"{report}: open it in a browser")


def _earlier(against: Path, files: Sequence[Path]) -> ChipParameters:
    """The calibration to compare with; that of another chip, or of other arrays, is refused before any fit."""
    from labrig.recording import Recording
    from labrig_calibration.changes import ComparisonError
    from labrig_surrogates.io import load_chip

    old = load_chip(against)
    with Recording.open(files[0]) as recording:
        info, arrays = recording.info, recording.arrays
    if old.chip_id != info.chip_id:
        raise ComparisonError(
            f"{against} is a calibration of chip {old.chip_id}, but {files[0]} was recorded on chip {info.chip_id}; "
            "give --against a calibration of the same chip"
        )
    shared = {index: old.arrays[index] for index in arrays if index in old.arrays}
    sizes = {index: (one.rows, one.columns) for index, one in shared.items()}
    wrong = [f"array {index} was {r} x {c}" for index, (r, c) in sizes.items() if (r, c) != (info.rows, info.columns)]
    if not shared:
        wrong = [f"it has arrays {sorted(old.arrays)}"]
    if wrong:
        raise ComparisonError(
            f"{against} cannot be compared with {files[0]}, which has arrays {sorted(arrays)} of {info.rows} x "
            f"{info.columns}: {', '.join(wrong)}"
        )
    return old


def _print(chip: ChipParameters, arrays: Sequence[ReportedArray], past: Past | None) -> None:
    """The verdict on each array, with its reasons, and what changed where that was asked."""
    from labrig.reports.changes import change_rows, change_sentences

    for one in arrays:
        print(f"array {one.parameters.array}: {one.verdict.sentence}")
        for reason in one.verdict.reasons:
            print(f"   {reason}")
    if past is None or past.change is None:
        return
    from rich.console import Console
    from rich.table import Table

    print(f"chip {chip.chip_id} since {past.since}:")
    for sentence in change_sentences(past.change):
        print(f"   {sentence}")
    for each in past.carried_over:
        print(
            f"   Array {each.array}: the earlier calibration predicts these writes with {each.ratio:.2f} x this error."
        )
    table = Table(
        "array", "parameter", "before", "now", "shift", "scatter", "largest", "chance", box=None, padding=(0, 1, 0, 0)
    )
    for row in change_rows(past.change):
        style = "bold" if row.changed else None
        numbers = (row.before, row.now, row.shift, row.scatter, row.worst, row.chance)
        table.add_row(str(row.array), row.name, *numbers, style=style)
    # A file or a pipe has room for whole lines.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 110).print(table)
    rate = f"{100 * past.change.false_alarm_rate:.3g} %"
    print(f"Shifts, scatter and changes are in standard errors; false-alarm rate {rate} for all of them together.")
