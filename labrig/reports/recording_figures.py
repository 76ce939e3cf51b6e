"""The figures of a recording, for a browser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from labrig.reports.page import new_figure
from labrig.reports.pictures import ArrayPicture, CurvePicture, SupplyPicture, units_of

_INK, _ACCENT, _FAINT, _RED = "#1f2933", "#0e7490", "#94a3b8", "#b91c1c"


def transfer_figure(one: ArrayPicture) -> go.Figure:
    """Measured over ideal currents; saturated ones apart."""
    factor, unit = units_of(one.measured_a, "A")
    ideal, measured = factor * one.ideal_a, factor * one.measured_a
    figure = new_figure("Transfer", f"current that the target would give ({unit})", f"measured ({unit})")
    for name, kept, colour in (("measured", ~one.saturated, _ACCENT), ("saturated", one.saturated, _RED)):
        if kept.any():
            marker = {"size": 3, "color": colour, "opacity": 0.5}
            figure.add_scattergl(x=ideal[kept], y=measured[kept], mode="markers", name=name, marker=marker)
    ends = np.array([ideal.min(), ideal.max()])
    figure.add_scatter(x=ends, y=ends, mode="lines", name="ideal", line={"color": _INK, "dash": "dot"})
    return figure


def target_figure(one: ArrayPicture) -> go.Figure:
    """Target of the latest write."""
    factor, unit = units_of(one.target_s, "S")
    figure = new_figure("Target of the latest write", "column", "row")
    figure.add_heatmap(
        z=factor * one.target_s,
        colorscale="Viridis",
        colorbar={"title": unit},
        hovertemplate=f"row %{{y}}, column %{{x}}: %{{z:.4g}} {unit}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def error_figure(one: ArrayPicture) -> go.Figure:
    """Mean error of each column; by write where there are several."""
    factor, unit = units_of(one.error_a, "A")
    error = factor * one.error_a
    if len(error) == 1:
        figure = new_figure("Mean error of each column", "column", f"measured - ideal ({unit})")
        figure.add_bar(x=np.arange(error.shape[1]), y=error[0], marker={"color": _ACCENT}, name="mean error")
        return figure
    largest = float(np.nanmax(np.abs(error))) if np.isfinite(error).any() else 1.0
    line = "write" if one.writes_per_line == 1 else f"write / {one.writes_per_line}"
    figure = new_figure("Mean error of each column, by write", "column", line)
    figure.add_heatmap(
        z=error,
        colorscale="RdBu_r",
        zmin=-largest,
        zmax=largest,
        colorbar={"title": unit},
        hovertemplate=f"{line} %{{y}}, column %{{x}}: %{{z:.4g}} {unit}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", tickformat="d")
    if len(error) < 12:
        figure.update_yaxes(dtick=1)
    return figure


def pace_figure(one: ArrayPicture) -> go.Figure:
    """When the MVMs were measured."""
    factor, unit = units_of(one.clock_s, "s")
    figure = new_figure("Pace", f"board clock ({unit})", "MVMs so far")
    figure.add_scatter(
        x=factor * one.clock_s, y=one.done, mode="markers", marker={"size": 3, "color": _ACCENT}, name="MVMs"
    )
    return figure


def drift_figure(one: ArrayPicture) -> go.Figure:
    """Repeated outputs over first ones."""
    figure = new_figure("Drift: the same vector again", "age of the write (s)", "outputs, the first being 1")
    if one.age_by_factors:
        figure.update_xaxes(type="log")
    figure.add_scatter(
        x=one.age_s, y=one.repeated, mode="lines+markers", connectgaps=True, line={"color": _ACCENT}, name="repeated"
    )
    figure.add_hline(y=1.0, line={"color": _FAINT, "dash": "dot"})
    return figure


def curves_figure(curves: Sequence[CurvePicture]) -> go.Figure:
    """I-V curves, each as it was measured."""
    x_factor, x_unit = units_of(np.concatenate([one.voltage_v for one in curves]), "V")
    y_factor, y_unit = units_of(np.concatenate([one.current_a for one in curves]), "A")
    figure = new_figure("I-V curves", f"voltage ({x_unit})", f"current ({y_unit})", height=460)
    for one in curves:
        figure.add_scatter(
            x=x_factor * one.voltage_v, y=y_factor * one.current_a, mode="lines", line={"width": 1.5}, name=one.name
        )
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1.0, "xanchor": "left", "font": {"size": 11}})
    return figure


def supply_figure(supply: SupplyPicture) -> go.Figure:
    """Power of the array supply over time."""
    (x_factor, x_unit), (y_factor, y_unit) = units_of(supply.time_s, "s"), units_of(supply.power_w, "W")
    figure = new_figure("Array supply", f"time since its first reading ({x_unit})", f"power ({y_unit})", height=300)
    figure.add_scatter(x=x_factor * supply.time_s, y=y_factor * supply.power_w, line={"color": _ACCENT}, name="power")
    return figure
