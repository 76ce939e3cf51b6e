"""One table of all benchmarks: ratios, what each is compared with, goals, versions, and what was absent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SCRIPTS: Final = (
    "links",
    "mvm_path",
    "acquisition",
    "recording",
    "compaction",
    "telemetry",
    "remote",
    "live",
    "surrogates",
    "wires",
    "calibration",
    "calibration_tile",
    "training",
    "cifar",
)
"""Names of the benchmarks with ratios, in the order of the loop: measure, record, share, model, fit, train."""

ABSENT: Final = "not installed"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: What was measured.
        reference: What with.
        ratio: Rate over the reference's rate, median of the rounds.
        lower: Its lower quartile.
        upper: Its upper quartile.
    """

    case: str
    reference: str
    ratio: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Report:
    """What one benchmark found.

    Attributes:
        name: Of the benchmark.
        title: What it measures.
        rows: Its comparisons.
        machine: Processor and system.
        versions: Of the distributions that matter to it, `ABSENT` for those that are missing.
        commit: Of labrig.
        rounds: How it was measured, in words.
        fault: Why there is nothing; None where there is.
    """

    name: str
    title: str = ""
    rows: tuple[Row, ...] = ()
    machine: str = ""
    versions: Mapping[str, str] | None = None
    commit: str = ""
    rounds: str = ""
    fault: str | None = None


def read_report(name: str, path: Path) -> Report | None:
    """What a benchmark wrote; None where it wrote nothing.

    Args:
        name: Of the benchmark.
        path: Its JSON file.
    """
    if not path.is_file():
        return None
    numbers = json.loads(path.read_text(encoding="utf-8"))
    machine, cases = numbers["machine"], numbers["cases"]
    measured = f"{len(cases[0]['seconds'])} rounds, {numbers['disturbed_rounds']} disturbed" if cases else "nothing"
    return Report(
        name,
        numbers["title"],
        tuple(_rows(cases)),
        f"{machine['processor']}, {machine['cores']} cores; {machine['system']}; Python {machine['python']}",
        machine["versions"],
        machine["commit"],
        f"quick: a check, not a result ({measured})" if numbers["quick"] else measured,
    )


def _rows(cases: Iterable[Mapping[str, object]]) -> Iterable[Row]:
    for case in cases:
        ratio, reference = case["ratio"], case["reference"]
        if isinstance(ratio, dict) and isinstance(reference, str):
            yield Row(str(case["name"]), reference, ratio["median"], ratio["lower"], ratio["upper"])


def table(reports: Sequence[Report]) -> str:
    """The table for a terminal: a line for each comparison, and one for each benchmark that failed."""
    header = ("benchmark", "case", "ratio", "[q1 - q3]", "compared with")
    rows = [header]
    for report in reports:
        if report.fault is not None:
            rows.append((report.name, f"FAILED: {report.fault}", "", "", ""))
        rows += [
            (report.name, row.case, f"{row.ratio:.3g}", f"[{row.lower:.3g} - {row.upper:.3g}]", row.reference)
            for row in report.rows
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_conditions(reports)])


def page(reports: Sequence[Report]) -> str:
    """The same as a page in Markdown, with a section for each benchmark."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `python -m benchmarks`. A ratio is the rate of a case over the rate of what it is compared with, in",
        "the same round: above 1 is faster. Medians of the rounds, with quartiles. Ratios belong to the machine, too.",
    ]
    for report in reports:
        lines += ["", f"## {report.name}", ""]
        if report.fault is not None:
            lines.append(f"Failed: {report.fault}")
            continue
        lines += [f"{report.title}. {report.rounds}.", ""]
        lines += ["| case | ratio | quartiles | compared with |", "| --- | ---: | --- | --- |"]
        lines += [
            f"| {row.case} | {row.ratio:.3g} | {row.lower:.3g} to {row.upper:.3g} | {row.reference} |"
            for row in report.rows
        ]
    return "\n".join([*lines, "", "## Conditions", "", *(f"- {one}" for one in _conditions(reports)), ""])


def _conditions(reports: Sequence[Report]) -> list[str]:
    measured = [one for one in reports if one.fault is None]
    versions = {name: version for one in measured for name, version in (one.versions or {}).items()}
    there = ", ".join(f"{name} {version}" for name, version in versions.items() if version != ABSENT)
    absent = ", ".join(name for name, version in versions.items() if version == ABSENT)
    lines = [*dict.fromkeys(f"{one.machine}; labrig at {one.commit}" for one in measured)]
    lines += [*dict.fromkeys(f"{one.name}: {one.rounds}" for one in measured)]
    lines += [f"versions: {there}"] if there else []
    return [*lines, f"absent, and so not compared with: {absent}"] if absent else lines
