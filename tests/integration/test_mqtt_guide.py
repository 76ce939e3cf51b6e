"""The page on MQTT: its tables, its messages, its rig file and its command are what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from labrig.addresses import BrokerAddress
from labrig.config import parse_rig, shipped_rig
from labrig.events import Alarm, BlockCommitted, Event, Message, RunFinished, RunStarted, SupplyRead
from labrig.telemetry import Broker, Pace, Telemetry
from labrig.telemetry.documents import DOCUMENTS, Document, Numbered, Stamp, decoded, document_of
from labrig.telemetry.topics import rig_topic
from labrig.telemetry.tracker import RunTracker
from labrig.testing.mosquitto import Mosquitto, find_mosquitto
from labrig_drivers.source_meter import Reading

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "watch-over-mqtt.md").read_text()
ROW = re.compile(r"^\| `([a-z/]+)` \| ([01]) \| (yes)? ?\| (.*) \|$", re.MULTILINE)
COMMON = [*Document.model_fields, *(name for name in Numbered.model_fields if name not in Document.model_fields)]

NEW_YEAR_S = 1767225600.0
LIMIT = "the array supply is at its limit (1.2 V, 0.1 A)"
EVENTS: list[tuple[float, Event, int]] = [
    (0.0, RunStarted("mvm", 20736, 8, Path("run.h5"), 2.1), 1),
    (0.5, BlockCommitted(1, 0, 384, 1536), 3),
    (1.0, SupplyRead(Reading(1.2, 0.0142, in_compliance=False, time_s=NEW_YEAR_S + 1.0)), 1),
    (1.5, Alarm(LIMIT), 1),
    (3.0, RunFinished("finished", 20736, 8, 3.0, 0.051), 1),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_topics_of_the_page_are_those_of_the_code() -> None:
    rows = {topic: (int(qos), kept == "yes", text) for topic, qos, kept, text in ROW.findall(PAGE)}
    assert rows.pop("state")[:2] == (1, True)
    assert set(rows) == {kind.topic for kind in DOCUMENTS}
    for kind in DOCUMENTS:
        qos, kept, text = rows[kind.topic]
        assert (qos, kept) == (kind.qos, kind.retained)
        assert re.findall(r"`([a-z_]+)`", text) == [name for name in kind.model_fields if name not in COMMON]
    assert all(f"`{name}`" in PAGE for name in COMMON)


def test_messages_of_the_page_are_those_of_the_code() -> None:
    (shown,) = [block for block in blocks("text") if block.startswith("labrig/")]
    tracker = RunTracker(lambda: "4e1f")
    topic = rig_topic("hall-2", "mock")
    lines: list[str] = []
    for number, (after_s, event, merged) in enumerate(EVENTS, start=1):
        tracker.note(event, NEW_YEAR_S + after_s)
        document = document_of(event, Stamp("4e1f", number, NEW_YEAR_S + after_s, merged))
        lines.append(f"{topic}/{document.topic} {document.encoded().decode()}")
    run = tracker.document(NEW_YEAR_S + 3.0, 0)
    assert run is not None
    lines.append(f"{topic}/{run.topic} {run.encoded().decode()}")
    assert shown.splitlines() == lines
    for line in lines:
        name, _, payload = line.partition(" ")
        assert decoded(name.removeprefix(f"{topic}/"), payload.encode()).encoded() == payload.encode()


def test_section_of_the_page_is_valid() -> None:
    (section,) = blocks("toml")
    mock = shipped_rig("mock")
    rig = parse_rig(f"{mock.read_text()}\n{section}", mock)
    assert rig.telemetry is not None
    assert (rig.telemetry.site, rig.telemetry.max_rate_hz) == ("hall-2", Pace().max_rate_hz)


def test_numbers_of_the_page_are_those_of_the_code() -> None:
    pace = Pace()
    assert f"Up to {pace.most_kept:,} events wait" in PAGE
    assert (pace.flush_s, pace.max_rate_hz) == (2.0, 5.0)
    # A broker gives a client up after one and a half times its keep-alive (MQTT 3.1.1, 3.1.2.10).
    assert f"after {1.5 * pace.keep_alive_s + 0.5:.0f} seconds of silence" in PAGE


def test_command_of_the_page_shows_the_events(broker: Mosquitto) -> None:
    (line,) = re.findall(r"^    (mosquitto_sub .*)$", PAGE, re.MULTILINE)
    program = find_mosquitto("mosquitto_sub")
    assert program is not None
    _, *options = shlex.split(line.replace("broker.lab", "127.0.0.1"))
    # What is kept comes first, so that the command can be run after the fact.
    with Telemetry(Broker(BrokerAddress("127.0.0.1", broker.port, tls=False)), rig_topic("lab", "mock"), print) as one:
        one(RunStarted("mvm", 1, 1, None))
        one(Message("hello"))
    command = [program, "-p", str(broker.port), "-C", "2", "-W", "20", *options]
    heard = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "labrig/1/lab/mock/state disconnected" in heard
    assert any(line.startswith('labrig/1/lab/mock/run {"run_id":') for line in heard)
