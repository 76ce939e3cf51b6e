"""`fit`: from one array's recorded MVMs to its parameters with standard errors, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_calibration.cells import fit_cells
from labrig_calibration.columns import ColumnData, ColumnFit, fit_columns, predict, start_values
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.diagnostics import diagnose
from labrig_calibration.ladder import Ladder, RungVerdict
from labrig_calibration.noise_law import NoiseLaw, fit_noise_law, variance
from labrig_calibration.result import CalibrationResult, JudgedArray
from labrig_calibration.uncertainty import Posterior
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate

Progress = Callable[[str, float], None]

HELDOUT_FRACTION = 0.1


class CalibrationError(ValueError):
    """The data cannot carry a fit; the message lists every reason."""


def fit(
    dataset: MvmDataset,
    *,
    ladder: Ladder | None = None,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Fits one array.

    The chronologically last part of every write is held out and only used to judge.

    Args:
        dataset: The recorded MVMs.
        ladder: Which rungs are tried; all of them by default.
        rng: Source of the draws that the diagnostics need.
        progress: Called with the name of a stage and the fraction of it that is done.

    Raises:
        CalibrationError: Fewer than two different targets, no zero inputs, too few MVMs, or no convergence.
    """
    ladder = ladder or Ladder()
    drift_reference_s = ladder.drift_reference_s
    _refuse_hopeless(dataset)
    train, heldout = split_chronologically(dataset, ladder.heldout_fraction)
    data = _tensors(train, drift_reference_s)
    floor_a2 = torch.as_tensor(dataset.converters.adc_lsb_a) ** 2 / 12.0
    shared, conductance_s = start_values(data)
    # First with equal weights, then with the noise law found; a third pass changes nothing measurable.
    columns = fit_columns(data, shared, conductance_s, progress=_stage(progress, "equal weights"))
    law = _noise(data, columns, floor_a2)
    data = _reweighted(data, columns, law, floor_a2)
    columns = fit_columns(data, columns.shared, columns.conductance_s, progress=_stage(progress, "noise weights"))
    law = _noise(data, columns, floor_a2)
    if not columns.converged:
        raise CalibrationError(
            f"the fit did not converge in {columns.iterations} steps; are inputs and outputs of the same MVMs?"
        )
    cells = fit_cells(
        columns.conductance_s.numpy(),
        columns.conductance_error_s.numpy(),
        dataset.target_conductance_s,
        dataset.converters.conductance_max_s,
    )
    parameters = ArrayParameters(
        array=dataset.array,
        gain=Estimate(cells.gain, cells.gain_error, "1"),
        offset=_estimate(columns, 0, "A"),
        compression=_estimate(columns, 1, "1/A"),
        drift=_estimate(columns, 2, "1"),
        amplifier_noise=Estimate(law.value[0].numpy(), law.error[0].numpy(), "A^2"),
        shot_noise=Estimate(law.value[1].numpy(), law.error[1].numpy(), "A"),
        conductance_noise=Estimate(law.value[2].numpy(), law.error[2].numpy(), "1"),
        programming=Estimate(cells.programming, cells.programming_error, "1"),
        cell_slope=cells.slope,
        cell_intercept_s=cells.intercept_s,
        stuck=cells.stuck,
        write_conductance_s=columns.conductance_s.numpy() / cells.gain,
        drift_reference_s=drift_reference_s,
        converters=converter_range(dataset),
    )
    diagnostics = diagnose(parameters, heldout, rng=rng)
    verdict = RungVerdict("drift", True, 0, np.nan, np.nan, np.nan, "later MVMs", "always kept")
    posterior = Posterior(
        (),
        np.zeros((dataset.columns, 0, 0)),
        np.zeros((*dataset.target_conductance_s.shape, 0)),
        columns.conductance_error_s.numpy(),
        (),
        np.zeros((dataset.columns, 0, 0)),
        (),
        np.zeros((0, 0)),
    )
    return CalibrationResult(
        JudgedArray(parameters, diagnostics, dataset), (verdict,), posterior, np.zeros(len(dataset), dtype=bool), 0, ()
    )


def chip_parameters(fits: Sequence[CalibrationResult], provenance: dict[str, str | float | int]) -> ChipParameters:
    """Joins the fitted arrays of one chip.

    Raises:
        CalibrationError: The fits belong to different chips, or one array was fitted twice.
    """
    chips = sorted({fitted.dataset.chip_id for fitted in fits})
    indices = [fitted.array_parameters.array for fitted in fits]
    if len(chips) != 1 or len(set(indices)) != len(indices):
        raise CalibrationError(f"fits of chips {chips} and arrays {indices} do not make one chip")
    return ChipParameters(
        chips[0], {fitted.array_parameters.array: fitted.array_parameters for fitted in fits}, provenance
    )


def converter_range(dataset: MvmDataset) -> ConverterRange:
    """The converters in the form that surrogates use."""
    converters = dataset.converters
    return ConverterRange(
        voltage_max_v=converters.voltage_max_v,
        dac_step_v=converters.dac_step_v,
        adc_lsb_a=converters.adc_lsb_a,
        code_min=-(2 ** (converters.adc_bits - 1)),
        code_max=2 ** (converters.adc_bits - 1) - 1,
        conductance_min_s=converters.conductance_min_s,
        conductance_max_s=converters.conductance_max_s,
    )


