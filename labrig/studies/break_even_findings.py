"""What the break-even study says: claims, controls, tables and figures from the accuracies of every chip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labrig.studies.intervals import of_difference, of_mean
from labrig.studies.loop_methods import BATCH, LoopSize, Tuned
from labrig.studies.result import Control, Curve, Finding, Interval, Plot, Table, at_least, at_most
from labrig.studies.running import Found
from labrig.studies.structured_chip import Structure

Chip = tuple[Structure, float, float]
Results = Mapping[tuple[int, Chip], Mapping[str, float]]

METHODS = ("offline", "calibrated", "PAT", "PAT, few passes", "DAT", "DAT, few passes", "adaptive")
NAMES: Mapping[Structure, str] = {
    "columns": "gains of the columns",
    "cells": "factors of the cells",
    "wires": "resistance of the wires",
    "crosstalk": "crosstalk of neighbouring columns",
    "curve": "curve of the amplifiers",
}


@dataclass(frozen=True)
class Grid:
    """What was varied, and how the trainings were.

    Attributes:
        structures: Kinds of departure from the surrogate.
        mismatches: Their sizes, from zero on.
        drifts: Drifts, from zero on.
        size: Of the trainings.
        tuned: Learning rates and alternation.
    """

    structures: tuple[Structure, ...]
    mismatches: tuple[float, ...]
    drifts: tuple[float, ...]
    size: LoopSize
    tuned: Tuned

    def chip(self, structure: Structure, mismatch: float, drift: float) -> Chip:
        """The chip that was measured: without a mismatch one stands for all structures."""
        return (structure if mismatch > 0.0 else self.structures[0], mismatch, drift)

    @property
    def chips(self) -> list[Chip]:
        """All chips with a mismatch or a drift."""
        all_of_them = {
            self.chip(one, size, drift) for one in self.structures for size in self.mismatches for drift in self.drifts
        }
        return sorted(one for one in all_of_them if one[1] > 0.0 or one[2] > 0.0)


@dataclass(frozen=True)
class _Accuracies:
    """Accuracies by seed."""

    results: Results
    seeds: tuple[int, ...]

    def of(self, method: str, chip: Chip) -> list[float]:
        return [self.results[seed, chip][f"{method}/accuracy"] for seed in self.seeds]

    def less(self, first: str, second: str, chips: Sequence[Chip]) -> Interval:
        """Difference of two methods, each the mean over some chips, seed by seed."""

        def means(method: str) -> list[float]:
            columns = zip(*(self.of(method, chip) for chip in chips), strict=True)
            return [sum(column) / len(column) for column in columns]

        return of_difference(means(first), means(second), "points", "seeds")

    def images(self, method: str, chip: Chip) -> float:
        return self.results[self.seeds[0], chip][f"{method}/images"]


def found(grid: Grid, results: Results, controls: Sequence[Mapping[str, float]], seeds: tuple[int, ...]) -> Found:
    """Judges everything.

    Args:
        grid: What was varied.
        results: Accuracy in % and images through the chip of every method, by seed and chip.
        controls: Accuracies of the negative controls, by seed.
        seeds: The seeds.
    """
    all_of_them = _Accuracies(results, seeds)
    return Found(
        findings=tuple(_findings(grid, all_of_them)),
        controls=_controls(controls),
        tables=(*(_accuracy_table(grid, all_of_them, drift) for drift in grid.drifts), _table(grid, all_of_them)),
        plots=tuple(_plots(grid, all_of_them)),
        conditions=_conditions(grid),
    )


def _findings(grid: Grid, of: _Accuracies) -> list[Finding]:
    none, most, size = grid.chip(grid.structures[0], 0.0, 0.0), max(grid.mismatches), grid.size
    found = [
        at_most(
            "Where the surrogate is right and nothing drifts, the chip gains nothing: PAT is at most 0.5 points above "
            "offline training",
            of.less("PAT", "offline", [none]),
            0.5,
        )
    ]
    for drift in sorted({0.0, max(grid.drifts)}):
        for structure in grid.structures:
            chip = grid.chip(structure, most, drift)
            drifting = f" and a drift of {100 * drift:g} %" if drift else " and no drift"
            found.append(
                at_least(
                    f"With a mismatch of {100 * most:g} % in the {NAMES[structure]}{drifting}, PAT is above offline "
                    "training with calibrated columns",
                    of.less("PAT", "calibrated", [chip]),
                    0.0,
                )
            )
    share = f"{size.few} of {size.passes} device passes ({100 * size.few / size.passes:.0f} %)"
    return [
        *found,
        at_least(
            f"Over all chips, adaptive with {share} is within 0.5 points of all-physical training (PAT)",
            of.less("adaptive", "PAT", grid.chips),
            -0.5,
        ),
        at_least(
            f"At equal device passes ({size.few}), adaptive is above PAT",
            of.less("adaptive", "PAT, few passes", grid.chips),
            0.0,
        ),
        at_least(
            "Over all chips, adaptive is above offline training with calibrated columns",
            of.less("adaptive", "calibrated", grid.chips),
            0.0,
        ),
        at_least("Over all chips, DAT is above PAT at equal passes", of.less("DAT", "PAT", grid.chips), 0.0),
    ]


def _controls(controls: Sequence[Mapping[str, float]]) -> tuple[Control, ...]:
    apart = of_difference([one["right"] for one in controls], [one["wrong"] for one in controls], "points", "seeds")
    shuffled = of_mean([one["shuffled"] for one in controls], "%", "seeds")
    return (
        Control(
            "offline training on the exact surrogate of the chip, less the same on that of another chip",
            "the wrong chip's surrogate is worse: above 0",
            apart,
            apart.value > 0.0,
        ),
        Control("PAT from fresh weights with shuffled labels", "chance, 10 %", shuffled, shuffled.value < 20.0),
    )


def _table(grid: Grid, of: _Accuracies) -> Table:
    """From which mismatch on a method is above another one."""
    pairs = (("PAT", "offline"), ("PAT", "calibrated"), ("adaptive", "calibrated"))
    rows = []
    for structure in grid.structures:
        for drift in grid.drifts:
            cells = []
            for first, second in pairs:
                # The first size from which on the whole interval lies above zero at every larger one, too.
                gains = [
                    of.less(first, second, [grid.chip(structure, size, drift)]).low > 0.0 for size in grid.mismatches
                ]
                begins = next((i for i in range(len(gains)) if all(gains[i:])), None)
                cells.append("nowhere" if begins is None else f"from {100 * grid.mismatches[begins]:g} % on")
            rows.append((NAMES[structure], f"{100 * drift:g} %", *cells))
    return Table(
        "Break-even: mismatch from which on the 95 % interval of a gain lies above zero, up to the largest mismatch",
        ("structure", "drift", "PAT over offline", "PAT over calibrated", "adaptive over calibrated"),
        tuple(rows),
    )


def _accuracy_table(grid: Grid, of: _Accuracies, drift: float) -> Table:
    chips: list[tuple[Structure, float]] = [(grid.structures[0], 0.0)]
    chips.extend((one, size) for one in grid.structures for size in grid.mismatches if size > 0.0)
    rows = []
    for structure, size in chips:
        chip = grid.chip(structure, size, drift)
        name = NAMES[structure] if size else "none"
        rows.append((name, f"{100 * size:g} %", *(_cell(of.of(method, chip)) for method in METHODS)))
    example = grid.chip(grid.structures[0], 0.0, drift)
    passes = ("image passes", "", *(f"{of.images(method, example) / BATCH:g} x {BATCH}" for method in METHODS))
    return Table(
        f"Accuracy on the chip in %, mean ± deviation over seeds, drift {100 * drift:g} %",
        ("structure", "mismatch", *METHODS),
        (*rows, passes),
    )


def _plots(grid: Grid, of: _Accuracies) -> list[Plot]:
    percent = tuple(100 * size for size in grid.mismatches)
    plots = []
    for drift in sorted({0.0, max(grid.drifts)}):
        curves = []
        for structure in grid.structures:
            gains = [of.less("PAT", "calibrated", [grid.chip(structure, size, drift)]) for size in grid.mismatches]
            curves.append(_curve(NAMES[structure], percent, gains))
        plots.append(
            Plot(
                f"What PAT gains over offline training with calibrated columns, drift {100 * drift:g} %",
                "mismatch (%)",
                "gain (points)",
                tuple(curves),
            )
        )
    for drift in sorted({0.0, max(grid.drifts)}):
        chips = [grid.chip(one, max(grid.mismatches), drift) for one in grid.structures]
        plots.append(
            Plot(
                f"Accuracy over device passes, mean over structures at {percent[-1]:g} %, drift {100 * drift:g} %",
                f"images sent through the chip, in batches of {BATCH}",
                "accuracy (%)",
                tuple(_over_passes(of, chips)),
            )
        )
    return plots


def _over_passes(of: _Accuracies, chips: Sequence[Chip]) -> list[Curve]:
    lines: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("offline, then calibrated", ("offline", "calibrated")),
        ("PAT", ("offline", "PAT, few passes", "PAT")),
        ("DAT", ("offline", "DAT, few passes", "DAT")),
        ("adaptive", ("offline", "adaptive")),
    )
    curves = []
    for name, methods in lines:
        values = [
            of_mean([sum(column) / len(column) for column in zip(*(of.of(one, c) for c in chips), strict=True)], "", "")
            for one in methods
        ]
        curves.append(_curve(name, tuple(of.images(one, chips[0]) / BATCH for one in methods), values))
    return curves


def _curve(name: str, x: tuple[float, ...], values: Sequence[Interval]) -> Curve:
    halves = tuple(one.high - one.value if math.isfinite(one.high) else 0.0 for one in values)
    return Curve(name, x, tuple(one.value for one in values), halves)


def _cell(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    spread = (sum((one - mean) ** 2 for one in values) / max(len(values) - 1, 1)) ** 0.5
    return f"{mean:.1f} ± {spread:.1f}"


def _conditions(grid: Grid) -> dict[str, str]:
    size, tuned = grid.size, grid.tuned
    return {
        "network": f"64 - {size.hidden} - 10 on two arrays of 64 x 32 cells, ReLU; 8 x 8 digits",
        "chip": "8-bit DAC, 10-bit ADC; programming 2 % of the highest conductance, reads 5 % of a cell's current",
        "mismatch": "rms error of a difference of two columns over its rms, for reference weights and inputs",
        "drift": "mean loss of every cell from the first step to the judgement, with as much spread between cells",
        "start": f"{size.digital_steps} digital steps, {size.surrogate_steps} on the surrogate, all methods alike",
        "offline": f"{size.steps} further surrogate steps; calibrated on {size.calibration_images} images at the end",
        "adaptive": f"{size.steps} steps, {size.few} of them passes; refit at every pass from the second on",
        "tuned on other chips": (
            f"learning rates {tuned.offline:g} offline, {tuned.pat:g} PAT, {tuned.dat:g} DAT, "
            f"{tuned.adaptive:g} adaptive, {100 * tuned.finale:g} % of whose passes come last"
        ),
        "intervals": "Student's, 95 %, of each comparison by itself: with so many, some are wrong by chance",
    }
