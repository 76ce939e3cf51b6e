"""What a fault campaign counted, and the table of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from labrig.testing.fault_plan import Fault


@dataclass
class CampaignReport:
    """What a campaign counted.

    Attributes:
        name: Who was driven.
        calls: Calls of the driver, opening and closing included.
        requests: Messages that went to the instrument over the line.
        injected: Faults on the line, by kind.
        right: Calls that returned, a question's with the right answer.
        errors: Calls that raised a `LabrigError`, by type.
        cancelled: Calls that were cancelled.
        reopened: How often the driver was closed and opened anew.
        wrong: Calls that returned a wrong answer.
        broken: Every broken promise, one text each: wrong answers, other exceptions, calls that came back too late.
        longest_s: Longest call in s.
        duration_s: Duration of the campaign in s.
        story: How to repeat it; empty when nothing is broken.
    """

    name: str
    calls: int = 0
    requests: int = 0
    injected: Counter[Fault] = field(default_factory=Counter)
    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    reopened: int = 0
    wrong: int = 0
    broken: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    duration_s: float = 0.0
    story: str = ""

    @property
    def faults(self) -> int:
        """How many faults there were on the line."""
        return self.injected.total()

    def require_kept(self) -> None:
        """Raises `AssertionError` with the broken promises and the way to repeat them, if there are any."""
        if self.broken:
            promises = "\n".join(self.broken)
            raise AssertionError(f"{self.name}: {len(self.broken)} broken promises:\n{promises}\n{self.story}")

    def __add__(self, other: CampaignReport) -> CampaignReport:
        """Both campaigns together."""
        return CampaignReport(
            name=self.name,
            calls=self.calls + other.calls,
            requests=self.requests + other.requests,
            injected=self.injected + other.injected,
            right=self.right + other.right,
            errors=self.errors + other.errors,
            cancelled=self.cancelled + other.cancelled,
            reopened=self.reopened + other.reopened,
            wrong=self.wrong + other.wrong,
            broken=self.broken + other.broken,
            longest_s=max(self.longest_s, other.longest_s),
            duration_s=self.duration_s + other.duration_s,
            story=self.story + other.story,
        )


_COLUMNS = ("driver", "requests", "faults", "calls", "right", "typed", "cancelled", "reopened", "WRONG", "BROKEN")


def campaign_table(reports: Sequence[CampaignReport]) -> str:
    """One line for each campaign and one for all of them, then the faults and the errors by kind."""
    total = CampaignReport("total")
    for report in reports:
        total = total + report
    rows = [_COLUMNS, *(_row(report) for report in (*reports, total))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in columns)
        for columns in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]
    faults = ", ".join(f"{fault.value} {count}" for fault, count in total.injected.most_common())
    errors = ", ".join(f"{name} {count}" for name, count in total.errors.most_common())
    return "\n".join(
        [
            *lines,
            f"faults injected: {faults or 'none'}",
            f"typed errors: {errors or 'none'}",
            f"longest call {total.longest_s:.2f} s, campaigns together {total.duration_s:.0f} s",
        ]
    )


def _row(report: CampaignReport) -> tuple[str, ...]:
    numbers = (
        report.requests,
        report.faults,
        report.calls,
        report.right,
        report.errors.total(),
        report.cancelled,
        report.reopened,
        report.wrong,
        len(report.broken),
    )
    return report.name, *(f"{number:,}" for number in numbers)
