"""Plans: what they promise of capacity, order and names."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labrig.plans import MvmCalibrationPlan, MvmPoint, ProgramPoint, plan_by_name
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import CapabilityError, ConfigError

INFO = BoardInfo(
    chip_id="SIM-1",
    arrays=2,
    rows=16,
    columns=8,
    conductance_min_s=4e-6,
    conductance_max_s=5e-5,
    voltage_min_v=-0.3,
    voltage_max_v=0.3,
    dac_bits=8,
    adc_bits=10,
    adc_full_scale_a=(1e-4,) * 8,
    mvm_latency_s=1e-5,
    program_latency_s=5e-3,
)


async def points_of(plan: MvmCalibrationPlan, info: BoardInfo = INFO) -> list[ProgramPoint | MvmPoint]:
    points = [point async for point in plan.points(info)]
    found = [point for point in points if isinstance(point, ProgramPoint | MvmPoint)]
    assert len(found) == len(points)
    return found


async def test_capacity_is_what_the_points_need() -> None:
    plan = MvmCalibrationPlan(writes=3)
    points = await points_of(plan)
    for array, capacity in plan.capacity(INFO).items():
        blocks = [point for point in points if isinstance(point, MvmPoint) and point.array == array]
        writes = [point for point in points if isinstance(point, ProgramPoint) and point.array == array]
        assert capacity.rows == sum(len(block.voltage_v) for block in blocks)
        assert capacity.blocks == len(blocks)
        assert capacity.writes == len(writes) == 3


async def test_each_block_reads_the_write_before_it() -> None:
    current: dict[int, int] = {}
    for point in await points_of(MvmCalibrationPlan(writes=2)):
        if isinstance(point, ProgramPoint):
            assert point.write == current.get(point.array, -1) + 1
            current[point.array] = point.write
        else:
            assert point.write == current[point.array]
    assert current == {0: 1, 1: 1}


async def test_hashes_are_unique_stable_and_name_the_content() -> None:
    plan = MvmCalibrationPlan(writes=2, seed=4)
    hashes = [point.hash for point in await points_of(plan)]
    assert hashes == [point.hash for point in await points_of(plan)]
    assert len(set(hashes)) == len(hashes)
    assert all(len(bytes.fromhex(one)) == 16 for one in hashes)
    other = [point.hash for point in await points_of(replace(plan, seed=5))]
    # Blocks of zeros are equal in every seed; where they are in the order is not.
    assert len(set(hashes) & set(other)) < 0.1 * len(hashes)


def test_hash_does_not_change_between_versions() -> None:
    point = MvmPoint(array=1, write=2, block=3, kind=4, voltage_v=np.array([[0.5, -0.25]]))
    assert point.hash == "ec3f03ecbe8106fe5cd2ebb07b0e854d"
    assert point.hash != ProgramPoint(1, 2, np.array([[0.5, -0.25]])).hash
    assert point.hash != replace(point, block=4).hash


async def test_chosen_arrays_only_and_missing_ones_refused() -> None:
    points = await points_of(MvmCalibrationPlan(writes=1, arrays=(1,)))
    assert {point.array for point in points} == {1}
    with pytest.raises(CapabilityError, match="arrays 5, but the board has 0 to 1"):
        MvmCalibrationPlan(arrays=(1, 5)).capacity(INFO)


def test_plans_by_name() -> None:
    plan = plan_by_name("mvm", seed=3, writes=2)
    assert plan == MvmCalibrationPlan(seed=3, writes=2)
    described = plan.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["seed"] == 3
    with pytest.raises(ConfigError, match="no plan named 'moon'; there are: canary, energy, iv, mvm, noise"):
        plan_by_name("moon")
    with pytest.raises(ConfigError, match="colour"):
        plan_by_name("mvm", colour=1)


def test_options_of_another_kind_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_by_name("iv", cells=[1], low_v="a", high_v=math.inf, there_and_back=1, levels=2.5, arrays=1, meter=3)
    assert str(caught.value) == (
        "plan 'iv': cells is [1], must be a whole number or a list of lists of whole numbers; "
        'low_v is "a", must be a finite number; high_v is inf, must be a finite number; '
        "there_and_back is 1, must be true or false; levels is 2.5, must be a whole number; "
        "arrays is 1, must be a list of whole numbers; meter is 3, must be a text"
    )
    file = tmp_path / "plan.toml"
    file.write_text('[plan]\nname = "mvm"\n[plan.options]\nbatch = "x"\n')
    with pytest.raises(ConfigError, match=r'plan.toml\': batch is "x", must be a whole number'):
        plan_by_name(str(file))
    # What is given beside the file counts more, and numbers of numpy are numbers.
    assert plan_by_name(str(file), batch=np.int64(8), arrays=np.array([1])).describe()["arrays"] == [1]


def test_a_plan_of_ones_own_may_say_nothing_of_its_options(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from labrig.plans import MvmCalibrationPlan\n\ndef mine(writes, batch: 'Unknown' = 4):\n"
        "    return MvmCalibrationPlan(writes=writes, batch=batch)\n"
    )
    assert plan_by_name(f"{file}:mine", writes=2).describe()["writes"] == 2
    file.write_text("class Mine:\n    name = 'mine'\n    def schedule(self, info):\n        return {}\n")
    with pytest.raises(ConfigError, match=r"mine\.py:Mine': Mine must be a dataclass, whose fields are the plan's"):
        plan_by_name(f"{file}:Mine")
