"""`labrig evaluate`: how good a trained network is on its chip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption, LiveOption, LiveOptions, shown_live
from labrig.extras import demand_extra


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, made by `labrig train`.", metavar="RUN")],
    rig: Annotated[Path | None, typer.Option(help="Rig file; the run's own by default.")] = None,
    writes: Annotated[int | None, typer.Option(min=1, help="Programmings; the training file's by default.")] = None,
    chips: Annotated[
        int, typer.Option(min=0, help="Judge on so many chips drawn from the calibration's errors, without a rig.")
    ] = 0,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
) -> None:
    """Judge a trained network on the chip, over several programmings: as it is, and with its columns calibrated.

    Example: labrig evaluate runs/digits --writes 5
    """
    demand_extra("evaluate", "train")
    from labrig.events import EventBus
    from labrig.progress import ProgressListener
    from labrig.threads import one_thread
    from labrig.training.evaluation_run import evaluate_run

    bus = EventBus()
    page = LiveOptions(live, live_at, live_access)
    with (
        interruptible(),
        one_thread(),
        ProgressListener() as progress,
        shown_live(bus, page, "evaluate", title=str(run), doing="EVALUATING"),
    ):
        bus.subscribe(progress)
        found = evaluate_run(run, rig, writes, bus, chips=chips)
    result = found.zero_shot
    print(
        f"{run}: {100 * result.mean:.2f} % ± {100 * result.error:.2f} on {result.images} test images ({found.where}; "
        f"spread over programmings {100 * result.spread_writes:.2f}, 5th percentile {100 * found.worst:.2f})"
    )
    if found.calibrated is not None:
        calibrated = found.calibrated
        print(f"with its columns calibrated on the chip: {100 * calibrated.mean:.2f} % ± {100 * calibrated.error:.2f}")
