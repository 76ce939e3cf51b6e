"""What changed between two calibrations: nothing where nothing did, at the stated rate, and what did where it did."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from labrig.plans.mvm import MvmCalibrationPlan
from labrig.reports.changes import change_json, change_rows, change_sentences
from labrig.testing.in_memory import measure_dataset
from labrig_calibration.carried_over import carried_over
from labrig_calibration.changes import ComparisonError, compare_chips
from labrig_calibration.fit import fit
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate

ROWS, COLUMNS = 12, 10
FloatArray = NDArray[np.float64]


def drawn(rng: np.random.Generator, truth: np.random.Generator) -> ArrayParameters:
    """A fit of the chip that `truth` stands for: its parameters, each off by a normal error of the stated size."""

    def estimate(centre: float, spread: float, error: float, unit: str, *shape: int) -> Estimate:
        value = truth.normal(centre, spread, shape) + rng.normal(0.0, error, shape)
        return Estimate(value, np.full(shape, error), unit)

    slope = truth.normal(1.0, 0.1, (ROWS, COLUMNS))
    # The gauge of a fit: what all cells of a column have in common is its gain.
    noise = rng.normal(0.0, 0.03, slope.shape)
    noise -= noise.mean(axis=0)
    return ArrayParameters(
        array=0,
        gain=estimate(1.0, 0.08, 0.004, "1", COLUMNS),
        offset=estimate(0.0, 2e-6, 1e-8, "A", COLUMNS),
        compression=estimate(7e3, 1e3, 20.0, "1/A", COLUMNS),
        drift=estimate(0.03, 0.003, 0.001, "1", COLUMNS),
        amplifier_noise=estimate(4e-14, 0.0, 1e-15, "A^2", COLUMNS),
        shot_noise=estimate(1e-9, 0.0, 1e-10, "A", COLUMNS),
        conductance_noise=estimate(2e-4, 0.0, 1e-5, "1", COLUMNS),
        programming=estimate(0.02, 0.0, 1e-3, "1", 3),
        cell_slope=slope / slope.mean(axis=0) + noise,
        cell_slope_error=np.full(slope.shape, 0.03),
        cell_intercept_s=np.zeros(slope.shape),
        stuck=np.zeros(slope.shape, dtype=np.bool_),
        write_conductance_s=truth.uniform(4e-6, 5e-5, (2, ROWS, COLUMNS)),
        drift_reference_s=1.0,
        converters=ConverterRange(0.3, 0.002, np.full(COLUMNS, 3e-7), -512, 511, 4e-6, 5e-5),
    )


def chip(array: ArrayParameters, name: str = "A") -> ChipParameters:
    return ChipParameters(name, {0: array}, {})


def pair(seed: int) -> tuple[ArrayParameters, ArrayParameters]:
    """Two fits of one chip."""
    first, second = (
        drawn(np.random.default_rng([seed, fit_number]), np.random.default_rng([seed, 99])) for fit_number in (0, 1)
    )
    return first, second


def test_an_unchanged_chip_is_called_changed_no_more_often_than_stated() -> None:
    # A high rate, so that alarms come at all; the allowance for errors that are a little small makes it rarer.
    alarms = sum(
        bool((one := compare_chips(chip(b), chip(a), false_alarm_rate=0.3)).significant(one.arrays[0]))
        for a, b in map(pair, range(150))
    )
    assert alarms <= stats.binom(150, 0.3).ppf(0.999)
    # Without the allowance Bonferroni's bound is nearly tight, so the count says that the questions are the right ones.
    assert not any(compare_chips(chip(b), chip(a)).changed for a, b in map(pair, range(40)))


def test_errors_that_are_stated_too_small_raise_alarms() -> None:
    def bold(array: ArrayParameters) -> ArrayParameters:
        return replace(array, gain=Estimate(array.gain.value, array.gain.error / 3.0, "1"))

    assert sum(compare_chips(chip(bold(b)), chip(bold(a))).changed for a, b in map(pair, range(20))) > 12


def test_a_common_shift_below_every_single_error_is_found() -> None:
    a, b = pair(1)
    moved = replace(b, offset=Estimate(b.offset.value + 2.6e-8, b.offset.error, "A"))
    change = compare_chips(chip(moved), chip(a))
    (found,) = change.significant(change.arrays[0])
    assert found.name == "offset"
    assert found.adjusted["shift"] < 0.01 < found.adjusted["worst"]
    assert found.shift == pytest.approx(2.6e-8, abs=3.0 * found.shift_error)
    assert "column offset: all moved together" in change_sentences(change)[0]


def test_one_column_and_one_cell_are_named() -> None:
    a, b = pair(2)
    gain, slope = b.gain.value.copy(), b.cell_slope.copy()
    gain[7] += 0.06
    slope[3, 4] -= 0.5
    change = compare_chips(chip(replace(b, gain=Estimate(gain, b.gain.error, "1"), cell_slope=slope)), chip(a))
    found = {one.name: one for one in change.significant(change.arrays[0])}
    assert found["response"].worst[0].index == (7,)
    assert found["cell_response"].worst[0].index == (3, 4)
    assert found["cell_response"].worst[0].z < -5.0
    sentences = " ".join(change_sentences(change))
    assert "most in column 7" in sentences
    assert "most in cell (3, 4)" in sentences


def test_terms_and_lines_are_not_called_columns() -> None:
    a, b = pair(5)
    moved = b.programming.value + np.array([0.0, 0.0, 0.1])
    ohm = [Estimate(np.array(one), np.full(2, 0.01), "ohm") for one in ([1.0, 1.0], [1.0, 2.0])]
    before = replace(a, wire_ohm=ohm[0])
    after = replace(b, wire_ohm=ohm[1], programming=replace(b.programming, value=moved))
    rows = {row.name: row.worst for row in change_rows(compare_chips(chip(after), chip(before)))}
    assert rows["programming"].startswith("quadratic term (+")
    assert rows["wire_ohm"].startswith("bit line (+")


def test_a_current_that_falls_is_shown_as_falling_although_its_reciprocal_rises() -> None:
    a, b = pair(3)
    moved = Estimate(1.1 * a.compression.value, a.compression.error, "1/A")
    change = compare_chips(chip(replace(b, compression=moved)), chip(a))
    (row,) = [row for row in change_rows(change) if row.name == "compression"]
    assert row.changed
    assert row.shift.startswith("-")
    assert row.before.endswith("µA")


def test_stuck_cells_are_listed_and_do_not_count_as_cells_that_moved() -> None:
    a, b = pair(4)
    stuck = b.stuck.copy()
    stuck[2, 5] = True
    change = compare_chips(chip(replace(b, stuck=stuck, cell_slope=np.where(stuck, 0.0, b.cell_slope))), chip(a))
    assert change.arrays[0].newly_stuck == ((2, 5),)
    assert change.changed
    cells = next(one for one in change.arrays[0].families if one.name == "cell_response")
    assert np.isnan(cells.z[2, 5])
    assert "stuck since: 1, (row, column) (2, 5)" in " ".join(change_sentences(change))


def test_another_chip_is_refused_by_its_name_and_flagged_by_its_pattern() -> None:
    a, b = pair(5)
    with pytest.raises(ComparisonError, match="one is of chip B, the other of chip A"):
        compare_chips(chip(b, "B"), chip(a))
    smaller = replace(a, array=0, cell_slope=a.cell_slope[:4])
    with pytest.raises(ComparisonError, match="array 0 is 12 x 10 and was 4 x 10"):
        compare_chips(chip(b), chip(smaller))
    with pytest.raises(ComparisonError, match="none in common"):
        compare_chips(chip(b), ChipParameters("A", {3: a}, {}))
    for seed in range(20):
        first, second = pair(seed)
        other, _ = pair(seed + 500)
        assert not compare_chips(chip(second), chip(first)).looks_like_another_chip
        swapped = compare_chips(chip(other), chip(first))
        assert swapped.looks_like_another_chip
        assert change_sentences(swapped)[0].startswith("This looks like another chip under the name A")


def test_what_means_something_else_in_the_other_model_is_not_compared() -> None:
    a, b = pair(6)
    ohm = Estimate(np.array([1.5, 1.5]), np.array([0.1, 0.1]), "ohm")
    # Wires take some of every current; a fit that has them finds gains that are larger by as much.
    reached = 0.97
    wired = replace(b, wire_ohm=ohm, skew=Estimate(np.full(COLUMNS, 0.1), np.full(COLUMNS, 0.01), "1"))
    change = compare_chips(chip(wired), chip(a))
    left_out = change.arrays[0].left_out
    assert {"wire_ohm", "skew", "compression"} <= set(left_out)
    names = {one.name for one in change.arrays[0].families}
    assert not names & {"wire_ohm", "skew", "compression", "gain"}
    assert "not compared: " in " ".join(change_sentences(change))
    response = next(one for one in change.arrays[0].families if one.name == "response")
    assert reached < response.new_median / response.old_median < 1.0


def test_json_holds_what_was_found() -> None:
    a, b = pair(7)
    document = change_json(compare_chips(chip(b), chip(a)))
    assert document["changed"] is False
    assert document["false_alarm_rate"] == 0.01
    assert "Nothing changed" in str(document["sentences"])


def measured_twice(settings: ChipSettings) -> list[ArrayParameters]:
    async def measure() -> list[ArrayParameters]:
        async with MockBoard(settings) as board:
            datasets = [(await measure_dataset(board, MvmCalibrationPlan(seed=seed)))[0] for seed in (1, 2)]
        return [fit(one, rng=np.random.default_rng(0)).array_parameters for one in datasets]

    return asyncio.run(measure())


def settings(seed: int) -> ChipSettings:
    rng = np.random.default_rng(seed)
    return ChipSettings(
        seed=seed,
        arrays=1,
        rows=12,
        columns=int(rng.choice([8, 12])),
        adc_full_scale_a=float(rng.uniform(50e-6, 120e-6)),
        compression_a=float(rng.uniform(40e-6, 150e-6)),
        programming_scale=float(rng.uniform(0.3, 1.0)),
        mismatch_sigma=float(rng.uniform(0.02, 0.12)),
    )


def test_a_chip_recorded_twice_has_not_changed_and_a_worn_one_has() -> None:
    """The whole way: hidden truth, recording, fit, comparison."""
    first, second = measured_twice(settings(1))
    change = compare_chips(chip(second), chip(first))
    assert change.significant(change.arrays[0]) == []
    assert not change.looks_like_another_chip

    async def worn() -> ArrayParameters:
        # Amplifiers of the same chip that grew noisier: what devices it has hangs on the seed alone.
        async with MockBoard(replace(settings(1), amplifier_noise_a=0.3e-6)) as board:
            dataset = (await measure_dataset(board, MvmCalibrationPlan(seed=3)))[0]
        fitted = fit(dataset, rng=np.random.default_rng(0)).array_parameters
        errors = carried_over(fitted, first, dataset)
        assert errors.ratio == pytest.approx(1.0, abs=0.2)  # its means are as they were
        return fitted

    change = compare_chips(chip(asyncio.run(worn())), chip(first))
    assert "amplifier_noise" in {one.name for one in change.significant(change.arrays[0])}


@pytest.mark.nightly
def test_many_chips_recorded_twice_raise_alarms_at_the_stated_rate() -> None:
    pairs = [measured_twice(settings(seed)) for seed in range(1000, 1100)]
    changes = [compare_chips(chip(second), chip(first)) for first, second in pairs]
    alarms = sum(bool(one.significant(one.arrays[0])) for one in changes)
    assert alarms <= stats.binom(100, 0.01).ppf(0.999)
    assert not any(one.looks_like_another_chip for one in changes)
    assert sum(bool(one.arrays[0].newly_stuck or one.arrays[0].recovered) for one in changes) <= 2
