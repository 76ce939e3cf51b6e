"""`labrig study robustness`: what noise does to networks of 4 bits on CIFAR, by how they were trained.

All methods of a seed begin with one digital network and see as many images from there on. Each is then programmed on
many simulated chips, with the same errors for all methods. Which methods, noises and sizes: `vision.methods` and the
constants here. Definitions of noise: `labrig_surrogates.noise_levels`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Final

from labrig.studies.cache import Cache
from labrig.studies.intervals import of_difference, of_mean
from labrig.studies.result import Curve, Finding, Plot, StudyResult, Table, at_least, at_most
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.vision.arrays import Noise
from labrig.studies.vision.comparison import TRAINED_AT
from labrig.studies.vision.conditions import chip_conditions, chip_controls
from labrig.studies.vision.grid import Grid, Scores, Size, controlled_scores, sized
from labrig.studies.vision.methods import METHODS, Method
from labrig.studies.vision.place import place_of
from labrig.studies.vision.summary import noise_tolerance, normalised_area

QUESTION = "How much accuracy do networks of 4 bits keep on noisy chips, and what in their training keeps it?"

_HEADLINE: Final = ("digital", "QAT", "QAT, clipped", "noise injection, distilled", "ours")
_LEVELS: Final = (0.0, 0.05, 0.1, 0.2)
_ALL_LEVELS: Final = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
_COMPARED_AT: Final = Noise(0.1, 0.1)
_USUAL: Final = Size()


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How; `data` names the folder of CIFAR-10 in its binary version, and `evaluate` trains nothing.
        report: Progress.

    Raises:
        ConfigError: A rig is named, or no folder with the data.
        StorageError: Data or networks cannot be read or written.
    """
    started_s = time.monotonic()
    size = sized(_USUAL, settings)
    place = replace(place_of(settings, "robustness"), images=size.images)
    levels = _ALL_LEVELS if settings.full else _LEVELS
    noises = [Noise(0.0), *(Noise(n) for n in levels if n), *(Noise(n, n) for n in levels if n)]
    methods = [METHODS[name] for name in (METHODS if settings.full else _HEADLINE)]
    grid = Grid(size, [(one, TRAINED_AT) for one in methods], noises, tuple(settings.all_seeds))
    scores, control = controlled_scores(grid, place, settings, report, METHODS["ours"], Noise(0.1))
    divergences = grid.divergences(place, Cache(settings.cache, by_code=False), settings.workers, report, _COMPARED_AT)
    found = _found(grid, scores, control, divergences, place.data_name)
    return finished("robustness", QUESTION, settings, found, started_s)


def _found(
    grid: Grid, scores: Scores, control: Scores, divergences: Mapping[str, tuple[float, float]], data: str
) -> Found:
    return Found(
        findings=tuple(_findings(scores)),
        controls=tuple(chip_controls(grid, scores, control)),
        tables=(
            _table("Batch norm re-estimated on each chip", grid, scores, again=True),
            _table("Batch norm as trained", grid, scores, again=False),
            _summary(grid, scores),
            _activations(divergences),
        ),
        plots=tuple(_plots(grid, scores)),
        conditions=chip_conditions(grid, scores, data, TRAINED_AT),
    )


def _findings(scores: Scores) -> list[Finding]:
    found = []

    def add(claim: str, noise: Noise, bound: float, *, again: bool = True) -> None:
        cell = (scores.re_estimated if again else scores.as_trained).get(("ours", noise))
        if cell is not None:
            found.append(at_least(claim, of_mean(cell.of_seeds, "%", "seeds"), bound))

    def less(claim: str, other: str, noise: Noise, bound: float) -> None:
        pair = [scores.re_estimated.get((name, noise)) for name in ("ours", other)]
        if pair[0] is not None and pair[1] is not None and len(pair[0].values) == len(pair[1].values):
            figure = of_difference(pair[0].of_seeds, pair[1].of_seeds, "points", "seeds")
            found.append(at_least(claim, figure, bound))

    add("The programme's target: 90 % or more at 4 bits with 10 % on the weights", Noise(0.1), 90.0)
    less("20 points or more over QAT at 10 %", "QAT", Noise(0.1), 20.0)
    for name in ("QAT, clipped", "noise injection, distilled"):
        for level in (0.1, 0.2):
            less(f"Better than {name} with re-estimated batch norm at {level:.0%}", name, Noise(level), 0.0)
    add("Ours, 10 % on the weights: 93 % or more", Noise(0.1), 93.0)
    add("Ours, 20 % on the weights: 91 % or more", Noise(0.2), 91.0)
    add("The same without re-estimating the batch norm, 10 %: 93 % or more", Noise(0.1), 93.0, again=False)
    add("The same without re-estimating the batch norm, 20 %: 91 % or more", Noise(0.2), 91.0, again=False)
    quiet, loud = (scores.re_estimated.get(("ours", one)) for one in (Noise(0.0), Noise(0.2, 0.2)))
    if quiet is not None and loud is not None:
        drop = of_difference(quiet.of_seeds, loud.of_seeds, "points", "seeds")
        found.append(at_most("At 20 % on weights and outputs 5 points or less are lost", drop, 5.0))
        found.append(at_most("At 20 % on weights and outputs 3 points or less are lost", drop, 3.0))
    return found


