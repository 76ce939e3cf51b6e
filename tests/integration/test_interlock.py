"""An interlock that opens pauses a run: the supply goes off, and the run goes on later with the same point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from labrig.acquisition import run_sweep
from labrig.config import RigConfig, parse_rig
from labrig.events import Alarm, BlockCommitted, Event, EventBus, RunFinished, RunPaused, RunResumed
from labrig.interlock import SupplyFeed
from labrig.plans import MvmCalibrationPlan, MvmPoint
from labrig.recording import Recording
from labrig.rig import Rig
from labrig.run_control import Condition, RunControl
from labrig_drivers.crossbar import FloatArray, MvmResult, ProgramReport
from labrig_drivers.errors import LabrigError, LinkError, StateError
from labrig_drivers.interlock import InterlockInput
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import TcpLink
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.servers import InstrumentServer, SimulatedKeithley2400

CHIP = ChipSettings(arrays=2, rows=8, columns=4, seed=5)
PLAN = MvmCalibrationPlan(writes=2, seed=1, max_voltage_v=0.2, batch=64)
PATIENCE_S = 20.0

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
[interlocks.door]
instrument = "supply"
poll_s = 0.02
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 100.0
max_read_voltage_v = 0.25
"""


class FedBoard(MockBoard):
    """The mock behind the simulated source-meter; a `Load` of it. Every request passes a hook first."""

    def __init__(self) -> None:
        super().__init__(CHIP, minimum_supply_v=1.0)
        self.requests = 0
        self.hook: Callable[[str, int], None] = lambda verb, request: None
        self.held: asyncio.Event | None = None

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:
        return 1e-3 * voltage_v

    def supply_changed(self, voltage_v: float, time_s: float) -> None:
        self.set_supply_voltage(voltage_v)
        if self.held is not None and voltage_v < 1.0:
            self.held.set()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        await self._pass("program")
        return await super().program(array, conductance_s)

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        await self._pass("mvm")
        return await super().mvm(array, voltage_v)

    async def _pass(self, verb: str) -> None:
        self.requests += 1
        self.hook(verb, self.requests)
        if self.held is not None:
            # A request that lasts: it is still in flight when the supply goes down.
            await self.held.wait()
            self.held = None


class Bench:
    """The instruments, the door, and what was heard of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.board = FedBoard()
        self.outputs: list[OutputEvent] = []
        self.server = InstrumentServer(SimulatedKeithley2400(self.board, log=self.outputs.append))
        self.events: list[Event] = []
        self.bus = EventBus()
        self.bus.subscribe(self.events.append)
        self.paused_outputs: list[bool] = []

    @property
    def instrument(self) -> InterlockSwitch:
        return InterlockSwitch(self)

    def config(self) -> RigConfig:
        return parse_rig(RIG, Path("rig.toml"))

    def rig(self) -> Rig:
        meter = Keithley2400(TcpLink("127.0.0.1", self.server.port), ramp_v_per_s=100.0, name="supply")
        assert isinstance(meter, InterlockInput)
        return Rig(self.config(), self.board, {"supply": meter})

    def close_soon(self, event: Event) -> None:
        """A person who sees the pause and closes the door a moment later."""
        if isinstance(event, RunPaused):
            asyncio.get_running_loop().call_later(0.1, self._close)

    def _close(self) -> None:
        self.paused_outputs.append(self.server.instrument.output_on)
        self.server.instrument.interlock_closed = True

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def status(self) -> str:
        (finished,) = [event for event in self.events if isinstance(event, RunFinished)]
        return finished.status


class InterlockSwitch:
    """The door of a bench."""

    def __init__(self, bench: Bench) -> None:
        self._instrument = bench.server.instrument

    def open(self, *, cuts: bool = False) -> None:
        """Opens it; where it cuts, the instrument's hardware switches its output off in the same moment."""
        self._instrument.interlock_closed = False
        if cuts:
            for _ in self._instrument.run(":OUTP 0"):
                pass


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "run.h5")
    async with bench.server:
        yield bench


async def points_of(path: Path) -> list[str]:
    with Recording.open(path) as recording:
        recording.verify()
        assert recording.status == "finished"
        return [point for array in recording.arrays for point in recording.point_hashes(array)]


def set_when_paused(paused: asyncio.Event, event: Event) -> None:
    if isinstance(event, RunPaused):
        paused.set()


async def planned() -> list[str]:
    """The points of the plan, array by array."""
    async with MockBoard(CHIP) as board:
        points = [point async for point in PLAN.points(board.info) if isinstance(point, MvmPoint)]
    return [point.hash for array in (0, 1) for point in points if point.array == array]


@pytest.mark.parametrize("verb", ["mvm", "program"])
@pytest.mark.parametrize("moment", ["cut in hardware", "in flight", "just before"])
async def test_a_run_pauses_and_goes_on_with_the_same_point(bench: Bench, verb: str, moment: str) -> None:
    wanted = await planned()
    switch = bench.instrument
    opened: list[int] = []

    def hook(asked: str, request: int) -> None:
        if asked == verb and request > 3 and not opened:
            opened.append(request)
            if moment == "in flight":
                bench.board.held = asyncio.Event()
            # Just before: this request is through before anybody has looked; the next one must not be made.
            switch.open(cuts=moment == "cut in hardware")

    bench.board.hook = hook
    bench.bus.subscribe(bench.close_soon)
    summary = await run_sweep(bench.rig(), PLAN, bench.path, bench.bus)

    assert opened
    assert (bench.count(RunPaused), bench.count(RunResumed), bench.status()) == (1, 1, "finished")
    (paused,) = [event for event in bench.events if isinstance(event, RunPaused)]
    assert "interlock door is open" in paused.reason
    assert bench.paused_outputs == [False]
    assert await points_of(bench.path) == wanted
    assert len(set(wanted)) == len(wanted)
    assert summary.writes == 4
    # What is told numbers writes as the recording does.
    with Recording.open(bench.path) as recording:
        recorded = {array: recording.mvm_columns(array)["write"].tolist() for array in recording.arrays}
    told = [one for one in bench.events if isinstance(one, BlockCommitted)]
    assert recorded == {
        array: [one.write for one in told if one.array == array for _ in range(one.mvms)] for array in recorded
    }
    assert summary.joules is not None
    assert summary.joules > 0.0
    assert not bench.server.instrument.output_on
    states = [event.output_on for event in bench.outputs]
    assert sum(after and not before for before, after in pairwise(states)) == 2


