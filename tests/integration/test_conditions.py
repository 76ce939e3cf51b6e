"""Conditions of a rig file: a run is suspended with its supply off, and goes on by itself, or gives up and says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import groupby
from pathlib import Path

import pytest

from labrig.acquisition import RunSummary, run_sweep
from labrig.conditions import rig_conditions
from labrig.config import parse_rig
from labrig.events import Alarm, Event, EventBus, RunFinished, RunPaused, RunResumed
from labrig.plans import MvmCalibrationPlan, MvmPoint
from labrig.recording import Recording
from labrig.rig import Rig, open_rig
from labrig.run_control import RunControl
from labrig_drivers.axis_motion import AxisSettings
from labrig_drivers.crossbar import FloatArray, MvmResult
from labrig_drivers.errors import ConfigError, LabrigError, LinkLostError, PlanAbortedError, StateError
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import TcpLink
from labrig_drivers.mock.axis import LagSettings, MockAxis
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.clock import WallClock
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.servers import InstrumentServer, SimulatedKeithley2400

CHIP = ChipSettings(arrays=1, rows=8, columns=4, seed=5)
PLAN = MvmCalibrationPlan(writes=2, seed=1, max_voltage_v=0.2, batch=64)
CHUCK = AxisSettings("temperature", "K", 280.0, 400.0, tolerance=0.5, hold_s=0.0, poll_s=0.01)
HOLD_S, LONGER_THAN_A_POLL_S = 0.05, 0.03

RIG = """\
[rig]
name = "bench"
[board]
driver = "mock-board"
[source_meters.supply]
driver = "keithley2400"
link = "tcp://127.0.0.1:1"
role = "array-supply"
level_voltage_v = 1.2
limit_current_a = 0.1
nplc = 0.01
[axes.chuck]
driver = "mock-axis"
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 100.0
max_read_voltage_v = 0.25
"""
AT_THE_CHUCK = f'[conditions.band]\nreads = "axes.chuck"\nlow = 295.0\nhigh = 305.0\npoll_s = 0.01\nhold_s = {HOLD_S}\n'
ON_THE_CHIP = '[conditions.die]\nreads = "board.temperature"\nhigh = 320.0\npoll_s = 0.01\n'
AT_THE_SUPPLY = '[conditions.feed]\nreads = "supply.compliance"\nretry_s = 0.05\nretries = 2\n'


class FedBoard(MockBoard):
    """The mock behind the simulated source-meter, which may be shorted; every MVM passes a hook first."""

    def __init__(self) -> None:
        super().__init__(CHIP, minimum_supply_v=1.0)
        self.load_s = 1e-3
        self.temperature = 300.0
        self.mvms = 0
        self.hook: Callable[[int], None] = lambda mvm: None
        self.held: asyncio.Event | None = None
        # How long the request lasts for which the hook was called, in s.
        self.lasts_s = 0.0

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:
        return self.load_s * voltage_v

    def supply_changed(self, voltage_v: float, time_s: float) -> None:
        self.set_supply_voltage(voltage_v)
        if self.held is not None and voltage_v < 1.0:
            self.held.set()

    async def temperature_k(self) -> float:
        return self.temperature

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        self.mvms += 1
        self.hook(self.mvms)
        if self.held is not None:
            # A request that lasts: it is still in flight when the supply goes down.
            await self.held.wait()
            self.held = None
        await asyncio.sleep(self.lasts_s)
        self.lasts_s = 0.0
        return await super().mvm(array, voltage_v)


class Bench:
    """The instruments, and what was heard of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.board = FedBoard()
        self.chuck = MockAxis(CHUCK, LagSettings(300.0, lag_s=0.2), clock=WallClock())
        self.outputs: list[OutputEvent] = []
        self.server = InstrumentServer(SimulatedKeithley2400(self.board, log=self.outputs.append))
        self.events: list[Event] = []
        self.bus = EventBus()
        self.bus.subscribe(self.events.append)

    def rig(self, conditions: str) -> Rig:
        meter = Keithley2400(TcpLink("127.0.0.1", self.server.port), ramp_v_per_s=100.0, name="supply")
        config = parse_rig(RIG + conditions, Path("rig.toml"))
        return Rig(config, self.board, {"supply": meter}, axes={"chuck": self.chuck})

    async def run(self, conditions: str) -> RunSummary:
        rig = self.rig(conditions)
        return await run_sweep(rig, PLAN, self.path, self.bus, control=RunControl(rig_conditions(rig)))

    def reasons(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, RunPaused)]

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def supply(self) -> list[bool]:
        """On and off as often as it changed."""
        return [on for on, _ in groupby(event.output_on for event in self.outputs)]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "run.h5")
    async with bench.server:
        yield bench
        assert not bench.server.instrument.output_on


