"""The state of a rig and its latest run, followed from events: what newcomers at the broker find there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from labrig.events import Alarm, BlockCommitted, Event, RunFinished, RunPaused, RunResumed, RunStarted, new_run_id
from labrig.telemetry.documents import RunDocument, clean_text, path_text, utc_text
from labrig.telemetry.topics import RigState

RunState = Literal["running", "paused", "finished", "stopped", "aborted"]


class RunTracker:
    """Follows the runs of one program.

    Args:
        new_id: Makes the identity of a run that has none of its own.
    """

    def __init__(self, new_id: Callable[[], str] = new_run_id) -> None:
        self._new_id = new_id
        self._run_id: str | None = None
        self._start: RunStarted | None = None
        self._started_unix_s = 0.0
        self._finish: RunFinished | None = None
        self._paused = False
        self._mvms = 0
        self._alarms = 0
        self._last_alarm: str | None = None

    @property
    def run_id(self) -> str | None:
        """The run that an event now belongs to; None outside one."""
        return None if self._finish is not None else self._run_id

    @property
    def state(self) -> RigState:
        """The word for the rig."""
        if self._paused:
            return "sleeping"
        if self._start is None:
            return "init"
        return "busy" if self._finish is None else "ready"

    def note(self, event: Event, time_unix_s: float) -> str | None:
        """Takes an event in; returns the run that it belongs to."""
        if isinstance(event, BlockCommitted):
            self._mvms = event.total_mvms
        elif isinstance(event, RunStarted):
            self._run_id = self._new_id() if event.run_id is None else event.run_id
            self._start, self._started_unix_s = event, time_unix_s
            self._finish, self._paused, self._mvms = None, False, 0
            self._alarms, self._last_alarm = 0, None
        elif isinstance(event, RunFinished):
            run_id = self.run_id
            # Where no run lasts, somebody stopped a rig that nobody used; the last run stays what it was.
            self._finish, self._paused = self._finish or event, False
            return run_id
        elif isinstance(event, RunPaused | RunResumed):
            self._paused = isinstance(event, RunPaused)
        elif isinstance(event, Alarm):
            self._alarms, self._last_alarm = self._alarms + 1, event.text
        return self.run_id

    def document(self, time_unix_s: float, dropped: int) -> RunDocument | None:
        """The latest run; None before the first.

        Args:
            time_unix_s: The time now.
            dropped: Documents dropped so far.
        """
        start, finish = self._start, self._finish
        if start is None:
            return None
        status: RunState = "paused" if self._paused else "running"
        return RunDocument(
            run_id=self._run_id,
            time_unix_s=time_unix_s,
            time_utc=utc_text(time_unix_s),
            status=status if finish is None else finish.status,
            plan=clean_text(start.plan),
            recording=path_text(start.recording),
            started_utc=utc_text(self._started_unix_s),
            planned_mvms=start.planned_mvms,
            planned_writes=start.planned_writes,
            mvms=self._mvms if finish is None else finish.mvms,
            writes=None if finish is None else finish.writes,
            duration_s=None if finish is None else finish.duration_s,
            energy_j=None if finish is None else finish.energy_j,
            alarms=self._alarms,
            last_alarm=None if self._last_alarm is None else clean_text(self._last_alarm),
            dropped=dropped,
        )
