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
        columns = (rows[name].tolist() for name in ("voltage_v", "current_a", "in_compliance", "time_s"))
        return tuple(Reading(*values[:2], bool(values[2]), values[3]) for values in zip(*columns, strict=True))
    code = rows["current_code"].astype(np.int16)
    return MvmResult(
        code=code,
        current_a=code * info.adc_lsb_a,
        saturated=rows["saturated"].astype(np.bool_),
        time_s=rows["time_s"].astype(np.float64),
        write_index=point.write,
    )
