"""Bad recordings: a clear refusal that names every fault, or a fit that says what it could not know."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_chips import MeasuredChip, draw_settings, measure, true_ladder, z_scores

from labrig_calibration.checks import smallest_write
from labrig_calibration.dataset import DatasetError, MvmDataset
from labrig_calibration.fit import CalibrationError, fit
from labrig_calibration.ladder import Ladder
from labrig_calibration.result import CalibrationResult
from labrig_drivers.mock.chip import ChipSettings

SETTINGS = ChipSettings(
    seed=11,
    arrays=1,
    rows=12,
    columns=10,
    adc_full_scale_a=36e-6,
    compression_a=30e-6,
    wire_ohm=0.0,
    stuck_fraction=0.0,
    drift_exponent=0.0,
    drift_exponent_sigma=0.0,
)


@pytest.fixture(scope="module")
def chip() -> MeasuredChip:
    return measure(SETTINGS, np.random.default_rng(0))


def fitted(dataset: MvmDataset, ladder: Ladder | None = None) -> CalibrationResult:
    return fit(dataset, ladder=ladder or true_ladder(SETTINGS), rng=np.random.default_rng(0))


def refusal(dataset: MvmDataset) -> str:
    with pytest.raises(CalibrationError) as caught:
        fitted(dataset)
    return str(caught.value)


def test_numbers_that_are_not_finite_are_refused_where_they_are(chip: MeasuredChip) -> None:
    current_a = chip.dataset.current_a.copy()
    current_a[5, 3] = np.nan
    voltage_v = chip.dataset.voltage_v.copy()
    voltage_v[7, :2] = np.inf
    with pytest.raises(DatasetError, match="voltage_v has 2 values that are not finite; current_a has 1 value that is"):
        replace(chip.dataset, current_a=current_a, voltage_v=voltage_v)


def test_shapes_and_writes_that_do_not_fit_are_told_with_what_was_found(chip: MeasuredChip) -> None:
    with pytest.raises(DatasetError) as caught:
        replace(chip.dataset, voltage_v=chip.dataset.voltage_v[0], current_a=chip.dataset.current_a[0])
    rows, columns = chip.dataset.rows, chip.dataset.columns
    assert f"voltage_v has shape [{rows}], expected [N, rows]" in str(caught.value)
    assert f"current_a has shape [{columns}], expected [N, columns]" in str(caught.value)
    assert "target_conductance_s" not in str(caught.value)
    with pytest.raises(DatasetError, match="pattern names writes 4 to 7, and those of target_conductance_s are 0 to 3"):
        replace(chip.dataset, pattern=chip.dataset.pattern + 4)


def test_saturated_columns_and_missing_zeros_are_named_together(chip: MeasuredChip) -> None:
    dataset = chip.dataset
    saturated = dataset.saturated.copy()
    saturated[:, [2, 7]] = True
    driven = np.abs(dataset.voltage_v).max(axis=1) > 0
    message = refusal(replace(dataset, saturated=saturated).select(driven))
    assert "columns [2, 7] saturate in more than half" in message
    assert "no zero input vector" in message


def test_one_pattern_is_refused(chip: MeasuredChip) -> None:
    dataset = chip.dataset
    same = replace(dataset, target_conductance_s=np.repeat(dataset.target_conductance_s[:1], 4, axis=0))
    assert "at least two different programmed patterns" in refusal(same)


@pytest.mark.parametrize(
    ("name", "factor", "expected"),
    [
        ("current_a", 1e3, r"outputs are 8\d\d times what inputs and targets predict"),
        ("current_a", 1e-3, "outputs are 0.0008"),
        ("target_conductance_s", 1e3, "outputs are 0.0008"),
        ("target_conductance_s", 1e-3, r"outputs are 8\d\d times what inputs and targets predict"),
        ("voltage_v", 1e3, "voltage_v reaches 300 V where the DAC ends at 0.3 V; is it in V"),
    ],
)
def test_units_that_are_wrong_by_a_thousand(chip: MeasuredChip, name: str, factor: float, expected: str) -> None:
    wrong = replace(chip.dataset, **{name: factor * getattr(chip.dataset, name)})
    with pytest.raises(CalibrationError, match=expected):
        fitted(wrong)


def test_ten_rows_are_refused_with_what_is_needed(chip: MeasuredChip) -> None:
    message = refusal(chip.dataset.select(np.arange(len(chip.dataset)) < 10))
    assert f"write 0 has 10 MVMs, at least {smallest_write(12)} are needed for 12 rows" in message
    assert "write 3 has 0 MVMs" in message


def test_rows_never_driven_and_clocks_that_disagree_are_refused(chip: MeasuredChip) -> None:
    voltage_v = chip.dataset.voltage_v.copy()
    voltage_v[:, 4] = 0.0
    message = refusal(replace(chip.dataset, voltage_v=voltage_v, programmed_at_s=chip.dataset.programmed_at_s + 1e4))
    assert "row 4 is never driven, so nothing is known of its cells" in message
    assert "were read before their write was done" in message


def test_a_dead_column_is_named_and_spoils_no_other(chip: MeasuredChip) -> None:
    current_a = chip.dataset.current_a.copy()
    lsb_a = chip.dataset.converters.adc_lsb_a[3]
    current_a[:, 3] = 2.0 * lsb_a
    result = fitted(replace(chip.dataset, current_a=current_a))
    assert any("column 3 is dead (constant outputs): nothing but its offset is known" in note for note in result.notes)
    parameters = result.parameters
    assert parameters["gain"].value[3] == 0.0
    assert parameters["offset"].value[3] == pytest.approx(2.0 * lsb_a)
    assert np.isinf(parameters["compression"].error[3])
    scores = z_scores(chip, result)
    assert np.nanmax(np.abs(np.delete(scores["offset"], 3))) < 4.0
    mean_a, _ = result.predict(chip.dataset.voltage_v[:5], 0)
    np.testing.assert_allclose(mean_a[:, 3], 2.0 * lsb_a, rtol=1e-6)
    everything_dead = replace(chip.dataset, current_a=np.zeros_like(current_a))
    assert "no column answers" in refusal(everything_dead)


def test_of_a_column_written_with_zeros_the_outputs_are_known_and_the_gain_is_not(chip: MeasuredChip) -> None:
    target_s = chip.dataset.target_conductance_s.copy()
    target_s[:, :, 4] = 0.0
    result = fitted(replace(chip.dataset, target_conductance_s=target_s), Ladder())
    assert any("column 4 was written with zeros only" in note for note in result.notes)
    assert not any("dead" in note for note in result.notes)
    for name in ("gain", "write_conductance"):
        unknown = np.isinf(result.parameters[name].error)
        assert unknown[..., 4].all()
        assert not np.delete(unknown, 4, axis=-1).any()
    mean_a, std_a = result.predict(chip.dataset.voltage_v, chip.dataset.pattern, age_s=chip.dataset.age_s)
    z = (chip.dataset.current_a - mean_a) / std_a
    assert 0.9 < z[:, 4].std() < 1.1
    drawn = result.sample_chip(torch.Generator().manual_seed(0))
    assert 0.5 < abs(drawn.gain.value[4]) < 2.0


def test_wrong_rows_are_flagged_counted_and_change_nothing(chip: MeasuredChip) -> None:
    clean = fitted(chip.dataset)
    assert clean.flagged.sum() == 0
    assert clean.outliers <= 2
    rng = np.random.default_rng(3)
    bad = rng.choice(len(chip.dataset), 40, replace=False)
    current_a = chip.dataset.current_a.copy()
    # Half of them from an open cable, half from another input; and single glitches elsewhere.
    current_a[bad[:20]] = 0.0
    current_a[bad[20:]] = rng.uniform(-30e-6, 30e-6, (20, 10))
    others = np.setdiff1d(np.arange(len(chip.dataset)), bad)
    glitched = rng.choice(others, 60, replace=False)
    current_a[glitched, rng.integers(0, 10, 60)] = 35e-6
    result = fitted(replace(chip.dataset, current_a=current_a))
    # Rows whose true outputs are near zero cannot be told from an open cable, and need not be.
    truly_bad = bad[np.abs(chip.dataset.current_a[bad] - current_a[bad]).max(axis=1) > 4e-6]
    assert result.flagged[truly_bad].mean() > 0.95
    assert result.flagged[others].sum() <= 1
    assert 55 <= result.outliers <= 65
    for name in ("offset", "compression", "gain", "amplifier_noise"):
        one, other = clean.parameters[name], result.parameters[name]
        assert np.abs((one.value - other.value) / one.error).max() < 1.5, name
    dropping_nothing = np.abs(current_a - chip.dataset.current_a).max(axis=1) > 0
    assert dropping_nothing.sum() == 100


def test_nothing_looks_wrong_on_a_large_array_where_nothing_is() -> None:
    # A fit that had not come to rest took 334 of these MVMs, and thousands of outputs of others, for wrong.
    rng = np.random.default_rng([78, 0])
    chip = measure(draw_settings(rng, (64,)), rng)
    result = fit(chip.dataset, ladder=true_ladder(chip.settings), rng=rng)
    assert not result.flagged.any()
    assert result.outliers <= 3


def test_clipped_outputs_count_as_censored() -> None:
    # A third of the range of a large ADC is cut off: the curve's bend lies where it clips.
    settings = replace(SETTINGS, adc_full_scale_a=22e-6, compression_a=40e-6)
    roomy = replace(settings, adc_full_scale_a=36e-6)
    rng = np.random.default_rng(1)
    chip = measure(roomy, rng)
    limit_a = 22e-6
    lsb_a = chip.dataset.converters.adc_lsb_a
    low, high = -np.floor(limit_a / lsb_a) * lsb_a, (np.floor(limit_a / lsb_a) - 1) * lsb_a
    current_a = np.clip(chip.dataset.current_a, low, high)
    saturated = (current_a == low) | (current_a == high)
    assert 0.005 < saturated.mean() < 0.4
    converters = replace(chip.dataset.converters, adc_full_scale_a=high + lsb_a)
    # The steps stay what they were: only the range is narrower.
    converters = replace(converters, adc_bits=0)
    clipped = replace(chip.dataset, current_a=current_a, saturated=saturated, converters=converters)
    result = fitted(clipped)
    scores = z_scores(chip, result)
    for name in ("offset", "compression", "gain"):
        assert np.sqrt(np.nanmean(scores[name] ** 2)) < 1.7, name


def test_arrays_alone_are_enough(chip: MeasuredChip) -> None:
    dataset = chip.dataset
    bare = MvmDataset(
        dataset.voltage_v, dataset.current_a, dataset.pattern, dataset.target_conductance_s, dataset.time_s
    )
    result = fitted(bare)
    assert any("no ADC was described" in note for note in result.notes)
    assert 0.9 < result.diagnostics.error_over_noise < 1.1
    whole = fitted(dataset)
    # The DAC's steps are inputs that nobody knew of now; gains still agree to their errors.
    difference = (result.parameters["gain"].value - whole.parameters["gain"].value) / whole.parameters["gain"].error
    assert np.abs(difference).max() < 1.0
