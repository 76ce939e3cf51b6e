"""Plans that wait, move axes or take curves: what they ask for, and what they say of it beforehand."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from labrig.plans import (
    CurvePoint,
    EnergyPlan,
    IvPlan,
    MvmCalibrationPlan,
    MvmPoint,
    OverAxes,
    Plan,
    Point,
    Points,
    ProgramPoint,
    RetentionPlan,
    SettingPoint,
    StreamCapacity,
    grid,
    plan_by_name,
    repeated,
    shuffled,
)
from labrig.plans.base import PlanNeeds
from labrig_drivers.crossbar import BoardInfo, MvmResult
from labrig_drivers.errors import CapabilityError, ConfigError

INFO = BoardInfo(
    chip_id="X",
    arrays=2,
    rows=8,
    columns=4,
    conductance_min_s=4e-6,
    conductance_max_s=5e-5,
    voltage_min_v=-0.3,
    voltage_max_v=0.3,
    dac_bits=8,
    adc_bits=10,
    adc_full_scale_a=(1.6e-4,) * 4,
    mvm_latency_s=1e-5,
    program_latency_s=5e-3,
    capabilities=frozenset({"cell-sweep"}),
)


async def listed(plan: Plan, info: BoardInfo = INFO) -> list[Point]:
    return [point async for point in plan.points(info)]


def of(kind: type, points: Iterable[Point]) -> list[Point]:
    return [point for point in points if isinstance(point, kind)]


PLANS: dict[str, Callable[[], Plan]] = {
    "retention": lambda: RetentionPlan(writes=2, last_s=20.0),
    "energy": lambda: EnergyPlan(mvms=50, batch=16),
    "iv": lambda: IvPlan(cells=3, repeats=2, program=True),
    "mvm over axes": lambda: OverAxes(MvmCalibrationPlan(writes=2), grid({"temperature": [290.0, 300.0]})),
    "retention over axes": lambda: OverAxes(
        RetentionPlan(last_s=4.0), grid({"a": [1.0, 2.0], "b": [3.0]}), settle_s=2.0
    ),
    "one write over axes": lambda: OverAxes(RetentionPlan(last_s=4.0), grid({"a": [1.0, 2.0, 3.0]}), rewrite=False),
    "curves over axes": lambda: OverAxes(IvPlan(cells=2), grid({"a": [1.0, 2.0]})),
}


@pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)
async def test_a_plan_needs_what_it_says_and_no_two_of_its_points_are_one(make: Callable[[], Plan]) -> None:
    plan, points = make(), await listed(make())
    needs = PlanNeeds.of(plan, INFO)
    for array, capacity in needs.capacity.items():
        mvms = [point for point in points if isinstance(point, MvmPoint) and point.array == array]
        writes = [point for point in points if isinstance(point, ProgramPoint) and point.array == array]
        assert capacity == StreamCapacity(sum(len(point.voltage_v) for point in mvms), len(writes), len(mvms))
    curves = [point for point in points if isinstance(point, CurvePoint)]
    assert needs.beside.curves == len(curves)
    assert needs.beside.readings == sum(len(point.voltage_v) for point in curves)
    settings = [point for point in points if isinstance(point, SettingPoint)]
    assert needs.beside.settings == len(settings)
    assert set(needs.beside.axes) == {name for point in settings for name in point.values}
    hashes = [point.hash for point in points]
    assert max(Counter(hashes).values()) == 1
    assert [point.hash for point in await listed(make())] == hashes


async def test_retention_is_read_at_doubling_ages_of_all_arrays_together() -> None:
    plan = RetentionPlan(first_s=0.5, last_s=16.0, vectors=3, repeats=2)
    points = await listed(plan)
    assert [type(point) for point in points[:2]] == [ProgramPoint, ProgramPoint]
    mvms = [point for point in points if isinstance(point, MvmPoint)]
    assert [(point.due_s, point.array) for point in mvms] == list(
        itertools.product([0.5, 1.0, 2.0, 4.0, 8.0, 16.0], [0, 1])
    )
    # The latest moment of one reading is before the next one is due.
    assert all(point.due_s is not None and point.late_s < point.due_s for point in mvms)
    assert PlanNeeds.of(plan, INFO).least_s == pytest.approx(16.0, rel=0.01)
    assert all(len(point.voltage_v) == 6 for point in mvms)
    assert {point.hash for point in mvms if point.block == 0 and point.array == 0} == {mvms[0].hash}
    with pytest.raises(ConfigError, match="before first_s"):
        RetentionPlan(first_s=10.0, last_s=1.0)


async def test_only_what_differs_from_the_default_changes_a_hash() -> None:
    point = MvmPoint(0, 1, 2, 3, np.ones((1, 8)))
    # That of labrig 0.1, before points could be due.
    assert point.hash == "cc88960e2f2a604d25694a26f950cc12"
    timed = [replace(point, due_s=1.0), replace(point, late_s=1.0), replace(point, rest_s=1.0)]
    assert len({point.hash, *(one.hash for one in timed)}) == 4


async def test_a_grid_is_visited_in_order_at_random_and_again() -> None:
    settings = grid({"temperature": [290.0, 300.0], "field": [0.0, 1.0]})
    assert settings[1] == {"temperature": 290.0, "field": 1.0}
    mixed = shuffled(repeated(settings, 3), np.random.default_rng(1))
    assert mixed != repeated(settings, 3)
    assert Counter(map(str, mixed)) == Counter({str(one): 3 for one in settings})
    points = await listed(OverAxes(RetentionPlan(last_s=1.0), mixed))
    assert [point.values for point in points if isinstance(point, SettingPoint)] == mixed


async def test_one_write_can_be_measured_at_all_settings_only_if_there_is_one() -> None:
    once = await listed(OverAxes(RetentionPlan(last_s=2.0), grid({"a": [1.0, 2.0]}), rewrite=False))
    assert len(of(ProgramPoint, once)) == 2  # one for each array
    twice = OverAxes(MvmCalibrationPlan(writes=2), grid({"a": [1.0, 2.0]}), rewrite=False)
    with pytest.raises(ConfigError, match="writes an array 2 times"):
        twice.capacity(INFO)
    with pytest.raises(ConfigError, match="there is no setting"):
        OverAxes(MvmCalibrationPlan(), [])


async def test_loads_take_turns_and_each_burst_begins_after_a_rest() -> None:
    plan = EnergyPlan(loads=(0.0, 1.0), bursts=2, mvms=40, batch=16, rest_s=0.25, arrays=[0])
    *mvms, last = [point for point in await listed(plan) if isinstance(point, MvmPoint)]
    assert (last.rest_s, last.voltage_v.tolist()) == (0.25, [[0.0] * 8])
    assert [len(point.voltage_v) for point in mvms] == [16, 16, 8] * 4
    assert [point.rest_s for point in mvms] == [0.25, 0.0, 0.0] * 4
    loads = [float(np.abs(point.voltage_v).max()) > 0.0 for point in mvms]
    assert loads == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3
    assert [plan.load_of(point.block) for point in mvms] == [float(load) for load in loads]
    with pytest.raises(ConfigError, match="from 0 to 1"):
        EnergyPlan(loads=(0.5, 1.5))


async def test_a_curve_goes_both_ways_and_comes_back() -> None:
    plan = IvPlan(low_v=-0.1, high_v=0.2, levels=2, cells=[[1, 3]], arrays=[1])
    (point,) = await listed(plan)
    assert isinstance(point, CurvePoint)
    assert point.voltage_v == pytest.approx((0.0, 0.1, 0.2, 0.1, 0.0, -0.05, -0.1, -0.05, 0.0))
    assert (point.array, point.row, point.column) == (1, 1, 3)
    (one_way,) = await listed(replace(plan, there_and_back=False))
    assert isinstance(one_way, CurvePoint)
    assert one_way.voltage_v == pytest.approx((-0.1, 0.05, 0.2))
    (limited,) = await listed(replace(plan, max_voltage_v=0.15))
    assert isinstance(limited, CurvePoint)
    assert max(limited.voltage_v) == 0.15
    (wired,) = await listed(IvPlan(low_v=-2.0, high_v=2.0, meter="smu", max_voltage_v=0.1))
    assert isinstance(wired, CurvePoint)
    assert (wired.meter, wired.array, max(wired.voltage_v)) == ("smu", None, 2.0)


async def test_cells_and_levels_that_make_no_curve_are_refused() -> None:
    with pytest.raises(CapabilityError, match=r"\[\[8, 0\]\]"):
        await listed(IvPlan(cells=[[0, 0], [8, 0]]))
    with pytest.raises(ConfigError, match="no range"):
        await listed(IvPlan(low_v=0.2, high_v=0.1))
    with pytest.raises(ConfigError, match="needs low_v and high_v"):
        IvPlan(meter="smu")
    with pytest.raises(ConfigError, match="row, column"):
        IvPlan(cells=[[1]])
    assert len(await listed(IvPlan(cells=1000, arrays=[0]))) == 32  # as many as there are
    with pytest.raises(CapabilityError, match="cell-sweep"):
        PlanNeeds.of(IvPlan(), replace(INFO, capabilities=frozenset()))
    assert PlanNeeds.of(IvPlan(low_v=-1.0, high_v=1.0, meter="smu"), INFO).beside.meters == ("smu",)


@dataclass(frozen=True)
class Halving:
    """Halves an interval until a column is at half of its ADC."""

    steps: int = 4
    name = "halving"

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        return {0: StreamCapacity(rows=self.steps, writes=1, blocks=self.steps)}

    async def points(self, info: BoardInfo) -> Points:
        yield ProgramPoint(0, 0, np.full((info.rows, info.columns), info.conductance_max_s))
        low_v, high_v = 0.0, info.voltage_max_v
        for step in range(self.steps):
            middle_v = 0.5 * (low_v + high_v)
            answer = yield MvmPoint(0, 0, step, 64, np.full((1, info.rows), middle_v))
            assert isinstance(answer, MvmResult)
            above = answer.current_a[0, 0] > 0.5 * info.adc_full_scale_a[0]
            low_v, high_v = (low_v, middle_v) if above else (middle_v, high_v)


async def test_an_adaptive_design_becomes_a_plan_whose_answers_choose_its_points(tmp_path: object) -> None:
    from labrig.plans import AdaptivePlan

    plan = AdaptivePlan(Halving())
    assert plan.describe() == {"name": "halving", "steps": 4}
    points = plan.points(INFO)
    await points.asend(None)
    asked = []
    point: Point = await points.asend(None)
    for _ in range(3):
        assert isinstance(point, MvmPoint)
        asked.append(float(point.voltage_v[0, 0]))
        current_a = np.full((1, 4), 1.6e-4 * asked[-1] / 0.2)
        answer = MvmResult(np.zeros((1, 4), np.int16), current_a, np.zeros((1, 4), bool), np.zeros(1), 0)
        point = await points.asend(answer)
    await points.aclose()
    assert asked == pytest.approx([0.15, 0.075, 0.1125])


def test_plans_of_this_page_are_known_by_name() -> None:
    assert plan_by_name("retention", last_s=8.0).describe()["last_s"] == 8.0
    assert plan_by_name("energy", loads=[0.0, 1.0]).describe()["loads"] == [0.0, 1.0]
    assert plan_by_name("iv", cells=[[0, 1]]).describe()["cells"] == [[0, 1]]
    with pytest.raises(ConfigError, match="bursts is 0"):
        plan_by_name("energy", bursts=0)
