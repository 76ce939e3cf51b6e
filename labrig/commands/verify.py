"""`labrig verify`: is a recording what it should be, to the last row?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings (HDF5).", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
) -> None:
    """Check recordings: structure, checksums, counters, times, and whether values can be true.

    Every fault of every file is named; those that differ only in their place share a line. Exit code: 0 all files are
    right, 1 one is not.

    Example: labrig verify run.h5 monday.h5
    """
    from rich.console import Console

    from labrig.recording.rescue_report import grouped
    from labrig.recording.verification import verify_recording
    from labrig_drivers.wording import counted

    reports = []
    for file in files:
        with Console(stderr=True).status(f"reading {file}"):
            reports.append(verify_recording(file))
        if as_json:
            continue
        report = reports[-1]
        if not report.status:
            typer.echo(f"{file}: not checked: {'; '.join(report.faults)}")
            continue
        rows = ", ".join(f"{path.removeprefix('entry/')} {count}" for path, count in sorted(report.rows.items()))
        told = counted(len(report.faults), "fault") if report.faults else "right"
        typer.echo(f"{file}: {told} ({rows or 'no rows'})")
        for line in grouped(report.faults):
            typer.echo(f"  {line}")
        for note in report.notes:
            typer.echo(f"  note: {note}")
    if as_json:
        typer.echo(json.dumps([report.as_json() for report in reports], indent=1))
    raise typer.Exit(int(any(report.faults for report in reports)))
