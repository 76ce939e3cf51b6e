"""`labrig fit-devices`: laws of single devices from instrument data or a recording."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.interruptible import NOTHING_WRITTEN, interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption, LiveOption, LiveOptions, shown_live
from labrig.commands.outputs import DEVICE_FITS, demand_outputs
from labrig.extras import demand_extra

_MOST_ROWS = 40

if TYPE_CHECKING:
    from collections.abc import Sequence

    from labrig_calibration.devices.values import Summary


def fit_devices(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="iv, programming, relaxation, noise or pulses.", show_default=False),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A CSV file (columns: see docs/how-to/fit-devices.md), or a recording (.h5) of the plan iv, writes, "
            "retention or noise.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT.json", help="Also write everything there, as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    until: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="relaxation: fit ages up to this, predict the later ones."),
    ] = None,
    levels: Annotated[
        int | None, typer.Option(metavar="N", help="relaxation: leave out levels with this number or higher.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="HZ", help="noise: readings a second, where the file does not say.")
    ] = None,
    jumps: Annotated[bool, typer.Option(help="noise: also look for telegraph noise; takes a minute.")] = False,
    low: Annotated[float, typer.Option(metavar="V", help="iv: leave out readings below.")] = float("-inf"),
    high: Annotated[float, typer.Option(metavar="V", help="iv: leave out readings above.")] = float("inf"),
    branch: Annotated[
        int | None, typer.Option(metavar="N", help="iv: one piece of each sweep between turns, from 0.")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="TEXT", help="iv: only curves whose name begins so.")] = None,
    temperature: Annotated[float, typer.Option(metavar="K", help="iv: temperature, for d eps.")] = 293.15,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
) -> None:
    """Fit laws of single devices: values, 90 % intervals, and which law the data support.

    Example: labrig fit-devices relaxation relaxation.csv --until 10 -o relaxation.json
    """
    demand_extra("fit-devices", "train")
    from labrig.device_fits import FitChoices, fit_file
    from labrig.events import EventBus, StepDone
    from labrig.progress import ProgressListener
    from labrig.threads import one_thread

    demand_outputs((output, DEVICE_FITS))
    choices = FitChoices(
        until_s=until,
        most_levels=levels,
        rate_hz=rate,
        telegraph=jumps,
        low_v=low,
        high_v=high,
        branch=branch,
        only=only,
        temperature_k=temperature,
    )
    bus = EventBus()

    def progress(stage: str, fraction: float) -> None:
        bus.publish(StepDone(stage, round(100 * fraction), 100, None))

    page = LiveOptions(live, live_at, live_access)
    with (
        interruptible(NOTHING_WRITTEN),
        one_thread(),
        ProgressListener() as listener,
        shown_live(bus, page, "fit-devices", title=file.name, doing="FITTING"),
    ):
        bus.subscribe(listener)
        summaries = fit_file(kind, file, choices, progress)
    document = {"kind": kind, "file": file.name, "fits": [one.as_json() for one in summaries]}
    if output is not None:
        from labrig.training.run_folder import write_json

        write_json(output, document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        _print(summaries)
        if output is not None:
            print(output)


def _print(summaries: Sequence[Summary]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    # Wider than any table: a terminal wraps what it cannot show, and nothing is left out of a file.
    console = Console(markup=False, highlight=False, width=400)
    for summary in summaries:
        conditions = ", ".join(f"{name}: {_text(value)}" for name, value in summary.conditions.items())
        console.print(f"{summary.title}: {conditions}", soft_wrap=True)
        if summary.quantities:
            table = Table("quantity", "value", "standard error", "90 % from", "to", "unit", box=SIMPLE)
            for one in summary.quantities:
                numbers = (_text(number) for number in (one.value, one.error, one.low, one.high))
                table.add_row(one.name, *numbers, one.unit)
            console.print(table)
        for content in summary.tables:
            table = Table(*content.header, title=content.title, title_justify="left", box=SIMPLE)
            for row in content.rows[:_MOST_ROWS]:
                table.add_row(*(_text(value) for value in row))
            console.print(table)
            if len(content.rows) > _MOST_ROWS:
                console.print(f"... and {len(content.rows) - _MOST_ROWS} more rows: -o FILE writes all of them")
        for note in summary.notes:
            console.print(f"note: {note}", soft_wrap=True)


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "-" if math.isnan(value) else f"{value:.5g}"  # a white trace has no slope
