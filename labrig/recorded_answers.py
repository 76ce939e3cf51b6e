"""What a board answered in an earlier part of a run, for a plan that decides by it."""

from __future__ import annotations

import numpy as np

from labrig.plans.base import Answer
from labrig.recording import layout
from labrig.recording.progress import RecordedPoint
from labrig.recording.writer import RecordingWriter
from labrig_drivers.crossbar import BoardInfo, MvmResult
from labrig_drivers.source_meter import Reading


async def recorded_answer(writer: RecordingWriter, info: BoardInfo, point: RecordedPoint) -> Answer:
    """The answer to a point that is recorded; None for one that was missed.

    Args:
        writer: The recording that is gone on with.
        info: The board.
        point: Where its rows are.

    Raises:
        StorageError: They cannot be read.
    """
    if not point.rows:
        return None
    rows = await writer.recorded_rows(point.stream, point.start, point.start + point.rows)
    if point.stream == layout.CURVES:
        return tuple(
            Reading(float(voltage_v), float(current_a), bool(in_compliance), float(time_s))
            for voltage_v, current_a, in_compliance, time_s in zip(
                rows["voltage_v"], rows["current_a"], rows["in_compliance"], rows["time_s"], strict=True
            )
        )
    code = rows["current_code"].astype(np.int16)
    return MvmResult(
        code=code,
        current_a=code * info.adc_lsb_a,
        saturated=rows["saturated"].astype(np.bool_),
        time_s=rows["time_s"].astype(np.float64),
        write_index=point.write,
    )
