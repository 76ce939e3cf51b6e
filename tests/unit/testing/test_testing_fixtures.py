"""The fixtures for other people's tests: what they promise, and that they cost nothing where nobody uses them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import labrig
from labrig.testing.driver_contract import DriverContract, check_driver
from labrig.testing.plugin import RecordedRun
from labrig_drivers.crossbar import CrossbarBoard, FloatArray, MvmResult
from labrig_drivers.links import MemoryLink
from labrig_drivers.mock.axis import LagSettings, MockAxis
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings


async def test_a_chip_of_ones_choice_is_equal_in_every_run(mock_chip: Callable[..., MockBoard]) -> None:
    codes = []
    for _ in range(2):
        async with mock_chip(rows=5, columns=3, adc_bits=6, seed=7) as board:
            assert (board.info.rows, board.info.columns, board.info.adc_bits) == (5, 3, 6)
            await board.program(0, np.full((5, 3), 2e-5))
            codes.append((await board.mvm(0, np.full((4, 5), 0.1))).code)
    np.testing.assert_array_equal(codes[0], codes[1])
    with pytest.raises(TypeError, match="colums"):
        mock_chip(colums=3)


def test_a_recording_may_be_spoilt(recorded_run: RecordedRun) -> None:
    assert labrig.verify_recording(recorded_run.path).faults == ()
    recorded_run.path.write_bytes(b"")


def test_the_next_test_has_a_whole_one(recorded_run: RecordedRun) -> None:
    dataset = labrig.read_mvms(recorded_run.path)
    assert (dataset.rows, dataset.columns, dataset.writes) == (8, 4, 2)
    assert labrig.load_rig(recorded_run.rig_file).rig.name == "recorded"


async def test_the_contract_of_a_board_is_found(driver_contract: DriverContract) -> None:
    assert driver_contract is check_driver
    await driver_contract(lambda: MockBoard(ChipSettings(rows=8, columns=4)))


async def test_the_contract_of_an_axis_is_found(driver_contract: DriverContract) -> None:
    from labrig_drivers.axis_motion import AxisSettings

    settings = AxisSettings("temperature", "K", 280.0, 400.0, tolerance=0.5, timeout_s=300.0, hold_s=5.0, poll_s=0.5)
    await driver_contract(
        lambda: MockAxis(settings, LagSettings(300.0)), targets=(350.0, 310.0), tolerance=settings.tolerance
    )


class HalvedBoard(MockBoard):
    """A board whose currents are not those of its codes."""

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        result = await super().mvm(array, voltage_v)
        return MvmResult(result.code, result.current_a / 2.0, result.saturated, result.time_s, result.write_index)


async def test_a_board_that_breaks_its_contract_is_found(driver_contract: DriverContract) -> None:
    def make() -> CrossbarBoard:
        return HalvedBoard(ChipSettings(rows=8, columns=4))

    with pytest.raises(AssertionError, match="broken promise"):
        await driver_contract(make)


async def test_what_is_no_driver_is_said_to_be_none(driver_contract: DriverContract) -> None:
    with pytest.raises(AssertionError, match="MemoryLink is no driver"):
        await driver_contract(lambda: MemoryLink(lambda request: request))  # type: ignore[arg-type,return-value]


def test_the_example_of_the_guide_holds(recorded_run: RecordedRun) -> None:
    guide = Path(__file__).resolve().parents[3] / "docs" / "guide" / "testing-your-driver.md"
    (text,) = [
        one for one in re.findall(r"^```python\n(.*?)^```", guide.read_text(), re.S | re.M) if "recorded_run" in one
    ]
    names: dict[str, Callable[[RecordedRun], None]] = {}
    exec(text, names)
    names["test_what_is_cut_short_is_refused"](recorded_run)


def test_the_plugin_costs_nothing_where_nobody_uses_it() -> None:
    # pytest imports it in every run of the environment.
    program = "import labrig.testing.plugin, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "labrig" in loaded
    assert loaded & {"torch", "scipy", "h5py", "numpy", "pydantic", "labrig_drivers"} == set()
