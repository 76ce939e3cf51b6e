"""`fit`: from one array's recorded MVMs to its parameters with standard errors, and how good they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from labrig_calibration.cell_likelihood import LAW, CellData
from labrig_calibration.cells import CellFit
from labrig_calibration.checks import dead_columns, faults_of, faults_of_sums, notes_of, smallest_write
from labrig_calibration.climbing import ColumnsClimbed, Progress, climb_cells, climb_columns, judged
from labrig_calibration.columns import SHARED
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.diagnostics import diagnose
from labrig_calibration.expanding import expanded
from labrig_calibration.heldout import heldout_nll
from labrig_calibration.ladder import HELDOUT_FRACTION, Ladder, RungVerdict
from labrig_calibration.linear_rungs import LinearSums
from labrig_calibration.measurements import Measurements
from labrig_calibration.noise_law import DRIFT_SPREAD, TERMS, UNITS
from labrig_calibration.residual_fit import correction_a, fit_residual
from labrig_calibration.result import CalibrationResult, JudgedArray
from labrig_calibration.squares import wrong_rows
from labrig_calibration.uncertainty import Posterior, trade_offs
from labrig_surrogates.drift_behind_wires import seen_at_age_zero
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate, ResidualNetwork
from labrig_surrogates.wire_first_order import first_order_transfer

__all__ = [
    "CalibrationError",
    "chip_parameters",
    "converter_range",
    "fit",
    "heldout_part",
    "smallest_write",
]

# So many held-out outputs show whatever a check can show; all of a large recording's would not fit into memory.
_MOST_JUDGED = 2**20

# From here on a note says what wires that are not seen may have taken.
_TELL_UNSEEN = 0.01


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

    The chronologically last part of every write is held out: it decides how far the ladder of models is climbed, and
    judges the result. Arrays may be memory-mapped files: they are read in blocks.

    Args:
        dataset: The recorded MVMs.
        ladder: Which rungs are tried; all of them by default.
        rng: Source of the draws that the residual network and the diagnostics need.
        progress: Called with the name of a stage and the fraction of the fit that is done.

    Raises:
        CalibrationError: The data cannot carry a fit, or it did not come to rest; every reason is named.
    """
    ladder = ladder or Ladder()
    report = progress or _silent
    _refuse(faults_of(dataset))
    dead = dead_columns(dataset)
    alive = dataset.of_columns(~dead) if dead.any() else dataset
    train, later = Measurements.of(alive, ladder.drift_reference_s).split(ladder.heldout_fraction)
    sums = LinearSums.of(train)
    _refuse(faults_of_sums(dataset, LinearSums.of(Measurements.of(dataset)) if dead.any() else sums))
    climbed = climb_columns(train, later, sums, ladder, report)
    if not climbed.resting:
        raise CalibrationError("the fit did not come to rest; are inputs and outputs of the same MVMs?")
    report("all MVMs", 0.8)
    data = CellData(
        climbed.state.conductance_s,
        climbed.factor.cell_error_s(),
        torch.as_tensor(np.asarray(alive.target_conductance_s, dtype=np.float64)),
        alive.converters.conductance_max_s,
        torch.exp(-climbed.state.shared[2].median() * torch.as_tensor(np.array(train.mean_log_age))),
    )
    wrong, missed = wrong_rows(later, climbed.state, climbed.flagged)
    later = later.without(wrong)
    before = heldout_nll(later, climbed.state)
    cells, cell_verdicts = climb_cells(data, ladder, float(before.mean()), climbed.parameters)
    report("cells", 0.9)
    residual, residual_verdicts = _residual(train, later, before, climbed, ladder, rng)
    parameters = _at_age_zero(_assembled(train, climbed, cells, residual))
    posterior = _posterior(climbed, cells)
    if dead.any():
        parameters, posterior = expanded(parameters, posterior, ~dead, converter_range(dataset), dataset)
    heldout = _mvms_of(later)
    chosen = _judged_mvms(later)
    diagnostics = diagnose(parameters, dataset.select(chosen & ~wrong), rng=rng)
    report("diagnostics", 1.0)
    lost = _lost_in_wires(cells, data.target_s)
    if chosen.sum() < heldout.sum():
        lost = (*lost, f"judged on {chosen.sum():,} of {heldout.sum():,} MVMs that were held out")
    notes = (
        *notes_of(dataset),
        *lost,
        *_unseen_wires(cells),
        *(f"hard to tell apart: {text}" for text in trade_offs(posterior)),
    )
    return CalibrationResult(
        judged=JudgedArray(parameters, diagnostics, dataset),
        ladder=_in_order((*climbed.verdicts, *cell_verdicts, *residual_verdicts)),
        posterior=posterior,
        flagged=climbed.flagged | wrong,
        outliers=climbed.outliers + missed,
        notes=notes,
    )


