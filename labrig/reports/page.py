"""What all HTML pages share: how a figure looks, and how a page gets onto the disk."""

from __future__ import annotations

from pathlib import Path

import jinja2
import plotly.graph_objects as go

from labrig.recording.whole_files import write_whole

_SCRIPT = "plotly.min.js"
# A touch screen always shows the buttons, so only those stay that leave the title readable.
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d", "zoom2d"],
}


def new_figure(title: str, x_title: str, y_title: str, *, height: int = 360) -> go.Figure:
    """An empty figure in the style of all pages."""
    # Given at once: each later change of a layout checks its template again.
    layout = {
        "title": {"text": title, "font": {"size": 15}},
        "xaxis": {"title": {"text": x_title}},
        "yaxis": {"title": {"text": y_title}},
        "template": "simple_white",
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": 1.08, "x": 1.0, "xanchor": "right"},
    }
    return go.Figure(layout=layout)


def embedded(figure: go.Figure) -> str:
    """A figure as HTML that draws itself with the script beside the page."""
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, default_width="100%", config=_CONFIG)
    return html


def write_page(path: Path, template: Path, *, one_file: bool = False, **content: object) -> None:
    """Fills a template and writes the page.

    Args:
        path: Where the page goes; one that is there is replaced.
        template: A jinja2 template.
        one_file: Whether the plotting script is part of the page, given to the template as `script`, so that the page
            can be sent on by itself (5 MB); otherwise it lies once beside the pages of a folder (`plotly.min.js`).
        **content: What it shows.

    Raises:
        StorageError: The folder cannot be written.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    if one_file:
        content = {**content, "script": _plotting_script()}
    page = environment.from_string(template.read_text(encoding="utf-8")).render(**content)
    if not one_file and not (script := path.parent / _SCRIPT).exists():
        write_whole(script, _plotting_script().encode())
    write_whole(path, page.encode())


def _plotting_script() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script
