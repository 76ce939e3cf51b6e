"""How an axis gets to a value: ramps, arrival and patience, on a clock that the test owns; and simulated ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_drivers.axis import AxisReading
from labrig_drivers.axis_motion import AxisMotion, AxisSettings
from labrig_drivers.errors import AxisTimeoutError, ConfigError, SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.mock.axis import LagSettings, MockAxis
from labrig_drivers.mock.clock import CommandedClock, WallClock
from labrig_drivers.settings_table import SettingsTable

SETTINGS = AxisSettings("field", "T", -2.0, 2.0, tolerance=0.1, hold_s=3.0, timeout_s=20.0, poll_s=1.0)


class Track:
    """An axis that is at a place for each second, and everything that was sent to it."""

    def __init__(self, place: Callable[[float], float]) -> None:
        self.place = place
        self.now_s = 0.0
        self.sent: list[tuple[float, float]] = []

    def motion(self, settings: AxisSettings = SETTINGS) -> AxisMotion:
        return AxisMotion(settings, "magnet", self.send, self.read, self.wait, lambda: self.now_s)

    async def send(self, value: float) -> None:
        self.sent.append((self.now_s, value))

    async def read(self) -> AxisReading:
        return AxisReading(self.place(self.now_s), self.now_s)

    async def wait(self, duration_s: float) -> None:
        assert duration_s >= 0.0
        self.now_s += duration_s


async def test_it_has_arrived_when_it_stayed_without_a_break() -> None:
    # There after 2 s, out again at 4 s, there for good after 6 s.
    track = Track(lambda now_s: 1.0 if now_s >= 6.0 or 2.0 <= now_s < 4.0 else 0.0)
    reading = await track.motion().arrive(1.0)
    assert (reading.value, reading.time_s) == (1.0, 9.0)
    assert track.sent == [(0.0, 1.0)]


async def test_one_look_is_enough_without_a_hold_time() -> None:
    track = Track(lambda now_s: 1.0 if now_s >= 2.0 else 0.0)
    reading = await track.motion(replace(SETTINGS, hold_s=0.0)).arrive(1.05)
    assert reading.time_s == 2.0


@pytest.mark.parametrize("place", [lambda _: 0.7, lambda _: math.nan, lambda now_s: 1.0 if now_s % 3 else 0.7])
async def test_what_never_arrives_says_where_it_stands(place: Callable[[float], float]) -> None:
    track = Track(place)
    with pytest.raises(AxisTimeoutError) as caught:
        await track.motion().arrive(1.0)
    assert track.now_s == 20.0
    assert (caught.value.target, str(caught.value.value)) == (1.0, str(place(20.0)))
    text = str(caught.value)
    assert text.startswith("magnet: the field did not come within 0.1 T of 1 T and stay there for 3 s in 20 s; ")
    assert f"it stands at {place(20.0):g} T and keeps its set point; look at the controller" in text


@given(
    start=st.floats(-3.0, 3.0),
    target=st.floats(-2.0, 2.0),
    rate=st.floats(1e-3, 10.0),
    poll_s=st.floats(0.1, 10.0),
)
def test_set_points_never_move_faster_than_the_rate(start: float, target: float, rate: float, poll_s: float) -> None:
    track = Track(lambda _: start)
    settings = replace(SETTINGS, max_rate=rate, poll_s=poll_s)
    _run(track.motion(settings).go(target))
    assert track.sent[-1][1] == target
    assert all(-2.0 <= value <= 2.0 for _, value in track.sent)
    step = rate * poll_s * (1 + 1e-6)
    inside = min(max(start, -2.0), 2.0)
    assert abs(track.sent[0][1] - inside) <= step
    for (early_s, early), (late_s, late) in pairwise(track.sent):
        assert abs(late - early) <= rate * (late_s - early_s) * (1 + 1e-6) + 1e-12
        assert late_s - early_s <= poll_s * (1 + 1e-6)


def _run(coroutine: object) -> None:
    """Runs a coroutine that never really waits."""
    with pytest.raises(StopIteration):
        coroutine.send(None)  # type: ignore[attr-defined]


def test_settings_name_every_fault() -> None:
    def faults(**values: object) -> list[str]:
        good: dict[str, object] = {"quantity": "field", "unit": "T", "low": -1, "high": 1.0, "tolerance": 0.1}
        table = SettingsTable({**good, **values}, "axes.magnet.settings")
        AxisSettings.from_table(table)
        try:
            table.finish()
        except ConfigError as error:
            return str(error).splitlines()
        return []

    assert faults() == []
    assert faults(safe_value=0, max_rate=0.1, hold_s=1, timeout_s=5, poll_s=0.5) == []
    assert faults(quantity="", low="cold", tolerance=0, poll_s=-1, safe_value=math.inf, colour=1) == [
        "axes.magnet.settings.quantity: '' is not a text",
        "axes.magnet.settings.low: 'cold' is not a number",
        "axes.magnet.settings.tolerance: 0 is not a positive number",
        "axes.magnet.settings.poll_s: -1 is not a positive number",
        "axes.magnet.settings.safe_value: inf is not a number",
        "axes.magnet.settings.colour: unknown key; known are high, hold_s, low, max_rate, poll_s, quantity, "
        "safe_value, timeout_s, tolerance, unit",
    ]
    assert faults(low=1.0, safe_value=3.0, hold_s=5, timeout_s=5) == [
        "axes.magnet.settings.high: 1 T is not above low = 1 T",
        "axes.magnet.settings.hold_s: 5 s is not below timeout_s = 5 s",
    ]
    assert faults(safe_value=-1.5) == ["axes.magnet.settings.safe_value: -1.5 T is outside -1 to 1 T"]


CHUCK = AxisSettings("temperature", "K", 280.0, 400.0, tolerance=0.5, hold_s=2.0, poll_s=0.25, safe_value=290.0)


async def test_a_mock_arrives_when_a_first_order_lag_does() -> None:
    clock = CommandedClock()
    async with MockAxis(CHUCK, LagSettings(300.0, lag_s=7.0), clock=clock) as axis:
        reading = await axis.move_to(350.0)
    # 50 K * exp(-t / 7 s) = 0.5 K, then the hold time; looked at every 0.25 s.
    closed_form_s = 7.0 * math.log(100.0) + 2.0
    assert closed_form_s <= reading.time_s <= closed_form_s + 2 * 0.25
    assert reading.time_s == clock.now_s()
    assert reading.value == pytest.approx(350.0 - 50.0 * math.exp(-reading.time_s / 7.0), rel=1e-12)


async def test_a_mock_is_equal_in_every_run_and_noise_is_what_it_says() -> None:
    runs = []
    for _ in range(2):
        clock = CommandedClock()
        values = []
        async with MockAxis(CHUCK, LagSettings(300.0, noise=0.05, seed=8), clock=clock) as axis:
            for _ in range(400):
                clock.advance(0.1)
                values.append((await axis.read()).value)
        runs.append(values)
    assert runs[0] == runs[1]
    mean = sum(runs[0]) / 400
    assert abs(mean - 300.0) < 4 * 0.05 / 20
    assert math.sqrt(sum((value - mean) ** 2 for value in runs[0]) / 399) == pytest.approx(0.05, rel=0.15)


async def test_a_mock_follows_disturbances_and_goes_to_its_safe_value() -> None:
    clock = CommandedClock()
    axis = MockAxis(CHUCK, LagSettings(300.0, lag_s=1.0), clock=clock)
    async with axis:
        await axis.move_to(320.0)
        axis.physics.disturb(330.0)
        assert (await axis.read()).value == 330.0
        clock.advance(1.0)
        assert (await axis.read()).value == pytest.approx(320.0 + 10.0 / math.e)
        with pytest.raises(SafetyError, match="500 K is outside 280 to 400 K"):
            await axis.move_to(500.0)
    assert axis.physics.target == 290.0
    clock.advance(100.0)
    async with axis:
        assert (await axis.read()).value == pytest.approx(290.0)
        axis.physics.stick()
        with pytest.raises(AxisTimeoutError, match="it stands at 290 K"):
            await axis.move_to(320.0)
    with pytest.raises(StateError, match="not open"):
        await axis.read()


async def test_a_mock_on_the_wall_clock_takes_its_time() -> None:
    quick = replace(CHUCK, hold_s=0.0, poll_s=0.005, tolerance=5.0)
    async with MockAxis(quick, LagSettings(300.0, lag_s=0.02), clock=WallClock()) as axis:
        reading = await axis.move_to(350.0)
        assert reading.time_s >= 0.02 * math.log(10.0)


async def test_value_and_time_of_a_reading_are_of_one_moment() -> None:
    class _Counting:
        """A clock that goes on whenever somebody looks at it."""

        looked_s = 0.0

        def now_s(self) -> float:
            self.looked_s += 0.01
            return self.looked_s

    clock = _Counting()
    async with MockAxis(CHUCK, LagSettings(300.0, lag_s=1.0), clock=clock) as axis:
        axis.physics.disturb(310.0)
        disturbed_s = clock.looked_s
        reading = await axis.read()
        assert reading.value == pytest.approx(300.0 + 10.0 * math.exp(disturbed_s - reading.time_s), rel=1e-12)


def test_a_rig_file_makes_a_mock() -> None:
    settings = {"quantity": "light", "unit": "W/m2", "low": 0.0, "high": 100.0, "tolerance": 1.0, "noise": 0.1}
    axis = MockAxis.from_settings(settings, ExpectedIdentity(), "lamp")
    assert (axis.quantity, axis.unit, axis.low, axis.high, axis.safe_value) == ("light", "W/m2", 0.0, 100.0, None)
    assert axis.physics.value() == 50.0
    with pytest.raises(ConfigError, match=r"axes\.lamp\.settings\.lag_s: -1 is not a positive number"):
        MockAxis.from_settings({**settings, "lag_s": -1}, ExpectedIdentity(), "lamp")


def test_nothing_of_a_first_order_lag_depends_on_how_often_it_is_looked_at() -> None:
    def values(step_s: float) -> Iterator[float]:
        clock = CommandedClock()
        axis = MockAxis(CHUCK, LagSettings(300.0), clock=clock)
        axis.physics.set_target(350.0)
        for _ in range(round(10.0 / step_s)):
            clock.advance(step_s)
            yield axis.physics.value()

    *_, often = values(0.125)
    *_, once = values(10.0)
    assert often == pytest.approx(once, rel=1e-12)
