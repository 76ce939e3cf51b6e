"""The plans beside `mvm`: what each measures, and how one's own is found."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.plans import (
    CanaryDesign,
    MvmPoint,
    Plan,
    ProgramPoint,
    ReadNoiseDesign,
    ScheduleDesign,
    ScheduledPlan,
    StimulusBlock,
    TransferCurveDesign,
    WriteDesign,
    WriteStatisticsDesign,
    in_blocks,
    options_of,
    plan_by_name,
)
from labrig.plans.base import least_seconds
from labrig_calibration.stimulus import StimulusKind
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import CapabilityError, ConfigError

INFO = BoardInfo(
    chip_id="SIM-1",
    arrays=3,
    rows=16,
    columns=8,
    conductance_min_s=4e-6,
    conductance_max_s=5e-5,
    voltage_min_v=-0.3,
    voltage_max_v=0.2,
    dac_bits=8,
    adc_bits=10,
    adc_full_scale_a=(2e-5,) * 8,
    mvm_latency_s=1e-5,
    program_latency_s=5e-3,
)
DESIGNS: list[ScheduleDesign] = [
    CanaryDesign(),
    ReadNoiseDesign(reads=100, batch=32),
    TransferCurveDesign(),
    WriteStatisticsDesign(),
]


async def points_of(plan: Plan, info: BoardInfo = INFO) -> list[ProgramPoint | MvmPoint]:
    points = [point async for point in plan.points(info)]
    found = [point for point in points if isinstance(point, ProgramPoint | MvmPoint)]
    assert len(found) == len(points)
    return found


def vectors_of(design: ScheduleDesign, array: int = 0, write: int = 0) -> np.ndarray:
    return np.concatenate([block.voltage_v for block in design.schedule(INFO)[array][write].blocks])


@pytest.mark.parametrize("design", DESIGNS, ids=lambda one: one.name)
async def test_every_plan_keeps_the_rules(design: ScheduleDesign) -> None:
    plan = ScheduledPlan(design)
    points = await points_of(plan)
    assert len({point.hash for point in points}) == len(points)
    assert [point.hash for point in points] == [point.hash for point in await points_of(plan)]
    assert json.loads(json.dumps(plan.describe())) == plan.describe()
    writes: dict[int, int] = {}
    for point in points:
        if isinstance(point, ProgramPoint):
            assert point.write == writes.get(point.array, -1) + 1
            writes[point.array] = point.write
            values, least, most = point.conductance_s, INFO.conductance_min_s, INFO.conductance_max_s
        else:
            assert point.write == writes[point.array]
            # Both signs are used, so the weaker side limits both.
            values, least, most = point.voltage_v, -0.2, 0.2
        assert np.array_equal(values, values.astype(np.float32).astype(np.float64))
        assert values.min() >= np.float32(least)
        assert values.max() <= np.float32(most)
    for array, capacity in plan.capacity(INFO).items():
        blocks = [point for point in points if isinstance(point, MvmPoint) and point.array == array]
        assert (capacity.blocks, capacity.rows) == (len(blocks), sum(len(block.voltage_v) for block in blocks))
        assert capacity.writes == writes[array] + 1
    assert set(writes) == {0, 1, 2}


@pytest.mark.parametrize("name", ["canary", "noise", "transfer", "writes"])
async def test_seed_limit_and_arrays_matter(name: str) -> None:
    base = [point.hash for point in await points_of(plan_by_name(name, seed=1, arrays=[1]))]
    other = [point.hash for point in await points_of(plan_by_name(name, seed=2, arrays=[1]))]
    assert base != other
    points = await points_of(plan_by_name(name, arrays=[1], max_voltage_v=0.05))
    assert {point.array for point in points} == {1}
    assert max(np.abs(point.voltage_v).max() for point in points if isinstance(point, MvmPoint)) <= np.float32(0.05)
    with pytest.raises(CapabilityError, match="arrays 7, but the board has 0 to 2"):
        plan_by_name(name, arrays=[1, 7]).capacity(INFO)
    with pytest.raises(CapabilityError, match="both signs"):
        plan_by_name(name).capacity(replace(INFO, voltage_min_v=0.0))


def test_canary_has_sixteen_vectors_from_nothing_to_full_load() -> None:
    (write,) = CanaryDesign(repeats=3).schedule(INFO)[2]
    assert [block.voltage_v.shape for block in write.blocks] == [(16, 16)] * 3
    first = write.blocks[0].voltage_v
    assert not first[0].any()
    assert all(np.array_equal(block.voltage_v, first) for block in write.blocks)
    assert len({row.tobytes() for row in first}) == 16


def test_noise_reads_each_vector_in_one_go_and_nothing_first() -> None:
    vectors = vectors_of(ReadNoiseDesign(vectors=3, reads=50, batch=16))
    assert vectors.shape == (150, 16)
    traces = vectors.reshape(3, 50, 16)
    assert all((trace == trace[0]).all() for trace in traces)
    assert not traces[0].any()
    loads_a = traces[:, 0] @ ReadNoiseDesign(vectors=3).schedule(INFO)[0][0].target_conductance_s
    assert (np.abs(loads_a) <= 2e-5 * 1.0001).all()
    assert loads_a[1].sum() < loads_a[2].sum()


def test_transfer_reaches_both_ends_in_random_order() -> None:
    vectors = vectors_of(TransferCurveDesign(levels=5, directions=2, repeats=3))
    assert vectors.shape == (30, 16)
    amplitudes = np.sign(vectors[:, :].sum(axis=1)) * np.abs(vectors).max(axis=1)
    assert np.unique(np.round(amplitudes, 6)).tolist() == [-0.2, -0.1, 0.0, 0.1, 0.2]
    assert not np.array_equal(np.sort(amplitudes), amplitudes)


def test_write_statistics_give_every_cell_every_level_equally_often() -> None:
    design = WriteStatisticsDesign(levels=4, repeats=3)
    targets = np.stack([write.target_conductance_s for write in design.schedule(INFO)[0]])
    assert targets.shape == (12, 16, 8)
    levels = np.unique(targets)
    assert len(levels) == 4
    counts = np.stack([(targets == level).sum(axis=0) for level in levels])
    assert (counts == 3).all()
    # Within one write the levels are spread over the array, or the write's own luck would pass for the level's.
    assert all(len(np.unique(target)) == 4 for target in targets)
    one_hot = vectors_of(design)
    assert (np.count_nonzero(one_hot, axis=1) == 1).all()
    assert np.allclose(one_hot.sum(axis=0), 0.0)


def test_options_are_checked_by_name_and_value() -> None:
    assert options_of("noise") == {"vectors", "reads", "batch", "seed", "arrays", "max_voltage_v"}
    # Every fault at once, those of options that are there among them.
    wrong = (
        r"plan 'noise': has no option colour; has no option vectrs, perhaps vectors; .*reads.*; its options are: vec"
    )
    with pytest.raises(ConfigError, match=wrong):
        plan_by_name("noise", colour=1, vectrs=2, reads="many")
    with pytest.raises(ConfigError, match="reads is 0, must be above zero; batch is -1"):
        plan_by_name("noise", reads=0, batch=-1)
    with pytest.raises(
        ConfigError, match="canary, energy, iv, mvm, noise, retention, transfer, writes, or your own as FILE"
    ):
        plan_by_name("moon")


def test_the_least_time_is_the_boards_own() -> None:
    plan = plan_by_name("canary", arrays=[0, 1])
    assert least_seconds(plan.capacity(INFO), INFO) == pytest.approx(2 * (16 * 16 * 1e-5 + 5e-3))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 7))
async def test_any_schedule_yields_each_block_once_in_order(writes_of: list[int], batch: int) -> None:
    """Arrays with different numbers of writes, some with none."""
    vectors = np.arange(40, dtype=np.float64).reshape(10, 4)

    @dataclass(frozen=True)
    class Uneven:
        name: str = "uneven"

        def schedule(self, info: BoardInfo) -> dict[int, list[WriteDesign]]:
            blocks = tuple(in_blocks(StimulusKind.RANDOM, vectors, batch))
            return {
                array: [WriteDesign(np.full((4, 2), float(write)), blocks) for write in range(count)]
                for array, count in enumerate(writes_of)
            }

    points = await points_of(ScheduledPlan(Uneven()))
    for array, count in enumerate(writes_of):
        own = [point for point in points if point.array == array]
        assert sum(isinstance(point, ProgramPoint) for point in own) == count
        measured = [point for point in own if isinstance(point, MvmPoint)]
        assert len(measured) == count * -(-10 // batch)
        for write in range(count):
            rows = [point.voltage_v for point in measured if point.write == write]
            assert np.array_equal(np.concatenate(rows), vectors)


OWN = """
from dataclasses import dataclass
import numpy as np
from labrig.plans import StimulusBlock, WriteDesign

