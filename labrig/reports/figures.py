"""The figures of a calibration report."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from labrig.reports.page import new_figure
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.diagnostics import Prediction
from labrig_calibration.measurements import dac_levels
from labrig_surrogates.parameters import ArrayParameters

FloatArray = NDArray[np.float64]

_MICRO = 1e6
_POINTS = 1500
_BINS = 24
_INK, _ACCENT, _FAINT = "#1f2933", "#c2410c", "#94a3b8"


def transfer_figure(parameters: ArrayParameters, dataset: MvmDataset, column: int) -> go.Figure:
    """Measured output over the fitted linear current of one column, with the fitted curve."""
    chosen = _thin(len(dataset))
    u_a = linear_current_a(parameters, dataset, chosen, column)
    grid_a = np.linspace(u_a.min(), u_a.max(), 200)
    kappa, offset_a = parameters.compression.value[column], parameters.offset.value[column]
    figure = new_figure(f"Transfer curve, column {column}", "current before the amplifier (µA)", "output (µA)")
    figure.add_scatter(
        x=_MICRO * u_a,
        y=_MICRO * dataset.current_a[chosen, column],
        mode="markers",
        name="measured",
        marker={"size": 3, "color": _FAINT},
    )
    curve_a = offset_a + np.tanh(kappa * grid_a) / kappa if kappa else offset_a + grid_a
    figure.add_scatter(x=_MICRO * grid_a, y=_MICRO * curve_a, name="fit", line={"color": _ACCENT})
    figure.add_scatter(x=_MICRO * grid_a, y=_MICRO * grid_a, name="ideal", line={"color": _INK, "dash": "dot"})
    return figure


def noise_figure(dataset: MvmDataset, prediction: Prediction) -> go.Figure:
    """Measured variance of the residuals over the size of the output, with the fitted law."""
    kept = ~dataset.saturated
    signal_a = np.abs(prediction.mean_a[kept])
    squared = (dataset.current_a - prediction.mean_a)[kept] ** 2
    edges = np.unique(np.quantile(signal_a, np.linspace(0.0, 1.0, _BINS + 1)))
    index = np.clip(np.searchsorted(edges, signal_a, side="right") - 1, 0, len(edges) - 2)
    count = np.maximum(np.bincount(index, minlength=len(edges) - 1), 1)
    centre = np.bincount(index, signal_a, len(edges) - 1) / count
    measured = np.bincount(index, squared, len(edges) - 1) / count
    predicted = np.bincount(index, prediction.sigma_a[kept] ** 2, len(edges) - 1) / count
    figure = new_figure("Noise variance against signal", "|output| (µA)", "variance (µA²)")
    figure.add_scatter(
        x=_MICRO * centre,
        y=_MICRO**2 * measured,
        error_y={"array": _MICRO**2 * measured * np.sqrt(2.0 / count)},
        mode="markers",
        name="measured",
        marker={"color": _INK},
    )
    figure.add_scatter(x=_MICRO * centre, y=_MICRO**2 * predicted, name="fit", line={"color": _ACCENT})
    return figure


def residual_figure(dataset: MvmDataset, prediction: Prediction) -> go.Figure:
    """Histogram of the standardised residuals, with the standard normal density."""
    z = ((dataset.current_a - prediction.mean_a) / prediction.sigma_a)[~dataset.saturated]
    edges = np.linspace(-5.0, 5.0, 81)
    centre = 0.5 * (edges[1:] + edges[:-1])
    density, _ = np.histogram(z, bins=edges, density=True)
    figure = new_figure("Residuals in standard deviations", "(measured - predicted) / sigma", "density")
    figure.add_bar(x=centre, y=density, name="measured", marker={"color": _FAINT})
    normal = np.exp(-0.5 * centre**2) / np.sqrt(2.0 * np.pi)
    figure.add_scatter(x=centre, y=normal, name="normal", line={"color": _ACCENT})
    return figure


def output_figure(dataset: MvmDataset, predicted_a: FloatArray, nominal_a: FloatArray) -> go.Figure:
    """Distributions of measured, predicted and data-sheet outputs."""
    low, high = np.quantile(dataset.current_a, [0.001, 0.999])
    edges = np.linspace(low, high, 81)
    centre = 0.5 * (edges[1:] + edges[:-1])
    figure = new_figure("Distribution of outputs", "output (µA)", "density (1/µA)")
    sources = (
        ("measured", dataset.current_a, _INK, "solid"),
        ("predicted", predicted_a, _ACCENT, "dash"),
        ("data sheet", nominal_a, _FAINT, "dot"),
    )
    for name, values, colour, dash in sources:
        density, _ = np.histogram(values, bins=edges, density=True)
        line = {"color": colour, "dash": dash, "shape": "hvh"}
        figure.add_scatter(x=_MICRO * centre, y=density / _MICRO, name=name, line=line)
    return figure


def linear_current_a(
    parameters: ArrayParameters, dataset: MvmDataset, mvms: NDArray[np.int64], column: int
) -> FloatArray:
    """Fitted currents of some MVMs in front of one column's amplifier in A, `[n]`."""
    conductance_s = parameters.gain.value[column] * parameters.write_conductance_s[:, :, column]
    u_a = (dac_levels(dataset, mvms) * conductance_s[dataset.pattern[mvms]]).sum(axis=1)
    age = 1.0 + dataset.age_s[mvms] / parameters.drift_reference_s
    return np.asarray(age ** -parameters.drift.value[column] * u_a)


def _thin(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, _POINTS)).astype(np.int64))
