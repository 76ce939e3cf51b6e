"""What a study leaves: a page to read and the numbers behind it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from labrig.json_numbers import finite_json
from labrig.recording.whole_files import write_whole
from labrig.reports.page import embedded, new_figure, write_page
from labrig.studies.result import Plot, StudyResult

_TEMPLATE = Path(__file__).with_name("study.html.jinja")
_COLOURS = ("#1f2933", "#c2410c", "#0369a1", "#15803d", "#7e22ce", "#94a3b8")


@dataclass(frozen=True)
class StudyFiles:
    """Where they are.

    Attributes:
        html: The page.
        json: The numbers.
    """

    html: Path
    json: Path


def write_study(folder: Path, result: StudyResult) -> StudyFiles:
    """Writes `NAME.html` and `NAME.json`; those that are there are replaced.

    Args:
        folder: Where they go; made where it is missing.
        result: The study.

    Raises:
        StorageError: The folder cannot be made or written.
    """
    files = StudyFiles(folder / f"{result.name}.html", folder / f"{result.name}.json")
    write_whole(files.json, (json.dumps(finite_json(result.as_dict()), indent=1, allow_nan=False) + "\n").encode())
    plots = [embedded(_figure(plot)) for plot in result.plots]
    write_page(files.html, _TEMPLATE, result=result, plots=plots)
    return files


def _figure(plot: Plot) -> go.Figure:
    figure = new_figure(plot.title, plot.x_label, plot.y_label)
    for index, curve in enumerate(plot.curves):
        figure.add_scatter(
            x=list(curve.x),
            y=list(curve.y),
            error_y={"array": list(curve.error)} if curve.error else None,
            mode="lines+markers",
            name=curve.name,
            line={"color": _COLOURS[index % len(_COLOURS)]},
        )
    if plot.log_x:
        figure.update_xaxes(type="log")
    if plot.log_y:
        figure.update_yaxes(type="log")
    return figure
