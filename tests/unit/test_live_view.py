"""What the live page says of a run: folded from events, in bounded memory, whatever comes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.events import (
    Alarm,
    BlockCommitted,
    Event,
    EventBus,
    MeasuredBlock,
    Message,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    SupplyRead,
)
from labrig.live.algebra import solved, solved_three, times
from labrig.live.array_view import ArrayView, Fit, Sample, fitted
from labrig.live.feed import LiveFeed
from labrig.live.hub import Hub, Rhythm
from labrig.live.packing import Packed, packed, packed_coarsely
from labrig.live.series import Series
from labrig.live.steering import OnlyWatching
from labrig.live.time_left import TimeLeft
from labrig.live.view import LiveView
from labrig.live.viewers import ViewerQueue, message_of
from labrig_drivers.crossbar import FloatArray, MvmResult
from labrig_drivers.source_meter import Reading

START = RunStarted("mvm", 1000, 2, Path("run.h5"))


def unpacked(content: object) -> FloatArray:
    assert isinstance(content, dict)
    if "i16" in content:
        codes = np.frombuffer(base64.b64decode(content["i16"]), "<i2").reshape(content["shape"])
        return codes * float(content["scale"])
    values = np.frombuffer(base64.b64decode(content["f32"]), "<f4").reshape(content["shape"])
    return values.astype(np.float64)


def view_of(*events: Event, every_s: float = 1.0) -> LiveView:
    view = LiveView("bench", "MEASURING")
    for number, event in enumerate(events):
        view.note(event, 100.0 + every_s * number)
    return view


def run_section(view: LiveView) -> dict[str, object]:
    return view.section("run", 1000.0)


@pytest.mark.parametrize(
    ("events", "word", "outputs"),
    [
        ([], "STARTING", None),
        ([START], "MEASURING", "on"),
        ([START, RunPaused("door")], "PAUSED", "off"),
        ([START, RunPaused("door"), RunResumed(3.0)], "MEASURING", "on"),
        ([START, Alarm("STOP by Anna: now")], "STOPPING", "on"),
        ([START, Alarm("the supply is at its limit")], "MEASURING", "on"),
        ([START, Alarm("STOP by Anna: now"), RunFinished("aborted", 3, 1, 2.0, None)], "STOPPED", "on"),
        ([START, RunFinished("aborted", 3, 1, 2.0, None)], "ABORTED", "on"),
        ([START, RunFinished("finished", 1000, 2, 2.0, None)], "FINISHED", "on"),
        ([START, Alarm("STOP by Anna: now"), RunFinished("aborted", 3, 1, 2.0, None), START], "MEASURING", "on"),
        ([StepDone("fit", 1, 10, None)], "MEASURING", None),
    ],
)
def test_the_word_and_the_outputs(events: list[Event], word: str, outputs: str | None) -> None:
    view = view_of(*events)
    assert view.word() == word
    assert run_section(view)["outputs"] == outputs


def test_outputs_count_as_off_only_when_the_program_says_so() -> None:
    finished: list[Event] = [START, RunFinished("finished", 1000, 2, 2.0, None)]
    well, ill = view_of(*finished), view_of(*finished)
    well.end(200.0)
    ill.end(200.0, "2 instruments could not be made safe")
    assert (well.word(), run_section(well)["outputs"]) == ("FINISHED", "off")
    assert (ill.word(), run_section(ill)["outputs"]) == ("FAILED", "unknown")
    assert run_section(ill)["alarm"] == "2 instruments could not be made safe"


def test_a_pause_says_why_until_it_ends() -> None:
    assert run_section(view_of(START, RunPaused("the door is open")))["waits_for"] == "the door is open"
    for last in (RunResumed(2.0), RunFinished("stopped", 1, 1, 1.0, None), START):
        assert run_section(view_of(START, RunPaused("the door is open"), last))["waits_for"] is None


def test_progress_and_time_left_come_from_the_pace() -> None:
    view = view_of(START, *(BlockCommitted(0, 0, 10, 10 * number) for number in range(1, 21)))
    progress = run_section(view)["progress"]
    assert isinstance(progress, dict)
    assert (progress["done"], progress["total"], progress["unit"]) == (200, 1000, "MVMs")
    assert progress["rate_hz"] == pytest.approx(10.0)
    assert progress["left_s"] == pytest.approx(80.0)


def test_nothing_is_promised_while_paused_or_stopping() -> None:
    blocks = [BlockCommitted(0, 0, 10, 10 * number) for number in range(1, 5)]
    for last in (RunPaused("door"), Alarm("STOP by Anna: now"), RunFinished("finished", 40, 1, 4.0, None)):
        progress = run_section(view_of(START, *blocks, last))["progress"]
        assert isinstance(progress, dict)
        assert progress["left_s"] is None


def test_a_pause_does_not_count_as_slow() -> None:
    left = TimeLeft()
    for second in range(10):
        left.note(float(second), 100.0 * second)
    left.forget()
    for second in range(1000, 1010):
        left.note(float(second), 900.0 + 100.0 * (second - 1000))
    assert left.rate_hz() == pytest.approx(100.0)


@given(st.lists(st.floats(0.0, 10.0), min_size=2, max_size=600), st.floats(0.001, 5.0))
def test_time_left_is_never_negative(steps: list[float], pause_s: float) -> None:
    left, done = TimeLeft(), 0.0
    for number, step in enumerate(steps):
        done += step
        left.note(pause_s * number, done)
    answer = left.left_s(done + 1.0)
    assert answer is None or answer >= 0.0


@given(st.integers(1, 5000), st.integers(4, 60))
def test_a_series_is_bounded_keeps_its_ends_and_its_order(count: int, most: int) -> None:
    series = Series(("x", "y"), most)
    for number in range(count):
        series.add(number, -number)
    columns = series.as_columns()
    x = unpacked(columns["x"])
    assert len(x) <= most + 1
    assert x[0] == 0
    assert x[-1] == count - 1
    assert (np.diff(x) > 0).all()
    np.testing.assert_array_equal(unpacked(columns["y"]), -x)


@given(st.lists(st.floats(width=32, allow_nan=True), max_size=20))
def test_packing_loses_nothing_of_float32(values: list[float]) -> None:
    content: Packed = packed(values)
    np.testing.assert_array_equal(unpacked(json.loads(json.dumps(content))), np.array(values))


@given(st.lists(st.floats(-1e-3, 1e-3), max_size=20))
def test_coarse_packing_keeps_four_digits_of_the_largest(values: list[float]) -> None:
    largest = max(map(abs, values), default=0.0)
    found = unpacked(json.loads(json.dumps(packed_coarsely(values))))
    np.testing.assert_allclose(found, np.array(values), rtol=0.0, atol=max(largest / 60_000, 1e-300))
    np.testing.assert_array_equal(unpacked(packed_coarsely([np.nan, np.inf, 1.0])), [0.0, 0.0, 1.0])


def test_training_curves_are_over_passes() -> None:
    steps = [StepDone("pat", n, 50, 2.0 / n, n / 100, passes=3 * n, gap=0.1 / n) for n in range(1, 51)]
    view = view_of(RunStarted("training", 10, 1, None), StepDone("digital", 1, 1, 0.5), *steps)
    section = view.section("steps", 0.0)
    accuracy, gap, losses = section["accuracy"], section["gap"], section["losses"]
    assert isinstance(accuracy, dict)
    assert isinstance(gap, dict)
    assert isinstance(losses, dict)
    np.testing.assert_array_equal(unpacked(accuracy["passes"]), 3 * np.arange(1, 51))
    np.testing.assert_allclose(unpacked(accuracy["accuracy"]), np.arange(1, 51) / 100, rtol=1e-6)
    np.testing.assert_allclose(unpacked(gap["gap"]), 0.1 / np.arange(1, 51), rtol=1e-6)
    assert list(losses) == ["digital", "pat"]
    progress = run_section(view)["progress"]
    assert isinstance(progress, dict)
    assert (progress["done"], progress["total"], progress["unit"]) == (50, 50, "steps")


def test_the_table_keeps_the_accuracy_of_the_latest_step_on_the_chip() -> None:
    steps = [StepDone("pat", 1, 9, 0.3, 0.8, 1, 0.1), StepDone("pat", 2, 9, 0.2)]
    view = view_of(*steps)
    phases = run_section(view)["phases"]
    assert phases == [{"name": "pat", "step": 2, "steps": 9, "loss": 0.2, "accuracy": 0.8}]
    accuracy = view.section("steps", 0.0)["accuracy"]
    assert isinstance(accuracy, dict)
    assert len(unpacked(accuracy["passes"])) == 1


def test_steps_have_a_pace_of_their_own_beside_that_of_the_blocks() -> None:
    both = [
        event
        for number in range(1, 11)
        for event in (BlockCommitted(0, 0, 128, 128 * number), StepDone("pat", number, 30, 0.1))
    ]
    progress = run_section(view_of(RunStarted("training", 5000, 9, None), *both))["progress"]
    assert isinstance(progress, dict)
    assert progress["rate_hz"] == pytest.approx(0.5)
    assert progress["left_s"] == pytest.approx(40.0)


def test_memory_is_bounded_whatever_comes() -> None:
    view = LiveView("bench", "TRAINING")
    view.note(START, 0.0)
    for number in range(700):
        view.note(Message("x" * 5000), float(number))
        view.note(StepDone(f"phase {number}", 1, 1, 0.0), float(number))
        view.note(SupplyRead(Reading(1.0, 0.1, in_compliance=False, time_s=float(number))), float(number))
    zeros = np.zeros((1, 2))
    for array in range(60):
        view.note_sample(Sample(array, 0, np.ones((2, 2)), zeros, zeros, zeros > 1.0))
    size = sum(len(json.dumps(view.section(name, 0.0))) for name in view.versions)
    assert size < 400_000
    assert sum(name.startswith("array/") for name in view.versions) == 16


# One array.


def samples(
    sigma_a: float, *, cubic: float = 0.0, blocks: int = 30, rows: int = 12, columns: int = 5
) -> tuple[ArrayView, FloatArray]:
    """A view that saw an array with wrong cells, and how wrong they are in S."""
    rng = np.random.default_rng(5)
    target_s = rng.uniform(1e-5, 5e-5, (rows, columns))
    error_s = rng.normal(0.0, 2e-6, (rows, columns))
    error_s -= error_s.mean()
    view = ArrayView(3)
    for _ in range(blocks):
        voltage_v = rng.uniform(-0.3, 0.3, (64, rows))
        true_a = voltage_v @ (target_s + error_s)
        current_a = true_a + cubic * true_a**3 + rng.normal(0.0, sigma_a, true_a.shape)
        view.add(Sample(3, 0, target_s, voltage_v, current_a, np.zeros(true_a.shape, bool)))
        section = view.section(64)
    assert section["array"] == 3
    return view, error_s


@pytest.mark.parametrize("cubic", [0.0, -5e7])
def test_cells_and_noise_are_found_also_behind_a_curve_that_bends(cubic: float) -> None:
    sigma_a = 1e-7
    view, error_s = samples(sigma_a, cubic=cubic)
    section = view.section(64)
    cells, noise = section["cells"], section["noise"]
    assert isinstance(cells, dict)
    assert isinstance(noise, dict)
    found_s = unpacked(cells["error_s"])
    assert cells["enough"] is True
    assert np.corrcoef(found_s.ravel(), error_s.ravel())[0, 1] > 0.99
    assert np.sqrt(np.mean((found_s - error_s) ** 2)) < 0.25 * error_s.std()
    assert noise["median_a"] == pytest.approx(sigma_a, rel=0.35)


def test_no_noise_is_shown_before_the_cells_are_known() -> None:
    view, _ = samples(1e-7, blocks=1, rows=60)
    section = view.section(64)
    assert section["noise"] is None
    cells = section["cells"]
    assert isinstance(cells, dict)
    assert cells["enough"] is False


@pytest.mark.parametrize("write", [0, 1])
def test_a_new_write_begins_anew(write: int) -> None:
    # Another run, or lease of a served rig, may count to the same write.
    view, _ = samples(1e-7)
    other_s = np.full((12, 5), 2e-5)
    voltage_v = np.random.default_rng(1).uniform(-0.3, 0.3, (40, 12))
    view.add(Sample(3, write, other_s, voltage_v, voltage_v @ other_s, np.zeros((40, 5), bool)))
    cells = view.section(64)["cells"]
    assert isinstance(cells, dict)
    assert cells["vectors"] == 40
    np.testing.assert_allclose(unpacked(cells["target_s"]), other_s, rtol=1e-4)


def test_where_each_write_says_too_little_the_latest_ones_say_it_together() -> None:
    rng = np.random.default_rng(2)
    view = ArrayView(0)
    error_s = rng.normal(0.0, 2e-6, (12, 5))
    error_s -= error_s.mean()
    for write in range(40):
        target_s = rng.uniform(1e-5, 5e-5, (12, 5))
        voltage_v = rng.uniform(-0.3, 0.3, (10, 12))
        current_a = voltage_v @ (target_s + error_s) + rng.normal(0.0, 1e-7, (10, 5))
        view.add(Sample(0, write, target_s, voltage_v, current_a, np.zeros((10, 5), bool)))
    cells = view.section(400)["cells"]
    assert isinstance(cells, dict)
    assert cells["writes"] == 40
    assert cells["enough"] is True
    assert cells["vectors"] <= 16 * 12 + 10
    assert np.corrcoef(unpacked(cells["error_s"]).ravel(), error_s.ravel())[0, 1] > 0.97


def test_large_arrays_are_shown_coarsely_and_larger_ones_without_cells() -> None:
    for rows, per_pixel in ((200, 2), (300, None)):
        view = ArrayView(0)
        voltage_v = np.random.default_rng(1).uniform(-0.3, 0.3, (8, rows))
        target_s = np.full((rows, 150), 2e-5)
        view.add(Sample(0, 0, target_s, voltage_v, voltage_v @ target_s, np.zeros((8, 150), bool)))
        cells = view.section(8)["cells"]
        if per_pixel is None:
            assert cells is None
            continue
        assert isinstance(cells, dict)
        assert cells["per_pixel"] == per_pixel
        assert cells["target_s"]["shape"] == [100, 75]
        np.testing.assert_allclose(unpacked(cells["target_s"]), 2e-5, rtol=1e-4)


@given(st.floats(0.2, 2.0), st.floats(-0.3, 0.0), st.floats(-0.1, 0.1))
def test_straightening_undoes_the_curve(gain: float, bend: float, offset: float) -> None:
    fit = Fit(1e-6 * offset, gain, bend * gain * 1e12, 0.0, 1e-6)
    ideal_a = np.linspace(-1e-6, 1e-6, 41)
    np.testing.assert_allclose(fit.straightened(fit.at(ideal_a)), ideal_a, atol=1e-8)


def test_a_fit_needs_points_that_differ() -> None:
    assert fitted(np.empty(0), np.empty(0)) is None
    assert fitted(np.full(100, 1e-6), np.full(100, 1e-6)) is None
    assert fitted(np.zeros(100), np.zeros(100)) is None


# Algebra without the help of other cores.


@given(st.integers(0, 40), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_products_in_pieces_are_the_product(rows: int, inner: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(rows, inner)), rng.normal(size=(inner, columns))
    np.testing.assert_allclose(times(left, right), left @ right, rtol=1e-9, atol=1e-9)


def test_large_products_in_pieces_are_the_product() -> None:
    rng = np.random.default_rng(0)
    for rows, inner, columns in ((64, 128, 128), (65, 256, 512), (3, 512, 512), (129, 64, 129)):
        left, right = rng.normal(size=(rows, inner)), rng.normal(size=(inner, columns))
        np.testing.assert_allclose(times(left, right), left @ right, rtol=1e-9, atol=1e-9)


def test_equations_are_solved_to_four_digits_and_from_a_good_start_at_once() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 60))
    square, true = inputs.T @ inputs, rng.normal(size=(60, 7))
    found = solved(square, square @ true, np.zeros((60, 7)))
    np.testing.assert_allclose(found, true, atol=2e-3)
    np.testing.assert_array_equal(solved(square, square @ true, true), true)
    np.testing.assert_array_equal(solved(square, np.zeros((60, 7)), np.zeros((60, 7))), np.zeros((60, 7)))


@given(st.integers(0, 2**32 - 1))
def test_three_equations_are_solved(seed: int) -> None:
    rng = np.random.default_rng(seed)
    square, true = rng.normal(size=(3, 3)) + 5.0 * np.eye(3), rng.normal(size=3)
    np.testing.assert_allclose(solved_three(square, square @ true), true, rtol=1e-6, atol=1e-9)


# The feed.


def block(array: int = 0, batch: int = 200, rows: int = 6, columns: int = 4) -> MeasuredBlock:
    voltage_v = np.full((batch, rows), 0.1)
    current_a = voltage_v @ np.full((rows, columns), 1e-5)
    result = MvmResult(np.zeros(current_a.shape, np.int16), current_a, current_a > 1.0, np.zeros(batch), 0)
    return MeasuredBlock(array, 0, np.full((rows, columns), 1e-5), voltage_v, result)


def test_the_feed_is_bounded_drops_the_oldest_and_counts() -> None:
    feed = LiveFeed(most_events=10)
    for number in range(25):
        feed(Message(str(number)))
    events, _ = feed.take_all()
    assert [event for event, _ in events] == [Message(str(number)) for number in range(15, 25)]
    assert feed.missed == 15
    assert feed.take_all() == ([], [])


def test_blocks_are_merged_and_none_is_lost() -> None:
    feed = LiveFeed(most_events=5)
    for number in range(1, 5001):
        feed(BlockCommitted(number % 2, 0, 3, 3 * number))
    feed(RunFinished("finished", 15000, 1, 1.0, None))
    events = [event for event, _ in feed.take_all()[0]]
    assert events == [
        BlockCommitted(1, 0, 7500, 14997),
        BlockCommitted(0, 0, 7500, 15000),
        RunFinished("finished", 15000, 1, 1.0, None),
    ]
    assert feed.missed == 0


def test_samples_are_rare_small_and_copies() -> None:
    now_s = 0.0
    feed = LiveFeed(most_samples=3, sample_every_s=0.25, clock=lambda: now_s)
    feed.watched = True
    first = block()
    feed.take_block(first)
    feed.take_block(first)
    first.voltage_v[:] = 7.0
    _, taken = feed.take_all()
    assert [len(one.voltage_v) for one in taken] == [64]
    assert (taken[0].voltage_v == 0.1).all()
    for number in range(20):
        now_s = float(number + 1)
        feed.take_block(block(array=number))
    assert [one.array for one in feed.take_all()[1]] == [17, 18, 19]


@pytest.mark.parametrize(("watched", "count"), [(True, 20), (False, 5)])
def test_fewer_samples_are_taken_while_nobody_watches_and_few_of_many_arrays(*, watched: bool, count: int) -> None:
    now_s = 0.0
    feed = LiveFeed(most_samples=1000, sample_every_s=1.0, clock=lambda: now_s)
    feed.watched = watched
    for tick in range(100):
        now_s = 100.0 + 0.1 * tick
        for array in range(30):
            feed.take_block(block(array=(array + tick) % 30))
    assert len(feed.take_all()[1]) == count


def test_urgent_events_wake_the_page() -> None:
    feed, woken = LiveFeed(), [0]
    feed.on_urgent(lambda: woken.__setitem__(0, woken[0] + 1))
    feed(Message("x"))
    feed(BlockCommitted(0, 0, 1, 1))
    assert woken == [0]
    for event in (RunPaused("x"), Alarm("x"), RunFinished("aborted", 1, 1, 1.0, None)):
        feed(event)
    assert woken == [3]


def test_the_bus_hands_numbers_only_to_those_who_want_them_and_drops_a_listener_that_fails() -> None:
    bus, seen, heard = EventBus(), list[MeasuredBlock](), list[Event]()
    bus.subscribe(heard.append)
    assert not bus.wants_blocks
    unsubscribe = bus.subscribe_blocks(seen.append)

    def broken(_: MeasuredBlock) -> None:
        raise ValueError("x")

    bus.subscribe_blocks(broken)
    assert bus.wants_blocks
    one = block()
    bus.publish_block(one)
    bus.publish_block(one)
    assert seen == [one, one]
    assert sum(isinstance(event, Message) for event in heard) == 1
    unsubscribe()
    unsubscribe()
    assert not bus.wants_blocks


# The viewers.


async def test_a_slow_viewer_gets_the_newest_of_each_section_and_what_it_missed_is_counted() -> None:
    queue = ViewerQueue(most=3)
    for number in range(100):
        queue.put({"run": b"%d" % number, "log": b"%d" % -number})
    assert len(queue) == 2
    assert queue.dropped == 198
    assert await queue.take() == {"run": b"99", "log": b"-99"}
    queue.put(dict.fromkeys("abcde", b"0"))
    assert (len(queue), queue.dropped) == (3, 200)
    queue.close()
    assert await queue.take() == {"c": b"0", "d": b"0", "e": b"0"}
    assert await queue.take() is None


def test_a_message_is_json() -> None:
    assert json.loads(message_of({"run": b'{"a":1}', "array/3": b"[]"})) == {
        "sections": {"run": {"a": 1}, "array/3": []}
    }


async def test_the_hub_sends_what_changed_when_it_is_due_and_a_sign_of_life() -> None:
    now_s = 1000.0
    feed, view = LiveFeed(clock=lambda: now_s, sample_every_s=0.0), LiveView("bench", "MEASURING")
    hub = Hub(view, feed, OnlyWatching(), Rhythm(), clock=lambda: now_s)
    feed(START)
    with hub.viewing() as queue:
        first = await queue.take()
        assert first is not None
        assert sorted(first) == ["log", "rig", "run"]
        hub.look()
        await queue.take()
        hub.look()
        assert len(queue) == 0
        for array in range(3):
            feed.take_block(block(array))
        hub.look()
        got = await queue.take()
        # Pictures of one array at a time.
        assert got is not None
        assert [name for name in got if name.startswith("array/")] == ["array/0"]
        now_s += 1.9
        hub.look()
        got = await queue.take()
        assert got is not None
        assert "array/1" in got
        now_s += 0.2
        hub.look()
        got = await queue.take()
        assert got is not None
        assert "run" in got
    assert hub.viewers == 0


async def test_what_cannot_be_drawn_is_said_once_and_the_rest_goes_on() -> None:
    now_s = 1000.0
    feed, view = LiveFeed(clock=lambda: now_s, sample_every_s=0.0), LiveView("bench", "MEASURING")
    hub = Hub(view, feed, OnlyWatching(), Rhythm(array_s=0.0), clock=lambda: now_s)
    good = block()
    for _ in range(3):
        feed.take_block(MeasuredBlock(0, 0, np.ones((3, 3)), good.voltage_v, good.result))
        feed.take_block(block(array=1))
    with hub.viewing() as queue:
        hub.look()
        sections = await queue.take()
    assert sections is not None
    texts = [line["text"] for line in json.loads(sections["log"])["lines"]]
    assert len(texts) == 1
    assert texts[0].startswith("the live page cannot draw array 0: ")
    assert "array/1" in sections


async def test_what_is_not_finite_is_still_json() -> None:
    feed, view = LiveFeed(), LiveView("bench", "MEASURING")
    hub = Hub(view, feed, OnlyWatching())
    feed(StepDone("x", 1, 2, float("nan")))
    feed(SupplyRead(Reading(float("inf"), 0.0, in_compliance=False, time_s=0.0)))
    with hub.viewing() as queue:
        sections = await queue.take()
    assert sections is not None
    run = json.loads(sections["run"])
    assert run["phases"][0]["loss"] is None
    assert run["supply"] == {"voltage_v": None, "current_a": 0.0, "in_compliance": False}
