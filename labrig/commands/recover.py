"""`labrig recover`: what is in a damaged recording, and a new one of what can be rescued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from labrig.recording.rescue_report import RescueReport

_SHOWN = 12


def recover(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording (HDF5).", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The new recording; by default FILE-recovered.h5."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is there; write nothing.")] = False,
    beyond_committed: Annotated[
        bool,
        typer.Option(
            "--beyond-committed",
            help="Also rescue rows with a right checksum that were never acknowledged.",
        ),
    ] = False,
    unchecked: Annotated[
        bool,
        typer.Option(
            "--unchecked", help="Also rescue readings that have no checksum, where their values are possible."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
) -> None:
    """Say what is in a damaged recording, and rescue what its checksums vouch for into a new one.

    FILE itself is never written. The new recording opens like any other, and the sweep with --resume measures what is
    missing in it. A file that is not damaged is left as it is. Exit code: 0 nothing is lost, 1 rows are lost, 2 nothing
    can be done.

    Example: labrig recover run.h5 -o rescued.h5
    """
    from rich.console import Console

    from labrig.recording.recovery import recover_recording

    with Console(stderr=True).status(f"reading {file}"):
        report = recover_recording(
            file, output, beyond_committed=beyond_committed, unchecked=unchecked, dry_run=dry_run
        )
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        _print(report, Console(markup=False, highlight=False), dry_run=dry_run)
    raise typer.Exit(report.exit_code)


def _print(report: RescueReport, console: Console, *, dry_run: bool) -> None:
    from rich.table import Table

    from labrig.recording.rescue_report import grouped
    from labrig_drivers.wording import counted

    table = Table("stream", "committed", "right", "rescued", "lost", "uncounted", "why", title=str(report.file))
    table.columns[0].no_wrap = True
    for one in report.streams:
        why = ", ".join(f"{count} {reason}" if count else reason for reason, count in one.reasons.items())
        numbers = (one.committed, one.vouched if one.checked else "-", one.rescued, one.lost, one.uncounted)
        name = one.path.removeprefix("entry/")
        table.add_row(name, *("?" if number is None else str(number) for number in numbers), why)
    console.print(table)
    lines = grouped(report.faults)
    for line in lines[:_SHOWN]:
        console.print(line, soft_wrap=True)
    if len(lines) > _SHOWN:
        console.print(f"and {len(lines) - _SHOWN} more; --json lists all", soft_wrap=True)
    again = sum(len(one.again) for one in report.streams)
    unnamed = sum(one.unnamed for one in report.streams)
    if again:
        console.print(f"to be measured again: {counted(again, 'point')}, which --json lists", soft_wrap=True)
    if unnamed:
        console.print(f"{unnamed} damaged entries of a journal: nobody knows their points", soft_wrap=True)
    if report.needs_nothing:
        console.print("needs nothing: every committed row is as it was written", soft_wrap=True)
    elif report.rescues_nothing:
        console.print("no row can be rescued, nothing was written", soft_wrap=True)
    elif dry_run:
        console.print("nothing was written (--dry-run)", soft_wrap=True)
    else:
        console.print(f"{report.output}: go on with `labrig sweep ... --resume {report.output}`", soft_wrap=True)