def chip_parameters(fits: Sequence[CalibrationResult], provenance: dict[str, str | float | int]) -> ChipParameters:
    """Joins the fitted arrays of one chip.

    Args:
        fits: One for each array.
        provenance: What is kept with the parameters: recordings, dates, versions, hashes.

    Raises:
        CalibrationError: The fits belong to different chips, or one array was fitted twice.
    """
    chips = sorted({fitted.dataset.chip_id for fitted in fits})
    indices = [fitted.array_parameters.array for fitted in fits]
    if len(chips) != 1 or len(set(indices)) != len(indices):
        twice = sorted({index for index in indices if indices.count(index) > 1})
        faults = [f"array {index} was fitted more than once" for index in twice]
        if len(chips) != 1:
            faults.append(f"they belong to {len(chips)} chips ({', '.join(chips)})")
        raise CalibrationError(f"these {len(fits)} fits do not make one chip: {'; '.join(faults)}")
    arrays = {fitted.array_parameters.array: fitted.array_parameters for fitted in fits}
    return ChipParameters(chips[0], arrays, provenance)


def converter_range(dataset: MvmDataset) -> ConverterRange:
    """The converters in the form that surrogates use."""
    converters = dataset.converters
    codes = 0 if converters.adc_bits == 0 else 2 ** (converters.adc_bits - 1)
    return ConverterRange(
        voltage_max_v=converters.voltage_max_v,
        dac_step_v=converters.dac_step_v,
        adc_lsb_a=converters.adc_lsb_a,
        code_min=-codes,
        code_max=max(codes - 1, 0),
        conductance_min_s=converters.conductance_min_s,
        conductance_max_s=converters.conductance_max_s,
    )


def heldout_part(dataset: MvmDataset, wrong: NDArray[np.bool_] | None = None) -> tuple[MvmDataset, int]:
    """The MVMs by which a fit is judged, and how many it was fitted to.

    Args:
        dataset: What was fitted.
        wrong: MVMs that count nothing, bool, `[N]`.

    Returns:
        The last part of every write, of a large recording the beginning of that; and the number of MVMs before it.
    """
    right = np.ones(len(dataset), dtype=np.bool_) if wrong is None else ~wrong
    earlier, later = Measurements.of(dataset).split(HELDOUT_FRACTION)
    return dataset.select(_judged_mvms(later) & right), int((_mvms_of(earlier) & right).sum())


def _mvms_of(measurements: Measurements) -> NDArray[np.bool_]:
    """Which MVMs of a data set these are, bool, `[N]`."""
    chosen = np.zeros(len(measurements.dataset), dtype=np.bool_)
    for part in measurements.parts:
        chosen[part] = True
    return chosen


def _judged_mvms(later: Measurements) -> NDArray[np.bool_]:
    """Those of the held-out MVMs by which a fit is judged, bool, `[N]`."""
    most = _MOST_JUDGED // (later.dataset.columns * later.dataset.writes)
    return _mvms_of(later.beginning(max(most, 1)))


