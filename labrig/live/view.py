"""Everything that the page shows, folded from the events of a run, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import replace
from typing import Literal

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
from labrig.live.array_view import ArrayView, Sample
from labrig.live.series import Series
from labrig.live.time_left import TimeLeft
from labrig.telemetry.documents import RunDocument, clean_text
from labrig.telemetry.tracker import RunTracker
from labrig_drivers.wording import counted

_MOST_LINES = 200
_LONGEST_LINE = 500
_MOST_ARRAYS = 16
_MOST_PHASES = 12
_SUPPLY_POINTS = 300
_SUPPLY_EVERY_S = 0.5

_OVER = ("finished", "stopped", "aborted")

Level = Literal["info", "state", "alarm"]
Outputs = Literal["unknown", "on", "off"]


class LiveView:
    """What happened so far, as sections that each change by themselves. One thread at a time.

    Args:
        title: What runs, such as the name of the rig.
        doing: The word for it while it goes on, such as `MEASURING`.
        of_file: Whether all is known from a file only, which does not say what is switched on.
        between: The word between two runs of a program that outlasts them, such as `READY`; it is there from the
            first message on. None for a program of one run.
    """

    def __init__(self, title: str, doing: str, *, of_file: bool = False, between: str | None = None) -> None:
        self.title = title
        self._doing = doing
        self._of_file = of_file
        self._between = between
        self._tracker = RunTracker()
        self._versions: dict[str, int] = {}
        self._lines: deque[dict[str, object]] = deque(maxlen=_MOST_LINES)
        self._line = 0
        self._arrays: OrderedDict[int, ArrayView] = OrderedDict()
        self._measured: dict[int, int] = {}
        self._phases: OrderedDict[str, StepDone] = OrderedDict()
        self._losses: OrderedDict[str, Series] = OrderedDict()
        self._accuracy = Series(("passes", "accuracy"))
        self._gap = Series(("passes", "gap"))
        self._supply = Series(("time_s", "power_w"), _SUPPLY_POINTS)
        self._supply_begin_s = self._supply_last_s = 0.0
        self._reading: SupplyRead | None = None
        self._axes: dict[str, float] = {}
        self._curves = self._planned_curves = 0
        # Training measures and takes steps; each has a pace of its own.
        self._pace = {unit: TimeLeft() for unit in ("MVMs", "curves", "steps")}
        self._stopping = self._told = False
        self._ended: str | None = None
        self._outputs: Outputs = "unknown"
        self._alarm: str | None = None
        self._waits_for: str | None = None

    def note(self, event: Event, time_unix_s: float) -> None:
        """Takes an event in."""
        self._tracker.note(event, time_unix_s)
        self._touch("run")
        match event:
            case RunStarted():
                self._begin(event)
                mvms, writes = event.planned_mvms, event.planned_writes
                planned = f": {counted(mvms, 'MVM')}, {counted(writes, 'write')}" if mvms or writes else ""
                self._say(time_unix_s, "state", f"{_heading(event.plan)}{planned}")
            case BlockCommitted():
                self._measured[event.array] = self._measured.get(event.array, 0) + event.mvms
                self._pace["MVMs"].note(time_unix_s, event.total_mvms)
            case CurveCommitted():
                self._curves = event.total_curves
                self._pace["curves"].note(time_unix_s, event.total_curves)
            case StepDone():
                self._step(event, time_unix_s)
            case SupplyRead():
                self._read(event, time_unix_s)
            case AxesArrived():
                self._axes = dict(event.values)
                self._say(
                    time_unix_s, "info", ", ".join(f"{name} at {value:g}" for name, value in event.values.items())
                )
            case PointMissed():
                text = f"missed: array {event.array}, write {event.write}, due {event.due_s:g} s after it"
                self._say(time_unix_s, "info", text)
            case Message():
                self._told = True
                self._say(time_unix_s, "info", event.text)
            case Alarm():
                self._alarm = clean_text(event.text)[:_LONGEST_LINE]
                self._stopping = self._stopping or event.text.startswith("STOP by ")
                self._say(time_unix_s, "alarm", event.text)
            case RunPaused():
                self._outputs, self._waits_for = "off", clean_text(event.reason)[:_LONGEST_LINE]
                self._forget_pace()
                self._say(time_unix_s, "state", f"paused: {event.reason}")
            case RunResumed():
                self._outputs, self._waits_for = "on", None
                self._forget_pace()
                self._say(time_unix_s, "state", f"goes on after {event.waited_s:.1f} s")
            case RunFinished():
                self._waits_for = None
                if self._between is not None:
                    self._stopping = False
                    self._outputs = "unknown" if event.status == "aborted" else "off"
                self._say(
                    time_unix_s,
                    "state",
                    f"{event.status}: {counted(event.mvms, 'MVM')}, {counted(event.writes, 'write')}",
                )

    def note_sample(self, sample: Sample) -> None:
        """Takes in some measured numbers."""
        view = self._arrays.get(sample.array)
        if view is None:
            if len(self._arrays) >= _MOST_ARRAYS:
                forgotten, _ = self._arrays.popitem(last=False)
                self._versions.pop(f"array/{forgotten}", None)
            view = self._arrays[sample.array] = ArrayView(sample.array)
        self._arrays.move_to_end(sample.array)
        view.add(sample)
        self._touch(f"array/{sample.array}")

    def end(self, time_unix_s: float, fault: str | None = None) -> None:
        """The program is about to end.

        Args:
            time_unix_s: The time now.
            fault: What it ended with; None where outputs are off and files closed.
        """
        if self._of_file:
            self._say(time_unix_s, "state", "nobody reads the recording any more")
            return
        self._ended = "FAILED" if fault is not None else "ENDED"
        self._outputs = "unknown" if fault is not None else "off"
        if fault is not None:
            self._alarm = clean_text(fault)[:_LONGEST_LINE]
            self._say(time_unix_s, "alarm", fault)
        else:
            self._say(time_unix_s, "state", "the program ended; outputs are off and files are closed")
        self._touch("run")

    @property
    def versions(self) -> dict[str, int]:
        """A number for each section, which grows when the section changes."""
        return dict(self._versions)

    def section(self, name: str, time_unix_s: float, missed: int = 0) -> dict[str, object]:
        """The content of a section, ready for JSON.

        Args:
            name: `run`, `log`, `steps`, `supply` or `array/N`.
            time_unix_s: The time now.
            missed: Events that the page was too slow for.
        """
        if name == "run":
            return self._run_section(time_unix_s, missed)
        if name == "log":
            return {"lines": list(self._lines)}
        if name == "steps":
            return {
                "losses": {phase: series.as_columns() for phase, series in self._losses.items() if len(series)},
                "accuracy": self._accuracy.as_columns() if len(self._accuracy) else None,
                "gap": self._gap.as_columns() if len(self._gap) else None,
            }
        if name == "supply":
            return dict(self._supply.as_columns())
        array = int(name.partition("/")[2])
        return self._arrays[array].section(self._measured.get(array, 0))

    def word(self) -> str:
        """The state as one word, to be read from across the room."""
        document = self._tracker.document(0.0, 0)
        status = None if document is None else document.status
        over = status in _OVER
        if over and self._between is None and self._ended != "FAILED":
            return "STOPPED" if self._stopping else str(status).upper()
        if self._ended is not None:
            return self._ended
        if self._stopping:
            return "STOPPING"
        if self._between is not None and (over or (status is None and self._told)):
            return "ABORTED" if status == "aborted" else self._between
        if status is None:
            return self._doing if self._phases else "STARTING"
        return "PAUSED" if status == "paused" else self._doing

    def _run_section(self, now_unix_s: float, missed: int) -> dict[str, object]:
        document = self._tracker.document(now_unix_s, missed)
        reading = None if self._reading is None else self._reading.reading
        word = self.word()
        done, total, unit = self._progress(document, word)
        return {
            "title": self.title,
            "word": word,
            "heading": None if document is None or word == self._between else _heading(document.plan),
            "outputs": None if self._of_file or document is None else self._outputs,
            "alarm": self._alarm,
            "waits_for": self._waits_for,
            "ended": self._ended is not None,
            "over": self._ended is not None
            or (self._between is None and document is not None and document.status in _OVER),
            "run": None if document is None else document.model_dump(mode="json"),
            "progress": {
                "done": done,
                "total": total,
                "unit": unit,
                "rate_hz": self._pace[unit].rate_hz(),
                "left_s": self._pace[unit].left_s(total) if self._going() else None,
            },
            "phases": [
                {
                    "name": clean_text(name),
                    "step": one.step,
                    "steps": one.steps,
                    "loss": one.loss,
                    "accuracy": one.accuracy,
                }
                for name, one in self._phases.items()
            ],
            "supply": None
            if reading is None
            else {
                "voltage_v": reading.voltage_v,
                "current_a": reading.current_a,
                "in_compliance": reading.in_compliance,
            },
            "axes": self._axes,
            "missed": missed,
            "now_unix_s": now_unix_s,
        }

    def _forget_pace(self) -> None:
        for pace in self._pace.values():
            pace.forget()

    def _going(self) -> bool:
        return self._ended is None and not self._stopping and self._tracker.state in ("init", "busy")

    def _progress(self, document: RunDocument | None, word: str) -> tuple[float, float, str]:
        if self._phases and (document is None or document.plan == "training"):
            latest = next(reversed(self._phases.values()))
            return latest.step, latest.steps, "steps"
        if word == self._between and document is not None and not document.planned_mvms:
            return 0, 0, "MVMs"  # what the last user measured is over
        if document is not None and (document.planned_mvms or document.mvms):
            return document.mvms, document.planned_mvms, "MVMs"
        return self._curves, self._planned_curves, "curves"

    def _begin(self, event: RunStarted) -> None:
        self._curves, self._planned_curves = 0, event.planned_curves
        self._measured.clear()
        self._forget_pace()
        self._stopping, self._alarm, self._waits_for = False, None, None
        # Whoever has just been given a rig has switched nothing on yet.
        self._outputs = "on" if self._between is None else "unknown"

    def _step(self, event: StepDone, time_unix_s: float) -> None:
        new = event.phase not in self._phases
        if new:
            self._pace["steps"].forget()
            if len(self._phases) >= _MOST_PHASES:
                forgotten, _ = self._phases.popitem(last=False)
                self._losses.pop(forgotten, None)
            self._losses[event.phase] = Series(("step", "loss"))
        before = self._phases.get(event.phase)
        # Where only some steps see the chip, the accuracy of the latest that did.
        keeps = before is not None and event.accuracy is None
        self._phases[event.phase] = replace(event, accuracy=before.accuracy) if before and keeps else event
        self._phases.move_to_end(event.phase)
        self._pace["steps"].note(time_unix_s, event.step)
        if event.loss is not None:
            self._losses[event.phase].add(event.step, event.loss)
        if event.passes is not None and event.accuracy is not None:
            self._accuracy.add(event.passes, event.accuracy)
        if event.passes is not None and event.gap is not None:
            self._gap.add(event.passes, event.gap)
        self._touch("steps")

    def _read(self, event: SupplyRead, time_unix_s: float) -> None:
        if self._reading is None:
            self._supply_begin_s = time_unix_s
        self._reading = event
        self._outputs = "on"
        if time_unix_s - self._supply_last_s >= _SUPPLY_EVERY_S:
            self._supply_last_s = time_unix_s
            power_w = event.reading.voltage_v * event.reading.current_a
            self._supply.add(time_unix_s - self._supply_begin_s, power_w)
            self._touch("supply")

    def _say(self, time_unix_s: float, level: Level, text: str) -> None:
        self._line += 1
        line = clean_text(text)[:_LONGEST_LINE]
        self._lines.append({"number": self._line, "time_unix_s": time_unix_s, "level": level, "text": line})
        self._touch("log")

    def _touch(self, name: str) -> None:
        self._versions[name] = self._versions.get(name, 0) + 1


def _heading(plan: str) -> str:
    # Plans have names of one word; who uses a rig from elsewhere is told in several.
    return plan if " " in plan else f"plan {plan}"
