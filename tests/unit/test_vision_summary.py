"""Figures of merit of the image studies, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from labrig.studies.vision.summary import CellScores, folds, noise_tolerance, normalised_area

CURVE = {0.0: 90.0, 0.1: 88.0, 0.2: 80.0, 0.3: 40.0}


def test_means_spreads_and_the_worst_chips() -> None:
    cell = CellScores(((90.0, 92.0, 94.0), (80.0, 80.0, 83.0)))
    assert cell.mean == pytest.approx(86.5)
    assert cell.of_seeds == pytest.approx((92.0, 81.0))
    assert cell.chip_sd == pytest.approx(math.sqrt((4.0 + 3.0) / 2))
    assert cell.fifth_percentile == pytest.approx((90.2 + 80.0) / 2)
    assert CellScores(((90.0,),)).chip_sd == 0.0


def test_the_area_is_the_mean_up_to_twenty_percent() -> None:
    assert normalised_area(CURVE) == pytest.approx((89.0 + 84.0) / 2)
    assert normalised_area({0.0: 70.0, 0.2: 70.0}) == pytest.approx(70.0)
    assert math.isnan(normalised_area({0.0: 90.0, 0.1: 80.0}))


def test_tolerance_lies_between_the_measured_levels() -> None:
    # 2 points are lost at 10 %, 10 at 20 %: 5 in between.
    assert noise_tolerance(CURVE) == pytest.approx(0.1 + 0.1 * 3.0 / 8.0)
    assert noise_tolerance({0.0: 90.0, 0.1: 89.0}) == math.inf
    assert math.isnan(noise_tolerance({0.1: 90.0}))


def test_folds_are_equal_and_apart() -> None:
    assert folds(11, 3) == [slice(0, 3), slice(3, 6), slice(6, 9)]
