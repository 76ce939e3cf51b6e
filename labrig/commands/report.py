"""`labrig report`: the HTML report of recordings and a chip that was fitted before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.interruptible import NOTHING_WRITTEN, interruptible
from labrig.commands.outputs import PAGE, demand_outputs
from labrig.extras import demand_extra

_DEFAULT_CHIP = Path("chip.safetensors")
_DEFAULT_OUTPUT = Path("report.html")


def report(
    files: Annotated[list[Path], typer.Argument(help="The recordings that the chip was fitted to.")],
    chip: Annotated[Path, typer.Option(help="The fitted chip.")] = _DEFAULT_CHIP,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = _DEFAULT_OUTPUT,
    against: Annotated[
        Path | None,
        typer.Option(metavar="OLD", help="The earlier calibration to compare with; else the newest beside the chip."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws in the diagnostics.")] = 0,
) -> None:
    """Write the report of a calibration again, from its files.

    Example: labrig report calibration.h5 --chip chip.safetensors -o report.html
    """
    demand_extra("report", "train", "report")
    import numpy as np

    from labrig.calibrating import judged_again, report_conditions
    from labrig.calibration_history import calibrations_beside
    from labrig.reports.calibration import write_report
    from labrig.reports.past import past_of
    from labrig.threads import one_thread
    from labrig_surrogates.io import load_chip

    demand_outputs((output, PAGE))
    rng = np.random.default_rng(seed)
    with interruptible(NOTHING_WRITTEN), one_thread():
        fits = judged_again(files, chip, rng)
        fitted = load_chip(chip)
        old = None if against is None else load_chip(against)
        past = past_of(fitted, fits, calibrations_beside(chip, fitted.chip_id), old)
        write_report(output, fits, report_conditions(files), rng, chip=fitted, past=past)
    print(f"{output}: open it in a browser")
