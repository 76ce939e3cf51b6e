"""Calibration against the hidden truth of a chip that shares no code with it."""

import asyncio
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.plans.mvm import MvmCalibrationPlan
from labrig.testing.in_memory import measure_dataset
from labrig_calibration.dataset import DatasetError, MvmDataset, join
from labrig_calibration.diagnostics import predict_recorded
from labrig_calibration.fit import CalibrationError, chip_parameters, fit
from labrig_calibration.result import CalibrationResult
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings, SimulatedArray
from labrig_drivers.mock.clock import CommandedClock
from labrig_surrogates.parameters import Estimate

SETTINGS = ChipSettings(seed=5, arrays=1, rows=24, columns=20, adc_full_scale_a=80e-6, compression_a=60e-6)


class _SlowClock(CommandedClock):
    """Lets a second pass with every programming or batch, so that drift can be seen."""

    def spend(self, duration_s: float) -> None:
        self.advance(duration_s + 1.0)


@dataclass(frozen=True)
class Calibrated:
    fitted: CalibrationResult
    truth: SimulatedArray
    dataset: MvmDataset


def calibrate(settings: ChipSettings, seed: int = 0) -> Calibrated:
    async def measure() -> tuple[MvmDataset, SimulatedArray]:
        async with MockBoard(settings, clock=_SlowClock()) as board:
            return (await measure_dataset(board, MvmCalibrationPlan(seed=seed)))[0], board.hidden_array(0)

    dataset, truth = asyncio.run(measure())
    return Calibrated(fit(dataset, rng=np.random.default_rng(0)), truth, dataset)


@pytest.fixture(scope="module")
def calibrated() -> Calibrated:
    return calibrate(SETTINGS)