async def planned() -> list[str]:
    async with MockBoard(CHIP) as board:
        return [point.hash async for point in PLAN.points(board.info) if isinstance(point, MvmPoint)]


def recorded(path: Path, status: str = "finished") -> list[str]:
    with Recording.open(path) as recording:
        recording.verify()
        assert recording.status == status
        return [point for array in recording.arrays for point in recording.point_hashes(array)]


async def test_an_axis_that_leaves_its_band_suspends_the_run_until_it_has_stayed_inside(bench: Bench) -> None:
    def open_the_lid(mvm: int) -> None:
        if mvm == 5:
            bench.chuck.physics.disturb(330.0)
            bench.board.lasts_s = LONGER_THAN_A_POLL_S

    bench.board.hook = open_the_lid
    mvms_at: dict[type[Event], int] = {}
    bench.bus.subscribe(lambda event: mvms_at.update({type(event): bench.board.mvms}))
    summary = await bench.run(AT_THE_CHUCK)
    assert summary.status == "finished"
    (reason,) = bench.reasons()
    assert reason.startswith("band: 3")
    assert "K exceeds 305 K; the array supply is off" in reason
    (resumed,) = [event for event in bench.events if isinstance(event, RunResumed)]
    assert resumed.waited_s >= HOLD_S
    # Nothing was measured meanwhile, and everything afterwards, once.
    assert mvms_at[RunPaused] == mvms_at[RunResumed] < bench.board.mvms == len(await planned())
    assert bench.supply()[-4:] == [True, False, True, False]
    assert 295.0 <= (bench.chuck.physics.value()) <= 305.0
    assert recorded(bench.path) == await planned()


async def test_a_hot_chip_is_waited_for_at_the_start(bench: Bench) -> None:
    bench.board.temperature = 350.0

    def cool_soon(event: Event) -> None:
        if isinstance(event, RunPaused):
            asyncio.get_running_loop().call_later(0.05, setattr, bench.board, "temperature", 300.0)

    bench.bus.subscribe(cool_soon)
    await bench.run(ON_THE_CHIP)
    assert bench.reasons() == ["die: 350 K exceeds 320 K; the array supply is off, and the run waits"]
    # It was switched on once, when the chip had cooled down.
    assert bench.supply()[-2:] == [True, False]
    assert sum(bench.supply()) == 1
    assert recorded(bench.path) == await planned()


async def test_an_axis_that_cannot_be_read_ends_the_run(bench: Bench) -> None:
    async def lost() -> None:
        raise LinkLostError("the controller is gone")

    bench.board.hook = lambda mvm: setattr(bench.chuck, "read", lost) if mvm == 3 else None
    with pytest.raises(LinkLostError, match="the controller is gone"):
        await bench.run(AT_THE_CHUCK)
    (finished,) = [event for event in bench.events if isinstance(event, RunFinished)]
    assert finished.status == "aborted"


async def test_a_supply_at_its_limit_rests_and_the_same_request_is_made_again(bench: Bench) -> None:
    shorted: list[int] = []

    def short(mvm: int) -> None:
        if mvm == 5 and not shorted:
            shorted.append(mvm)
            bench.board.load_s = 1.0
            bench.board.held = asyncio.Event()

    def repair(event: Event) -> None:
        if isinstance(event, RunPaused):
            bench.board.load_s = 1e-3

    bench.board.hook = short
    bench.bus.subscribe(repair)
    summary = await bench.run(AT_THE_SUPPLY)
    assert bench.reasons() == [
        "feed: the array supply is at its limit (0.1 V, 0.1 A); the array supply is off, and the run waits"
    ]
    (resumed,) = [event for event in bench.events if isinstance(event, RunResumed)]
    assert resumed.waited_s >= 0.05
    assert bench.supply()[-4:] == [True, False, True, False]
    assert summary.status == "finished"
    assert bench.board.mvms == len(await planned()) + 1
    assert recorded(bench.path) == await planned()