def dac_levels(dataset: MvmDataset) -> NDArray[np.float64]:
    """The commanded voltages as the DAC applies them, in V, `[N, rows]`."""
    step_v = dataset.converters.dac_step_v
    limits = dataset.converters.voltage_min_v, dataset.converters.voltage_max_v
    return np.clip(np.round(dataset.voltage_v / step_v) * step_v, *limits)


def smallest_write(rows: int) -> int:
    """Fewest MVMs of one write that can carry its `rows` conductances and leave something to judge by."""
    return 2 * (rows + 3)


def _refuse_hopeless(dataset: MvmDataset) -> None:
    faults = []
    targets = dataset.target_conductance_s
    if dataset.writes < 2 or float(np.ptp(targets, axis=0).max(initial=0.0)) == 0.0:
        faults.append("at least two different programmed patterns are needed to tell gains from conductances")
    counts = np.bincount(dataset.pattern, minlength=dataset.writes)
    needed = smallest_write(dataset.rows)
    faults += [
        f"write {write} has {counts[write]} MVMs, at least {needed} are needed for {dataset.rows} rows"
        for write in np.flatnonzero(counts < needed)
    ]
    if not (np.abs(dataset.voltage_v).max(axis=1) == 0.0).any():
        faults.append("no zero input vector, so offsets cannot be told from leakage")
    dead = np.flatnonzero(dataset.saturated.mean(axis=0) > 0.5) if len(dataset) else np.array([])
    if dead.size:
        faults.append(f"columns {dead.tolist()} saturate in more than half of the MVMs; lower the read voltage")
    if faults:
        raise CalibrationError("the recording cannot be calibrated: " + "; ".join(faults))


def split_chronologically(dataset: MvmDataset, fraction: float) -> tuple[MvmDataset, MvmDataset]:
    """Splits off the last part of every write: `(earlier, later)`."""
    held = np.zeros(len(dataset), dtype=np.bool_)
    for write in range(dataset.writes):
        members = np.flatnonzero(dataset.pattern == write)
        members = members[np.argsort(dataset.time_s[members], kind="stable")]
        held[members[members.size - max(1, int(fraction * members.size)) :]] = True
    return dataset.select(~held), dataset.select(held)


def _tensors(dataset: MvmDataset, drift_reference_s: float) -> ColumnData:
    weight = torch.as_tensor((~dataset.saturated).astype(np.float64))
    # Residuals are of the order of an ADC step; this only sets the scale of the first pass.
    weight = weight / torch.as_tensor(dataset.converters.adc_lsb_a) ** 2
    return ColumnData(
        voltage_v=torch.as_tensor(dac_levels(dataset)),
        current_a=torch.as_tensor(dataset.current_a),
        log_age=torch.log1p(torch.as_tensor(np.maximum(dataset.age_s, 0.0)) / drift_reference_s),
        weight=weight,
        writes=[torch.as_tensor(np.flatnonzero(dataset.pattern == write)) for write in range(dataset.writes)],
    )


def _features(data: ColumnData, columns: ColumnFit) -> tuple[Tensor, Tensor]:
    """Residuals `[N, columns]` and the features of the noise law `[3, N, columns]`."""
    y, u = predict(data, columns.shared, columns.conductance_s)
    slope2 = (1.0 - torch.tanh(columns.shared[1] * u) ** 2) ** 2
    decay = torch.exp(-data.log_age[:, None] * columns.shared[2])
    shot, cells = torch.empty_like(u), torch.empty_like(u)
    for write, rows in enumerate(data.writes):
        shot[rows] = data.voltage_v[rows].abs() @ columns.conductance_s[write].abs()
        cells[rows] = data.voltage_v[rows] ** 2 @ columns.conductance_s[write] ** 2
    features = torch.stack([torch.ones_like(u), slope2 * decay * shot, slope2 * decay**2 * cells])
    return data.current_a - y, features


def _noise(data: ColumnData, columns: ColumnFit, floor_a2: Tensor) -> NoiseLaw:
    residual, features = _features(data, columns)
    keep = data.weight > 0
    # Each write spends `rows` parameters (and a share of three) on its own MVMs.
    correction = torch.ones(residual.shape[0], dtype=residual.dtype)
    for rows in data.writes:
        spent = data.voltage_v.shape[1] + 3.0 / len(data.writes)
        correction[rows] = rows.shape[0] / max(rows.shape[0] - spent, 1.0)
    return fit_noise_law(residual**2 * correction[:, None], features, floor_a2, keep)


def _reweighted(data: ColumnData, columns: ColumnFit, law: NoiseLaw, floor_a2: Tensor) -> ColumnData:
    _, features = _features(data, columns)
    spread = variance(law.value, features, floor_a2)
    weight = torch.where(data.weight > 0, 1.0 / spread, torch.zeros_like(spread))
    return ColumnData(data.voltage_v, data.current_a, data.log_age, weight, data.writes)


def _estimate(columns: ColumnFit, index: int, unit: str) -> Estimate:
    return Estimate(columns.shared[index].numpy(), columns.shared_error[index].numpy(), unit)


def _stage(progress: Progress | None, name: str) -> Callable[[float], None] | None:
    if progress is None:
        return None
    return lambda fraction: progress(name, fraction)
