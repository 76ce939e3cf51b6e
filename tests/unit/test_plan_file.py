"""Plan files, counts as an option of the plan mvm, and the design of a calibration for a board."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from labrig.plans import MvmCalibrationPlan, options_of, plan_by_name
from labrig.plans.base import PlanNeeds
from labrig.plans.calibration_design import DesignRequest, design_calibration
from labrig.plans.mvm import board_converters
from labrig.plans.plan_file import PlanFile, read_plan_file
from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.predictions import PREDICTED
from labrig_calibration.stimulus import StimulusCounts, StimulusError
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import CapabilityError, ConfigError

INFO = BoardInfo(
    chip_id="SIM-1",
    arrays=2,
    rows=16,
    columns=16,
    conductance_min_s=4e-6,
    conductance_max_s=5e-5,
    voltage_min_v=-0.3,
    voltage_max_v=0.3,
    dac_bits=8,
    adc_bits=10,
    adc_full_scale_a=(4e-5,) * 16,
    mvm_latency_s=1e-3,
    program_latency_s=5e-3,
)
CHIP = AssumedChip.from_data_sheet(board_converters(INFO))


def test_a_plan_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    options = {"writes": 3, "arrays": [1], "counts": {"zero": 5, "random": 40}}
    path.write_text(PlanFile("mvm", options).text(("made by hand",)))
    assert read_plan_file(path) == PlanFile("mvm", options)
    plan = plan_by_name(str(path), seed=4)
    assert isinstance(plan, MvmCalibrationPlan)
    assert (plan.writes, plan.arrays, plan.seed) == (3, [1], 4)
    assert plan.stimulus_counts() == StimulusCounts(zero=5, random=40)
    # What is given beside the file counts more.
    assert plan_by_name(str(path), writes=7).describe()["writes"] == 7
    assert options_of(str(path)) == options_of("mvm")
    assert json.loads(json.dumps(plan.describe())) == plan.describe()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[plan]\n", r"1: plan.name: is missing"),
        ('[plan]\nname = "mvm"\nwrites = 3\n', r"3: plan.writes: unknown key"),
        ('[plan]\nname = "nothing"\n', r"there is no plan named 'nothing'"),
        ('[plan]\nname = "other.toml"\n', r"names another plan file"),
        ('[plan]\nname = "mvm"\n[plan.options]\nwrite = 3\n', r"has no option write; its options are: writes"),
        ('[plan]\nname = "mvm"\n[plan.options]\nseed = 3\n', r"4: plan.options.seed: use --seed"),
        (
            '[plan]\nname = "mvm"\n[plan.options.counts]\nzeros = 3\nrandom = -1\nsparse = 1.5\n',
            r"zeros is no count.*random is -1, must be.*sparse is 1.5",
        ),
        ('[plan]\nname = "mvm"\n[plan.options]\ncounts = [3]\n', r"\[3\] is no table of names and counts"),
    ],
)
def test_faults_of_a_plan_file_are_named(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fault):
        plan_by_name(str(path))
    with pytest.raises(ConfigError, match=r"gone.toml: cannot be read"):
        plan_by_name(str(tmp_path / "gone.toml"))


def test_the_plan_file_of_the_page_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "plan-a-calibration.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "plan.toml").write_text(text)
    plan = plan_by_name(str(tmp_path / "plan.toml"))
    assert isinstance(plan, MvmCalibrationPlan)
    assert set(plan.counts or ()) == set(StimulusCounts().as_options())
    # Every parameter of the table is one that is predicted, and the other way round.
    named = re.findall(r"`(\w+)`", page.partition("## What is predicted")[2].partition("The goals are")[0])
    assert set(named) == set(PREDICTED)


def test_a_recording_without_counts_is_still_the_same_plan() -> None:
    assert "counts" not in MvmCalibrationPlan().describe()
    usual = MvmCalibrationPlan(counts=StimulusCounts().as_options())
    assert usual.describe() == MvmCalibrationPlan().describe() | {"counts": StimulusCounts().as_options()}
    assert usual.capacity(INFO) == MvmCalibrationPlan().capacity(INFO)


async def test_counts_are_measured_as_given() -> None:
    counts = StimulusCounts(
        zero=3,
        one_hot_repeats=1,
        sparse=0,
        ladder_patterns=0,
        random=20,
        activation=0,
        repeat_vectors=0,
        repeats=0,
        hadamard_repeats=2,
    )
    plan = MvmCalibrationPlan(writes=2, arrays=[1], counts=counts.as_options())
    assert PlanNeeds.of(plan, INFO).mvms == 2 * (3 + 32 + 20 + 192) == 2 * counts.total(16)
    with pytest.raises(StimulusError, match="there is no vector of any kind"):
        MvmCalibrationPlan(counts=dict.fromkeys(counts.as_options(), 0)).capacity(INFO)


def test_a_precision_is_reached_by_the_vectors_that_will_be_sent() -> None:
    designed = design_calibration(INFO, DesignRequest(precision=0.03, seed=5), CHIP)
    assert designed.limits == {}
    assert designed.missed == ()
    assert all(designed.analysis.predicted[name].relative <= 0.03 for name in designed.goals)
    assert designed.refusals == ()
    assert designed.needs.least_s == pytest.approx(designed.needs.mvms * 1e-3 + designed.needs.writes * 5e-3)
    assert designed.plan.seed == 5
    few = design_calibration(INFO, DesignRequest(precision=0.03, arrays=[1]), CHIP)
    assert 0.4 < few.needs.mvms / designed.needs.mvms < 0.6


def test_a_budget_is_that_of_all_arrays_and_bounds_a_precision() -> None:
    designed = design_calibration(INFO, DesignRequest(budget=3000, max_writes=4), CHIP)
    assert 2500 < designed.needs.mvms <= 3000
    short = design_calibration(INFO, DesignRequest(budget=3000, max_writes=4, precision=0.001), CHIP)
    assert short.needs.mvms <= 3000
    assert {"noise", "programming"} <= set(short.limits)
    assert set(short.limits) == set(short.missed)
    with pytest.raises(ConfigError, match="101 MVMs are too few: 2 arrays of 16 rows need"):
        design_calibration(INFO, DesignRequest(budget=101), CHIP)


def test_a_request_that_cannot_be_is_refused_with_every_fault() -> None:
    wrong = DesignRequest(precision=2.0, budget=0, goals=("gain", "colour"), writes=0, max_writes=0, mvm_s=0.0)
    with pytest.raises(ConfigError) as caught:
        design_calibration(INFO, wrong, CHIP)
    for part in ("precision is 2", "budget is 0", "colour", "writes is 0", "max_writes is 0", "two MVMs is 0 s"):
        assert part in str(caught.value)
    with pytest.raises(CapabilityError, match="arrays 5, but the board has 0 to 1"):
        design_calibration(INFO, DesignRequest(arrays=[5]), CHIP)


def test_an_earlier_chip_and_a_longer_time_change_what_is_predicted() -> None:
    usual = design_calibration(INFO, DesignRequest(), CHIP).analysis.predicted
    noisy = CHIP.with_values({"amplifier_noise_a2": 100.0 * CHIP.amplifier_noise_a2})
    assert (
        design_calibration(INFO, DesignRequest(), noisy).analysis.predicted["offset"].error
        > 3.0 * usual["offset"].error
    )
    slow = design_calibration(INFO, replace(DesignRequest(), mvm_s=1.0), CHIP).analysis.predicted
    assert slow["drift"].error < 0.5 * usual["drift"].error
