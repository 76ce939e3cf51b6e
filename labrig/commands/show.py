"""`labrig show`: what is in a recording?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording (HDF5).", show_default=False)],
) -> None:
    """Print what a recording holds, after checking every committed row.

    Example: labrig show run.h5
    """
    from rich.console import Console
    from rich.table import Table

    from labrig.recording import Recording

    with Recording.open(file) as recording:
        recording.verify()
        summary = recording.summary()
        header = recording.header
    table = Table(show_header=False, title=str(summary.path))
    table.add_row("status", summary.status)
    table.add_row("rig", summary.rig_name)
    table.add_row("chip", summary.chip_id)
    table.add_row("plan", ", ".join(f"{key} {value}" for key, value in header.plan.items() if value is not None))
    for name, identity in header.identities.items():
        table.add_row(name, str(identity))
    table.add_row("started", summary.started_utc)
    not_ended = "not yet" if summary.status == "running" else "not noted, the writer died"
    table.add_row("ended", summary.ended_utc or not_ended)
    for array, mvms in summary.mvms.items():
        table.add_row(f"array {array}", f"{mvms} MVMs, {summary.writes[array]} writes")
    if summary.supply_readings:
        table.add_row("supply", f"{summary.supply_readings} readings, {summary.energy_j:.3g} J")
    table.add_row("versions", ", ".join(f"{name} {one}" for name, one in header.versions.items()))
    table.add_row("commit", header.git_commit or "not known")
    table.add_row("checksums", "all committed rows are right")
    Console(markup=False, highlight=False).print(table)
