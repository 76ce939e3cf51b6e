"""What is done under each lease, as events of a run: for whoever watches the rig itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from labrig.events import BlockCommitted, EventBus, MeasuredBlock, RunFinished, RunStarted, RunStatus
from labrig.remote.board_verbs import Outcome
from labrig.remote.messages import Request
from labrig.remote.results import floats, whole, writes_from
from labrig_drivers.crossbar import FloatArray

_PROGRAM: Final = "program"
_RESTORE: Final = "restore"
# The write that is read before the lease makes one of its own.
_EARLIER: Final = -1


class LeaseRuns:
    """Counts what a lease measures and writes, and tells it.

    Args:
        bus: Gets the events.
        clock: Time in s.
    """

    def __init__(self, bus: EventBus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._clock = clock
        self._began_s: float | None = None
        self._mvms = self._writes = 0
        self._latest_write: dict[int, int] = {}
        self._targets_s: dict[int, FloatArray] = {}

    def begin(self, who: str) -> None:
        """A lease begins."""
        self._began_s, self._mvms, self._writes = self._clock(), 0, 0
        # What an earlier user wrote is still in the cells, but no longer known for sure: it may be long ago.
        self._latest_write.clear()
        self._targets_s.clear()
        self._bus.publish(RunStarted(f"used by {who}", 0, 0, None))

    def carried_out(self, request: Request, outcome: Outcome) -> None:
        """A request was carried out."""
        if request.verb == _PROGRAM:
            self._writes += 1
            self._written(whole(request.values, "array"), floats(request.arrays, "conductance_s"))
            return
        if request.verb == _RESTORE:
            # The user's recording begins with the writes that a simulated board is put back to.
            for one in writes_from(request.arrays):
                self._written(one.array, one.conductance_s)
            return
        result = outcome.measured
        if result is None:
            return
        array, line_v = whole(request.values, "array"), floats(request.arrays, "voltage_v")
        self._mvms += len(line_v)
        write = self._latest_write.get(array, _EARLIER)
        self._bus.publish(BlockCommitted(array, write, len(line_v), self._mvms))
        if self._bus.wants_blocks:
            self._bus.publish_block(MeasuredBlock(array, write, self._targets_s.get(array), line_v, result))

    def end(self, status: RunStatus) -> None:
        """The lease ended, or there was none, and everything was made safe; `aborted` where that failed."""
        took_s = 0.0 if self._began_s is None else self._clock() - self._began_s
        self._bus.publish(RunFinished(status, self._mvms, self._writes, took_s, None))
        self._began_s, self._mvms, self._writes = None, 0, 0

    def _written(self, array: int, conductance_s: FloatArray) -> None:
        # As recordings do: from 0 for each array.
        self._latest_write[array] = self._latest_write.get(array, _EARLIER) + 1
        self._targets_s[array] = conductance_s
