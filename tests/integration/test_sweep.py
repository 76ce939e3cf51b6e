"""A sweep from rig file to recording, and every way in which it can end early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pytest

from labrig.acquisition import acquire, run_sweep
from labrig.config import RigConfig, parse_rig, shipped_rig
from labrig.energy_meter import EnergyMeter
from labrig.events import Alarm, BlockCommitted, Event, EventBus, RunFinished, RunStarted, SupplyRead
from labrig.plans import MvmCalibrationPlan, MvmPoint, ProgramPoint
from labrig.recording import Recording, RecordingHeader, RecordingWriter, read_mvms
from labrig.rig import Rig, RigError, open_rig
from labrig_drivers.crossbar import FloatArray, MvmResult, ProgramReport
from labrig_drivers.errors import IdentityError, LinkLostError, SafetyError, StateError, StorageError
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.source_meter import Reading, SourceKind

CHIP = ChipSettings(arrays=2, rows=8, columns=4, seed=5)
PLAN = MvmCalibrationPlan(writes=2, seed=1, max_voltage_v=0.2)

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
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 1000.0
max_read_voltage_v = 0.25
"""


def config(text: str = RIG) -> RigConfig:
    return parse_rig(text, Path("rig.toml"), drivers={"mock-board", "keithley2400"})


