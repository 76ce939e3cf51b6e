"""Telemetry's documents: every event there and back as JSON, what is refused, and bluesky's own schemas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import event_model
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.events import (
    Alarm,
    AxesArrived,
    BlockCommitted,
    CurveCommitted,
    Event,
    EventBus,
    Message,
    PointMissed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    SupplyRead,
)
from labrig.remote.lease_runs import LeaseRuns
from labrig.telemetry.documents import (
    DOCUMENTS,
    EVENT_DOCUMENTS,
    LONGEST_TEXT,
    DroppedDocument,
    RunDocument,
    Stamp,
    decoded,
    document_of,
    event_of,
)
from labrig.telemetry.topics import rig_topic, topic_level
from labrig.telemetry.tracker import RunTracker
from labrig_drivers.errors import ProtocolError
from labrig_drivers.source_meter import Reading

counts = st.integers(0, 2**53)
numbers = st.floats()
texts = st.text(max_size=50)
events = st.one_of(
    st.builds(
        RunStarted,
        texts,
        counts,
        counts,
        st.none() | texts.map(lambda text: Path(text or ".")),
        st.none() | numbers,
        counts,
    ),
    st.builds(BlockCommitted, counts, counts, counts, counts),
    st.builds(CurveCommitted, counts, counts, counts),
    st.builds(PointMissed, counts, counts, numbers, numbers),
    st.builds(AxesArrived, counts, st.dictionaries(st.text("abc", min_size=1), numbers, max_size=3)),
    st.builds(
        SupplyRead, st.builds(Reading, numbers, numbers, st.booleans(), numbers, instrument_time_s=st.none() | numbers)
    ),
    st.builds(StepDone, texts, counts, counts, st.none() | numbers, st.none() | st.floats(0.0, 1.0)),
    st.builds(Message, texts),
    st.builds(Alarm, texts),
    st.builds(RunPaused, texts),
    st.builds(RunResumed, numbers),
    st.builds(RunFinished, st.sampled_from(["finished", "stopped", "aborted"]), counts, counts, numbers, numbers),
)
stamps = st.builds(Stamp, st.none() | st.uuids().map(str), counts, st.floats(0.0, 4e9), blocks=st.integers(1, 1000))


def refused_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def as_json_keeps_it(event: object) -> object:
    """An event with what JSON cannot hold replaced: no infinity, and nothing at all where nothing is allowed."""
    if isinstance(event, float):
        return event if math.isfinite(event) else "not finite"
    if isinstance(event, Path):
        return str(event)
    if isinstance(event, dict):
        return {name: as_json_keeps_it(value) for name, value in event.items()}
    if isinstance(event, Event | Reading):
        optional = {"least_s", "loss", "accuracy", "energy_j", "instrument_time_s"}
        kept = {name: as_json_keeps_it(value) for name, value in vars(event).items()}
        return {name: None if name in optional and value == "not finite" else value for name, value in kept.items()}
    return event


@given(events, stamps)
def test_every_event_comes_back_from_its_json(event: Event, stamp: Stamp) -> None:
    document = document_of(event, stamp)
    payload = document.encoded()
    fields = json.loads(payload, parse_constant=refused_constant)
    assert (fields["run_id"], fields["sequence"]) == (stamp.run_id, stamp.sequence)
    assert fields["time_unix_s"] == stamp.time_unix_s
    assert fields["time_utc"].endswith("+00:00")
    back = decoded(document.topic, payload)
    assert type(back) is type(document)
    assert back.encoded() == payload
    returned = event_of(back)
    assert type(returned) is type(event)
    if isinstance(event, RunStarted):
        # The stamp says which run it is.
        event = replace(event, run_id=stamp.run_id)
    assert as_json_keeps_it(returned) == as_json_keeps_it(event)


def test_every_event_has_a_topic_of_its_own() -> None:
    made = {type(event): document_of(event, Stamp(None, 1, 0.0)) for event in EXAMPLES}
    assert set(made) == set(get_args(Event))
    assert {type(document) for document in made.values()} == set(EVENT_DOCUMENTS)
    topics = [kind.topic for kind in DOCUMENTS]
    assert len(topics) == len(set(topics))
    assert all(event_of(document) is not None for document in made.values())


def test_every_number_says_its_unit_or_counts_something() -> None:
    units = ("_s", "_v", "_a", "_j")
    without_unit = {"accuracy", "loss", "gap"}
    for kind in DOCUMENTS:
        for name, field in kind.model_fields.items():
            if float in get_args(field.annotation) or field.annotation is float:
                assert name.endswith(units) or name in without_unit, f"{kind.__name__}.{name}"


@given(st.sampled_from([kind.topic for kind in DOCUMENTS]), st.binary(max_size=100) | st.text().map(str.encode))
def test_what_is_no_document_is_refused(topic: str, payload: bytes) -> None:
    with pytest.raises(ProtocolError, match=topic):
        decoded(topic, payload)


def test_wrong_fields_are_named_and_unknown_ones_are_let_pass() -> None:
    payload = json.loads(document_of(BlockCommitted(0, 1, 2, 3), Stamp("a", 1, 0.0)).encoded())
    assert event_of(decoded("event/block", json.dumps({**payload, "colour": "red"}).encode())) is not None
    wrong = {**payload, "mvms": "2", "total_mvms": None}
    with pytest.raises(ProtocolError, match=r"mvms: .*; total_mvms: "):
        decoded("event/block", json.dumps(wrong).encode())
    with pytest.raises(ProtocolError, match="no document of labrig telemetry belongs to the topic 'event/moon'"):
        decoded("event/moon", b"{}")


def test_a_run_keeps_its_own_identity_and_only_one_without_is_given_one() -> None:
    tracker = RunTracker(lambda: "made")
    started, finished = RunStarted("mvm", 10, 1, Path("run.h5"), run_id="own"), RunFinished("stopped", 4, 1, 2.0, None)
    assert [tracker.note(event, 1.0) for event in (started, finished, Message("between"))] == ["own", "own", None]
    # The recording was resumed: both parts are one run.
    assert tracker.note(started, 2.0) == "own"
    resumed = tracker.document(3.0, 0)
    assert resumed is not None
    assert (resumed.run_id, resumed.status, resumed.mvms) == ("own", "running", 0)
    assert tracker.note(replace(started, run_id=None), 4.0) == "made"


def test_a_rig_that_is_stopped_while_nobody_uses_it_leaves_the_last_run_what_it_was() -> None:
    bus, tracker, clock = EventBus(), RunTracker(), iter([0.0, 60.0])

    def listen(event: Event) -> None:
        tracker.note(event, 1.0)

    bus.subscribe(listen)
    runs = LeaseRuns(bus, lambda: next(clock))
    runs.begin("ann")
    runs.end("finished")
    before = tracker.document(2.0, 0)
    assert before is not None
    assert (before.status, before.duration_s) == ("finished", 60.0)
    runs.end("stopped")
    assert tracker.document(2.0, 0) == before


def test_run_and_dropped_are_documents_but_no_events() -> None:
    tracker = RunTracker(lambda: "run-1")
    assert tracker.document(0.0, 0) is None
    tracker.note(RunStarted("mvm", 10, 1, None), 1.0)
    run = tracker.document(2.0, 3)
    assert run is not None
    back = decoded(run.topic, run.encoded())
    assert back == run
    assert event_of(back) is None
    dropped = DroppedDocument(run_id=None, time_unix_s=0.0, time_utc="", dropped=4)
    assert decoded("dropped", dropped.encoded()) == dropped
    assert isinstance(back, RunDocument)


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_rig_topic_has_four_levels_whatever_the_names(site: str, rig: str) -> None:
    topic = rig_topic(site, rig)
    levels = topic.split("/")
    assert levels[:2] == ["labrig", "1"]
    assert len(levels) == 4
    assert not set(topic) & {"+", "#", "\0", " "}
    assert all(levels)
    assert len(topic.encode("utf-8")) < 2000


def test_usual_names_stay_as_they_are() -> None:
    assert rig_topic("lab-2", "simulated-bench") == "labrig/1/lab-2/simulated-bench"
    assert topic_level("Ebene 3/links") == "Ebene-3-links"


def test_long_texts_are_cut_and_any_file_name_can_be_told() -> None:
    text = document_of(Message("x" * 10_000), Stamp(None, 1, 0.0)).encoded()
    assert len(json.loads(text)["text"]) == LONGEST_TEXT
    path = Path(b"run-\xff.h5".decode("utf-8", "surrogateescape"))
    start = json.loads(document_of(RunStarted("mvm", 1, 1, path), Stamp(None, 1, 0.0)).encoded())
    assert start["recording"] == r"run-\udcff.h5"


EXAMPLES: list[Event] = [
    RunStarted("mvm", 20, 2, Path("run.h5"), 1.5),
    BlockCommitted(0, 1, 8, 16),
    CurveCommitted(3, 41, 4),
    PointMissed(0, 1, 8.0, 12.5),
    AxesArrived(2, {"temperature": 299.9}),
    SupplyRead(Reading(1.2, 0.01, in_compliance=False, time_s=1.0)),
    StepDone("in-loop", 3, 9, 0.5, 0.25, 12, 0.07),
    Message("hello"),
    Alarm("hot"),
    RunPaused("door"),
    RunResumed(2.0),
    RunFinished("finished", 20, 2, 3.0, None),
]

# The table of the page: labrig's name to bluesky's.
RENAMES = {
    "run_id": "run_start",
    "time_unix_s": "time",
    "sequence": "seq_num",
    "plan": "plan_name",
    "status": "exit_status",
}
EXIT_STATUS = {"finished": "success", "stopped": "abort", "aborted": "fail"}
OWN = {*RENAMES, "time_utc"}
JSON_TYPES = {dict: "array", int: "integer", float: "number", bool: "boolean", str: "string"}


def bluesky_documents(payloads: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """A run's documents under bluesky's names; a stream of events for each topic that has data."""
    made: list[tuple[str, dict[str, Any]]] = []
    streams: dict[str, str] = {}
    for topic, payload in payloads:
        renamed = {RENAMES[key]: value for key, value in payload.items() if key in RENAMES}
        data = {key: value for key, value in payload.items() if key not in OWN and value is not None}
        uid = f"{payload['run_id']}-{payload['sequence']}"
        if topic == "event/start":
            made.append(("start", {"uid": renamed.pop("run_start"), "time": renamed["time"], **renamed, **data}))
        elif topic == "event/stop":
            exit_status = EXIT_STATUS[renamed["exit_status"]]
            keys = {"uid": uid, "run_start": renamed["run_start"], "time": renamed["time"], "exit_status": exit_status}
            made.append(("stop", keys))
        else:
            name = topic.rpartition("/")[2]
            if name not in streams:
                streams[name] = f"{payload['run_id']}-{name}"
                keys = {
                    key: {"source": f"labrig:{topic}", "dtype": JSON_TYPES[type(value)], "shape": []}
                    for key, value in data.items()
                }
                descriptor = {"uid": streams[name], "run_start": renamed["run_start"], "time": renamed["time"]}
                made.append(("descriptor", {**descriptor, "name": name, "data_keys": keys}))
            timestamps = dict.fromkeys(data, renamed["time"])
            event = {"uid": uid, "descriptor": streams[name], "time": renamed["time"], "seq_num": renamed["seq_num"]}
            made.append(("event", {**event, "data": data, "timestamps": timestamps}))
    return made


def test_a_rename_makes_documents_that_bluesky_takes() -> None:
    payloads = []
    for number, event in enumerate(EXAMPLES, start=1):
        document = document_of(event, Stamp("0f6a", number, 1e9 + number))
        payloads.append((document.topic, json.loads(document.encoded())))
    documents = bluesky_documents(payloads)
    assert [name for name, _ in documents][:3] == ["start", "descriptor", "event"]
    assert documents[-1][0] == "stop"
    for name, made in documents:
        event_model.schema_validators[event_model.DocumentNames[name]].validate(made)
    # The validators do refuse: without its renames the same document is none.
    with pytest.raises(Exception, match="is a required property"):
        event_model.schema_validators[event_model.DocumentNames.start].validate(payloads[0][1])
