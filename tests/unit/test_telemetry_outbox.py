"""What waits for a broker: bounded, in order, the oldest dropped and counted, progress merged with right sums."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.events import (
    Alarm,
    BlockCommitted,
    Event,
    Message,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    SupplyRead,
)
from labrig.telemetry.outbox import Entry, Outbox
from labrig.telemetry.tracker import RunTracker
from labrig_drivers.source_meter import Reading

START = RunStarted("mvm", 100, 1, Path("run.h5"))
FINISH = RunFinished("finished", 100, 1, 1.0, None)


@dataclass
class Clock:
    """Time that passes when the test says so."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def outbox(clock: Clock | None = None, most_kept: int = 1000, max_rate_hz: float = 5.0) -> Outbox:
    clock = clock or Clock()
    return Outbox(most_kept, max_rate_hz, RunTracker(lambda: "run"), clock, clock)


def taken(box: Outbox) -> list[Entry]:
    entries = []
    while (entry := box.take()) is not None:
        entries.append(entry)
    return entries


def texts(entries: list[Entry]) -> list[str]:
    return [entry.event.text for entry in entries if isinstance(entry.event, Message)]


def test_oldest_is_dropped_counted_and_leaves_a_gap() -> None:
    box = outbox(most_kept=3)
    for number in range(5):
        box.put(Message(str(number)))
    entries = taken(box)
    assert texts(entries) == ["2", "3", "4"]
    assert [entry.sequence for entry in entries] == [3, 4, 5]
    assert box.dropped == 2


