"""The pytest plugin: `mock_board` in this process, `mock_rig` as a real bench, `fault_proxy` for a line with faults.

Installed with labrig, so a test only names the fixture:

    async def test_mine(mock_board):
        async with mock_board as board:
            ...

    def test_sweep(mock_rig):
        config = labrig.load_rig(mock_rig.rig_file)

    async def test_faults(fault_proxy):
        async with fault_proxy(port_of_my_instrument, FaultPlan.random(seed=1, rate=0.05)) as proxy:
            ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# A plugin is imported in every pytest run of the environment, also in those that never use it.
if TYPE_CHECKING:
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


@pytest.fixture
def mock_board() -> MockBoard:
    """A board that is simulated in this process, not open yet; equal draws in every run."""
    from labrig_drivers.mock.board import MockBoard
    from labrig_drivers.mock.chip import ChipSettings

    return MockBoard(ChipSettings(seed=1))


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
