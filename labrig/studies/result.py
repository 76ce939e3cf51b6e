"""What a study finds: claims with the figures that decide them, controls, tables, plots and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A figure and how well it is known.

    Attributes:
        value: The figure.
        low: Lower end of the interval.
        high: Upper end.
        unit: Its unit, such as `%`.
        of: Over what it varies, such as `5 seeds`.
        level: Part of such intervals that hold the truth.
    """

    value: float
    low: float
    high: float
    unit: str
    of: str
    level: float = 0.95

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{unit} ({self.level:.0%}, {self.of})"


@dataclass(frozen=True)
class Finding:
    """A claim that could fail, and the figure that decides it.

    Attributes:
        claim: What is claimed, with its bound.
        figure: What was measured.
        verdict: Whether the whole interval is on the right side of the bound, on the wrong one, or on both.
    """

    claim: str
    figure: Interval
    verdict: Verdict


@dataclass(frozen=True)
class Control:
    """Something that must not work, or must work, if the study measures what it says.

    Attributes:
        name: What was changed, such as `labels shuffled`.
        expected: What then has to happen.
        figure: What was measured.
        passed: Whether it happened.
    """

    name: str
    expected: str
    figure: Interval
    passed: bool


@dataclass(frozen=True)
class Table:
    """Numbers in rows.

    Attributes:
        title: What they are.
        columns: Heads of the columns.
        rows: Cells, as many as columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


@dataclass(frozen=True)
class Curve:
    """A line of a plot.

    Attributes:
        name: For the legend.
        x: Along the axis.
        y: Values.
        error: Half widths of intervals, or none.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    error: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        title: What it shows.
        x_label: With the unit.
        y_label: With the unit.
        curves: Its lines.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Attributes:
        name: Of the command.
        question: What it asks.
        findings: Its claims.
        controls: Its negative controls.
        tables: Numbers.
        plots: Figures.
        conditions: Everything that the numbers depend on.
        seconds: How long it took.
    """

    name: str
    question: str
    findings: tuple[Finding, ...]
    controls: tuple[Control, ...]
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    conditions: Mapping[str, str]
    seconds: float

    @property
    def trusted(self) -> bool:
        """Whether every control passed; what a study claims is worth nothing otherwise."""
        return all(control.passed for control in self.controls)

    def as_dict(self) -> dict[str, object]:
        """For JSON, the verdicts and `trusted` included."""
        return {**asdict(self), "conditions": dict(self.conditions), "trusted": self.trusted}


def at_least(claim: str, figure: Interval, bound: float) -> Finding:
    """A claim that a figure is `bound` or more."""
    if figure.low >= bound:
        return Finding(claim, figure, "holds")
    return Finding(claim, figure, "does not hold" if figure.high < bound else "undecided")


def at_most(claim: str, figure: Interval, bound: float) -> Finding:
    """A claim that a figure is `bound` or less."""
    if figure.high <= bound:
        return Finding(claim, figure, "holds")
    return Finding(claim, figure, "does not hold" if figure.low > bound else "undecided")
