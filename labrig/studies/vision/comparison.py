"""A study that compares changes of one method: trains them, judges them on the same chips, and says what differs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from labrig.studies.result import StudyResult
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.vision.conditions import chip_conditions, chip_controls
from labrig.studies.vision.factors import Factor, differences, findings, plot, table
from labrig.studies.vision.grid import Grid, Size, controlled_scores, sized
from labrig.studies.vision.methods import Method, at_precision
from labrig.studies.vision.noise import HEADLINE, Noise
from labrig.studies.vision.parts import task_of
from labrig.studies.vision.place import place_of

TRAINED_AT = 0.2
"""N that methods with noise are trained for; one network serves all chips."""

_NOISES = (Noise(0.0), Noise(0.1), Noise(0.2), Noise(0.1, 0.1), Noise(0.2, 0.2))


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        name: Of the study.
        question: What it asks.
        base: What the changes are made to.
        factors: The changes.
        size: How large it is.
        noises: Of the chips.
    """

    name: str
    question: str
    base: Method
    factors: Sequence[Factor]
    size: Size
    noises: Sequence[Noise] = _NOISES


def size_of(settings: StudySettings) -> Size:
    """How large a comparison is: usually with a network of half the channels, in full with the whole one."""
    return sized(Size() if settings.full else Size("airbench-half", digital_epochs=8, epochs=5), settings)


def compared(what: Comparison, settings: StudySettings, report: Report) -> StudyResult:
    """Runs a comparison.

    Args:
        what: What is compared.
        settings: How it is run.
        report: Progress.

    Raises:
        ConfigError: A rig is named, or no folder with the data.
        StorageError: Data or networks cannot be read or written.
    """
    started_s = time.monotonic()
    place = replace(place_of(settings, what.name), images=what.size.images)
    precision = settings.precision or "4"
    base = at_precision(what.base, precision)
    factors = [replace(one, method=at_precision(one.method, precision)) for one in what.factors]
    noises = [replace(one, kind=settings.noise or HEADLINE) for one in what.noises]
    methods = [base, *(one.method for one in factors)]
    grid = Grid(what.size, [(one, TRAINED_AT) for one in methods], noises, tuple(settings.all_seeds))
    scores, control = controlled_scores(grid, place, settings, report, base, noises[-1])
    found = differences(base, factors, noises, scores)
    outcome = Found(
        findings=tuple(findings(factors, noises, found)),
        controls=tuple(chip_controls(grid, scores, control, task_of(place).classes)),
        tables=(table(base, factors, noises, scores, found),),
        plots=(plot(factors, noises, found),),
        conditions=chip_conditions(grid, scores, place, TRAINED_AT),
    )
    return finished(what.name, what.question, settings, outcome, started_s)
