"""The documents of version 1: what an event looks like as JSON under its topic, and back.

Field names are SI with the unit in the name. Those of bluesky's event-model differ by a rename; the table is in
docs/how-to/watch-over-mqtt.md. Version 1 may get more fields, readers ignore unknown ones; a new meaning is version 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

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
    RunStatus,
    StepDone,
    SupplyRead,
)
from labrig_drivers.errors import ProtocolError
from labrig_drivers.source_meter import Reading

LONGEST_TEXT = 2000
"""Characters of a message, alarm or reason; what is longer ends in an ellipsis, so that no broker refuses it."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# JSON has no NaN and no infinity: both become null.
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(_finite, return_type=float | None),
]
NumberOrNone = Annotated[float | None, PlainSerializer(_finite, return_type=float | None)]


@dataclass(frozen=True)
class Stamp:
    """What every document says besides its event.

    Attributes:
        run_id: The run that it belongs to; None outside one.
        sequence: Counts the documents of one program from 1, in order; a gap is a document that was dropped.
        time_unix_s: When the event happened, in s since 1970 UTC.
        blocks: Committed blocks that a document of blocks sums up.
    """

    run_id: str | None
    sequence: int
    time_unix_s: float
    blocks: int = 1


class Document(BaseModel):
    """Base of all documents."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", use_attribute_docstrings=True)

    topic: ClassVar[str]
    """Where it is published, below `labrig/1/SITE/RIG/`."""
    qos: ClassVar[Literal[0, 1]] = 1
    """0: live values, the next one is on its way; 1: the broker acknowledges it."""
    retained: ClassVar[bool] = False
    """Whether the broker keeps the latest for those who come later."""

    run_id: str | None
    """The run; null outside one."""
    time_unix_s: float
    """When it happened, in s since 1970 UTC."""
    time_utc: str
    """The same, ISO 8601."""

    def encoded(self) -> bytes:
        """The JSON text, UTF-8."""
        return self.model_dump_json().encode()


class Numbered(Document):
    """Base of the documents that stand for one event."""

    sequence: int
    """Counts the documents of one program from 1; a gap is a document that was dropped."""


class StartDocument(Numbered):
    """A run begins."""

    topic = "event/start"
    plan: str
    planned_mvms: int
    planned_writes: int
    planned_curves: int
    recording: str | None
    least_s: NumberOrNone


class BlockDocument(Numbered):
    """Blocks were committed since the last such document."""

    topic = "event/block"
    qos = 0
    array: int
    """Array of the latest block."""
    write: int
    """Write of the latest block."""
    mvms: int
    """MVMs of all these blocks."""
    blocks: int
    total_mvms: int
    """MVMs committed in this run so far."""


class CurveDocument(Numbered):
    """I-V curves were committed since the last such document."""

    topic = "event/curve"
    qos = 0
    curve: int
    """Latest curve of the plan."""
    readings: int
    """Readings of it."""
    total_curves: int
    """Curves committed in this run so far."""


class MissedDocument(Numbered):
    """A point can no longer be measured at the age that it was due at."""

    topic = "event/missed"
    array: int
    write: int
    due_s: Number
    age_s: Number


class AxesDocument(Numbered):
    """Axes of the rig are where the plan wants them."""

    topic = "event/axes"
    setting: int
    """Index of the setting in the recording."""
    values: dict[str, Number]
    """What each moved axis reads, in its unit."""


class SupplyDocument(Numbered):
    """The array supply was read."""

    topic = "telemetry/supply"
    qos = 0
    voltage_v: Number
    current_a: Number
    in_compliance: bool
    reading_unix_s: Number
    instrument_time_s: NumberOrNone


class StepDocument(Numbered):
    """Steps of training or fitting ended."""

    topic = "event/step"
    qos = 0
    phase: str
    step: int
    steps: int
    loss: NumberOrNone
    accuracy: NumberOrNone
    passes: int | None = None
    gap: NumberOrNone = None


class MessageDocument(Numbered):
    """A line for whoever watches."""

    topic = "event/message"
    text: str


class AlarmDocument(Numbered):
    """Something that a person should look at now."""

    topic = "event/alarm"
    text: str


class PauseDocument(Numbered):
    """The run waits, its supply off."""

    topic = "event/pause"
    reason: str


class ResumeDocument(Numbered):
    """The run goes on."""

    topic = "event/resume"
    waited_s: Number


class StopDocument(Numbered):
    """A run ended."""

    topic = "event/stop"
    status: RunStatus
    mvms: int
    writes: int
    duration_s: Number
    energy_j: NumberOrNone


class DroppedDocument(Document):
    """Documents were dropped, because the broker was away for too long or too slow."""

    topic = "dropped"
    dropped: int
    """Since the program started."""


class RunDocument(Document):
    """The latest run as it stands."""

    topic = "run"
    retained = True
    status: Literal["running", "paused", "finished", "stopped", "aborted"]
    plan: str
    recording: str | None
    started_utc: str
    planned_mvms: int
    planned_writes: int
    mvms: int
    writes: int | None
    """Known at the end."""
    duration_s: NumberOrNone
    """Known at the end."""
    energy_j: NumberOrNone
    """Known at the end."""
    alarms: int
    last_alarm: str | None
    dropped: int
    """Documents dropped since the program started."""


EVENT_DOCUMENTS: tuple[type[Numbered], ...] = (
    StartDocument,
    BlockDocument,
    CurveDocument,
    MissedDocument,
    AxesDocument,
    SupplyDocument,
    StepDocument,
    MessageDocument,
    AlarmDocument,
    PauseDocument,
    ResumeDocument,
    StopDocument,
)
DOCUMENTS: tuple[type[Document], ...] = (*EVENT_DOCUMENTS, DroppedDocument, RunDocument)
_BY_TOPIC = {kind.topic: kind for kind in DOCUMENTS}


def utc_text(time_unix_s: float) -> str:
    """A time as ISO 8601 with microseconds."""
    return datetime.fromtimestamp(time_unix_s, UTC).isoformat(timespec="microseconds")


def clean_text(text: str) -> str:
    """Text as UTF-8 can hold it, of bounded length; file names may have bytes that are none."""
    short = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return short.encode("utf-8", "backslashreplace").decode()


def document_of(event: Event, stamp: Stamp) -> Numbered:
    """The document of an event."""
    run_id, sequence, unix_s = stamp.run_id, stamp.sequence, stamp.time_unix_s
    common = {"run_id": run_id, "sequence": sequence, "time_unix_s": unix_s, "time_utc": utc_text(unix_s)}
    fields: dict[str, object]
    kind: type[Numbered]
    match event:
        case BlockCommitted():
            kind = BlockDocument
            fields = {"array": event.array, "write": event.write, "mvms": event.mvms, "blocks": stamp.blocks}
            fields["total_mvms"] = event.total_mvms
        case SupplyRead(reading):
            kind = SupplyDocument
            fields = {"voltage_v": reading.voltage_v, "current_a": reading.current_a}
            fields |= {"in_compliance": reading.in_compliance, "reading_unix_s": reading.time_s}
            fields["instrument_time_s"] = reading.instrument_time_s
        case StepDone():
            kind = StepDocument
            fields = {"phase": clean_text(event.phase), "step": event.step, "steps": event.steps}
            fields |= {"loss": event.loss, "accuracy": event.accuracy, "passes": event.passes, "gap": event.gap}
        case RunStarted():
            kind = StartDocument
            planned = {"planned_mvms": event.planned_mvms, "planned_writes": event.planned_writes}
            fields = {"plan": clean_text(event.plan), **planned, "planned_curves": event.planned_curves}
            fields |= {"recording": path_text(event.recording), "least_s": event.least_s}
        case CurveCommitted():
            kind = CurveDocument
            fields = {"curve": event.curve, "readings": event.readings, "total_curves": event.total_curves}
        case PointMissed():
            kind = MissedDocument
            fields = {"array": event.array, "write": event.write, "due_s": event.due_s, "age_s": event.age_s}
        case AxesArrived():
            kind, fields = AxesDocument, {"setting": event.setting, "values": dict(event.values)}
        case Message():
            kind, fields = MessageDocument, {"text": clean_text(event.text)}
        case Alarm():
            kind, fields = AlarmDocument, {"text": clean_text(event.text)}
        case RunPaused():
            kind, fields = PauseDocument, {"reason": clean_text(event.reason)}
        case RunResumed():
            kind, fields = ResumeDocument, {"waited_s": event.waited_s}
        case RunFinished():
            kind = StopDocument
            fields = {"status": event.status, "mvms": event.mvms, "writes": event.writes}
            fields |= {"duration_s": event.duration_s, "energy_j": event.energy_j}
    return kind.model_validate({**common, **fields})


def event_of(document: Document) -> Event | None:
    """The event that a document was made of, for a listener on another machine; None for those that are no event."""
    match document:
        case BlockDocument():
            return BlockCommitted(document.array, document.write, document.mvms, document.total_mvms)
        case SupplyDocument():
            return SupplyRead(
                Reading(
                    document.voltage_v,
                    document.current_a,
                    document.in_compliance,
                    document.reading_unix_s,
                    document.instrument_time_s,
                )
            )
        case StepDocument():
            counted = (document.phase, document.step, document.steps)
            return StepDone(*counted, document.loss, document.accuracy, document.passes, document.gap)
        case StartDocument():
            path = None if document.recording is None else Path(document.recording)
            planned = (document.plan, document.planned_mvms, document.planned_writes)
            return RunStarted(*planned, path, document.least_s, document.planned_curves, document.run_id)
        case CurveDocument():
            return CurveCommitted(document.curve, document.readings, document.total_curves)
        case MissedDocument():
            return PointMissed(document.array, document.write, document.due_s, document.age_s)
        case AxesDocument():
            return AxesArrived(document.setting, document.values)
        case MessageDocument():
            return Message(document.text)
        case AlarmDocument():
            return Alarm(document.text)
        case PauseDocument():
            return RunPaused(document.reason)
        case ResumeDocument():
            return RunResumed(document.waited_s)
        case StopDocument():
            return RunFinished(document.status, document.mvms, document.writes, document.duration_s, document.energy_j)
        case _:
            return None


def decoded(topic: str, payload: bytes) -> Document:
    """The document of a message.

    Args:
        topic: The topic below `labrig/1/SITE/RIG/`.
        payload: The message.

    Raises:
        ProtocolError: There is no such topic in version 1, or the message is not what belongs there.
    """
    kind = _BY_TOPIC.get(topic)
    if kind is None:
        raise ProtocolError(f"no document of labrig telemetry belongs to the topic {topic!r}")
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ProtocolError(f"not a document of labrig telemetry under {topic}: {faults}") from error


def path_text(path: Path | None) -> str | None:
    """A file's name as documents have it."""
    return None if path is None else clean_text(str(path))
