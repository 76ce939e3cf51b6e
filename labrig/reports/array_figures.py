"""The figures of a calibration report that show the array: its cells, its columns, its past."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from labrig.calibration_history import CalibrationRecord
from labrig.reports.families import direction, family
from labrig.reports.page import new_figure
from labrig.reports.reported import ReportedArray
from labrig_calibration.changes import FamilyChange
from labrig_calibration.ladder import RungVerdict
from labrig_calibration.residuals import pit_histogram

FloatArray = NDArray[np.float64]

_INK, _ACCENT, _FAINT, _GOOD, _BAD = "#1f2933", "#c2410c", "#94a3b8", "#15803d", "#b91c1c"
# Between white and black for numbers that have no sign; blue to red around a middle for those that have.
_SEQUENTIAL, _DIVERGING = "Viridis", "RdBu_r"
_OUTLIER_SIGMAS = 5.0
_MOST_FAMILIES = 6


def slope_figure(one: ReportedArray) -> go.Figure:
    """How much of its target each cell reaches; stuck cells are left white."""
    slope = np.where(one.parameters.stuck, np.nan, one.parameters.cell_slope)
    reach = max(0.05, float(np.nanquantile(np.abs(slope - 1.0), 0.99))) if np.isfinite(slope).any() else 0.5
    return _map("Cells: conductance over target (stuck ones white)", slope, "", (1.0 - reach, 1.0 + reach))


def conductance_error_figure(one: ReportedArray) -> go.Figure:
    """How far recorded writes are off their targets, root mean square over writes, in µS."""
    error_s = one.parameters.write_conductance_s - one.dataset.target_conductance_s
    error_us = 1e6 * np.sqrt((np.asarray(error_s) ** 2).mean(axis=0))
    top = float(np.nanquantile(error_us, 0.99)) if np.isfinite(error_us).any() else 1.0
    return _map("Cells: conductance error of the recorded writes (rms)", error_us, "µS", (0.0, top), signed=False)


def state_figure(one: ReportedArray) -> go.Figure:
    """Which cells do not do what they are told: stuck low, stuck high, far from the others."""
    states = cell_states(one)
    figure = new_figure("Cells: stuck and outliers", "column", "row")
    names = ("healthy", "outlier", "stuck low", "stuck high")
    colours = ("#e2e8f0", "#f59e0b", "#1d4ed8", "#b91c1c")
    scale = [(place, colour) for k, colour in enumerate(colours) for place in (k / 4, (k + 1) / 4)]
    figure.add_heatmap(
        z=states.astype(np.int8),
        zmin=-0.5,
        zmax=3.5,
        colorscale=scale,
        colorbar={"tickvals": [0, 1, 2, 3], "ticktext": names, "thickness": 12},
        customdata=np.array(names)[states],
        hovertemplate="row %{y}, column %{x}: %{customdata}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def cell_states(one: ReportedArray) -> NDArray[np.int64]:
    """0 healthy, 1 outlier, 2 stuck low, 3 stuck high, `[rows, columns]`."""
    array = one.parameters
    healthy = ~array.stuck
    values = array.cell_slope[healthy]
    states = np.zeros(array.stuck.shape, dtype=np.int64)
    if values.size:
        centre = np.median(values)
        spread = 1.4826 * float(np.median(np.abs(values - centre)))
        states[healthy & (np.abs(array.cell_slope - centre) > _OUTLIER_SIGMAS * max(spread, 1e-12))] = 1
    middle_s = 0.5 * (array.converters.conductance_min_s + array.converters.conductance_max_s)
    states[array.stuck] = np.where(array.cell_intercept_s[array.stuck] < middle_s, 2, 3)
    return states


def column_figure(one: ReportedArray) -> go.Figure:
    """Held-out error of each column as a multiple of its noise floor."""
    ratio = one.column_error
    figure = new_figure("Columns: error on unseen MVMs over noise floor", "column", "error / noise floor")
    colours = [_BAD if value > 1.25 else _ACCENT if value > 1.05 else _FAINT for value in ratio.tolist()]
    figure.add_bar(
        x=np.arange(ratio.size),
        y=ratio,
        marker={"color": colours},
        name="error / noise",
        hovertemplate="column %{x}: %{y:.3f}<extra></extra>",
    )
    figure.add_hline(y=1.0, line={"color": _INK, "dash": "dot", "width": 1})
    top = float(np.nanmax(ratio)) if np.isfinite(ratio).any() else 1.0
    low = float(np.nanmin(ratio)) if np.isfinite(ratio).any() else 0.0
    figure.update_yaxes(range=[max(0.0, min(0.9, low - 0.05)), max(1.1, 1.05 * top)])
    return figure


def ladder_figure(ladder: Sequence[RungVerdict]) -> go.Figure:
    """What each rung of the ladder of models brought on later data."""
    figure = new_figure(
        "Ladder of models: held-out error of each rung", "rung", "negative log likelihood (nats per MVM)"
    )
    names = [one.rung for one in ladder]
    values = np.array([one.heldout_nll for one in ladder])
    figure.add_scatter(x=names, y=values, mode="lines", line={"color": _FAINT}, showlegend=False, hoverinfo="skip")
    for kept, colour, symbol, name in ((True, _GOOD, "circle", "kept"), (False, _BAD, "x", "left out")):
        chosen = [k for k, one in enumerate(ladder) if one.kept is kept]
        if chosen:
            figure.add_scatter(
                x=[names[k] for k in chosen],
                y=values[chosen],
                mode="markers",
                marker={"size": 10, "color": colour, "symbol": symbol},
                name=name,
                text=[ladder[k].reason for k in chosen],
                hovertemplate="%{x}: %{y:.2f}<br>%{text}<extra></extra>",
            )
    return figure


def pit_figure(z: FloatArray) -> go.Figure:
    """Where unseen outputs fall in their predicted distributions: flat for a true model."""
    share, error = pit_histogram(z)
    bins = share.size
    figure = new_figure("Unseen outputs in their predicted distribution", "predicted probability below", "share")
    figure.add_bar(x=(np.arange(bins) + 0.5) / bins, y=share, marker={"color": _FAINT}, name="measured")
    for level, dash in ((1.0 / bins, "solid"), (1.0 / bins - 2 * error, "dot"), (1.0 / bins + 2 * error, "dot")):
        figure.add_hline(y=level, line={"color": _ACCENT, "dash": dash, "width": 1})
    figure.update_yaxes(rangemode="tozero")
    return figure


def time_figure(one: ReportedArray) -> go.Figure:
    """Residuals over the board's clock: what drifts away from the model."""
    order = np.argsort(one.heldout.time_s, kind="stable")
    blocks = np.array_split(order, min(60, max(order.size // 10, 1)))
    time_s = np.array([one.heldout.time_s[block].mean() for block in blocks])
    mean = np.array([np.nanmean(one.z[block]) for block in blocks])
    count = np.array([np.isfinite(one.z[block]).sum() for block in blocks])
    figure = new_figure("Residuals over time", "board clock (s)", "mean residual (standard deviations)")
    figure.add_scatter(
        x=time_s - time_s[0],
        y=mean,
        error_y={"array": 1.0 / np.sqrt(np.maximum(count, 1)), "thickness": 1},
        mode="markers",
        marker={"color": _INK, "size": 5},
        name="mean of all columns",
    )
    figure.add_hline(y=0.0, line={"color": _ACCENT, "width": 1})
    return figure


def change_figure(change: FamilyChange) -> go.Figure:
    """Changes in standard errors: a map for cells, bars for columns."""
    title = f"Change of {family(change.name).title}, in standard errors"
    z = direction(change.name) * change.z
    if z.ndim == 2:
        reach = max(4.0, float(np.nanquantile(np.abs(z), 0.999)) if np.isfinite(z).any() else 4.0)
        return _map(title, z, "", (-reach, reach))
    figure = new_figure(title, "column", "change / standard error")
    figure.add_bar(x=np.arange(z.size), y=z.ravel(), marker={"color": _ACCENT}, name="change")
    for level in (-2.0, 2.0):
        figure.add_hline(y=level, line={"color": _FAINT, "dash": "dot", "width": 1})
    return figure


def history_figure(records: Sequence[CalibrationRecord], array: int, names: Sequence[str]) -> go.Figure:
    """Families over earlier calibrations, each as a multiple of its first median, with its error."""
    figure = new_figure("History: medians over their first value", "calibrated", "median / first median", height=380)
    for name in names[:_MOST_FAMILIES]:
        known = [(one.when_utc, one.arrays[array].families[name]) for one in records if _has(one, array, name)]
        if len(known) < 2 or known[0][1].median == 0.0:
            continue
        first = known[0][1].median
        errors = np.array([one.error for _, one in known]) / abs(first)
        figure.add_scatter(
            x=[when for when, _ in known],
            y=[one.median / first for _, one in known],
            error_y={"array": np.where(np.isfinite(errors), errors, 0.0), "thickness": 1},
            mode="lines+markers",
            name=family(name).title,
        )
    figure.update_layout(legend={"orientation": "h", "y": -0.25, "x": 0.0, "xanchor": "left", "yanchor": "top"})
    figure.update_layout(margin={"b": 110})
    return figure


def _has(record: CalibrationRecord, array: int, name: str) -> bool:
    return array in record.arrays and name in record.arrays[array].families


def _map(title: str, values: FloatArray, unit: str, ends: tuple[float, float], *, signed: bool = True) -> go.Figure:
    figure = new_figure(title, "column", "row")
    figure.add_heatmap(
        # Four digits are more than colours show.
        z=np.asarray(values, dtype=np.float32),
        zmin=ends[0],
        zmax=ends[1],
        colorscale=_DIVERGING if signed else _SEQUENTIAL,
        colorbar={"title": unit, "thickness": 12},
        hovertemplate=f"row %{{y}}, column %{{x}}: %{{z:.4g}} {unit}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed")
    return figure
