"""`labrig report`: the HTML report of recordings and a chip that was fitted before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.extras import demand_extra

_DEFAULT_CHIP = Path("chip.safetensors")
_DEFAULT_OUTPUT = Path("report.html")


def report(
    files: Annotated[list[Path], typer.Argument(help="The recordings that the chip was fitted to.")],
    chip: Annotated[Path, typer.Option(help="The fitted chip.")] = _DEFAULT_CHIP,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = _DEFAULT_OUTPUT,
    seed: Annotated[int, typer.Option(help="Seed of the draws in the diagnostics.")] = 0,
) -> None:
    """Write the report of a calibration again, from its files.

    Example: labrig report calibration.h5 --chip chip.safetensors -o report.html
    """
    demand_extra("report", "train", "report")
    import numpy as np

    from labrig.calibrating import judged_again, report_conditions
    from labrig.reports.calibration import write_report
    from labrig.threads import one_thread

    rng = np.random.default_rng(seed)
    with interruptible(), one_thread():
        write_report(output, judged_again(files, chip, rng), report_conditions(files), rng)
    print(f"{output}: open it in a browser")
