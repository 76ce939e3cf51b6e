"""The SCPI axis: what it says to the instrument, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from labrig.testing.transcript import Transcript
from labrig_drivers.axis_motion import AxisSettings
from labrig_drivers.errors import (
    ConfigError,
    IdentityError,
    InstrumentError,
    ProtocolError,
    SafetyError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.links import MemoryLink
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.mock.axis_controller import SetPointEvent, SimulatedAxisController
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.scpi_axis import ScpiAxis

SETTINGS = AxisSettings("temperature", "K", 280.0, 400.0, tolerance=0.5, hold_s=0.01, timeout_s=5.0, poll_s=0.002)
SET, READ = "SOUR:TEMP {value}", "MEAS:TEMP?"


class Place:
    """A controller in this process, what was said to it, and what its set point did."""

    def __init__(self, lag_s: float = 1e-3) -> None:
        self.events: list[SetPointEvent] = []
        self.controller = SimulatedAxisController(300.0, low=270.0, high=380.0, lag_s=lag_s, log=self.events.append)
        self.transcript = Transcript(self.controller)
        self.said = self.transcript.said

    def axis(self, settings: AxisSettings = SETTINGS, expected: ExpectedIdentity | None = None) -> ScpiAxis:
        return ScpiAxis(
            self.transcript.link, settings, set_command=SET, read_query=READ, expected=expected, name="chuck"
        )

    def set_points(self) -> list[float]:
        return [event.set_point for event in self.events]


async def test_golden_transcript() -> None:
    place = Place()
    near = replace(SETTINGS, hold_s=0.0, tolerance=200.0, safe_value=295.0)
    async with place.axis(near) as axis:
        assert place.said == ["*IDN?", "*OPC?", ":SYST:ERR?"]
        for value, text in ((300.1 + 0.2, "300.3"), (1000.0 / 3.0, "333.3333333333333"), (300, "300.0")):
            place.transcript.clear()
            await axis.move_to(value)
            # The shortest text that reads back as the same double; the error queue after every set point.
            assert place.said == [f"SOUR:TEMP {text}", ":SYST:ERR?", "MEAS:TEMP?"]
            assert float(text) == value
        place.transcript.clear()
        await axis.read()
        assert place.said == ["MEAS:TEMP?"]
        place.transcript.clear()
    assert place.said == ["SOUR:TEMP 295.0", ":SYST:ERR?"]


async def test_a_ramp_goes_in_steps_from_where_it_stands() -> None:
    place = Place()
    async with place.axis(replace(SETTINGS, max_rate=1000.0, safe_value=300.0)) as axis:
        await axis.move_to(305.0)
        assert place.set_points() == pytest.approx([302.0 - 1 / 3, 303.0 + 1 / 3, 305.0], abs=0.01)
        times_s = [event.time_s for event in place.events]
        assert times_s[2] - times_s[0] >= 2 * 5.0 / 3 / 1000.0
    # Down again by the same rate.
    assert len(place.events) >= 3 + 3
    assert place.set_points()[-1] == 300.0


@pytest.mark.parametrize("safe_value", [None, 290.0])
async def test_closing_sends_only_a_moved_axis_to_its_safe_value(safe_value: float | None) -> None:
    place = Place()
    axis = place.axis(replace(SETTINGS, safe_value=safe_value))
    async with axis:
        await axis.read()
    assert place.events == []
    async with axis:
        await axis.move_to(350.0)
    end = [] if safe_value is None else [safe_value]
    assert place.set_points() == [350.0, *end]
    # What an earlier session has moved is not the business of this one.
    async with axis:
        pass
    assert place.set_points() == [350.0, *end]


async def test_make_safe_also_moves_what_somebody_else_left() -> None:
    place = Place()
    place.controller.physics.set_target(370.0)
    async with place.axis(replace(SETTINGS, safe_value=290.0)) as axis:
        await axis.make_safe()
        assert place.set_points() == [290.0]
    async with place.axis() as axis:
        seen = len(place.events)
        await axis.make_safe()
        assert len(place.events) == seen


@pytest.mark.parametrize("end", ["close", "make_safe"])
async def test_a_move_is_ended_by_whoever_makes_the_axis_safe(end: str) -> None:
    place = Place(lag_s=1e3)
    axis = place.axis(replace(SETTINGS, safe_value=290.0))
    await axis.open()
    move = asyncio.create_task(axis.move_to(350.0))
    await asyncio.sleep(0.02)
    await (axis.close() if end == "close" else axis.make_safe())
    with pytest.raises(StateError, match="closed or made safe while it moved"):
        await move
    assert place.set_points() == [350.0, 290.0]
    await axis.close()


async def test_one_move_at_a_time() -> None:
    place = Place(lag_s=1e3)
    async with place.axis() as axis:
        move = asyncio.create_task(axis.move_to(350.0))
        await asyncio.sleep(0.01)
        with pytest.raises(StateError, match="moving already"):
            await axis.move_to(310.0)
        assert (await axis.read()).value == pytest.approx(300.0, abs=0.1)
        move.cancel()
        with pytest.raises(asyncio.CancelledError):
            await move
        # A cancelled move leaves the set point, and the next one starts at once.
        assert place.set_points() == [350.0]
        place.controller.physics.disturb(310.0)
        place.controller.physics.stick()
        await axis.move_to(310.0)


async def test_what_is_refused_was_never_sent() -> None:
    place = Place()
    async with place.axis() as axis:
        place.transcript.clear()
        for value in (279.0, 401.0, float("nan"), float("inf")):
            with pytest.raises(SafetyError, match="is outside 280 to 400 K"):
                await axis.move_to(value)
        assert place.said == []
        # The instrument's own limit is tighter: its error is raised, and nothing is waited for.
        with pytest.raises(InstrumentError, match=r"error -222 .* after 'SOUR:TEMP 390\.0'"):
            await axis.move_to(390.0)
        assert await axis.errors() == []


@pytest.mark.parametrize("answer", ["9.91E37", "+1,2", "hot", "-9.9E37"])
async def test_an_answer_that_is_no_temperature_is_no_temperature(answer: str) -> None:
    place = Place()
    async with place.axis() as axis:
        place.transcript.answers[READ] = answer
        with pytest.raises(ProtocolError):
            await axis.read()
        with pytest.raises(ProtocolError):
            await axis.move_to(310.0)
        place.transcript.answers.clear()
        await axis.move_to(310.0)


async def test_another_instrument_is_refused() -> None:
    with pytest.raises(IdentityError, match="expected model '336'"):
        await Place().axis(expected=ExpectedIdentity("336")).open()
    axis = Place().axis(expected=ExpectedIdentity("SIM-CONTROLLER", "TC-0001"))
    async with axis:
        with pytest.raises(StateError, match="open already"):
            await axis.open()
    await axis.close()


GOOD: dict[str, object] = {
    "set_command": SET,
    "read_query": READ,
    "quantity": "temperature",
    "unit": "K",
    "low": 280.0,
    "high": 400.0,
    "tolerance": 0.5,
}


def test_a_rig_file_makes_the_axis_and_hears_every_fault() -> None:
    link = MemoryLink(lambda _: b"")
    axis = ScpiAxis.from_settings(link, ExpectedIdentity(), "chuck", {**GOOD, "safe_value": 295})
    assert (axis.quantity, axis.unit, axis.low, axis.high, axis.safe_value) == ("temperature", "K", 280.0, 400.0, 295.0)
    bad = {**GOOD, "set_command": "SOUR:TEMP", "read_query": "MEAS\u00b0", "high": 200.0, "speed": 3}
    with pytest.raises(ConfigError) as caught:
        ScpiAxis.from_settings(link, ExpectedIdentity(), "chuck", bad)
    assert str(caught.value).splitlines()[:5] == [
        "axes.chuck.settings.high: 200 K is not above low = 280 K",
        "axes.chuck.settings.read_query: 'MEAS°' is not one line of ASCII",
        "axes.chuck.settings.set_command: 'SOUR:TEMP' does not hold {value} exactly once",
        "axes.chuck.settings.read_query: 'MEAS°' asks nothing; a query has a question mark",
        "axes.chuck.settings.speed: unknown key; known are high, hold_s, low, max_rate, poll_s, quantity, read_query, "
        "safe_value, set_command, timeout_s, tolerance, unit",
    ]
    with pytest.raises(ConfigError, match=r"set_command: is missing; a text is needed"):
        ScpiAxis.from_settings(link, ExpectedIdentity(), "chuck", {})


def two_loops() -> tuple[list[SimulatedAxisController], Callable[[bytes], bytes]]:
    """A controller with two loops behind one connection: `SOUR1:TEMP` and `SOUR2:TEMP`."""
    loops = [SimulatedAxisController(300.0, low=270.0, high=380.0, lag_s=1e-3) for _ in range(2)]

    def handle(request: bytes) -> bytes:
        answers = b""
        for line in request.decode("ascii").splitlines():
            loop = loops[1] if line.startswith(("SOUR2", "MEAS2")) else loops[0]
            answer = run_at_once(loop, line.replace("SOUR2", "SOUR").replace("MEAS2", "MEAS"))
            answers += b"" if answer is None else str(answer).encode() + b"\n"
        return answers

    return loops, handle


async def test_two_loops_of_one_controller_are_two_axes_on_one_connection() -> None:
    loops, handle = two_loops()
    shared = SharedLink(MemoryLink(handle))
    axes = [
        ScpiAxis(shared, SETTINGS, set_command=f"SOUR{n}:TEMP {{value}}", read_query=f"MEAS{n}:TEMP?", name=f"loop{n}")
        for n in (1, 2)
    ]
    async with axes[0], axes[1]:
        await asyncio.gather(axes[0].move_to(320.0), axes[1].move_to(350.0))
        assert [loop.physics.target for loop in loops] == [320.0, 350.0]
        await axes[0].close()
        assert (await axes[1].read()).value == pytest.approx(350.0, abs=0.5)


def test_the_simulated_controller_keeps_to_scpi() -> None:
    clock_s = [0.0]
    controller = SimulatedAxisController(
        0.0, low=-2.0, high=2.0, lag_s=10.0, quantity="FIELd", clock=lambda: clock_s[0]
    )

    def ask(line: str) -> str | bytes | None:
        return run_at_once(controller, line)

    assert ask("*IDN?") == "labrig,SIM-CONTROLLER,TC-0001,1.0"
    assert ask(":sour:fiel 1.5;:SOURCE:FIELD?") == "1.5"
    clock_s[0] = 10.0
    # 1.5 * (1 - 1 / e), to the digits that it prints.
    assert ask("MEAS:FIEL?") == "+9.481808E-01"
    for line, error in (
        ("SOUR:FIEL 2.5", '-222,"Parameter data out of range"'),
        ("SOUR:FIEL", '-109,"Missing parameter"'),
        ("SOUR:FIEL warm", '-104,"Data type error"'),
        ("SOUR:TEMP 1", '-113,"Undefined header"'),
    ):
        assert ask(line) is None
        assert ask("SYST:ERR?") == error
    assert ask("SOUR:FIEL?") == "1.5"
    assert ask("SYST:ERR?") == '0,"No error"'
