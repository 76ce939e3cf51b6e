"""Designs that cannot tell something apart are named before they are measured; where they are measured, fits fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.plans.schedule import ScheduledPlan
from labrig.testing.in_memory import measure_dataset
from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.dataset import Converters, MvmDataset
from labrig_calibration.identifiability import Confusion, confusions, demands
from labrig_calibration.predictions import analyse
from labrig_calibration.stimulus import MvmDesign, StimulusBlock, StimulusCounts, WriteDesign, design_mvm_calibration
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

FloatArray = NDArray[np.float64]

SIZE = 16
LIMITS = Converters(-0.3, 0.3, 8, 10, np.full(SIZE, 4e-5), 4e-6, 5e-5)
CHIP = AssumedChip.from_data_sheet(LIMITS)
NOTHING = StimulusCounts.of(dict.fromkeys(StimulusCounts().as_options(), 0))


def design(writes: int = 4, **counts: int) -> MvmDesign:
    chosen = replace(NOTHING, **counts) if counts else StimulusCounts()
    return design_mvm_calibration(SIZE, SIZE, LIMITS, writes=writes, counts=chosen)


def changed(whole: MvmDesign, change: Callable[[FloatArray], FloatArray]) -> MvmDesign:
    """The same design with other vectors."""

    def blocks(write: WriteDesign) -> tuple[StimulusBlock, ...]:
        return tuple(replace(block, voltage_v=change(block.voltage_v)) for block in write.blocks)

    return replace(whole, writes=tuple(replace(write, blocks=blocks(write)) for write in whole.writes))


def found(whole: MvmDesign, chip: AssumedChip = CHIP, mvm_s: float = 1e-3) -> list[Confusion]:
    return confusions(analyse(whole, LIMITS, chip, mvm_s=mvm_s), LIMITS, chip)


def named(whole: MvmDesign, chip: AssumedChip = CHIP, mvm_s: float = 1e-3) -> set[tuple[str, ...]]:
    return {one.parameters for one in found(whole, chip, mvm_s) if one.fatal}


def test_the_usual_design_tells_everything_apart() -> None:
    assert found(design()) == []
    assert demands(design()) == []


def test_one_pattern_only() -> None:
    whole = design(writes=1)
    assert {("gain", "conductance"), ("mismatch", "programming")} <= named(whole)
    assert "two different programmed patterns" in " ".join(demands(whole))
    (text,) = [str(one) for one in found(whole) if one.parameters == ("gain", "conductance")]
    assert text.startswith("gain and conductance cannot be told apart: one pattern only")
    assert text.endswith("program at least two different patterns")


def test_the_same_pattern_again_is_one_pattern() -> None:
    whole = design()
    again = replace(whole, writes=(whole.writes[0],) * 4)
    assert ("gain", "conductance") in named(again)
    assert ("stuck cells", "cell slopes") in named(again)
    # That it was programmed four times does tell programming errors from what sets each cell apart.
    assert ("mismatch", "programming") not in named(again)


def test_no_zeros_and_one_sign_only() -> None:
    whole = changed(design(one_hot_repeats=10), np.abs)
    assert any({"offset", "conductance"} <= set(one) for one in named(whole, mvm_s=1e-9))
    assert "no zero input vector" in " ".join(demands(whole))
    # Both signs show the offset as long as the curve is odd.
    assert not any("offset" in one for one in named(design(one_hot_repeats=10, zero=20), mvm_s=1e-9))


def test_one_amplitude_only() -> None:
    whole = design(one_hot_repeats=20, zero=50)
    assert ("compression", "conductance") in named(whole)
    assert not any("compression" in one for one in named(design(one_hot_repeats=20, zero=50, ladder_patterns=8)))
    (text,) = [str(one) for one in found(whole) if one.parameters == ("compression", "conductance")]
    assert "ladder" in text
    assert "wires" in text


def test_no_repeats() -> None:
    assert ("noise", "misfit") in named(design(random=600))
    assert ("noise", "misfit") not in named(design(random=600, repeat_vectors=8, repeats=8))


def test_a_row_that_is_never_driven() -> None:
    whole = changed(design(), lambda voltage_v: voltage_v * (np.arange(SIZE) != 5))
    (one,) = [one for one in found(whole) if one.parameters == ("conductance",)]
    assert "1 of 16 rows (5)" in one.because


def test_all_within_a_moment() -> None:
    assert ("drift", "conductance") in named(design(), mvm_s=1e-6)


def test_a_step_that_hides_the_noise() -> None:
    step_a = float(LIMITS.adc_lsb_a[0])
    quiet = CHIP.with_values({"amplifier_noise_a2": (0.1 * step_a) ** 2})
    assert ("amplifier_noise", "the ADC's step") in named(design(), quiet)
    assert ("amplifier_noise", "the ADC's step") not in named(design(), CHIP)


class Scheduled:
    """A design as a plan."""

    name = "design"

    def __init__(self, whole: MvmDesign) -> None:
        self.whole = whole

    def schedule(self, info: BoardInfo) -> dict[int, tuple[WriteDesign, ...]]:
        return {0: self.whole.writes}


def measured(whole: MvmDesign, seed: int = 3) -> tuple[MvmDataset, FloatArray]:
    """A simulated chip's answers, and its compressions in 1/A."""
    settings = ChipSettings(
        seed=seed, arrays=1, rows=SIZE, columns=SIZE, adc_full_scale_a=4e-5, compression_a=4e-5, mvm_latency_s=1e-3
    )

    async def measure() -> tuple[MvmDataset, FloatArray]:
        async with MockBoard(settings) as board:
            dataset = (await measure_dataset(board, ScheduledPlan(Scheduled(whole))))[0]
            return dataset, 1.0 / board.hidden_array(0).compression_a

    return asyncio.run(measure())


