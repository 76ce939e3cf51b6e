"""Progress of a run in the terminal, as a listener of the event bus."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from labrig.durations import duration_text
from labrig.events import (
    Alarm,
    AxesArrived,
    BlockCommitted,
    CurveCommitted,
    Event,
    Message,
    PointMissed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    SupplyRead,
)
from labrig_drivers.wording import counted


class ProgressListener:
    """Shows a bar in a terminal; elsewhere prints a line every few seconds.

    Use as `with ProgressListener() as progress: bus.subscribe(progress)`.

    Args:
        console: Where to print; standard error when None, so that a table on standard output stays clean.
        line_every_s: Least time in s between two lines where there is no terminal.
    """

    def __init__(self, console: Console | None = None, *, line_every_s: float = 5.0) -> None:
        self._console = console or Console(stderr=True)
        self._line_every_s = line_every_s
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._mvms = 0
        self._curves = 0
        self._last_line_s = -float("inf")
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case RunStarted():
                where = f" -> {event.recording}" if event.recording else ""
                least = "" if event.least_s is None else f", {duration_text(event.least_s)} or more"
                curves = f", {counted(event.planned_curves, 'curve')}" if event.planned_curves else ""
                planned = f"{counted(event.planned_mvms, 'MVM')}, {counted(event.planned_writes, 'write')}"
                self._print(f"plan {event.plan}: {planned}{curves}{least}{where}")
                self._mvms, self._curves = event.planned_mvms, event.planned_curves
            case BlockCommitted():
                # A plan may announce fewer: one that follows its answers, or a training whose canaries alarm.
                self._show("MVMs", event.total_mvms, max(self._mvms, event.total_mvms))
            case CurveCommitted():
                self._show("curves", event.total_curves, self._curves)
            case PointMissed():
                self._print(
                    f"missed: array {event.array}, write {event.write}, due at an age of {duration_text(event.due_s)}, "
                    f"it is {duration_text(event.age_s)} old"
                )
            case AxesArrived():
                self._print(", ".join(f"{name} at {value:g}" for name, value in event.values.items()))
            case StepDone():
                accuracy = "" if event.accuracy is None else f", accuracy {100 * event.accuracy:.1f} %"
                loss = "" if event.loss is None else f"loss {event.loss:.4f}"
                self._show(event.phase, event.step, event.steps, loss + accuracy)
            case Message():
                self._print(event.text)
            case Alarm():
                self._print(f"ALARM: {event.text}", style="bold red")
            case RunPaused():
                self._print(f"PAUSED: {event.reason}", style="bold yellow")
            case RunResumed():
                self._print(f"goes on after {event.waited_s:.1f} s")
            case RunFinished():
                energy = "" if event.energy_j is None else f", {event.energy_j:.3g} J from the array supply"
                done = f"{counted(event.mvms, 'MVM')}, {counted(event.writes, 'write')}, {event.duration_s:.1f} s"
                self._print(f"{event.status}: {done}{energy}")
            case SupplyRead():
                pass

    def _show(self, name: str, done: int, total: int, note: str = "") -> None:
        if self._bars is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, note=note)
            self._bars.update(self._tasks[name], completed=done, total=total, note=note)
            return
        now_s = time.monotonic()
        if done >= total or now_s - self._last_line_s >= self._line_every_s:
            self._last_line_s = now_s
            self._print(f"{name}: {done} of {total} {note}".rstrip())

    def _print(self, text: str, style: str | None = None) -> None:
        # Paths and messages are text, not markup, and a line that is piped must stay one line.
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
