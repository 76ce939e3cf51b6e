"""`labrig demo`: the whole loop on a simulated bench, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.interruptible import interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption, LiveOption, LiveOptions, shown_live
from labrig.extras import demand_extra
from labrig_drivers.wording import counted

if TYPE_CHECKING:
    from labrig.demo import DemoResult

_DEFAULT_FOLDER = Path("labrig-demo")

_TABLE_WIDTH = 114
_METHODS = {
    "digital": "digital, in float, no chip",
    "deployed": "digital, deployed as it is",
    "surrogate": "surrogate-trained, deployed",
    "in_loop": "trained in the loop",
}


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is left.")] = _DEFAULT_FOLDER,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated chip: another seed is another chip.")] = 1,
    network_seeds: Annotated[int, typer.Option(min=1, help="Trainings of each method.")] = 5,
    writes: Annotated[int, typer.Option(min=1, help="Programmings in each judgement on the chip.")] = 5,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
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
        from labrig.threads import one_thread

        console = Console(highlight=False, soft_wrap=True)
        bus = EventBus()
        page = LiveOptions(live, live_at, live_access)
        with (
            one_thread(),
            ProgressListener() as progress,
            shown_live(bus, page, "demo", title="demo", doing="MEASURING", between="FITTING"),
        ):
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
    seeds = len(comparison.training)
    on_chip = total(list(comparison.training))
    seconds = {"surrogate": total(list(comparison.surrogate_training)).seconds / seeds}
    images = comparison.accuracy["digital"].images
    table = Table(title=f"digits, {images} test images, {seeds} seeds x {writes} programmings; costs of one training")
    for heading in (
        "network",
        "accuracy %",
        "spread over\nprogrammings",
        "spread\nover seeds",
        "passes",
        "writes",
        "seconds",
        "joules",
    ):
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for name, meaning in _METHODS.items():
        score = comparison.accuracy[name]
        spent = ["0", "0", f"{seconds[name]:.1f}" if name in seconds else "-", "0"]
        if name == "in_loop":
            joules = "-" if on_chip.joules is None else f"{on_chip.joules / seeds:.3f}"
            passes, programmed = on_chip.passes / seeds, on_chip.writes / seeds
            spent = [f"{passes:.0f}", f"{programmed:.0f}", f"{on_chip.seconds / seeds:.1f}", joules]
        table.add_row(
            meaning,
            f"{100 * score.mean:.2f} ± {100 * score.error:.2f}",
            "-" if name == "digital" or writes == 1 else f"{100 * score.spread_writes:.2f}",
            "-" if seeds == 1 else f"{100 * score.spread_seeds:.2f}",
            *spent,
        )
    # Wide enough for the table wherever it is printed: a log wraps it worse than a narrow terminal does.
    Console(width=max(Console().width, _TABLE_WIDTH)).print(table)
    everything, sweep = result.spent, result.sweep
    joules = "not metered" if everything.joules is None else f"{everything.joules:.2f} J from the array supply"
    print(
        f"The sweep took {counted(sweep.mvms, 'MVM')}, {counted(sweep.writes, 'write')}, {sweep.seconds:.1f} s. "
        f"In all: {everything.mvms} MVMs, {everything.writes} writes, {result.seconds:.0f} s, {joules}."
    )
