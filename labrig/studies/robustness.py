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
from typing import Final, Literal

from labrig.studies.cache import Cache
from labrig.studies.intervals import of_difference, of_mean
from labrig.studies.result import Curve, Finding, Plot, StudyResult, Table, at_least, at_most
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.vision.comparison import TRAINED_AT
from labrig.studies.vision.conditions import chip_conditions, chip_controls
from labrig.studies.vision.grid import Grid, Scores, Size, controlled_scores, sized
from labrig.studies.vision.methods import HEADLINE_METHODS, METHODS, Method, Precision, at_precision
from labrig.studies.vision.noise import HEADLINE, Noise, NoiseKind
from labrig.studies.vision.parts import Place, task_of
from labrig.studies.vision.place import place_of
from labrig.studies.vision.summary import cell_text, noise_tolerance, normalised_area

QUESTION = "How much accuracy do networks of few bits keep on noisy chips, and what in their training keeps it?"

Form = Literal["weights", "outputs", "weights and outputs"]
"""What is noisy."""

_LEVELS: Final = (0.0, 0.05, 0.1, 0.2)
_ALL_LEVELS: Final = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
_HEADLINE_FORMS: Final[tuple[Form, ...]] = ("weights", "weights and outputs")
_FORMS: Final[tuple[Form, ...]] = ("weights", "outputs", "weights and outputs")
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
    precision, kind = settings.precision or "4", settings.noise or HEADLINE
    levels = [n for n in (_ALL_LEVELS if settings.full else _LEVELS) if n]
    noises = [Noise(0.0)]
    for form in _FORMS if settings.full else _HEADLINE_FORMS:
        noises += [_noise(form, level, kind) for level in levels]
    methods = [at_precision(METHODS[name], precision) for name in (METHODS if settings.full else HEADLINE_METHODS)]
    grid = Grid(size, [(one, TRAINED_AT) for one in methods], noises, tuple(settings.all_seeds))
    ours = at_precision(METHODS["ours"], precision)
    scores, control = controlled_scores(grid, place, settings, report, ours, Noise(0.1, kind=kind))
    compared_at = Noise(0.1, 0.1, kind)
    divergences = grid.divergences(place, Cache(settings.cache, by_code=False), settings.workers, report, compared_at)
    bars = _bars(scores) if (precision, kind) == ("4", HEADLINE) else []
    findings = (*bars, *_comparisons(scores, kind), *_losses(scores, kind), *_costs_of_levels(scores, precision))
    found = _found(grid, scores, findings, control, divergences, place, compared_at)
    return finished("robustness", QUESTION, settings, found, started_s)


def _noise(form: Form, level: float, kind: NoiseKind) -> Noise:
    return Noise(level if "weights" in form else 0.0, level if "outputs" in form else 0.0, kind)


def _found(
    grid: Grid,
    scores: Scores,
    findings: tuple[Finding, ...],
    control: Scores,
    divergences: Mapping[str, tuple[float, float]],
    place: Place,
    compared_at: Noise,
) -> Found:
    return Found(
        findings=findings,
        controls=tuple(chip_controls(grid, scores, control, task_of(place).classes)),
        tables=(
            _table("Batch norm re-estimated on each chip", grid, scores, again=True),
            _table("Batch norm as trained", grid, scores, again=False),
            _summary(grid, scores),
            _activations(divergences, compared_at),
        ),
        plots=tuple(_plots(grid, scores)),
        conditions=chip_conditions(grid, scores, place, TRAINED_AT),
    )


def _bars(scores: Scores) -> list[Finding]:
    """What the programme set out to reach, at 4 bits and with the noise of the headline."""
    found = []
    bars = (
        ("The programme's target: 90 % or more at 4 bits with 10 % on the weights", 0.1, 90.0, True),
        ("Ours, 10 % on the weights: 93 % or more", 0.1, 93.0, True),
        ("Ours, 20 % on the weights: 91 % or more", 0.2, 91.0, True),
        ("The same without re-estimating the batch norm, 10 %: 93 % or more", 0.1, 93.0, False),
        ("The same without re-estimating the batch norm, 20 %: 91 % or more", 0.2, 91.0, False),
    )
    for claim, level, bar, again in bars:
        cell = (scores.re_estimated if again else scores.as_trained).get(("ours", Noise(level)))
        if cell is not None:
            found.append(at_least(claim, of_mean(cell.of_seeds, "%", "seeds"), bar))
    return found + _less(scores, "20 points or more over QAT at 10 %", "QAT", Noise(0.1), 20.0)


