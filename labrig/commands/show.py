"""`labrig show`: what is in a recording, or in the file of a fitted chip?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.outputs import PAGE, demand_outputs

if TYPE_CHECKING:
    from rich.console import Console

    from labrig.reports.overview import Overview

_TERMINAL = "terminal"


def show(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A recording (HDF5), or a fitted chip (.safetensors).", show_default=False),
    ],
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="terminal|FILE.html",
            help="Also draw transfer, targets, errors and supply: here, or on a page for a browser.",
        ),
    ] = None,
) -> None:
    """Print what a recording holds, after checking every committed row, or the parameters of a fitted chip.

    Example: labrig show run.h5 --plot terminal

    Example: labrig show chip.safetensors
    """
    from rich.console import Console

    from labrig.extras import demand_extra
    from labrig.recording.contents import Contents
    from labrig.recording.trusted import open_recording, verify
    from labrig.reports.overview import overview
    from labrig_drivers.errors import StorageError

    if plot is not None and plot != _TERMINAL:
        if not plot.endswith(".html"):
            raise StorageError(f"--plot {plot}: expected the word {_TERMINAL}, or a file that ends in .html")
        demand_extra("show --plot FILE.html", "report")
        demand_outputs((Path(plot), PAGE))
    console = Console(markup=False, highlight=False)
    if file.suffix == ".safetensors":
        _show_chip(console, file, plot)
        return
    with open_recording(file) as recording, Contents.open(file) as contents:
        verify(recording)
        facts = overview(recording, contents)
        _print(console, facts)
        if recording.header.plan.get("name") == "energy":
            _print_energy(console, file)
        if plot is None:
            return
        from labrig.reports.pictures import pictures

        shown = pictures(recording, contents)
    if plot == _TERMINAL:
        from labrig.reports.terminal import draw

        draw(console, shown)
        return
    from labrig.reports.recording_page import write_recording_page

    write_recording_page(Path(plot), facts, shown)
    print(f"{plot}: open it in a browser")


def _show_chip(console: Console, file: Path, plot: str | None) -> None:
    from labrig.reports.chip_terminal import print_chip
    from labrig_drivers.errors import StorageError
    from labrig_surrogates.io import load_chip

    if plot is not None and plot != _TERMINAL:
        raise StorageError(f"--plot {plot}: the page of a fitted chip is made by `labrig report` or `labrig calibrate`")
    print_chip(console, file, load_chip(file), maps=plot is not None)


def _print(console: Console, facts: Overview) -> None:
    from rich.table import Table

    from labrig.reports.overview import size

    table = Table(show_header=False, title=str(facts.summary.path))
    table.add_column()
    table.add_column(overflow="fold")  # a hash has no place to break
    for name, text in facts.rows():
        table.add_row(name, text)
    table.add_row("checksums", "all committed rows are right")
    console.print(table)
    streams = Table("stream", "rows", "size", "columns", title="streams")
    for stream in facts.streams:
        streams.add_row(stream.name, str(stream.rows), size(stream.stored_bytes), ", ".join(stream.columns))
    console.print(streams)
    if not facts.arrays:
        return
    arrays = Table("array", "saturated", "board clock", "MVMs by kind", title="arrays")
    for one in facts.arrays:
        arrays.add_row(str(one.array), one.saturated_text, one.clock_text, one.kinds_text)
    console.print(arrays)


def _print_energy(console: Console, file: Path) -> None:
    from rich.table import Table

    from labrig.energy import energy_report
    from labrig_drivers.errors import StorageError

    try:
        report = energy_report(file)
    except StorageError as error:
        console.print(f"energy: {error}", soft_wrap=True)
        return
    title = f"energy above idling ({1e3 * report.idle_w:.4g} +- {1e3 * report.idle_standard_error_w:.2g} mW)"
    table = Table("array", "load", "bursts", "nJ per MVM", "standard error", "operations per J", title=title)
    for one in report.loads:
        per_mvm_nj, error_nj = 1e9 * one.joules_per_mvm, 1e9 * one.standard_error_j
        numbers = (f"{per_mvm_nj:.4g}", f"{error_nj:.2g}", f"{one.operations_per_joule:.3g}")
        table.add_row(str(one.array), f"{one.load:g}", str(one.bursts), *numbers)
    console.print(table)
