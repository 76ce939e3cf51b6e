"""`labrig study definitions`: the same networks at the same N, under every definition of what N means.

A level without its definition says little: networks that were trained once, for `wmax`, are judged on chips whose noise
is relative to something else, drawn at other times, or enters at the outputs of smaller arrays. Nothing is trained that
the robustness table has not trained already. Definitions: `labrig_surrogates.noise_levels`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from labrig.studies.intervals import of_difference
from labrig.studies.result import Curve, Finding, Plot, StudyResult, Table, at_least
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.vision.comparison import TRAINED_AT
from labrig.studies.vision.conditions import chip_conditions, chip_controls
from labrig.studies.vision.grid import Grid, Scores, Size, controlled_scores, sized
from labrig.studies.vision.methods import HEADLINE_METHODS, METHODS, at_precision
from labrig.studies.vision.noise import Noise, NoiseKind
from labrig.studies.vision.parts import task_of
from labrig.studies.vision.place import place_of
from labrig.studies.vision.summary import cell_text

QUESTION = "How much does it matter which noise is meant by a level?"

_LEVEL: Final = 0.1
_FULL_LEVELS: Final = (0.05, 0.1, 0.2)
_MATTERS_POINTS: Final = 10.0


def kinds_at(level: float) -> tuple[Noise, ...]:
    """A level under every definition: on the weights, drawn once or at every batch, and on the outputs."""
    of_weights = ("wmult/program", "wmult/read", "wrms/program", "wmax/program", "wmax/read", "wrange/program")
    of_outputs = ("wmax/program+ostd", "wmax/program+poisson", "wmax/program+ostd@256", "wmax/program+aihwkit")
    return (
        *(Noise(level, kind=NoiseKind.parsed(text)) for text in (*of_weights, "abs/program")),
        *(Noise(0.0, level, NoiseKind.parsed(text)) for text in (*of_outputs, "wmax/program+ofs")),
    )


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How; see `labrig.studies.robustness.run`, whose networks are judged.
        report: Progress.

    Raises:
        ConfigError: A rig is named, or no folder with the data.
        StorageError: Data or networks cannot be read or written.
    """
    started_s = time.monotonic()
    size = sized(Size(), settings)
    place = replace(place_of(settings, "definitions"), images=size.images)
    methods = [at_precision(METHODS[name], settings.precision or "4") for name in HEADLINE_METHODS]
    noises = [Noise(0.0), *(one for n in (_FULL_LEVELS if settings.full else (_LEVEL,)) for one in kinds_at(n))]
    grid = Grid(size, [(one, TRAINED_AT) for one in methods], noises, tuple(settings.all_seeds))
    scores, control = controlled_scores(grid, place, settings, report, methods[-1], Noise(_LEVEL))
    outcome = Found(
        findings=tuple(_findings(grid, scores)),
        controls=tuple(chip_controls(grid, scores, control, task_of(place).classes)),
        tables=(
            _table("Batch norm re-estimated on each chip", grid, scores, again=True),
            _table("Batch norm as trained", grid, scores, again=False),
        ),
        plots=(_plot(grid, scores),),
        conditions=chip_conditions(grid, scores, place, TRAINED_AT),
    )
    return finished("definitions", QUESTION, settings, outcome, started_s)


def _findings(grid: Grid, scores: Scores) -> list[Finding]:
    mildest, usual, twice = (
        Noise(_LEVEL, kind=NoiseKind.parsed(text)) for text in ("wmult/program", "wmax/program", "wrange/program")
    )
    found = []
    for method, _ in grid.methods:
        for milder, harder in ((mildest, usual), (usual, twice)):
            pair = [scores.re_estimated.get((method.name, one)) for one in (milder, harder)]
            if pair[0] is None or pair[1] is None or len(pair[0].values) != len(pair[1].values):
                continue
            figure = of_difference(pair[0].of_seeds, pair[1].of_seeds, "points", "seeds")
            claim = (
                f"{method.name}: 10 % of {harder.kind.weights} instead of {milder.kind.weights} costs "
                f"{_MATTERS_POINTS:g} points or more"
            )
            found.append(at_least(claim, figure, _MATTERS_POINTS))
    return found


def _table(title: str, grid: Grid, scores: Scores, *, again: bool) -> Table:
    cells = scores.re_estimated if again else scores.as_trained
    rows = []
    for noise in grid.noises:
        row: list[str | float] = ["none" if noise.quiet else str(noise)]
        for method, _ in grid.methods:
            row.append(cell_text(cells.get((method.name, noise))))
        rows.append(tuple(row))
    columns = ("noise", *(method.name for method, _ in grid.methods))
    return Table(f"{title}: accuracy in %, standard deviation over chips", columns, tuple(rows))


def _plot(grid: Grid, scores: Scores) -> Plot:
    """The definitions from the mildest to the hardest, as the methods bear them."""
    noises = [one for one in grid.noises if max(one.weights, one.outputs) == _LEVEL]
    curves = []
    for method, _ in grid.methods:
        cells = [scores.re_estimated.get((method.name, one)) for one in noises]
        values = tuple(cell.mean for cell in cells if cell is not None)
        if len(values) == len(noises):
            curves.append(Curve(method.name, tuple(float(number + 1) for number in range(len(noises))), values))
    names = ", ".join(f"{number + 1} {noise}" for number, noise in enumerate(noises))
    return Plot("One level, every definition", f"definition: {names}", "accuracy (%)", tuple(curves))
