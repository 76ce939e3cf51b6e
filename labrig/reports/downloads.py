"""The numbers behind a figure as CSV, inside the page: a link that needs no server and no script."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go


def csv_of(figure: go.Figure) -> str:
    """The data of a figure: a heatmap as a matrix, everything else as one line for each point.

    The first line names the columns, with the titles of the axes.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    x_title, y_title = (getattr(figure.layout, axis).title.text or axis[0] for axis in ("xaxis", "yaxis"))
    heatmaps = [trace for trace in figure.data if trace.type == "heatmap"]
    if heatmaps:
        for trace in heatmaps:
            values = np.asarray(trace.z)
            writer.writerow([f"{y_title} \\ {x_title}", *range(values.shape[1])])
            writer.writerows([row, *map(_text, line)] for row, line in enumerate(values.tolist()))
        return lines.getvalue()
    named = [trace for trace in figure.data if trace.x is not None and trace.y is not None]
    errors = any(trace.error_y is not None and trace.error_y.array is not None for trace in named)
    writer.writerow(["series", x_title, y_title, *(["error"] if errors else [])])
    for trace in named:
        columns: list[Sequence[object]] = [list(trace.x), list(trace.y)]
        if errors:
            error = trace.error_y.array if trace.error_y is not None else None
            columns.append([""] * len(columns[0]) if error is None else list(error))
        writer.writerows([trace.name or "", *map(_text, point)] for point in zip(*columns, strict=True))
    return lines.getvalue()


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_text(cell) for cell in row] for row in rows)
    return lines.getvalue()


def data_link(text: str) -> str:
    """An address that is the file itself."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()


def file_name(*parts: str) -> str:
    """A file name made of words."""
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-").lower() for part in parts) + ".csv"


def _text(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    return str(value)
