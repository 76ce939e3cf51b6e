"""What `labrig plan` prints: the design, its time, the predicted errors, what cannot be told apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from labrig.durations import duration_text
from labrig.plans.plan_file import PlanFile
from labrig.unit_prefixes import with_prefix
from labrig_drivers.errors import StorageError
from labrig_drivers.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from labrig.plans.calibration_design import DesignedCalibration
    from labrig_calibration.predictions import Predicted
    from labrig_drivers.crossbar import BoardInfo

_CLEARLY_LESS = 0.9
_WIDE = 400


def print_design(designed: DesignedCalibration, info: BoardInfo, rig: str) -> None:
    """Prints everything for people."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    arrays = ", ".join(map(str, designed.arrays))
    console.print(f"rig {rig}: chip {info.chip_id}, array {arrays} of {info.rows} x {info.columns}")
    counts = designed.plan.stimulus_counts()
    per_write = counts.total(info.rows)
    console.print(
        f"design: {counted(designed.plan.writes, 'write')} of each array, {counted(per_write, 'MVM')} on each; "
        f"{designed.needs.mvms} MVMs and {designed.needs.writes} writes in all, "
        f"{duration_text(designed.needs.least_s)} or more",
        soft_wrap=True,
    )
    kinds = [
        f"{count} {kind.name.lower().replace('_', '-')}" for kind, count in counts.by_kind(info.rows).items() if count
    ]
    console.print(f"each write: {', '.join(kinds)}", soft_wrap=True)
    chip = ", ".join(f"{name}={value:.4g}" for name, value in designed.chip.as_options().items())
    console.print(f"assumed ({designed.chip.source}): {chip}", soft_wrap=True)
    _print_errors(console.width, designed)
    for confusion in designed.confusions:
        console.print(f"- {confusion}", soft_wrap=True)
    if not designed.confusions:
        console.print("everything that a fit asks for can be told apart")
    for refusal in designed.refusals:
        console.print(f"labrig calibrate will refuse it: {refusal}", soft_wrap=True)
    _print_verdict(console, designed)


def _print_errors(narrowest: int, designed: DesignedCalibration) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("parameter", "assumed", "std. error", "relative", "to", "pooled"):
        table.add_column(heading, no_wrap=True)
    for one in designed.analysis.predicted.values():
        pooled = "" if one.pooled_error is None else percent(one.pooled_error / one.scale if one.scale else math.inf)
        goal = " *" if one.name in designed.goals else ""
        table.add_row(
            one.name + goal,
            quantity(one.value, one.unit),
            quantity(one.error, one.unit),
            percent(one.relative),
            one.relative_to,
            pooled,
        )
    # On a narrow terminal lines break; no number is cut.
    wide = Console(markup=False, highlight=False, width=_WIDE)
    width = max(wide.measure(table).maximum, narrowest)
    Console(markup=False, highlight=False, width=width).print(table)


def _print_verdict(console: Console, designed: DesignedCalibration) -> None:
    if designed.precision is None:
        worst = designed.analysis.worst(designed.goals)
        console.print(f"worst of those with *: {worst.name}, {percent(worst.relative)} of {worst.relative_to}")
        return
    if not designed.limits:
        console.print(f"reached: every * is known to {percent(designed.precision)} or better")
        return
    for name, best in designed.limits.items():
        here = designed.analysis.predicted[name].relative
        endless = f", endless reading of its writes {percent(best)}" if best < _CLEARLY_LESS * here else ""
        console.print(
            f"NOT reached: {name} to {percent(designed.precision)}; this design gives {percent(here)}{endless}: "
            f"{_why(name)}",
            soft_wrap=True,
        )


def _why(name: str) -> str:
    if name in {"gain", "programming", "mismatch"} or name.startswith("programming_"):
        return "every programming has its own error; only more writes (--max-writes) or more cells average it"
    if name == "drift":
        return "all readings of a write lie within a short time; read it for longer (--mvm-time, or the plan retention)"
    if "line" in name or name == "crosstalk":
        return "programming errors hide what the lines do; more writes (--max-writes) average them"
    return "that is with the most MVMs there may be (--budget, or what fits in memory)"


def as_json_text(designed: DesignedCalibration, info: BoardInfo) -> str:
    """Everything for programs."""
    plan = designed.plan
    document = {
        "chip_id": info.chip_id,
        "arrays": list(designed.arrays),
        "rows": info.rows,
        "columns": info.columns,
        "plan": {"name": plan.name, "writes": plan.writes, "counts": plan.stimulus_counts().as_options()},
        "mvms": designed.needs.mvms,
        "writes": designed.needs.writes,
        "least_s": designed.needs.least_s,
        "assumed": {"source": designed.chip.source, **designed.chip.as_options()},
        "goals": list(designed.goals),
        "precision": designed.precision,
        "reached": None if designed.precision is None else not designed.limits,
        "best_reachable": dict(designed.limits),
        "predicted": {name: _as_document(one) for name, one in designed.analysis.predicted.items()},
        "cannot_be_told_apart": [
            {
                "parameters": list(one.parameters),
                "fatal": one.fatal,
                "because": one.because,
                "remedy": one.remedy,
            }
            for one in designed.confusions
        ],
        "refusals": list(designed.refusals),
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _as_document(one: Predicted) -> dict[str, object]:
    return {
        "unit": one.unit,
        "value": one.value,
        "error": one.error,
        "worst_error": one.worst_error,
        "relative": one.relative if math.isfinite(one.relative) else None,
        "relative_to": one.relative_to,
        "pooled_error": one.pooled_error,
    }


def write_plan_file(path: Path, designed: DesignedCalibration, info: BoardInfo, rig: Path, *, seed: int = 0) -> str:
    """Writes the plan file; returns the command that sweeps it, which its head shows, with the seed of the design.

    Raises:
        StorageError: It cannot be written.
    """
    plan = designed.plan
    options: dict[str, object] = {"writes": plan.writes, "batch": plan.batch}
    if plan.arrays is not None:
        options["arrays"] = list(plan.arrays)
    options["counts"] = plan.stimulus_counts().as_options()
    worst = designed.analysis.worst(designed.goals)
    sweep = f"labrig sweep {rig} --plan {path}{f' --seed {seed}' if seed else ''} -o run.h5"
    head = (
        f"Designed for chip {info.chip_id}, {info.rows} x {info.columns}: {designed.needs.mvms} MVMs.",
        f"Worst predicted error: {worst.name}, {percent(worst.relative)} of {worst.relative_to}.",
        sweep,
    )
    try:
        path.write_text(PlanFile(plan.name, options).text(head), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    return sweep


def quantity(value: float, unit: str) -> str:
    """A number with its unit, in thousandths where that reads better."""
    if unit not in {"A", "S", "ohm"}:
        return f"{value:.3g}" if unit == "1" else f"{value:.3g} {unit}"
    factor, prefixed = with_prefix(abs(value), unit)
    return f"{value * factor:.3g} {prefixed}"


def percent(value: float) -> str:
    """A part of one in percent."""
    if not value < 10.0:
        return "unknown"
    return f"{100.0 * value:.0f} %" if value >= 1.0 else f"{100.0 * value:.2g} %"
