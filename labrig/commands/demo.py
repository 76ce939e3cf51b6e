"""`labrig demo`: the whole loop on a simulated bench, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.extras import demand_extra

if TYPE_CHECKING:
    from labrig.demo import DemoResult

_DEFAULT_FOLDER = Path("labrig-demo")

_METHODS = {
    "digital": "digital, in float (not on the chip)",
    "deployed": "digital weights deployed as they are",
    "surrogate": "trained on the surrogate, deployed",
    "in_loop": "trained in the loop with the chip",
}


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is left.")] = _DEFAULT_FOLDER,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated chip: another seed is another chip.")] = 1,
    network_seeds: Annotated[int, typer.Option(min=1, help="Trainings of each method.")] = 3,
    writes: Annotated[int, typer.Option(min=1, help="Programmings in each judgement on the chip.")] = 5,
) -> None:
    """Run the whole loop on a simulated bench: sweep, calibrate, train, judge on the chip.

    Example: labrig demo --folder labrig-demo
    """
    demand_extra("demo", "train", "report")
    with interruptible():
        # Imported here, inside: loading torch takes seconds, in which Ctrl-C must work too.
        from rich.console import Console

        from labrig.demo import DemoSettings, advice, run_demo
        from labrig.events import EventBus
        from labrig.progress import ProgressListener

        console = Console(highlight=False, soft_wrap=True)
        bus = EventBus()
        with ProgressListener() as progress:
            bus.subscribe(progress)
            settings = DemoSettings(folder, seed, network_seeds, writes)
            result = run_demo(settings, bus, lambda text: console.print(text, markup=False))
        _print(result, settings.writes)
        console.print(advice(dict(result.comparison.accuracy)), markup=False)
        console.print(f"everything is in {folder}/; open {folder}/report.html in a browser", markup=False)


def _print(result: DemoResult, writes: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from labrig.training.ledger import total

    comparison = result.comparison
    training = total(list(comparison.training))
    seeds = len(comparison.training)
    table = Table(
        title=f"digits, {comparison.accuracy['digital'].images} test images, {seeds} seeds x {writes} programmings"
    )
    for heading in ("network", "accuracy %", "spread: writes", "seeds", "passes", "writes", "seconds", "joules"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, meaning in _METHODS.items():
        score = comparison.accuracy[name]
        spent = ["0", "0", "0", "0"]
        if name == "in_loop":
            joules = "not metered" if training.joules is None else f"{training.joules / seeds:.3f}"
            spent = [
                f"{training.passes / seeds:.0f}",
                f"{training.writes / seeds:.0f}",
                f"{training.seconds / seeds:.1f}",
                joules,
            ]
        table.add_row(
            meaning,
            f"{100 * score.mean:.2f} ± {100 * score.error:.2f}",
            "-" if name == "digital" else f"{100 * score.spread_writes:.2f}",
            f"{100 * score.spread_seeds:.2f}",
            *spent,
        )
    Console().print(table)
    spent_all = result.spent
    joules = "not metered" if spent_all.joules is None else f"{spent_all.joules:.2f} J from the array supply"
    print(
        f"passes, writes, seconds and joules: on the chip, for one training. The sweep: {result.sweep.mvms} MVMs, "
        f"{result.sweep.writes} writes, {result.sweep.seconds:.1f} s. In all: {spent_all.mvms} MVMs, "
        f"{spent_all.writes} writes, {result.seconds:.0f} s, {joules}."
    )