@pytest.mark.parametrize(
    "whole",
    [
        design(writes=1),
        replace(design(), writes=(design().writes[0],) * 2),
        changed(design(one_hot_repeats=10), np.abs),
        design(writes=2, zero=3, random=20),
    ],
    ids=["one pattern", "the same pattern", "no zeros", "too few"],
)
def test_a_fit_refuses_what_the_design_was_refused_for(whole: MvmDesign) -> None:
    pytest.importorskip("torch")
    from labrig_calibration.fit import CalibrationError, fit

    refused = demands(whole)
    assert refused
    with pytest.raises(CalibrationError) as caught:
        fit(measured(whole)[0], rng=np.random.default_rng(0))
    for reason in refused:
        assert reason in str(caught.value)


def test_a_fit_of_one_amplitude_fails_as_predicted() -> None:
    """One-hot vectors at one amplitude, which a fit does not refuse, against the same number of random ones."""
    pytest.importorskip("torch")
    from labrig_calibration.fit import CalibrationError, fit
    from labrig_calibration.ladder import Ladder

    ladder = Ladder(rungs=("global", "cells", "columns", "curve"), select=False)
    errors, predicted = [], []
    for whole in (design(one_hot_repeats=10, zero=40), design(random=320, zero=40)):
        dataset, truth = measured(whole)
        predicted.append(analyse(whole, LIMITS, CHIP, mvm_s=1e-3).predicted["compression"].relative)
        try:
            estimate = fit(dataset, ladder=ladder, rng=np.random.default_rng(0)).parameters["compression"]
        except CalibrationError:  # it does not come to rest
            errors.append(np.inf)
        else:
            errors.append(float(np.median(np.abs(estimate.value - truth) / truth)))
    wrong, right = range(2)
    assert predicted[wrong] > 1.0
    assert predicted[right] < 0.01
    assert errors[right] < 0.02
    assert errors[wrong] > 20.0 * errors[right]
