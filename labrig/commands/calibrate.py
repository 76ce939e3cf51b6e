"""`labrig calibrate`: recordings to a fitted chip and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.extras import demand_extra

_DEFAULT_OUTPUT = Path("chip.safetensors")


def calibrate(
    files: Annotated[list[Path], typer.Argument(help="Recordings of one chip, made by `labrig sweep`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The fitted chip.")] = _DEFAULT_OUTPUT,
    report: Annotated[Path | None, typer.Option(help="Also write an HTML report there.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws in the diagnostics.")] = 0,
) -> None:
    """Fit the surrogate of a chip to its recordings.

    Example: labrig calibrate calibration.h5 -o chip.safetensors --report report.html
    """
    demand_extra("calibrate", "train", *(["report"] if report is not None else []))
    from labrig.calibrating import calibrate_recordings, report_conditions
    from labrig.events import EventBus
    from labrig.progress import ProgressListener
    from labrig.recording.whole_files import unwritable
    from labrig.threads import one_thread
    from labrig_drivers.errors import StorageError
    from labrig_surrogates.io import save_chip

    if faults := unwritable([output, *([] if report is None else [report])]):
        raise StorageError("; ".join(faults))
    bus = EventBus()
    with interruptible(), one_thread(), ProgressListener() as progress:
        bus.subscribe(progress)
        calibration = calibrate_recordings(files, seed, bus)
    save_chip(output, calibration.chip)
    print(f"{output}: chip {calibration.chip.chip_id}, {len(calibration.fits)} arrays")
    if report is not None:
        import numpy as np

        from labrig.reports.calibration import write_report

        write_report(report, calibration.fits, report_conditions(files), np.random.default_rng(seed))
        print(f"{report}: open it in a browser")
