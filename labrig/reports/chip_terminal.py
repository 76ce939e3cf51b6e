"""A fitted chip in a terminal: where it comes from, its parameters with their errors, a map of its cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from labrig.calibration_history import carried
from labrig.reports.blocks import DIVERGING, colour_bar, heatmap
from labrig.reports.families import parameter_rows
from labrig_drivers.wording import counted
from labrig_surrogates.parameters import ArrayParameters, ChipParameters

_NAMED_CELLS = 12
_MAP_LINES = 32


def print_chip(console: Console, path: Path, chip: ChipParameters, *, maps: bool) -> None:
    """Prints a fitted chip.

    Args:
        console: Where.
        path: Its file, for the title.
        chip: What it holds.
        maps: Whether to draw the cells of each array.
    """
    provenance = chip.provenance
    facts = Table(show_header=False, title=str(path))
    facts.add_row("chip", chip.chip_id)
    for key, name in (
        ("calibrated_utc", "calibrated"),
        ("recordings", "recordings"),
        ("labrig", "fitted by labrig"),
        ("seed", "seed"),
    ):
        if key in provenance:
            facts.add_row(name, str(provenance[key]))
    for index, array in chip.arrays.items():
        facts.add_row(
            f"array {index}", f"{array.rows} x {array.columns}, {counted(len(array.write_conductance_s), 'write')}"
        )
    past = carried(chip)
    if past:
        facts.add_row("earlier calibrations", f"{len(past)}, the first of {past[0].when_utc}")
    console.print(facts)
    for index, array in chip.arrays.items():
        _print_array(console, chip, index, array)
        if maps:
            _draw_cells(console, array)


def _print_array(console: Console, chip: ChipParameters, index: int, array: ArrayParameters) -> None:
    table = Table("parameter", "value +- standard error", "5 % to 95 % of columns", title=f"array {index}")
    for row in parameter_rows(array):
        table.add_row(row.title, row.value_text, row.range_text)
    stuck = np.argwhere(array.stuck)
    named = ", ".join(f"({row}, {column})" for row, column in stuck[:_NAMED_CELLS].tolist())
    more = " ..." if len(stuck) > _NAMED_CELLS else ""
    table.add_row("stuck cells (row, column)", f"{len(stuck)} of {array.stuck.size}", f"{named}{more}")
    console.print(table)
    prefix, provenance = f"array_{index}_", chip.provenance
    for key, text in (
        ("error_over_noise", "error on unseen MVMs: {:.3f} times the noise floor"),
        ("coverage_90", "90 % intervals hold {:.1%} of them"),
        ("rung", "highest rung of the ladder of models that was kept: {}"),
        ("flagged", "MVMs left out as glitches: {}"),
        ("notes", "could not be told: {}"),
        ("data_sha256", "sha256 of the data: {}"),
    ):
        if (value := provenance.get(prefix + key)) not in {None, ""}:
            console.print(text.format(value), soft_wrap=True)


def _draw_cells(console: Console, array: ArrayParameters) -> None:
    slope = np.where(array.stuck, np.nan, array.cell_slope)
    reach = max(0.05, float(np.nanquantile(np.abs(slope - 1.0), 0.99))) if np.isfinite(slope).any() else 0.5
    ends, colour = (1.0 - reach, 1.0 + reach), console.color_system is not None
    console.print(Text("conductance over target, rows down, columns across; stuck cells are blank", style="bold"))
    for line in heatmap(slope, ends, DIVERGING, width=min(console.width - 1, 96), height=_MAP_LINES, colour=colour):
        console.print(line)
    console.print(colour_bar(ends, "", DIVERGING, colour=colour))