async def test_an_open_interlock_at_the_start_is_waited_for(bench: Bench) -> None:
    bench.instrument.open()
    bench.bus.subscribe(bench.close_soon)
    await run_sweep(bench.rig(), PLAN, bench.path, bench.bus)
    assert isinstance(bench.events[0], RunPaused)
    assert isinstance(bench.events[1], RunResumed)
    assert bench.paused_outputs == [False]
    assert bench.status() == "finished"


async def test_a_paused_run_can_be_stopped(bench: Bench) -> None:
    paused = asyncio.Event()
    bench.bus.subscribe(partial(set_when_paused, paused))
    bench.board.hook = lambda verb, request: bench.instrument.open() if request == 5 else None
    task = asyncio.create_task(run_sweep(bench.rig(), PLAN, bench.path, bench.bus))
    async with asyncio.timeout(PATIENCE_S):
        await paused.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not bench.server.instrument.output_on
    assert bench.status() == "aborted"
    assert bench.count(RunResumed) == 0
    with Recording.open(bench.path) as recording:
        recording.verify()
        assert recording.status == "aborted"


async def test_stopped_at_every_step_of_a_pause_the_supply_ends_off(bench: Bench) -> None:
    for number in range(12):
        bus, paused = EventBus(), asyncio.Event()
        bus.subscribe(partial(set_when_paused, paused))
        bench.board.requests = 0
        bench.server.instrument.interlock_closed = True
        bench.board.hook = lambda verb, request: bench.instrument.open() if request == 5 else None
        task = asyncio.create_task(run_sweep(bench.rig(), PLAN, bench.path.with_name(f"{number}.h5"), bus))
        async with asyncio.timeout(PATIENCE_S):
            await paused.wait()
        if number % 2:
            bench.server.instrument.interlock_closed = True
        await asyncio.sleep(0.004 * number)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not bench.server.instrument.output_on


async def test_an_interlock_that_cannot_be_read_ends_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(meter: Keithley2400) -> bool:
        raise LinkError("the line is gone")

    def hook(verb: str, request: int) -> None:
        if request == 4:
            monkeypatch.setattr(Keithley2400, "interlock_closed", lost)

    bench.board.hook = hook
    with pytest.raises(LinkError, match="the line is gone"):
        await run_sweep(bench.rig(), PLAN, bench.path, bench.bus)
    assert not bench.server.instrument.output_on
    assert (bench.status(), bench.count(RunPaused)) == ("aborted", 0)


async def test_a_failure_with_all_interlocks_closed_is_a_failure(bench: Bench) -> None:
    def hook(verb: str, request: int) -> None:
        if request == 4:
            raise LabrigError("the board is broken")

    bench.board.hook = hook
    with pytest.raises(LabrigError, match="the board is broken"):
        await run_sweep(bench.rig(), PLAN, bench.path, bench.bus)
    assert bench.count(RunPaused) == 0
    assert bench.count(Alarm) == 0


async def test_no_output_goes_on_while_an_interlock_is_open(bench: Bench) -> None:
    bench.instrument.open()
    async with bench.rig() as rig:
        assert await rig.open_interlocks() == ["door"]
        with pytest.raises(StateError, match="interlock door is open; close it before switching on"):
            await rig.power_up()
        assert not any(event.output_on for event in bench.outputs)


async def test_a_supply_that_does_not_come_back_ends_the_run(bench: Bench) -> None:
    async def record(reading: object) -> None:
        pass

    async def request() -> None:
        raise StateError("the supply is off")

    bench.bus.subscribe(bench.close_soon)
    async with bench.rig() as rig, rig.powered(), SupplyFeed(rig, bench.bus, record) as feed:
        bench.instrument.open(cuts=True)
        with pytest.raises(StateError, match="the supply is off"):
            await feed.make(request)
    # Paused once, powered up again, and then the request failed with everything closed.
    assert (bench.count(RunPaused), bench.count(RunResumed)) == (1, 1)
    assert not bench.server.instrument.output_on


async def test_a_condition_switches_the_supply_off_until_it_holds_again(bench: Bench) -> None:
    wanted = await planned()
    looks = 0
    outputs: list[bool] = []

    async def fault() -> str | None:
        nonlocal looks
        looks += 1
        if 6 < looks < 10:
            outputs.append(bench.server.instrument.output_on)
            return "37 °C is above 35 °C"
        return None

    control = RunControl([Condition("temperature", fault, poll_s=0.01)])
    summary = await run_sweep(bench.rig(), PLAN, bench.path, bench.bus, control=control)
    assert summary.status == "finished"
    assert (bench.count(RunPaused), bench.count(RunResumed)) == (1, 1)
    # On when it was noticed, off while it lasted, and on again behind it.
    assert outputs[0] is True
    assert outputs[1:] == [False] * (len(outputs) - 1)
    assert len(outputs) >= 2
    states = [state for state, _ in groupby(event.output_on for event in bench.outputs)]
    assert states[-4:] == [True, False, True, False]
    assert await points_of(bench.path) == wanted
