"""Measures a plan on a board straight into memory: for tests and notebooks that need no file."""

from __future__ import annotations

import numpy as np

from labrig.plans.base import MvmPoint, Plan, ProgramPoint
from labrig.plans.mvm import board_converters
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.crossbar import CrossbarBoard, FloatArray, MvmResult, ProgramReport


async def measure_dataset(board: CrossbarBoard, plan: Plan) -> dict[int, MvmDataset]:
    """Runs a plan on an open board.

    Args:
        board: The board, open and supplied.
        plan: What to measure.

    Returns:
        One data set for each array that the plan names.
    """
    writes: dict[int, list[tuple[FloatArray, ProgramReport]]] = {}
    blocks: dict[int, list[tuple[int, FloatArray, MvmResult]]] = {}
    async for point in plan.points(board.info):
        if isinstance(point, ProgramPoint):
            report = await board.program(point.array, point.conductance_s)
            writes.setdefault(point.array, []).append((point.conductance_s, report))
        elif isinstance(point, MvmPoint):
            result = await board.mvm(point.array, point.voltage_v)
            pattern = len(writes[point.array]) - 1
            blocks.setdefault(point.array, []).append((pattern, point.voltage_v, result))
    return {
        array: MvmDataset(
            voltage_v=np.concatenate([voltage_v for _, voltage_v, _ in measured]),
            current_a=np.concatenate([result.current_a for _, _, result in measured]),
            pattern=np.concatenate([np.full(len(result.time_s), pattern) for pattern, _, result in measured]),
            target_conductance_s=np.stack([target_s for target_s, _ in writes[array]]),
            time_s=np.concatenate([result.time_s for _, _, result in measured]),
            programmed_at_s=np.array([report.time_s for _, report in writes[array]]),
            saturated=np.concatenate([result.saturated for _, _, result in measured]),
            converters=board_converters(board.info),
            chip_id=board.info.chip_id,
            array=array,
        )
        for array, measured in blocks.items()
    }