async def test_a_short_that_stays_ends_the_run_with_an_alarm_and_advice(bench: Bench) -> None:
    def short(mvm: int) -> None:
        if mvm == 5:
            bench.board.load_s = 1.0
            bench.board.held = asyncio.Event()

    bench.board.hook = short
    with pytest.raises(PlanAbortedError) as caught:
        await bench.run(AT_THE_SUPPLY)
    text = str(caught.value)
    assert "'supply' was at its limit (0.1 V, 0.1 A), also after 2 retries; it is off now" in text
    assert "source_meters.supply.limit_current_a = 0.1 A (rig.toml:10)" in text
    assert bench.events[-2] == Alarm(text)
    # The first time, and two retries.
    assert sum(bench.supply()) == 3
    assert bench.board.mvms == 5
    assert recorded(bench.path, "aborted") == (await planned())[:4]


async def test_a_board_that_complains_before_the_limit_was_seen_is_understood(bench: Bench) -> None:
    complained: list[int] = []

    def dip(mvm: int) -> None:
        if mvm == 5 and not complained:
            complained.append(mvm)
            bench.board.load_s = 1.0
            raise StateError("the supply dipped")

    def repair(event: Event) -> None:
        if isinstance(event, RunPaused):
            bench.board.load_s = 1e-3

    bench.board.hook = dip
    bench.bus.subscribe(repair)
    await bench.run(AT_THE_SUPPLY)
    assert len(bench.reasons()) == 1
    assert recorded(bench.path) == await planned()


async def test_a_failure_with_the_supply_below_its_limit_is_a_failure(bench: Bench) -> None:
    def fail(mvm: int) -> None:
        if mvm == 5:
            raise LabrigError("the board is broken")

    bench.board.hook = fail
    with pytest.raises(LabrigError, match="the board is broken"):
        await bench.run(AT_THE_SUPPLY)
    assert bench.reasons() == []


async def test_without_a_condition_a_limit_is_an_alarm_only(bench: Bench) -> None:
    bench.board.load_s = 1.0
    summary = await bench.run("")
    assert summary.status == "finished"
    assert (bench.count(Alarm), bench.count(RunPaused)) == (1, 0)


async def test_a_paused_run_with_every_condition_can_be_stopped(bench: Bench) -> None:
    rig = bench.rig(AT_THE_CHUCK + ON_THE_CHIP + AT_THE_SUPPLY)
    control = RunControl()
    usual_s = control.poll_s

    def overheat(mvm: int) -> None:
        if mvm == 5:
            bench.board.temperature, bench.board.lasts_s = 400.0, LONGER_THAN_A_POLL_S

    bench.board.hook = overheat
    bench.bus.subscribe(lambda event: control.stop() if isinstance(event, RunPaused) else None)
    with control.watching(rig_conditions(rig)):
        assert control.poll_s == 0.01
        summary = await run_sweep(rig, PLAN, bench.path, bench.bus, control=control)
    assert (summary.status, control.poll_s) == ("stopped", usual_s)
    assert recorded(bench.path, "stopped") == (await planned())[:5]


async def test_a_rig_whose_board_has_no_thermometer_is_not_opened(tmp_path: Path) -> None:
    text = RIG.partition("[source_meters")[0] + "[safety]" + RIG.partition("[safety]")[2] + ON_THE_CHIP
    text = text.replace('driver = "mock-board"', 'driver = "mock-board"\nsettings = { capabilities = [] }')
    rig = open_rig(parse_rig(text, Path("rig.toml")), lock_folder=tmp_path)
    with pytest.raises(ConfigError, match=r"rig\.toml:13: conditions\.die\.reads: the board does not declare"):
        await rig.open()