def _refuse(faults: list[str]) -> None:
    if faults:
        raise CalibrationError("the recording cannot be calibrated: " + "; ".join(faults))


def _silent(stage: str, fraction: float) -> None:
    del stage, fraction


def _residual(
    train: Measurements,
    later: Measurements,
    before: NDArray[np.float64],
    climbed: ColumnsClimbed,
    ladder: Ladder,
    rng: np.random.Generator,
) -> tuple[ResidualNetwork | None, tuple[RungVerdict, ...]]:
    if "residual" not in ladder.rungs:
        return None, ()
    network = fit_residual(train.without(climbed.flagged), climbed.state, rng)
    after = heldout_nll(later, climbed.state, lambda u, log_age, load: correction_a(network, u, log_age, load))
    parameters = climbed.parameters + network.hidden.size + 2 * network.bias.size
    verdict = judged("residual", before, after, parameters, ladder)
    return (network if verdict.kept else None), (verdict,)


def _assembled(
    train: Measurements, climbed: ColumnsClimbed, cells: CellFit, residual: ResidualNetwork | None
) -> ArrayParameters:
    dataset, mean_log_age = train.dataset, train.mean_log_age
    gain = cells.gain
    noise = {TERMS[term]: _noise_estimate(climbed, term) for term in range(len(TERMS))}
    law_error = dict.fromkeys(range(len(LAW)), np.inf)
    law_error |= {one: float(np.sqrt(max(cells.law_covariance[k, k], 0.0))) for k, one in enumerate(cells.model.law)}

    def of_law(*indices: int, unit: str) -> Estimate:
        shape = (len(indices),) if len(indices) > 1 else ()
        error = np.array([law_error[index] for index in indices])
        return Estimate(cells.law[list(indices)].reshape(shape), error.reshape(shape), unit)

    write_s = climbed.state.conductance_s.numpy() / gain
    # Where targets tell nothing of a gain, these are the errors beside it: what the outputs are is known all the same.
    relative = np.nan_to_num(cells.gain_error, posinf=0.0) / gain
    error_s = np.hypot(climbed.factor.cell_error_s().numpy() / np.abs(gain), write_s * relative)
    return ArrayParameters(
        array=dataset.array,
        gain=Estimate(gain, cells.gain_error, "1"),
        offset=_shared_estimate(climbed, 0, "A"),
        compression=_shared_estimate(climbed, 1, "1/A"),
        drift=_shared_estimate(climbed, 2, "1"),
        amplifier_noise=noise["amplifier_noise"],
        shot_noise=noise["shot_noise"],
        conductance_noise=noise["conductance_noise"],
        programming=of_law(0, 1, 2, unit="1"),
        cell_slope=cells.slope,
        cell_intercept_s=cells.intercept_s,
        stuck=cells.stuck,
        write_conductance_s=write_s,
        drift_reference_s=train.drift_reference_s,
        converters=converter_range(dataset),
        write_conductance_error_s=error_s,
        cell_slope_error=cells.slope_error,
        mismatch=of_law(3, unit="1") if cells.model.pattern else None,
        skew=_shared_estimate(climbed, 3, "1") if 3 in climbed.free else None,
        line_noise=noise["line_noise"] if 3 in climbed.noise.active else None,
        output_shot_noise=noise["output_shot_noise"] if 4 in climbed.noise.active else None,
        output_relative_noise=noise["output_relative_noise"] if 5 in climbed.noise.active else None,
        wire_ohm=of_law(4, 5, unit="ohm") if cells.model.wires else None,
        exact_wires=cells.model.wires and cells.model.exact,
        crosstalk=of_law(6, unit="1") if cells.model.crosstalk else None,
        drift_spread=noise["drift_spread"] if DRIFT_SPREAD in climbed.noise.active else None,
        write_log_age=np.array(mean_log_age),
        wire_uncertainty=cells.unseen,
        residual=residual,
    )


