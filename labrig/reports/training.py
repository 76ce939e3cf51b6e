"""The report of a training run: one HTML page, what limited it first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from labrig.reports.page import embedded, new_figure, write_page

_TEMPLATE = Path(__file__).with_name("training.html.jinja")
_INK, _ACCENT = "#1f2933", "#c2410c"
# Steps whose mean is a point of the curve of losses.
_SMOOTHING = 25
_ALIKE = 0.95

Line = Mapping[str, object]


@dataclass(frozen=True)
class TrainingStory:
    """What the page is made of.

    Attributes:
        name: Name of the run.
        conditions: What was trained, where and how; printed as they are.
        phase: The method's own steps, as the log calls them.
        lines: The log.
        spent: Totals of the method's own steps.
        digital_accuracy: Test accuracy of the digital network.
        accuracy: Test accuracy of the trained one, mean over programmings; None where it was not judged yet.
        confusion: Its confusion matrix on the test images, true classes by rows; empty where it was not judged yet.
        where: Where accuracy and confusion were measured, in words.
        best_s: Parts of the board's own time: writing and measuring, in s; None without a board.
    """

    name: str
    conditions: Mapping[str, str]
    phase: str
    lines: Sequence[Line]
    spent: Mapping[str, float | int | None]
    digital_accuracy: float
    accuracy: float | None
    confusion: Sequence[Sequence[int]]
    where: str
    best_s: tuple[float, float] | None


def write_training_report(path: Path, story: TrainingStory) -> None:
    """Writes the page, with the plotting script once beside it (`plotly.min.js`).

    Raises:
        StorageError: The folder cannot be written.
    """
    own = [line for line in story.lines if line["phase"] == story.phase]
    passes = [line for line in own if line.get("kind") == "physical"]
    write_page(
        path,
        _TEMPLATE,
        name=story.name,
        conditions=dict(story.conditions),
        headline=_headline(story),
        limits=what_limited(story),
        spent={key: _text(value) for key, value in story.spent.items() if value is not None},
        plots=[embedded(one) for one in (_losses(story), *_figures(passes))],
        recalibrations=_recalibrations(own),
        confusion=[list(row) for row in story.confusion],
        where=story.where,
    )


def what_limited(story: TrainingStory) -> list[str]:
    """What a reader would change first, each with the number that says so."""
    own = [line for line in story.lines if line["phase"] == story.phase]
    passes = [line for line in own if line.get("kind") == "physical"]
    found = []
    cosines = [value for line in passes[-10:] if isinstance(value := line.get("cosine"), float)]
    if cosines and sum(cosines) / len(cosines) < _ALIKE:
        found.append(
            f"The surrogate's gradient leaves the chip's: cosine {sum(cosines) / len(cosines):.2f} over the last "
            "passes. Calibrate again, or let the calibration be renewed (recalibration.on)."
        )
    if passes and isinstance(gaps := passes[-1].get("gaps"), Mapping) and gaps:
        layer, gap = max(gaps.items(), key=lambda item: float(str(item[1])))
        found.append(f"The largest gap between chip and surrogate is {100 * float(str(gap)):.0f} % in layer {layer}.")
    if story.best_s is not None and sum(story.best_s) > 0.0:
        writing, measuring = story.best_s
        share = writing / (writing + measuring)
        seconds = float(story.spent.get("seconds") or 0.0)
        found.append(
            f"The board needs {writing + measuring:.3g} s of the {seconds:.3g} s, "
            f"{100 * share:.0f} % of it for writing."
        )
        if share > 0.5 and seconds and writing + measuring > 0.5 * seconds:
            found.append("Writes limit it: fewer passes, a coarser chip.conductance_step_s, or larger batches.")
    losses = [float(str(line["loss"])) for line in own if line.get("loss") is not None]
    tenth = max(len(losses) // 10, 1)
    if len(losses) >= 20:
        before, last = sum(losses[-2 * tenth : -tenth]) / tenth, sum(losses[-tenth:]) / tenth
        if last < 0.97 * before:
            found.append(f"It was still learning: the loss fell from {before:.3f} to {last:.3f} in the last tenth.")
    if story.accuracy is not None:
        lost = story.digital_accuracy - story.accuracy
        found.append(f"The chip costs {100 * lost:.1f} points of accuracy against the digital network.")
    return found or ["Nothing in the log says that anything did."]


def _headline(story: TrainingStory) -> str:
    digital = f"{100 * story.digital_accuracy:.1f} %"
    if story.accuracy is None:
        return f"Trained; not judged on the test images yet. The digital network has {digital}."
    return f"{100 * story.accuracy:.1f} % of the test images ({story.where}); the digital network has {digital}."


def _losses(story: TrainingStory) -> go.Figure:
    figure = new_figure("Loss of the training", "step of each phase", "loss")
    for phase in dict.fromkeys(str(line["phase"]) for line in story.lines):
        losses = [
            float(str(line["loss"])) for line in story.lines if line["phase"] == phase and line.get("loss") is not None
        ]
        size = max(1, min(_SMOOTHING, len(losses) // 10))
        points = range(0, len(losses) - size + 1, size)
        figure.add_scatter(
            x=[first + size for first in points],
            y=[sum(losses[first : first + size]) / size for first in points],
            name=phase,
        )
    return figure


def _figures(passes: Sequence[Line]) -> list[go.Figure]:
    """Everything over device passes, not over epochs."""
    figures = []
    counted = [(_ledger(line), line) for line in passes]
    right = [(float(spent["passes"]), line["accuracy"]) for spent, line in counted if "accuracy" in line]
    if right:
        figure = new_figure("Accuracy of each training batch on the chip", "device passes", "accuracy")
        figure.add_scatter(x=[x for x, _ in right], y=[y for _, y in right], mode="markers+lines", name="batch")
        figures.append(figure)
    layers = sorted({layer for _, line in counted for layer in _table(line.get("gaps"))})
    if layers:
        figure = new_figure("Gap between chip and surrogate", "device passes", "rms gap / rms output")
        for layer in layers:
            points = [(spent["passes"], _table(line.get("gaps")).get(layer)) for spent, line in counted]
            figure.add_scatter(x=[x for x, _ in points], y=[y for _, y in points], name=layer)
        figures.append(figure)
    cosines = [(spent["passes"], line["cosine"]) for spent, line in counted if "cosine" in line]
    if cosines:
        figure = new_figure("Gradient of the surrogate against that of the chip", "device passes", "cosine")
        figure.add_scatter(x=[x for x, _ in cosines], y=[y for _, y in cosines], line={"color": _ACCENT}, name="cosine")
        figures.append(figure)
    for key, title, unit in (("writes", "Programmings", "writes"), ("joules", "Energy of the array supply", "J")):
        spent_of = [(spent["passes"], spent[key]) for spent, _ in counted if spent.get(key) is not None]
        if spent_of:
            figure = new_figure(title, "device passes", unit)
            figure.add_scatter(x=[x for x, _ in spent_of], y=[y for _, y in spent_of], line={"color": _INK}, name=key)
            figures.append(figure)
    return figures


def _recalibrations(own: Sequence[Line]) -> list[list[str]]:
    rows = []
    for line in own:
        content = _table(line.get("recalibration"))
        reasons = content.get("reasons")
        because = ", ".join(map(str, reasons)) if isinstance(reasons, Sequence) else ""
        for array, one in _table(content.get("arrays")).items():
            judged = _table(one)
            before, after = (f"{float(str(judged[name])):.2f}" for name in ("before", "after"))
            rows.append([str(line["step"]), because, array, before, after, "yes" if judged["kept"] else "no"])
    return rows


def _ledger(line: Line) -> dict[str, float]:
    return {name: value for name, value in _table(line.get("ledger")).items() if isinstance(value, int | float)}


def _table(content: object) -> dict[str, object]:
    return dict(content) if isinstance(content, Mapping) else {}


def _text(value: float | int | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