@dataclass(frozen=True)
class Zeros:
    vectors: int = 3
    name = "zeros"

    def schedule(self, info):
        block = StimulusBlock(64, np.zeros((self.vectors, info.rows)))
        return {0: [WriteDesign(np.full((info.rows, info.columns), info.conductance_max_s), (block,))]}

def nothing():
    return object()

def bare():
    class Bare:
        name = "bare"
        def schedule(self, info):
            return {}
    return Bare()

answer = 42
"""


async def test_a_plan_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own_plan_zeros.py"
    file.write_text(OWN)
    plan = plan_by_name(f"{file}:Zeros", vectors=5)
    assert plan.describe() == {"name": "zeros", "vectors": 5}
    write, block = await points_of(plan)
    assert isinstance(write, ProgramPoint)
    assert isinstance(block, MvmPoint)
    assert (block.kind, block.voltage_v.shape) == (64, (5, 16))
    with pytest.raises(ConfigError, match=r"has no class or function 'answer'; it has: .*Zeros"):
        plan_by_name(f"{file}:answer")
    with pytest.raises(ConfigError, match="made something of type object, which has neither"):
        plan_by_name(f"{file}:nothing")
    with pytest.raises(ConfigError, match="bare': Bare must be a dataclass"):
        plan_by_name(f"{file}:bare")
    with pytest.raises(ConfigError, match=r"elsewhere\.py: there is no such file"):
        plan_by_name(f"{tmp_path}/elsewhere.py:Zeros")
    file.write_text("import this_module_is_not_there")
    with pytest.raises(ConfigError, match=r"cannot be run \(ModuleNotFoundError"):
        plan_by_name(f"{file}:Zeros")


def test_blocks_are_cut_in_order() -> None:
    blocks = in_blocks(StimulusKind.RANDOM, np.arange(10.0)[:, None], 4)
    assert [len(block.voltage_v) for block in blocks] == [4, 4, 2]
    assert isinstance(blocks[0], StimulusBlock)
    assert np.concatenate([block.voltage_v for block in blocks])[:, 0].tolist() == list(range(10))