def _table(title: str, grid: Grid, scores: Scores, *, again: bool) -> Table:
    cells = scores.re_estimated if again else scores.as_trained
    rows = []
    for method, _ in grid.methods:
        row: list[str | float] = [method.name]
        for noise in grid.noises:
            cell = cells.get((method.name, noise))
            row.append(
                "not run" if cell is None else f"{cell.mean:.2f} +- {cell.chip_sd:.2f} ({cell.fifth_percentile:.1f})"
            )
        rows.append(tuple(row))
    columns = ("method", *(str(noise) for noise in grid.noises))
    return Table(
        f"{title}: accuracy in %, standard deviation over chips, 5th percentile of the chips", columns, tuple(rows)
    )


def _curve(method: Method, scores: Scores, *, outputs: bool, again: bool) -> dict[float, float]:
    cells = scores.re_estimated if again else scores.as_trained
    return {
        noise.weights: cell.mean
        for (name, noise), cell in cells.items()
        if name == method.name and (noise.weights == 0.0 or (noise.outputs > 0.0) == outputs)
    }


def _summary(grid: Grid, scores: Scores) -> Table:
    rows = []
    digital = scores.as_trained.get(("digital", Noise(0.0)))
    for method, _ in grid.methods:
        for outputs in (False, True):
            curve = _curve(method, scores, outputs=outputs, again=True)
            if 0.0 not in curve or 0.2 not in curve:
                continue
            rows.append(
                (
                    method.name,
                    "weights and outputs" if outputs else "weights",
                    f"{curve[0.0] - curve[0.2]:.2f}",
                    "" if digital is None else f"{digital.mean - curve[0.2]:.2f}",
                    f"{normalised_area(curve):.2f}",
                    _tolerance(curve),
                )
            )
    columns = ("method", "noise on", "lost at 20 % (points)", "less than digital at 20 % (points)")
    return Table(
        "Batch norm re-estimated: drops, mean accuracy up to 20 %, noise that costs 5 points",
        (*columns, "area (%)", "tolerance"),
        tuple(rows),
    )


def _tolerance(curve: Mapping[float, float]) -> str:
    found = noise_tolerance(curve)
    return f"{100 * found:.1f} %" if isfinite(found) else f"above {100 * max(curve):g} %"


def _activations(divergences: Mapping[str, tuple[float, float]]) -> Table:
    rows = tuple((name, f"{chip:.4f}", f"{itself:.4f}") for name, (chip, itself) in divergences.items())
    title = f"Jensen-Shannon divergence of activations in bits, mean over layers, one chip a seed at {_COMPARED_AT}"
    return Table(title, ("method", "chip from the network meant", "chip from itself"), rows)


def _plots(grid: Grid, scores: Scores) -> list[Plot]:
    plots = []
    for outputs, words in ((False, "on the weights, once for a chip"), (True, "on weights and on outputs")):
        curves = []
        for method, _ in grid.methods:
            curve = _curve(method, scores, outputs=outputs, again=True)
            levels = sorted(curve)
            curves.append(Curve(method.name, tuple(100.0 * n for n in levels), tuple(curve[n] for n in levels)))
        title = f"Accuracy over noise {words}; batch norm re-estimated"
        plots.append(Plot(title, "N (%)", "accuracy (%)", tuple(curves)))
    return plots
