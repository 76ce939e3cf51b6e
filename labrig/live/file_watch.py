"""Turns a recording, and what is added to it, into the events that a run would have published."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import numpy as np

from labrig.events import BlockCommitted, Event, MeasuredBlock, Message, RunFinished, RunStarted, RunStatus, SupplyRead
from labrig.recording import Recording
from labrig_drivers.crossbar import MvmResult
from labrig_drivers.source_meter import Reading

_ROWS = 64
_MOST_ROWS = 40 * _ROWS
_MOST_READINGS = 300

_STATUS: dict[str, RunStatus] = {"finished": "finished", "stopped": "stopped", "aborted": "aborted"}


class FileWatch:
    """Looks at a recording again and again; it takes no lock, and a program that writes it goes on undisturbed.

    Args:
        recording: Open for reading.
        put: Gets each event with its time in s since 1970 UTC.
        show: Gets the numbers of the latest blocks.
    """

    def __init__(
        self, recording: Recording, put: Callable[[Event, float], None], show: Callable[[MeasuredBlock], None]
    ) -> None:
        self._recording = recording
        self._put = put
        self._show = show
        self._seen = dict.fromkeys(recording.arrays, 0)
        self._readings = 0
        self._ended = False

    def begin(self, now_s: float) -> None:
        """Says what run it is, and what is there already."""
        recording = self._recording
        started_s = _unix_s(recording.header.started_utc, now_s)
        summary = recording.summary()
        running = recording.status == "running"
        planned = 0 if running else sum(summary.mvms.values())
        name = str(recording.header.plan.get("name", "?"))
        writes, run_id = sum(summary.writes.values()), summary.run_id or None
        self._put(RunStarted(name, planned, writes, recording.path, run_id=run_id), started_s)
        self._put(Message(f"chip {summary.chip_id} on rig {summary.rig_name}"), started_s)
        self._tell(now_s)

    def look(self, now_s: float) -> bool:
        """Says what was added since; whether more may come.

        Raises:
            StorageError: The file cannot be read any more.
        """
        if self._ended:
            return False
        if self._recording.refresh():
            self._tell(now_s)
        return not self._ended

    def _tell(self, now_s: float) -> None:
        recording = self._recording
        total = sum(self._seen.values())
        for array in recording.arrays:
            seen, count = self._seen[array], recording.committed(array)
            if count == seen:
                continue
            total += count - seen
            for piece in recording.iter_mvms(array, max(seen, count - _MOST_ROWS), count, rows=_ROWS):
                mvms = piece.mvms
                # A piece may span two writes.
                for write in np.unique(mvms.pattern):
                    rows = mvms.pattern == write
                    codes = np.zeros(mvms.current_a[rows].shape, np.int16)
                    result = MvmResult(codes, mvms.current_a[rows], mvms.saturated[rows], mvms.time_s[rows], int(write))
                    number, target_s = piece.first_write + int(write), mvms.target_conductance_s[write]
                    self._show(MeasuredBlock(array, number, target_s, mvms.voltage_v[rows], result))
            self._put(BlockCommitted(array, recording.writes(array) - 1, count - seen, total), now_s)
            self._seen[array] = count
        self._tell_supply()
        if recording.status != "running":
            self._tell_end(now_s)

    def _tell_supply(self) -> None:
        trace = self._recording.supply()
        new = np.arange(self._readings, len(trace.time_s))
        self._readings = len(trace.time_s)
        for index in new[:: max(1, len(new) // _MOST_READINGS)]:
            reading = Reading(
                float(trace.voltage_v[index]),
                float(trace.current_a[index]),
                bool(trace.in_compliance[index]),
                float(trace.time_s[index]),
            )
            self._put(SupplyRead(reading), reading.time_s)

    def _tell_end(self, now_s: float) -> None:
        self._ended = True
        recording = self._recording
        summary = recording.summary()
        started_s = _unix_s(summary.started_utc, now_s)
        ended_s = _unix_s(summary.ended_utc, started_s)
        if recording.status not in _STATUS:
            self._put(Message("the program that wrote it died; what is committed counts"), ended_s)
        status = _STATUS.get(recording.status, "aborted")
        joules = summary.energy_j if summary.supply_readings else None
        mvms, writes = sum(summary.mvms.values()), sum(summary.writes.values())
        self._put(RunFinished(status, mvms, writes, ended_s - started_s, joules), ended_s)


def _unix_s(text: str, otherwise_s: float) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return otherwise_s
