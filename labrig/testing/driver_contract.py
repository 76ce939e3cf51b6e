"""Contract checks for driver authors: does my driver keep what everything above it relies on?

Each check takes a factory, drives what it makes like a careful user and a clumsy one, and raises
`AssertionError` with one sentence about the first promise that was broken::

    async def test_my_board() -> None:
        await check_crossbar_board(lambda: MyBoard("/dev/ttyACM0"))

The checks program arrays and switch outputs on: run them on a simulator, or on hardware that may be used so.
"""

from __future__ import annotations

from labrig.testing.axis_contract import check_axis
from labrig.testing.board_contract import check_crossbar_board
from labrig.testing.source_meter_contract import check_source_meter
from labrig.testing.switch_matrix_contract import check_switch_matrix

__all__ = ["check_axis", "check_crossbar_board", "check_source_meter", "check_switch_matrix"]