def _at_age_zero(array: ArrayParameters) -> ArrayParameters:
    """The same products of gains and conductances, with the gains that belong to the cells at age zero."""
    seen = seen_at_age_zero(array)
    error_s = array.write_conductance_error_s
    return replace(
        array,
        gain=Estimate(array.gain.value / seen, array.gain.error / seen, array.gain.unit),
        write_conductance_s=array.write_conductance_s * seen,
        write_conductance_error_s=None if error_s is None else error_s * seen,
    )


def _shared_estimate(climbed: ColumnsClimbed, index: int, unit: str) -> Estimate:
    value = climbed.state.shared[index].numpy()
    if index in climbed.free:
        error = climbed.factor.shared_error()[climbed.free.index(index)].numpy()
        if SHARED[index] == "drift":
            # The data weigh the cells of a column, whose exponents differ, as they happen to be driven.
            rows = climbed.state.conductance_s.shape[1]
            error = np.hypot(error, np.sqrt(climbed.noise.terms.value[DRIFT_SPREAD].numpy() / rows))
    else:
        # Left out by the ladder: zero, and how large it could have been; infinite where nobody looked.
        error = climbed.tried_error.get(index, np.full_like(value, np.inf))
    return Estimate(value, error, unit)


def _noise_estimate(climbed: ColumnsClimbed, term: int) -> Estimate:
    value = climbed.noise.terms.value[term].numpy()
    active = climbed.noise.active
    error = climbed.noise.error[active.index(term)].numpy() if term in active else np.full_like(value, np.inf)
    return Estimate(value, error, UNITS[term])


def _posterior(climbed: ColumnsClimbed, cells: CellFit) -> Posterior:
    own = climbed.factor.inverse.double().diagonal(dim1=2, dim2=3).clamp(min=0.0)
    return Posterior(
        column_names=tuple(SHARED[index] for index in climbed.free),
        column_covariance=climbed.factor.covariance.numpy(),
        coupling=-climbed.factor.coupling.transpose(1, 2).numpy(),
        cell_error_s=torch.sqrt(own).transpose(1, 2).numpy(),
        noise_names=tuple(TERMS[term] for term in climbed.noise.active),
        noise_covariance=climbed.noise.covariance.numpy(),
        law_names=tuple(LAW[index] for index in cells.model.law),
        law_covariance=cells.law_covariance,
    )


def _lost_in_wires(cells: CellFit, target_s: torch.Tensor) -> tuple[str, ...]:
    """A note where wires take so much that their first order is no longer good for their resistance."""
    if not cells.model.wires or cells.model.exact:
        return ()
    passed = first_order_transfer(target_s, float(cells.law[4]), float(cells.law[5])) / target_s
    lost = float(1.0 - passed.mean())
    if lost < 0.05:
        return ()
    return (
        f"wires take {100 * lost:.0f} % of the conductances: to first order their resistance comes out too low "
        "(in Python, a fit with `Ladder(exact_wires=True)` solves the network instead)",
    )


def _unseen_wires(cells: CellFit) -> tuple[str, ...]:
    """A note where gains are less certain by wires that the data do not show."""
    if cells.unseen is None or cells.model.wires:
        return ()
    known = cells.unseen[np.isfinite(cells.unseen)]
    typical = float(np.median(known)) if known.size else 0.0
    if typical < _TELL_UNSEEN:
        return ()
    return (
        f"wires are not seen, but may be there: gains and conductances together may be {100 * typical:.1f} % higher or "
        "lower (patterns in which whole rows and columns are high or low would show them)",
    )


def _in_order(verdicts: tuple[RungVerdict, ...]) -> tuple[RungVerdict, ...]:
    """In the order of the ladder, in which not all rungs can be fitted."""
    order = Ladder().rungs
    return tuple(sorted(verdicts, key=lambda verdict: order.index(verdict.rung)))
