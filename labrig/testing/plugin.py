"""The pytest plugin: tests of drivers, experiments and evaluations without hardware.

`mock_board` and `mock_chip` are boards in this process, `mock_rig` is a bench in another one, `recorded_run` is a
finished recording, `fault_proxy` a line with faults, and `driver_contract` looks at a driver of your own. Installed
with labrig, so a test only names the fixture:

    async def test_mine(mock_board):
        async with mock_board as board:
            ...

    async def test_small(mock_chip):
        async with mock_chip(rows=8, columns=4) as board:
            ...

    async def test_driver(driver_contract):
        await driver_contract(lambda: MyMeter(...))

    def test_evaluation(recorded_run):
        dataset = labrig.read_mvms(recorded_run.path)

    def test_sweep(mock_rig):
        config = labrig.load_rig(mock_rig.rig_file)

    async def test_faults(fault_proxy):
        async with fault_proxy(port_of_my_instrument, FaultPlan.random(seed=1, rate=0.05)) as proxy:
            ...
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# A plugin is imported in every pytest run of the environment, also in those that never use it.
if TYPE_CHECKING:
    from labrig.testing.driver_contract import DriverContract
    from labrig.testing.fault_lane import Cutter
    from labrig.testing.fault_plan import FaultPlan
    from labrig.testing.fault_proxy import FaultProxy
    from labrig_drivers.mock.board import MockBoard


@dataclass(frozen=True)
class MockRig:
    """A simulated bench in a process of its own, for the length of one test.

    Attributes:
        rig_file: Rig file that names its board (TCP) and its array supply (VISA over TCP).
        serial_device: The same board behind a pty.
        log: JSON lines: every change of an output, every programming, every connection.
    """

    rig_file: Path
    serial_device: str
    log: Path


@dataclass(frozen=True)
class RecordedRun:
    """A finished recording of a small simulated chip, for one test to read, or to spoil.

    Attributes:
        path: The recording: one array of 8 rows and 4 columns, two programmings, the usual vectors.
        rig_file: The rig that it was recorded on.
    """

    path: Path
    rig_file: Path


_RECORDED_RIG = """\
[rig]
name = "recorded"

[board]
driver = "mock-board"
settings = { arrays = 1, rows = 8, columns = 4, seed = 1 }

[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""


@pytest.fixture
def mock_board() -> MockBoard:
    """A board that is simulated in this process, not open yet; equal draws in every run."""
    from labrig_drivers.mock.board import MockBoard
    from labrig_drivers.mock.chip import ChipSettings

    return MockBoard(ChipSettings(seed=1))


@pytest.fixture
def mock_chip() -> Callable[..., MockBoard]:
    """Makes boards with a chip of your choice: the arguments are the fields of `labrig_drivers.ChipSettings`."""
    from labrig_drivers.mock.board import MockBoard
    from labrig_drivers.mock.chip import ChipSettings

    return lambda **settings: MockBoard(ChipSettings(**settings))


@pytest.fixture(scope="session")
def _recorded_once(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    import asyncio

    from labrig import EventBus, MvmCalibrationPlan, load_rig, run_sweep

    folder = tmp_path_factory.mktemp("recorded")
    run = RecordedRun(folder / "run.h5", folder / "rig.toml")
    run.rig_file.write_text(_RECORDED_RIG, encoding="utf-8")
    asyncio.run(run_sweep(load_rig(run.rig_file), MvmCalibrationPlan(writes=2), run.path, EventBus()))
    return run


@pytest.fixture
def recorded_run(_recorded_once: RecordedRun, tmp_path: Path) -> RecordedRun:
    """A recording, measured once in a session and copied for each test; equal rows in every session."""
    run = RecordedRun(tmp_path / "recorded.h5", tmp_path / "recorded.toml")
    shutil.copyfile(_recorded_once.path, run.path)
    shutil.copyfile(_recorded_once.rig_file, run.rig_file)
    return run


@pytest.fixture
def driver_contract() -> DriverContract:
    """Checks a driver against the contract of what it is; see `labrig.testing.driver_contract.check_driver`."""
    from labrig.testing.driver_contract import check_driver

    return check_driver


@pytest.fixture
def mock_rig(tmp_path: Path) -> Iterator[MockRig]:
    """A running simulated bench and the rig file to reach it by."""
    from labrig.simulated import simulated_bench

    with simulated_bench(tmp_path, seed=1) as bench:
        yield MockRig(bench.rig_file, bench.serial_device, bench.log)


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """Makes `FaultProxy` objects; when the test fails, its report has what is needed to repeat their faults."""
    from labrig.testing.fault_lane import cut_lines, cut_pieces
    from labrig.testing.fault_plan import CLEAN
    from labrig.testing.fault_proxy import FaultProxy

    made: list[FaultProxy] = []

    def make(
        instrument: int | str,
        plan: FaultPlan = CLEAN,
        *,
        serial: bool = False,
        requests: Cutter = cut_pieces,
        answers: Cutter = cut_lines,
    ) -> FaultProxy:
        made.append(FaultProxy(instrument, plan, serial=serial, requests=requests, answers=answers))
        return made[-1]

    yield make
    for proxy in made:
        # pytest shows what a teardown prints only for tests that failed.
        print(proxy.story())