class FakeSupply:
    """A source-meter that feeds the board, counts its seconds by readings, and fails where it is told to."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.is_on = False
        self.is_open = False
        self.level_v = 0.0
        self.readings = 0
        self.fails_at: str | None = None
        self.in_compliance = False

    @property
    def identity(self) -> Identity:
        return Identity("KEITHLEY INSTRUMENTS INC.", "MODEL 2400", "77", "C30")

    async def open(self) -> None:
        self._note("open")
        self.is_open = True

    async def close(self) -> None:
        self._note("close")
        self.is_open = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def configure(self, *, source: SourceKind, nplc: float = 1.0, wires: Literal[2, 4] = 2) -> None:
        self._note(f"configure {source} {nplc:g}")

    async def set_limit(self, *, current_a: float | None = None, voltage_v: float | None = None) -> None:
        self._note(f"limit {current_a:g}")

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        assert voltage_v is not None
        self.level_v = voltage_v
        self._note(f"level {voltage_v:g}")

    async def output_on(self) -> None:
        self.is_on = True
        self._note("on")

    async def output_off(self) -> None:
        self._note("off")
        self.is_on = False

    async def output_is_on(self) -> bool:
        return self.is_on

    async def measure(self) -> Reading:
        await asyncio.sleep(0)
        self._note("measure")
        self.readings += 1
        return Reading(self.level_v, 0.01, in_compliance=self.in_compliance, time_s=float(self.readings))

    async def set_ranges(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        pass

    async def sweep(
        self, *, voltage_v: Sequence[float] | None = None, current_a: Sequence[float] | None = None
    ) -> list[Reading]:
        raise NotImplementedError

    async def errors(self) -> list[tuple[int, str]]:
        return []

    def _note(self, text: str) -> None:
        self.log.append(text)
        if self.fails_at == text.split(maxsplit=1)[0]:
            raise LinkLostError(f"the supply was lost at {text}")


class SuppliedBoard(MockBoard):
    """The mock, fed by the fake supply; calls back before every MVM request."""

    def __init__(self, supply: FakeSupply, before: Callable[[int], None] = lambda request: None) -> None:
        super().__init__(CHIP, minimum_supply_v=1.0)
        self._fake = supply
        self._before = before
        self._asked = 0

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        self._asked += 1
        self._before(self._asked)
        await asyncio.sleep(0)
        self.set_supply_voltage(self._fake.level_v if self._fake.is_on else 0.0)
        return await super().mvm(array, voltage_v)

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        self.set_supply_voltage(self._fake.level_v if self._fake.is_on else 0.0)
        return await super().program(array, conductance_s)


@dataclass
class Bench:
    """What a test looks at after a run."""

    supply: FakeSupply
    events: list[Event]
    bus: EventBus
    path: Path

    def rig(self, before: Callable[[int], None] = lambda request: None) -> Rig:
        return Rig(config(), SuppliedBoard(self.supply, before), {"supply": self.supply})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    events: list[Event] = []
    bus = EventBus()
    bus.subscribe(events.append)
    return Bench(FakeSupply(), events, bus, tmp_path / "run.h5")


def status_of(events: list[Event]) -> str:
    (finished,) = [event for event in events if isinstance(event, RunFinished)]
    return finished.status


async def test_sweep_records_the_whole_plan_and_leaves_everything_off(bench: Bench) -> None:
    summary = await run_sweep(bench.rig(), PLAN, bench.path, bench.bus)

    async with MockBoard(CHIP) as board:
        total = sum(capacity.rows for capacity in PLAN.capacity(board.info).values())
    assert summary.mvms == total
    assert summary.writes == 4
    assert summary.joules is not None
    assert summary.joules == pytest.approx(1.2 * 0.01 * (bench.supply.readings - 1))
    assert bench.supply.log[:4] == ["open", "configure voltage 1", "limit 0.1", "level 1.2"]
    assert bench.supply.log[-2:] == ["off", "close"]
    assert (bench.supply.is_on, bench.supply.level_v) == (False, 0.0)
    assert isinstance(bench.events[0], RunStarted)
    assert bench.events[0].planned_mvms == total
    commits = [event for event in bench.events if isinstance(event, BlockCommitted)]
    assert commits[-1].total_mvms == total
    assert sum(isinstance(event, SupplyRead) for event in bench.events) == bench.supply.readings
    assert status_of(bench.events) == "finished"
    with Recording.open(bench.path) as recording:
        assert recording.status == "finished"
        assert recording.header.plan["seed"] == 1
        assert recording.header.rig_toml == RIG
        assert recording.header.identities["supply"].serial == "77"
        assert recording.header.settings["supply"]["limit_current_a"] == 0.1
        assert recording.supply_energy_j() == pytest.approx(summary.joules)


async def test_recorded_rows_are_what_the_board_answers_to_the_plan(bench: Bench) -> None:
    await run_sweep(bench.rig(), PLAN, bench.path, bench.bus)
    async with MockBoard(CHIP) as board:
        for array in (0, 1):
            data = read_mvms(bench.path, array)
            row = 0
            async for point in replace(PLAN, arrays=(array,)).points(board.info):
                if isinstance(point, ProgramPoint):
                    await board.program(point.array, point.conductance_s)
                    assert np.array_equal(data.target_conductance_s[point.write], point.conductance_s)
                    continue
                assert isinstance(point, MvmPoint)
                result = await board.mvm(array, point.voltage_v)
                rows = slice(row, row + len(point.voltage_v))
                assert np.array_equal(data.voltage_v[rows], point.voltage_v)
                assert np.array_equal(data.current_a[rows], result.current_a)
                assert (data.pattern[rows] == point.write).all()
                row = rows.stop
            assert row == len(data)


@pytest.mark.parametrize("request_number", [1, 7, 40])
async def test_cancelled_sweep_leaves_supply_off_and_file_readable(bench: Bench, request_number: int) -> None:
    reached = asyncio.Event()

    def before(number: int) -> None:
        if number == request_number:
            reached.set()

    task = asyncio.create_task(run_sweep(bench.rig(before), PLAN, bench.path, bench.bus))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (bench.supply.is_on, bench.supply.is_open) == (False, False)
    assert status_of(bench.events) == "aborted"
    with Recording.open(bench.path) as recording:
        recording.verify()
        assert recording.status == "aborted"
        committed = sum(recording.committed(array) for array in recording.arrays)
        blocks = sum(len(recording.point_hashes(array)) for array in recording.arrays)
    assert request_number - 2 <= blocks <= request_number
    told = [event.mvms for event in bench.events if isinstance(event, RunFinished)]
    assert told == [committed]


async def test_cancelled_at_every_await_the_supply_ends_off(bench: Bench) -> None:
    """Cancels one step later each time, from the opening of the rig to the middle of the run."""
    for steps in range(0, 120, 3):
        supply = FakeSupply()
        path = bench.path.with_name(f"run{steps}.h5")
        rig = Rig(config(), SuppliedBoard(supply), {"supply": supply})
        task = asyncio.create_task(run_sweep(rig, PLAN, path, EventBus()))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (supply.is_on, supply.is_open) == (False, False)
        if path.exists():
            with Recording.open(path) as recording:
                recording.verify()
                assert recording.status == "aborted"


async def test_board_that_fails_ends_the_run_safely(bench: Bench) -> None:
    def before(number: int) -> None:
        if number == 12:
            raise LinkLostError("the board is gone")

    with pytest.raises(LinkLostError, match="the board is gone"):
        await run_sweep(bench.rig(before), PLAN, bench.path, bench.bus)
    assert not bench.supply.is_on
    assert status_of(bench.events) == "aborted"
    with Recording.open(bench.path) as recording:
        assert sum(len(recording.point_hashes(array)) for array in (0, 1)) == 11


async def test_supply_that_fails_ends_the_run_with_an_alarm(bench: Bench) -> None:
    def before(number: int) -> None:
        bench.supply.fails_at = "measure"

    plan = replace(PLAN, writes=400)  # longer than the pause between two readings
    with pytest.raises(LinkLostError, match="lost at measure"):
        await run_sweep(bench.rig(before), plan, bench.path, bench.bus)
    assert not bench.supply.is_on
    alarms = [event.text for event in bench.events if isinstance(event, Alarm)]
    assert alarms == ["the array supply can no longer be read: the supply was lost at measure"]
    with Recording.open(bench.path) as recording:
        recording.verify()
        assert recording.status == "aborted"


async def test_supply_that_cannot_be_switched_off_is_the_message(bench: Bench) -> None:
    def before(number: int) -> None:
        bench.supply.fails_at = "off"

    with pytest.raises(RigError, match="press OUTPUT OFF") as caught:
        await run_sweep(bench.rig(before), PLAN, bench.path, bench.bus)
    assert list(caught.value.failures) == ["supply"]
    with Recording.open(bench.path) as recording:
        recording.verify()


async def test_supply_at_its_limit_is_an_alarm_once(bench: Bench) -> None:
    bench.supply.in_compliance = True
    fifth = asyncio.Event()
    bench.bus.subscribe(lambda event: fifth.set() if bench.supply.readings == 5 else None)
    async with EnergyMeter(bench.supply, bench.bus, period_s=0.0) as meter:
        await fifth.wait()
        meter.check()
    assert sum(isinstance(event, Alarm) for event in bench.events) == 1


async def test_no_file_without_a_rig_and_no_output_without_a_file(bench: Bench) -> None:
    bench.supply.fails_at = "open"
    with pytest.raises(RigError):
        await run_sweep(bench.rig(), PLAN, bench.path, bench.bus)
    assert not bench.path.exists()
    bench.supply.fails_at = None
    bench.supply.log.clear()
    with pytest.raises(StorageError):
        await run_sweep(bench.rig(), PLAN, bench.path / "below" / "run.h5", bench.bus)
    assert bench.supply.log == ["open", "close"]


async def test_output_that_was_left_on_is_switched_off_first(bench: Bench) -> None:
    bench.supply.is_on = True
    async with bench.rig() as rig:
        assert bench.supply.is_on  # opening changes nothing
        await rig.power_up()
        assert bench.supply.log[1:3] == ["off", "configure voltage 1"]
        await rig.power_down()
    assert not bench.supply.is_on


async def test_plan_beyond_the_envelope_is_refused(bench: Bench) -> None:
    with pytest.raises(SafetyError, match=r"exceed safety\.max_read_voltage_v"):
        await run_sweep(bench.rig(), replace(PLAN, max_voltage_v=None), bench.path, bench.bus)
    assert not bench.supply.is_on


async def test_all_instruments_that_fail_to_open_are_named_in_one_error() -> None:
    supply = FakeSupply()
    supply.fails_at = "open"
    board = MockBoard(CHIP, expected=ExpectedIdentity(serial="SIM-9999"))
    rig = Rig(config(), board, {"supply": supply})
    with pytest.raises(RigError) as caught:
        async with rig:
            pass
    assert set(caught.value.failures) == {"board", "supply"}
    assert isinstance(caught.value.failures["board"], IdentityError)
    message = str(caught.value).splitlines()
    assert message[0].startswith(
        "rig 'bench' (rig.toml): 2 of 2 instruments could not be opened, no output was touched"
    )
    assert message[1].startswith("  board (mock-board, in this process):")
    assert "SIM-9999" in message[2]
    assert message[3:] == ["  supply (keithley2400, tcp://127.0.0.1:1):", "    the supply was lost at open"]


async def test_what_opened_is_closed_when_another_fails() -> None:
    supply = FakeSupply()
    rig = Rig(config(), MockBoard(CHIP, expected=ExpectedIdentity(serial="SIM-9999")), {"supply": supply})
    with pytest.raises(RigError):
        await rig.open()
    assert supply.log == ["open", "close"]


async def test_rig_without_supply_measures_without_energy(tmp_path: Path) -> None:
    bus = EventBus()
    async with open_rig(shipped_rig("mock")) as rig:
        assert rig.supply is None
        info = rig.board.info
        plan = MvmCalibrationPlan(writes=1, arrays=(1,))
        header = RecordingHeader.for_rig(rig, plan.describe())
        async with await RecordingWriter.create(tmp_path / "run.h5", header, info, plan.capacity(info)) as writer:
            summary = await acquire(rig, plan, writer, bus)
    assert summary.joules is None
    assert summary.mvms == len(read_mvms(tmp_path / "run.h5", array=1))
    with pytest.raises(StateError):
        rig.identities()
