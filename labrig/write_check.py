"""Whether the write that an interrupted run left on an array is still there when it is gone on with."""

from __future__ import annotations

from functools import partial

import numpy as np

from labrig.interlock import SupplyFeed
from labrig.recording.progress import Progress, RecordedWrite
from labrig_drivers.capabilities import READ_CONDUCTANCE
from labrig_drivers.commanded import PastWrite, commanded
from labrig_drivers.crossbar import CrossbarBoard, FloatArray
from labrig_drivers.errors import CapabilityError, StateError

# Drift differs from cell to cell, so what is read back later fits the target a little worse.
_MOST_ERROR = 2.0


async def restore_board(board: CrossbarBoard, progress: Progress) -> bool:
    """Puts a simulated board where it was when a recording was left; False for every other board.

    A chip keeps its conductances while nobody runs a plan. One that is simulated in this process begins anew with the
    process instead, and is given them back, with its clock and the number of its next draw of noise.
    """
    simulated = commanded(board, board.info)
    writes = progress.last_writes
    if simulated is None or not writes or any(one.board_write < 0 for one in writes.values()):
        return False
    past = [
        PastWrite(array, one.board_write, one.conductance_s.astype(np.float64), one.programmed_at_s, one.requests)
        for array, one in writes.items()
    ]
    await simulated.restore(progress.now_s, past)
    return True


async def still_written(board: CrossbarBoard, feed: SupplyFeed, array: int, last: RecordedWrite) -> float | None:
    """Looks whether the latest recorded write is still on its array.

    It is where the board counts no programming since, its clock went on, and its cells read as far from the target as
    they did, up to one common factor that drift may have brought.

    Returns:
        The board's clock in s; None where the write is gone, or the board cannot tell.
    """
    info = board.info
    if last.board_write < 0 or READ_CONDUCTANCE not in info.capabilities:
        return None
    try:
        zero = await feed.make(partial(board.mvm, array, np.zeros((1, info.rows))))
        now_s = float(zero.time_s[-1])
        if zero.write_index != last.board_write or now_s < last.programmed_at_s:
            return None
        read_s = await feed.make(partial(board.read_conductance, array))
    except (StateError, CapabilityError):
        # Never programmed since it was switched on.
        return None
    return now_s if _fits(read_s, last.conductance_s.astype(np.float64), last.rms_error_s) else None


def _fits(read_s: FloatArray, target_s: FloatArray, rms_error_s: float) -> bool:
    factor = float((read_s * target_s).sum() / (target_s**2).sum())
    rms_s = float(np.sqrt(np.mean((read_s - factor * target_s) ** 2)))
    return factor > 0.0 and rms_s <= _MOST_ERROR * rms_error_s