def test_storm_keeps_memory_bounded_and_the_last_events() -> None:
    box = outbox(most_kept=1000)
    reading = Reading(1.0, 0.1, in_compliance=False, time_s=0.0)

    def storm(first: int, last: int) -> None:
        for number in range(first, last):
            box.put(Message(f"message {number}"))
            box.put(BlockCommitted(0, 0, 1, number + 1))
            box.put(StepDone(f"phase {number}", number, last, None))
            box.put(SupplyRead(reading))

    tracemalloc.start()
    try:
        storm(0, 2_000)
        full, _ = tracemalloc.get_traced_memory()
        storm(2_000, 25_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after < full + 100_000
    assert len(box) <= 1000 + 64
    entries = taken(box)
    assert texts(entries)[-1] == "message 24999"
    assert box.dropped > 40_000
    # Nothing is lost uncounted: every number was given to one that was taken or to one that was dropped.
    assert max(entry.sequence for entry in entries) == len(entries) + box.dropped
    blocks = [entry.event for entry in entries if isinstance(entry.event, BlockCommitted)]
    assert blocks[-1].total_mvms == 25_000


def test_blocks_come_at_the_rate_with_the_latest_total_and_the_right_sum() -> None:
    clock = Clock()
    box = outbox(clock, max_rate_hz=4.0)
    box.put(START)
    entries: list[Entry] = []
    for number in range(1, 1001):
        box.put(BlockCommitted(number % 2, 0, 10, 10 * number))
        clock.now_s += 0.01
        entries += taken(box)
    assert len(entries) < 2 + 4 * 10 + 2
    box.put(FINISH)
    entries += taken(box)
    blocks = [entry for entry in entries if isinstance(entry.event, BlockCommitted)]
    assert sum(entry.event.mvms for entry in blocks if isinstance(entry.event, BlockCommitted)) == 10_000
    assert sum(entry.blocks for entry in blocks) == 1000
    assert entries[-2].event == BlockCommitted(0, 0, entries[-2].blocks * 10, 10_000)
    assert entries[-1].event == FINISH
    times = [entry.time_unix_s for entry in blocks[:-1]]
    assert all(later - earlier >= 0.25 - 1e-9 for earlier, later in pairwise(times))


def test_phases_and_kinds_do_not_merge_with_one_another() -> None:
    box = outbox()
    for event in (
        StepDone("surrogate", 1, 2, 0.5),
        StepDone("in-loop", 1, 2, 0.5),
        StepDone("surrogate", 2, 2, 0.4),
        BlockCommitted(0, 0, 1, 1),
    ):
        box.put(event)
    assert [entry.event for entry in taken(box)] == [
        StepDone("surrogate", 2, 2, 0.4),
        StepDone("in-loop", 1, 2, 0.5),
        BlockCommitted(0, 0, 1, 1),
    ]


def test_wait_until_due() -> None:
    clock = Clock()
    box = outbox(clock, max_rate_hz=2.0)
    assert box.due_in_s() is None
    box.put(BlockCommitted(0, 0, 1, 1))
    assert box.due_in_s() == 0.0
    assert len(taken(box)) == 1
    box.put(BlockCommitted(0, 0, 1, 2))
    assert box.take() is None
    assert box.due_in_s() == pytest.approx(0.5)
    clock.now_s += 0.2
    assert box.due_in_s() == pytest.approx(0.3)
    box.put(Message("now"))
    assert box.due_in_s() == 0.0


def test_what_could_not_be_delivered_comes_again_first_but_not_for_ever() -> None:
    box = outbox()
    box.put(Message("one"))
    box.put(Message("two"))
    for _ in range(3):
        entry = box.take()
        assert entry is not None
        assert entry.event == Message("one")
        box.give_back(entry)
    assert texts(taken(box)) == ["two"]
    assert box.dropped == 1


def test_given_back_to_a_full_box_is_dropped() -> None:
    box = outbox(most_kept=2)
    box.put(Message("one"))
    entry = box.take()
    assert entry is not None
    box.put(Message("two"))
    box.put(Message("three"))
    box.give_back(entry)
    assert texts(taken(box)) == ["two", "three"]
    assert box.dropped == 1


def test_closed_box_takes_nothing_and_releases_what_it_held() -> None:
    clock = Clock()
    box = outbox(clock)
    wakes: list[bool] = []
    box.on_news(lambda: wakes.append(box.closed))
    box.put(BlockCommitted(0, 0, 1, 1))
    taken(box)
    box.put(BlockCommitted(0, 0, 1, 2))
    box.put(BlockCommitted(0, 0, 1, 3))
    # Merged into one that is known already: nobody is woken for it.
    assert wakes == [False, False]
    box.close()
    box.put(Message("late"))
    assert wakes == [False, False, True]
    assert [entry.event for entry in taken(box)] == [BlockCommitted(0, 0, 2, 3)]


def test_state_and_latest_run_follow_the_events() -> None:
    box = outbox()
    assert (box.state, box.run()) == ("init", None)
    told = []
    for event in (
        Message("hello"),
        START,
        BlockCommitted(0, 0, 4, 4),
        Alarm("hot"),
        RunPaused("door"),
        RunResumed(1.0),
        FINISH,
        START,
        RunFinished("aborted", 7, 2, 3.0, 0.5),
    ):
        box.put(event)
        run = box.run()
        told.append((box.state, run and run.status, run and run.mvms, run and run.alarms))
    assert told == [
        ("init", None, None, None),
        ("busy", "running", 0, 0),
        ("busy", "running", 4, 0),
        ("busy", "running", 4, 1),
        ("sleeping", "paused", 4, 1),
        ("busy", "running", 4, 1),
        ("ready", "finished", 100, 1),
        ("busy", "running", 0, 0),
        ("ready", "aborted", 7, 0),
    ]
    ids = [entry.run_id for entry in taken(box)]
    assert ids[0] is None
    assert set(ids[1:]) == {"run"}
    box.put(Message("between runs"))
    assert taken(box)[0].run_id is None


def test_pause_before_the_start_is_a_sleeping_rig() -> None:
    box = outbox()
    states = []
    for event in (RunPaused("door"), RunResumed(1.0)):
        box.put(event)
        states.append(box.state)
    assert states == ["sleeping", "init"]


def test_events_from_several_threads_are_each_numbered_once() -> None:
    box = outbox(most_kept=100_000)
    each = 3_000

    def publish(name: str) -> None:
        for number in range(each):
            box.put(Message(f"{name} {number}"))

    threads = [threading.Thread(target=publish, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    entries: list[Entry] = []
    while any(thread.is_alive() for thread in threads):
        entries += taken(box)
    for thread in threads:
        thread.join()
    entries += taken(box)
    assert [entry.sequence for entry in entries] == list(range(1, 3 * each + 1))
    for name in "abc":
        own = [text for text in texts(entries) if text.startswith(name)]
        assert own == [f"{name} {number}" for number in range(each)]


actions = st.one_of(
    st.just("take"),
    st.just("fail"),
    st.floats(0.0, 1.0),
    st.builds(BlockCommitted, st.integers(0, 3), st.just(0), st.integers(1, 9), st.just(0)),
    st.builds(StepDone, st.sampled_from("abc"), st.integers(0, 9), st.just(9), st.none()),
    st.builds(Message, st.sampled_from(["m", "n"])),
    st.sampled_from([START, FINISH, RunPaused("door"), RunResumed(1.0)]),
)


@given(st.lists(actions, max_size=60), st.integers(1, 6))
def test_any_interleaving_keeps_order_bounds_and_sums(steps: list[Event | str | float], most_kept: int) -> None:
    clock = Clock()
    box = outbox(clock, most_kept=most_kept)
    delivered: list[Entry] = []
    total = 0
    for step in steps:
        if isinstance(step, float):
            clock.now_s += step
        elif step == "take":
            delivered += [entry for entry in (box.take(),) if entry is not None]
        elif step == "fail":
            entry = box.take()
            if entry is not None:
                box.give_back(entry)
        elif isinstance(step, BlockCommitted):
            total += step.mvms
            box.put(BlockCommitted(step.array, step.write, step.mvms, total))
        elif not isinstance(step, str):
            box.put(step)
        assert len(box) <= most_kept + 5
    box.put(FINISH)
    box.close()
    delivered += taken(box)
    numbers = [entry.sequence for entry in delivered]
    assert numbers == sorted(set(numbers))
    # Each number was delivered, or its loss counted.
    assert delivered[-1].event == FINISH
    assert numbers[-1] == len(delivered) + box.dropped
    blocks = [entry.event for entry in delivered if isinstance(entry.event, BlockCommitted)]
    summed = sum(block.mvms for block in blocks)
    assert summed <= total
    if box.dropped == 0:
        assert summed == total
        assert not blocks or blocks[-1].total_mvms == total
