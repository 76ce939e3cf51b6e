"""`labrig study anchor`: the one complete public table of noise, measured again with labrig.

NeuRRAM's code (weierwan/Neurram_48core, `cifar10_resnet`; Wan et al., Nature 608, 504, 2022) trains ResNet-20 with
3-bit activations and unquantised weights, with a fresh `wmax` noise at every pass, and tests it under the same. What
has to come out is the shape of its table: training without noise collapses at 10 %, training at 20 % does not. Trained
here for far fewer epochs, by orthogonal steps from one digital network, and tested on chips whose noise stays.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from labrig.studies.intervals import of_mean
from labrig.studies.result import Curve, Finding, Plot, StudyResult, Table, at_least, at_most
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.vision.conditions import chip_conditions, chip_controls
from labrig.studies.vision.grid import Grid, Scores, Size, controlled_scores, sized
from labrig.studies.vision.methods import Method
from labrig.studies.vision.noise import Noise
from labrig.studies.vision.parts import task_of
from labrig.studies.vision.place import place_of
from labrig.studies.vision.summary import cell_text

QUESTION = "Does labrig reproduce the published noise table of NeuRRAM's ResNet-20, and do better?"

TRAINED_AT: Final = 0.2
LEVELS: Final = (0.0, 0.05, 0.1, 0.15)

_QUIET: Final = Method("trained without noise", weight_bits=None, activation_bits=3)
_NOISY: Final = Method("trained at 20 %", weight_bits=None, activation_bits=3, weight_noise=1.0)
_BETTER: Final = Method(
    "trained at 20 %, clipped and distilled",
    weight_bits=None,
    activation_bits=3,
    weight_noise=1.0,
    clip_sigmas=2.5,
    distillation=0.7,
    average=0.99,
)
_PUBLISHED: Final = {
    _QUIET.name: (87.25, 69.28, 25.68, 12.21),
    _NOISY.name: (87.56, 86.97, 85.61, 83.26),
}
_USUAL: Final = Size("resnet20", digital_epochs=20, epochs=15, batch=250)


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How; see `labrig.studies.robustness.run`.
        report: Progress.

    Raises:
        ConfigError: A rig is named, or no folder with the data.
        StorageError: Data or networks cannot be read or written.
    """
    started_s = time.monotonic()
    size = sized(_USUAL, settings)
    place = replace(place_of(settings, "anchor"), images=size.images)
    methods = [(one, TRAINED_AT) for one in (_QUIET, _NOISY, _BETTER)]
    grid = Grid(size, methods, [Noise(level) for level in LEVELS], tuple(settings.all_seeds))
    scores, control = controlled_scores(grid, place, settings, report, _NOISY, Noise(0.1))
    outcome = Found(
        findings=tuple(_findings(scores)),
        controls=tuple(chip_controls(grid, scores, control, task_of(place).classes)),
        tables=(_table(scores),),
        plots=(_plot(scores),),
        conditions={
            **chip_conditions(grid, scores, place, TRAINED_AT),
            "precision": "weights as they are; inputs of every layer 3 bits, pixels 8 (NeuRRAM: 4)",
            "published": "200 epochs of Adam, noise fresh at every pass in training and test, biases noisy as well",
        },
    )
    return finished("anchor", QUESTION, settings, outcome, started_s)


def _findings(scores: Scores) -> list[Finding]:
    found: list[Finding] = []
    bars = (
        ("Trained without noise it collapses at 10 %: below 40 % (published 25.7)", _QUIET, 0.1, 40.0, at_most),
        ("Trained at 20 % it does not, at 10 %: 84 % or more (published 85.6)", _NOISY, 0.1, 84.0, at_least),
        ("Clipped and distilled it beats the published 85.6 % at 10 %", _BETTER, 0.1, 85.6, at_least),
        ("Clipped and distilled it beats the best published at 15 %, 83.7 %", _BETTER, 0.15, 83.7, at_least),
    )
    for claim, method, level, bar, judge in bars:
        cell = scores.as_trained.get((method.name, Noise(level)))
        if cell is not None:
            found.append(judge(claim, of_mean(cell.of_seeds, "%", "seeds"), bar))
    return found


def _table(scores: Scores) -> Table:
    rows: list[tuple[str | float, ...]] = []
    for name in (_QUIET.name, _NOISY.name, _BETTER.name):
        row: list[str | float] = [name]
        for index, level in enumerate(LEVELS):
            cell, published = scores.as_trained.get((name, Noise(level))), _PUBLISHED.get(name)
            beside = "" if published is None else f" (published {published[index]:.2f})"
            row.append(cell_text(cell, beside))
        rows.append(tuple(row))
    columns = ("training", *(f"tested at {level:.0%}" for level in LEVELS))
    return Table("Accuracy in % with the batch norm as trained, standard deviation over chips", columns, tuple(rows))


def _plot(scores: Scores) -> Plot:
    x = tuple(100.0 * level for level in LEVELS)
    curves = [Curve(f"{name}, published", x, values) for name, values in _PUBLISHED.items()]
    for name in (_QUIET.name, _NOISY.name, _BETTER.name):
        cells = [scores.as_trained.get((name, Noise(level))) for level in LEVELS]
        values = tuple(cell.mean for cell in cells if cell is not None)
        if len(values) == len(x):
            curves.append(Curve(name, x, values))
    return Plot("ResNet-20 under wmax noise", "N (%)", "accuracy (%)", tuple(curves))
