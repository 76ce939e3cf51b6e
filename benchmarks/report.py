"""The command line of a benchmark, its table and its JSON file."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness import Case, CaseResult, Effort, Measurement, measure
from benchmarks.machine import Machine, OtherLoad, settle


@dataclass(frozen=True)
class Suite:
    """What one benchmark compares.

    Attributes:
        title: One line saying what is measured.
        unit: What a case's `units` count, such as "MVM".
        cases: The cases.
        helpers: Process ids that work for the benchmark.
        summary: Text to print below the table, from what was measured.
    """

    title: str
    unit: str
    cases: Sequence[Case]
    helpers: Sequence[int] = ()
    summary: Callable[[Measurement], str] | None = None


@dataclass(frozen=True)
class Script:
    """A benchmark as a command.

    Attributes:
        module: Its import name, `benchmarks.NAME`.
        prepare: Opens what the cases need and yields the suite; gets True for a quick run.
        packages: Distributions whose versions the header states.
        threads: BLAS and torch threads.
        pin_one_core: Whether both ends of a link share one core.
        repeat_s: See `Effort.repeat_s`.
        rounds: Of a full run, where nothing else is asked for.
    """

    module: str
    prepare: Callable[[bool], AbstractAsyncContextManager[Suite]]
    packages: Sequence[str]
    threads: int = 1
    pin_one_core: bool = False
    repeat_s: float = math.inf
    rounds: int = 9


def main(script: Script) -> None:
    """Parses the command line, measures, prints the table and writes the JSON file where one is asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m {script.module}")
    parser.add_argument("--quick", action="store_true", help="few short rounds: shows that it works, proves nothing")
    parser.add_argument(
        "--rounds", type=int, default=script.rounds, metavar="N", help="of a full run (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only cases whose name contains TEXT, and references"
    )
    options = parser.parse_args()
    settle(module=script.module, threads=script.threads, pin_one_core=script.pin_one_core)
    suite, result = asyncio.run(_run(script, options.rounds, quick=options.quick, only=options.only))
    machine = Machine.read(script.packages)
    print(table(suite, result, machine, threads=script.threads, quick=options.quick))
    if suite.summary is not None:
        print(f"\n{suite.summary(result)}")
    if options.json is not None:
        numbers = as_json(suite, result, machine, threads=script.threads, quick=options.quick)
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")


async def _run(script: Script, rounds: int, *, quick: bool, only: str) -> tuple[Suite, Measurement]:
    effort = Effort.of(quick=quick, rounds=rounds, repeat_s=script.repeat_s)
    async with script.prepare(quick) as suite:
        return suite, await measure(chosen(suite.cases, only), effort, OtherLoad(suite.helpers))


def chosen(cases: Sequence[Case], text: str) -> list[Case]:
    """The cases whose names contain a text, with those that they are compared with, in their order.

    Raises:
        SystemExit: There is none.
    """
    by_name = {case.name: case for case in cases}
    names = {name for name in by_name if text in name}
    if not names:
        raise SystemExit(f"--only {text!r}: no case has that in its name; there are {', '.join(by_name)}")
    more = names
    while more := {one for name in more if (one := by_name[name].reference) is not None} - names:
        names |= more
    return [case for case in cases if case.name in names]


def table(suite: Suite, result: Measurement, machine: Machine, *, threads: int, quick: bool) -> str:
    """The run as text: conditions, then a line for each case with rate, spread, time per unit and ratio."""
    rounds = len(result.cases[0].seconds)
    alone = len(machine.pinned_to) == 1 and machine.cores > 1
    pinned = f", pinned to core {machine.pinned_to[0]}" if alone else ""
    lines = [
        suite.title + (" (quick: a check, not a result)" if quick else ""),
        f"{machine.processor}, {machine.cores} cores{pinned}, BLAS threads {threads}; {machine.system}",
        f"Python {machine.python}, " + ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        f"commit {machine.commit}; {rounds} rounds, {result.repeated} measured again, "
        f"{result.disturbed} disturbed ones kept",
        "",
    ]
    header = ("case", f"{suite.unit}/s", "+-", f"us/{suite.unit}", "CPU us", "ratio", "[q1 - q3]", "to")
    numbers = {case.name: f"{number}" for number, case in enumerate(result.cases, start=1)}
    rows = [header, *(_row(case, numbers) for case in result.cases)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        first, *values, reference = row
        cells = [value.rjust(width) for value, width in zip(values, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, reference]).rstrip())
    return "\n".join(lines)


def _row(case: CaseResult, numbers: dict[str, str]) -> tuple[str, ...]:
    rate = case.rate
    name = f"{numbers[case.name]} {case.name}"
    cpu_us = 1e6 * statistics.median(case.cpu_seconds) / (statistics.median(case.seconds) * rate.median)
    own = (name, f"{rate.median:,.0f}", f"{100.0 * rate.half_iqr:.1f} %", f"{1e6 / rate.median:.3g}", f"{cpu_us:.3g}")
    if case.ratio is None or case.reference is None:
        return (*own, "", "", "")
    ratio = case.ratio
    return (*own, f"{ratio.median:.3g}", f"[{ratio.lower:.3g} - {ratio.upper:.3g}]", numbers[case.reference])


def as_json(suite: Suite, result: Measurement, machine: Machine, *, threads: int, quick: bool) -> dict[str, object]:
    """The run with every number, ready for `json.dumps`."""
    return {
        "title": suite.title,
        "unit": suite.unit,
        "quick": quick,
        "threads": threads,
        "machine": asdict(machine),
        "repeated_rounds": result.repeated,
        "disturbed_rounds": result.disturbed,
        "cases": [asdict(case) for case in result.cases],
    }