def _comparisons(scores: Scores, kind: NoiseKind) -> list[Finding]:
    found = []
    for name in ("QAT, clipped", "noise injection, distilled"):
        for level in (0.1, 0.2):
            claim = f"Better than {name} with re-estimated batch norm at {level:.0%}"
            found += _less(scores, claim, name, Noise(level, kind=kind), 0.0)
    return found


def _less(scores: Scores, claim: str, other: str, noise: Noise, bound: float) -> list[Finding]:
    ours, theirs = (scores.re_estimated.get((name, noise)) for name in ("ours", other))
    if ours is None or theirs is None or len(ours.values) != len(theirs.values):
        return []
    return [at_least(claim, of_difference(ours.of_seeds, theirs.of_seeds, "points", "seeds"), bound)]


def _losses(scores: Scores, kind: NoiseKind) -> list[Finding]:
    quiet, loud = (scores.re_estimated.get(("ours", one)) for one in (Noise(0.0), Noise(0.2, 0.2, kind)))
    if quiet is None or loud is None:
        return []
    drop = of_difference(quiet.of_seeds, loud.of_seeds, "points", "seeds")
    claim = "At 20 % on weights and outputs {} points or less are lost"
    return [at_most(claim.format(bound), drop, float(bound)) for bound in (5, 3)]


def _costs_of_levels(scores: Scores, precision: Precision) -> list[Finding]:
    """What levels cost without noise, beside the digital network: nothing to speak of with 8 bits."""
    digital, quantised = (scores.as_trained.get((name, Noise(0.0))) for name in ("digital", "QAT"))
    if precision == "float" or digital is None or quantised is None or len(digital.values) != len(quantised.values):
        return []
    bound = {"4": 1.0, "8": 0.2}[precision]
    cost = of_difference(digital.of_seeds, quantised.of_seeds, "points", "seeds")
    return [at_most(f"Without noise {precision} bits cost QAT {bound:g} points or less", cost, bound)]


def _table(title: str, grid: Grid, scores: Scores, *, again: bool) -> Table:
    cells = scores.re_estimated if again else scores.as_trained
    rows = []
    for method, _ in grid.methods:
        row: list[str | float] = [method.name]
        for noise in grid.noises:
            cell = cells.get((method.name, noise))
            row.append(cell_text(cell, "" if cell is None else f" ({cell.fifth_percentile:.1f})"))
        rows.append(tuple(row))
    columns = ("method", *(str(noise) for noise in grid.noises))
    return Table(
        f"{title}: accuracy in %, standard deviation over chips, 5th percentile of the chips", columns, tuple(rows)
    )


def _curve(method: Method, grid: Grid, scores: Scores, form: Form, *, again: bool) -> dict[float, float]:
    cells = scores.re_estimated if again else scores.as_trained
    found = {}
    for noise in grid.noises:
        level = max(noise.weights, noise.outputs)
        cell = cells.get((method.name, noise))
        if cell is not None and noise == _noise(form, level, noise.kind):
            found[level] = cell.mean
    return found


def _forms(grid: Grid) -> list[Form]:
    """Where chips of this grid have noise."""
    return [
        form
        for form in _FORMS
        if any(not one.quiet and one == _noise(form, max(one.weights, one.outputs), one.kind) for one in grid.noises)
    ]


def _summary(grid: Grid, scores: Scores) -> Table:
    rows = []
    digital = scores.as_trained.get(("digital", Noise(0.0)))
    for method, _ in grid.methods:
        for form in _forms(grid):
            curve = _curve(method, grid, scores, form, again=True)
            if 0.0 not in curve or 0.2 not in curve:
                continue
            rows.append(
                (
                    method.name,
                    form,
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


def _activations(divergences: Mapping[str, tuple[float, float]], noise: Noise) -> Table:
    rows = tuple((name, f"{chip:.4f}", f"{itself:.4f}") for name, (chip, itself) in divergences.items())
    title = f"Jensen-Shannon divergence of activations in bits, mean over layers, one chip a seed at {noise}"
    return Table(title, ("method", "chip from the network meant", "chip from itself"), rows)


def _plots(grid: Grid, scores: Scores) -> list[Plot]:
    plots = []
    for form in _forms(grid):
        curves = []
        for method, _ in grid.methods:
            curve = _curve(method, grid, scores, form, again=True)
            levels = sorted(curve)
            curves.append(Curve(method.name, tuple(100.0 * n for n in levels), tuple(curve[n] for n in levels)))
        title = f"Accuracy over noise on {form}; batch norm re-estimated"
        plots.append(Plot(title, "N (%)", "accuracy (%)", tuple(curves)))
    return plots
