"""The event bus, and the progress listener without a terminal."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from labrig.events import (
    Alarm,
    BlockCommitted,
    Event,
    EventBus,
    Message,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    SupplyRead,
)
from labrig.progress import ProgressListener
from labrig_drivers.source_meter import Reading


def test_listener_that_fails_is_reported_once_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    seen: list[Event] = []
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("page is gone")

    bus.subscribe(broken)
    bus.subscribe(seen.append)
    with caplog.at_level(logging.WARNING):
        bus.publish(Message("one"))
        bus.publish(Message("two"))
    assert calls == [Message("one")]
    texts = [event.text for event in seen if isinstance(event, Message)]
    assert sorted(texts)[1:] == ["one", "two"]
    assert "page is gone" in sorted(texts)[0]
    assert len(caplog.records) == 1


def test_unsubscribed_listener_hears_nothing_more() -> None:
    bus = EventBus()
    seen: list[Event] = []
    unsubscribe = bus.subscribe(seen.append)
    bus.publish(Message("one"))
    unsubscribe()
    unsubscribe()
    bus.publish(Message("two"))
    assert seen == [Message("one")]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_the_run(*, terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    with ProgressListener(console, line_every_s=0.0) as progress:
        progress(RunStarted("mvm", planned_mvms=20, planned_writes=1, recording=Path("run[1].h5")))
        progress(BlockCommitted(array=0, write=0, mvms=10, total_mvms=10))
        progress(SupplyRead(Reading(1.2, 0.01, in_compliance=False, time_s=0.0)))
        progress(StepDone("in-loop", step=3, steps=9, loss=0.5, accuracy=0.25))
        progress(Alarm("supply at its limit"))
        progress(RunPaused("interlock door is open"))
        progress(RunResumed(waited_s=12.5))
        progress(RunFinished("finished", mvms=20, writes=1, duration_s=2.0, energy_j=1.5))
    shown = text.getvalue()
    wanted = ["run[1].h5", "in-loop", "loss 0.5000, accuracy 25.0 %", "ALARM: supply at its limit", "1.5 J"]
    wanted += ["PAUSED: interlock door is open", "goes on after 12.5 s"]
    wanted += ["10/20"] if terminal else ["MVMs: 10 of 20", "in-loop: 3 of 9"]
    assert [one for one in wanted if one not in shown] == []


def test_progress_without_terminal_prints_few_lines() -> None:
    text = io.StringIO()
    with ProgressListener(Console(file=text, width=200), line_every_s=1e9) as progress:
        progress(RunStarted("mvm", planned_mvms=1000, planned_writes=1, recording=None))
        for total in range(1, 1001):
            progress(BlockCommitted(array=0, write=0, mvms=1, total_mvms=total))
    assert len(text.getvalue().splitlines()) == 3
