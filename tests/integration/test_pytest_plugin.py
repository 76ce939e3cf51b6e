"""The fixtures that a user's own CI gets: the same drivers, over loopback, into the same files."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

import labrig
from labrig.testing.plugin import MockRig
from labrig_drivers.links import link_from_url
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.wire_board import WireBoard


def test_mine(mock_rig: MockRig, tmp_path: Path) -> None:
    config = labrig.load_rig(mock_rig.rig_file)
    plan = labrig.MvmCalibrationPlan(writes=1, arrays=[0])
    summary = asyncio.run(labrig.run_sweep(config, plan, tmp_path / "run.h5", labrig.EventBus()))
    dataset = labrig.read_mvms(tmp_path / "run.h5")
    assert len(dataset) == summary.mvms
    assert summary.joules is not None
    assert summary.joules > 0.0
    events = [json.loads(line) for line in mock_rig.log.read_text().splitlines()]
    outputs = [event for event in events if event["what"] == "output"]
    assert outputs[-1]["output_on"] is False
    # Judged by the simulator, at the terminals: the level of the rig file, reached and left by a ramp.
    terminals_v = [event["voltage_v"] if event["output_on"] else 0.0 for event in outputs]
    assert max(terminals_v) == pytest.approx(1.2)
    assert np.abs(np.diff(terminals_v)).max() <= 0.05 + 1e-9


async def test_the_same_board_answers_behind_the_pty(mock_rig: MockRig) -> None:
    async with WireBoard(link_from_url(mock_rig.serial_device)) as board:
        assert board.identity.serial == "SIM-0001"


async def test_a_board_in_this_process_is_equal_in_every_run(mock_board: MockBoard) -> None:
    async with mock_board as board, MockBoard(board.settings) as twin:
        target_s = np.full((board.info.rows, board.info.columns), 20e-6)
        codes = []
        for one in (board, twin):
            await one.program(0, target_s)
            codes.append((await one.mvm(0, np.full((4, one.info.rows), 0.05))).code)
    np.testing.assert_array_equal(codes[0], codes[1])
