"""What `labrig calibrate --budget` says: which parameters are least certain, and what the next MVMs should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labrig.commands.plan_text import percent, quantity
from labrig.durations import duration_text
from labrig_drivers.wording import counted

if TYPE_CHECKING:
    from labrig.events import EventBus
    from labrig.plans.next_calibration import NextCalibration
    from labrig_calibration.result import CalibrationResult
    from labrig_drivers.crossbar import BoardInfo


def next_mvms(
    file: Path, fits: Sequence[CalibrationResult], budget: int, bus: EventBus
) -> tuple[NextCalibration, BoardInfo]:
    """Designs the next MVMs for the board of a recording.

    Raises:
        ConfigError: The budget is too small.
    """
    from labrig.events import StepDone
    from labrig.plans.next_calibration import next_calibration
    from labrig.recording import Recording

    with Recording.open(file) as recording:
        info = recording.info
        old = recording.header.plan.get("seed")

    def progress(stage: str, fraction: float) -> None:
        bus.publish(StepDone(f"next MVMs, {stage}", round(100 * fraction), 100, None))

    seed = old + 1 if isinstance(old, int) else 1
    return next_calibration(info, fits, budget, seed=seed, progress=progress), info


def print_next(ahead: NextCalibration) -> None:
    """Prints the answer for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, width=110)
    designed, certainty = ahead.designed, ahead.certainty
    worst = ", ".join(f"{name} ({percent(certainty[name].now.relative)})" for name in ahead.least_certain[:3])
    console.print(f"array {ahead.array} is known least; least certain: {worst}", soft_wrap=True)
    per_write = designed.plan.stimulus_counts()
    mvms = designed.needs.mvms
    console.print(
        f"next: {counted(designed.plan.writes, 'write')} of each of {counted(len(designed.arrays), 'array')}, "
        f"{mvms} MVMs in all, {duration_text(designed.needs.least_s)} or more, for {', '.join(designed.goals)}",
        soft_wrap=True,
    )
    kinds = [f"{count} {name}" for name, count in per_write.as_options().items() if count]
    console.print(f"each write: {', '.join(kinds)}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("parameter", "value", "std. error now", "relative", f"of {mvms} alone", "together", "to"):
        table.add_column(heading, no_wrap=True)
    for name, one in certainty.items():
        table.add_row(
            name + (" *" if name in designed.goals else ""),
            quantity(one.now.value, one.now.unit),
            quantity(one.now.error, one.now.unit),
            percent(one.now.relative),
            quantity(one.more.error, one.more.unit),
            percent(one.both.relative),
            one.now.relative_to,
        )
    console.print(table)
    console.print(f"sweep it with --seed {ahead.seed}: the targets of the recording would tell less the second time")


def next_json(ahead: NextCalibration, info: BoardInfo) -> dict[str, object]:
    """The answer for programs."""
    designed = ahead.designed
    return {
        "array": ahead.array,
        "least_certain": list(ahead.least_certain),
        "goals": list(designed.goals),
        "mvms": designed.needs.mvms,
        "seed": ahead.seed,
        "plan": {
            "name": designed.plan.name,
            "writes": designed.plan.writes,
            "arrays": list(designed.arrays),
            "counts": designed.plan.stimulus_counts().as_options(),
            "rows": info.rows,
        },
        "parameters": {
            name: {
                "unit": one.now.unit,
                "value": one.now.value,
                "error": one.now.error,
                "relative": one.now.relative,
                "error_of_next_alone": one.more.error,
                "error_together": one.both.error,
            }
            for name, one in ahead.certainty.items()
        },
    }
