"""The search for counts: inside its budget, better than others, small for a precision, honest at limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.dataset import Converters
from labrig_calibration.optimal_design import Search, Task
from labrig_calibration.predictions import GOALS, Analysis, analyse
from labrig_calibration.stimulus import StimulusCounts, StimulusKind, design_mvm_calibration

SIZE = 16
LIMITS = Converters(-0.3, 0.3, 8, 10, np.full(SIZE, 4e-5), 4e-6, 5e-5)
CHIP = AssumedChip.from_data_sheet(LIMITS)


def task(precision: float = 0.03, **changes: object) -> Task:
    usual = Task(SIZE, SIZE, LIMITS, CHIP, 1e-3, dict.fromkeys(GOALS, precision), max_writes=16)
    return replace(usual, **changes)  # type: ignore[arg-type]


def exact(writes: int, counts: StimulusCounts) -> Analysis:
    """The prediction vector by vector."""
    design = design_mvm_calibration(SIZE, SIZE, LIMITS, writes=writes, counts=counts)
    return analyse(design, LIMITS, CHIP, mvm_s=1e-3)


def test_weighed_vectors_predict_what_drawn_ones_do() -> None:
    counts = StimulusCounts(random=300, hadamard_repeats=2)
    weighed, drawn = Search(task()).weighed(counts, 4), exact(4, counts)
    for name in (*GOALS, "amplifier_noise", "shot_noise", "conductance_noise", "mismatch"):
        assert weighed.predicted[name].relative == pytest.approx(drawn.predicted[name].relative, rel=0.15), name


def test_a_budget_is_kept_and_well_spent() -> None:
    search = Search(task())
    found = search.within(4000)
    assert found.mvms(SIZE) <= 4000
    assert found.mvms(SIZE) > 3600
    worst = exact(found.writes, found.counts).worst(GOALS).relative
    # Other ways to spend as much: the usual mix with fewer of each, and mixes drawn at random.
    rng = np.random.default_rng(0)
    shares = [np.array([0.02, 0.2, 0.15, 0.15, 0.2, 0.25]), *rng.dirichlet(np.ones(6), 8)]
    for share in shares:
        for writes in (4, found.writes):
            zero, one_hot, sparse, ladder, random, activation = share * 4000 / writes
            counts = StimulusCounts(
                zero=8 + int(zero),
                one_hot_repeats=1 + int(one_hot / 2 / SIZE),
                sparse=int(sparse),
                ladder_patterns=1 + int(ladder / 32),
                random=int(random),
                activation=int(activation),
                repeats=2,
                hadamard_repeats=0,
            )
            assert exact(writes, counts).worst(GOALS).relative > 0.97 * worst


def test_a_precision_is_reached_and_not_with_far_fewer() -> None:
    search = Search(task(0.03))
    found = search.for_precision()
    assert found.limits == {}
    assert exact(found.writes, found.counts).worst(GOALS).relative < 1.05 * 0.03
    least = search.within(int(0.8 * found.mvms(SIZE)))
    assert least.analysis.worst(GOALS).relative > 0.03


def test_every_kind_that_guards_against_what_the_model_leaves_out_is_there() -> None:
    found = Search(task(0.02)).for_precision()
    kinds = found.counts.by_kind(SIZE)
    for kind in (StimulusKind.ZERO, StimulusKind.ONE_HOT, StimulusKind.LADDER, StimulusKind.REPEAT):
        assert kinds[kind] > 0
    assert kinds[StimulusKind.ACTIVATION] >= 0.045 * found.counts.total(SIZE)
    assert kinds[StimulusKind.SPARSE] >= 0.03 * found.counts.total(SIZE)


def test_more_precision_costs_more() -> None:
    sizes = [Search(task(precision)).for_precision().mvms(SIZE) for precision in (0.1, 0.04)]
    assert sizes[0] < sizes[1]


def test_a_gain_that_programming_errors_hide_is_said_to_be_out_of_reach() -> None:
    few = task(goals={"gain": 1e-4}, max_writes=4)
    found = Search(few).for_precision()
    # Only programming errors are left: 3 % of the highest conductance over all cells and writes.
    mean_square = LIMITS.conductance_max_s**2 * (0.54**2 + 0.46**2 / 3.0)
    closed_form = 0.03 * LIMITS.conductance_max_s / np.sqrt(4 * SIZE * mean_square)
    assert found.writes == 4
    assert found.limits["gain"] == pytest.approx(closed_form, rel=0.35)
    assert found.analysis.predicted["gain"].relative < 1.15 * found.limits["gain"]


def test_a_limit_of_mvms_is_said_to_be_one() -> None:
    found = Search(task(goals={"noise": 1e-3}, max_mvms=3000, max_writes=64)).for_precision()
    assert found.mvms(SIZE) <= 3000
    assert found.limits["noise"] > 5e-3
    with pytest.raises(ValueError, match="fewer than"):
        Search(task()).within(50)


def test_a_coarse_adc_bounds_what_zeros_tell() -> None:
    """Where the step is larger than the noise, reading zero again and again says no more about the offset."""
    quiet = CHIP.with_values({"amplifier_noise_a2": (0.05 * float(LIMITS.adc_lsb_a[0])) ** 2})
    search = Search(task(chip=quiet))
    counts = replace(StimulusCounts(), zero=200, random=0, activation=0, sparse=0, hadamard_repeats=0)
    few = search.weighed(counts, 4).predicted["offset"].error
    many = search.weighed(replace(counts, zero=20_000), 4).predicted["offset"].error
    assert many > 0.9 * few
    noisy = Search(task())
    few, many = (noisy.weighed(replace(counts, zero=n), 4).predicted["offset"].error for n in (200, 20_000))
    assert many < 0.5 * few
