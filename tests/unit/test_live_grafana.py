"""The Grafana dashboard asks for topics that there are, and for fields that their documents have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from labrig.events import Alarm, AxesArrived, BlockCommitted, Message, RunFinished, StepDone, SupplyRead
from labrig.telemetry.documents import RunDocument, Stamp, document_of
from labrig.telemetry.topics import STATE, rig_topic
from labrig_drivers.source_meter import Reading

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "grafana-dashboard.json"

# An event of each kind whose document a panel shows.
EVENTS = (
    Alarm("x"),
    AxesArrived(0, {"temperature": 300.0}),
    BlockCommitted(0, 0, 1, 1),
    Message("x"),
    RunFinished("finished", 1, 1, 1.0, None),
    StepDone("x", 1, 1, 0.1, 0.5),
    SupplyRead(Reading(1.0, 0.1, in_compliance=False, time_s=0.0)),
)
GRAFANAS = {"Time", "Value", "power"}
"""Fields that Grafana or a transformation of the panel makes."""


def fields_by_topic() -> dict[str, set[str]]:
    documents = [document_of(event, Stamp("run", 1, 0.0, 1)) for event in EVENTS]
    known = {document.topic: set(type(document).model_fields) for document in documents}
    return known | {RunDocument.topic: set(RunDocument.model_fields), STATE: set()}


def panels() -> list[dict[str, object]]:
    content = json.loads(PAGE.read_text(encoding="utf-8"))
    found = content["panels"]
    assert isinstance(found, list)
    return found


def topic_of(panel: dict[str, object]) -> str:
    targets = panel["targets"]
    assert isinstance(targets, list)
    (target,) = targets
    topic = target["topic"]
    assert isinstance(topic, str)
    return topic


def names_in(panel: dict[str, object]) -> set[str]:
    """Every name of a field that a panel mentions."""
    text = json.dumps([panel["transformations"], panel["options"]])
    lists = re.findall(r'"names": \[([^\]]*)\]', text)
    names = {name for one in lists for name in re.findall(r'"([^"]+)"', one)}
    names |= set(re.findall(r'"(?:left|right|source)": "([^"]+)"', text))
    return names | set(re.findall(r'"fields": "/\^(\w+)\$/"', text))


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: str(panel["title"]))
def test_a_panel_shows_what_labrig_publishes(panel: dict[str, object]) -> None:
    known = fields_by_topic()
    prefix = "labrig/1/${site}/${rig}/"
    assert topic_of(panel).startswith(prefix)
    topic = topic_of(panel).removeprefix(prefix)
    assert topic in known
    names = names_in(panel)
    assert names - GRAFANAS <= known[topic], panel["title"]
    assert names or panel["type"] in ("timeseries", "table")


def test_its_variables_make_the_topics_of_a_rig() -> None:
    content = json.loads(PAGE.read_text(encoding="utf-8"))
    values = {one["name"]: one["query"] for one in content["templating"]["list"]}
    topic = topic_of(panels()[0])
    for name, value in values.items():
        topic = topic.replace(f"${{{name}}}", value)
    assert topic == f"{rig_topic('lab', 'mock')}/{STATE}"
    assert {one["id"] for one in content["panels"]} == set(range(1, len(content["panels"]) + 1))