def z_scores(estimate: Estimate, truth: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((estimate.value - truth) / estimate.error)


def test_nothing_but_noise_is_left_on_unseen_outputs(calibrated: Calibrated) -> None:
    diagnostics = calibrated.fitted.diagnostics
    assert 0.97 < diagnostics.error_over_noise < 1.05
    assert 0.88 < diagnostics.coverage_90 < 0.92
    assert abs(diagnostics.z_mean) < 0.03
    # The data sheet's chip is the negative control: it must be far off.
    assert (diagnostics.nominal_rms_a > 5.0 * diagnostics.noise_rms_a).all()
    assert diagnostics.divergence_nominal.p_value < 0.01
    assert diagnostics.divergence.raw < 0.1 * diagnostics.divergence_nominal.raw
    assert diagnostics.divergence.p_value > 0.05


def test_column_parameters_are_found_within_their_errors(calibrated: Calibrated) -> None:
    parameters, truth = calibrated.fitted.array_parameters, calibrated.truth
    for scores in (
        z_scores(parameters.offset, truth.offset_a),
        z_scores(parameters.compression, 1.0 / truth.compression_a),
    ):
        assert 0.5 < np.sqrt((scores**2).mean()) < 1.6
    assert np.corrcoef(parameters.gain.value, truth.gain)[0, 1] > 0.9
    mean_exponent = truth.drift_exponent.mean()
    assert parameters.drift.value.mean() == pytest.approx(mean_exponent, rel=0.15)


def test_noise_terms_are_found(calibrated: Calibrated) -> None:
    parameters = calibrated.fitted.array_parameters
    amplifier_a = np.sqrt(parameters.amplifier_noise.value.mean())
    assert amplifier_a == pytest.approx(SETTINGS.amplifier_noise_a, rel=0.05)
    assert parameters.shot_noise.value.mean() == pytest.approx(SETTINGS.shot_noise_a, rel=0.25)
    relative = np.sqrt(parameters.conductance_noise.value.mean())
    assert relative == pytest.approx(SETTINGS.conductance_noise, rel=0.1)


def test_stuck_cells_are_named(calibrated: Calibrated) -> None:
    truth = calibrated.truth
    stuck = truth.stuck_low | truth.stuck_high
    found = calibrated.fitted.array_parameters.stuck
    assert stuck.sum() >= 5
    # A cell whose targets happened to be alike in all writes cannot be told apart.
    assert (stuck & found).sum() >= 0.8 * stuck.sum()
    assert (found & ~stuck).sum() <= 1


def test_programming_error_is_found(calibrated: Calibrated) -> None:
    p0, p1, p2 = calibrated.fitted.array_parameters.programming.value
    for relative, published in ((0.25, 0.6814), (0.5, 0.9527), (0.9, 1.0816)):
        fitted = p0 + p1 * relative + p2 * relative**2
        assert fitted == pytest.approx(SETTINGS.programming_scale * published / 25.0, rel=0.25)


def test_a_surrogate_of_another_chip_predicts_badly(calibrated: Calibrated) -> None:
    other = calibrate(replace(SETTINGS, seed=6))
    wrong = predict_recorded(other.fitted.array_parameters, calibrated.dataset)
    z = (calibrated.dataset.current_a - wrong.mean_a) / wrong.sigma_a
    assert np.std(z[~calibrated.dataset.saturated]) > 3.0
    with pytest.raises(CalibrationError, match=r"array 0 was fitted more than once; .* \(SIM-0005, SIM-0006\)"):
        chip_parameters([calibrated.fitted, other.fitted], {})


def test_shuffled_outputs_are_refused(calibrated: Calibrated) -> None:
    dataset = calibrated.dataset
    order = np.random.default_rng(0).permutation(len(dataset))
    shuffled = replace(dataset, current_a=dataset.current_a[order], saturated=dataset.saturated[order])
    with pytest.raises(CalibrationError, match=r"correlation of 0.*are their rows of the same MVMs"):
        fit(shuffled, rng=np.random.default_rng(0))


def test_hopeless_data_are_refused_with_every_reason(calibrated: Calibrated) -> None:
    dataset = calibrated.dataset
    few = dataset.select((dataset.pattern == 0) & (np.arange(len(dataset)) < 30) & (dataset.voltage_v[:, 0] != 0))
    with pytest.raises(CalibrationError) as caught:
        fit(few, rng=np.random.default_rng(0))
    message = str(caught.value)
    assert "write 1 has 0 MVMs" in message
    assert "no zero input vector" in message
    same = replace(dataset, target_conductance_s=np.repeat(dataset.target_conductance_s[:1], 4, axis=0))
    with pytest.raises(CalibrationError, match="two different programmed patterns"):
        fit(same, rng=np.random.default_rng(0))
    current_a = dataset.current_a.copy()
    current_a[3, 2] = np.nan
    with pytest.raises(DatasetError, match=r"time_s has shape .*; current_a has 1 value that is not finite"):
        replace(dataset, current_a=current_a, time_s=dataset.time_s[:-1])


def test_joined_recordings_fit_as_one(calibrated: Calibrated) -> None:
    dataset = calibrated.dataset
    parts = [dataset.select(dataset.pattern < 2), dataset.select(dataset.pattern >= 2)]
    halves = [
        replace(
            parts[0], target_conductance_s=dataset.target_conductance_s[:2], programmed_at_s=dataset.programmed_at_s[:2]
        ),
        replace(
            parts[1],
            target_conductance_s=dataset.target_conductance_s[2:],
            programmed_at_s=dataset.programmed_at_s[2:],
            pattern=parts[1].pattern - 2,
        ),
    ]
    joined = join(halves)
    order = np.argsort(dataset.pattern, kind="stable")
    np.testing.assert_array_equal(joined.current_a, dataset.current_a[order])
    np.testing.assert_array_equal(joined.age_s, dataset.age_s[order])
    with pytest.raises(DatasetError, match="different arrays"):
        join([dataset, replace(dataset, chip_id="SIM-9999")])


def test_writes_that_an_interruption_left_short_are_left_out(calibrated: Calibrated) -> None:
    dataset = calibrated.dataset
    third = np.flatnonzero(dataset.pattern == 2)
    short = dataset.select(~np.isin(np.arange(len(dataset)), third[20:]))
    reduced = short.without_sparse_writes(100)
    assert reduced.writes == 3
    assert len(reduced) == len(short) - 20
    np.testing.assert_array_equal(reduced.target_conductance_s, dataset.target_conductance_s[[0, 1, 3]])
    np.testing.assert_array_equal(reduced.age_s, short.age_s[short.pattern != 2])
    assert dataset.without_sparse_writes(100) is dataset
    assert fit(reduced, rng=np.random.default_rng(0)).diagnostics.error_over_noise < 1.1
