"""Axes and conditions in a rig file: what is wrong is told at once, and nothing beyond a limit is sent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rich.console import Console

from labrig.commands import check
from labrig.conditions import rig_conditions
from labrig.config import RigConfig, parse_rig
from labrig.guarded_axis import GuardedAxis
from labrig.rig import Rig, instrument_specs, open_rig
from labrig.rig_survey import _fault, survey
from labrig.safety import AxisEnvelope
from labrig_drivers.axis_motion import AxisSettings
from labrig_drivers.errors import ConfigError, LinkLostError, SafetyError, StateError
from labrig_drivers.mock.axis import LagSettings, MockAxis
from labrig_drivers.mock.board import MockBoard

DRIVERS = {"mock-board", "keithley2400", "mock-axis", "scpi-axis"}

BARE = """\
[rig]
name = "bench"
[board]
driver = "mock-board"
[source_meters.supply]
driver = "keithley2400"
link = "tcp://127.0.0.1:1"
[axes.chuck]
driver = "mock-axis"
low = 290.0
high = 360.0
[axes.chuck.settings]
quantity = "temperature"
unit = "K"
low = 280.0
high = 400.0
tolerance = 0.5
safe_value = 300.0
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.25
"""
WITHOUT_METER = BARE.replace('[source_meters.supply]\ndriver = "keithley2400"\nlink = "tcp://127.0.0.1:1"\n', "")
SETTINGS = AxisSettings("temperature", "K", 280.0, 400.0, tolerance=0.5)


def config(text: str = BARE) -> RigConfig:
    return parse_rig(text, Path("rig.toml"), drivers=DRIVERS)


def band(name: str, reads: str, end: str) -> str:
    return f'[conditions.{name}]\nreads = "{reads}"\n{end}\n'


def faults_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text)
    return str(caught.value).splitlines()


def test_a_good_file() -> None:
    read = config(BARE + band("a", "axes.chuck", "high = 310") + band("b", "board.temperature", "low = 1.0"))
    assert (read.axes["chuck"].driver, read.axes["chuck"].link, read.axes["chuck"].high) == ("mock-axis", None, 360.0)
    assert read.conditions["a"].high == 310.0
    assert (read.conditions["b"].poll_s, read.conditions["b"].hold_s) == (1.0, 0.0)
    assert [spec.section for spec in instrument_specs(read)] == ["board", "source_meters.supply", "axes.chuck"]


def test_every_fault_comes_at_once_with_its_line() -> None:
    text = BARE.replace('driver = "mock-axis"\nlow = 290.0', 'driver = "oven"\nlow = 390.0\ncolour = "red"')
    text += """\
[axes.supply]
driver = "mock-axis"
[axes.board]
driver = "mock-axis"
link = "nowhere"
[conditions.one]
reads = "axes.lamp"
[conditions.two]
reads = "board.temperature"
retries = 1
[conditions.three]
reads = "supply.compliance"
high = 1.0
[conditions.four]
reads = "axes.chuck"
low = 300.0
high = 300.0
poll_s = 0
"""
    assert faults_of(text) == [
        "rig.toml:9: axes.chuck.driver: no driver named 'oven' is installed; installed are: keithley2400, mock-axis, "
        "mock-board, scpi-axis",
        "rig.toml:11: axes.chuck.colour: unknown key; known are driver, link, expect_model, expect_serial, low, high, "
        "settings",
        "rig.toml:12: axes.chuck.high: 360 is not above low = 390",
        "rig.toml:26: axes.supply: this name is taken by source_meters.supply",
        # What its driver says of settings that are not there.
        "rig.toml:26: axes.supply.settings.high: is missing; a number is needed",
        "rig.toml:26: axes.supply.settings.low: is missing; a number is needed",
        "rig.toml:26: axes.supply.settings.quantity: is missing; a text is needed",
        "rig.toml:26: axes.supply.settings.tolerance: is missing; a positive number is needed",
        "rig.toml:26: axes.supply.settings.unit: is missing; a text is needed",
        "rig.toml:28: axes.board: this name is taken by the crossbar board",
        'rig.toml:30: axes.board.link: is "nowhere", must be an address such as tcp://192.168.0.7:5025',
        "rig.toml:32: conditions.one.reads: 'axes.lamp' cannot be looked at; there are: supply.compliance, "
        "board.temperature, axes.chuck, axes.supply, axes.board",
        "rig.toml:33: conditions.two.high: is missing, and low too; a band has at least one end",
        "rig.toml:35: conditions.two.retries: has no meaning for board.temperature; remove it",
        "rig.toml:37: conditions.three.reads: the rig has no source-meter with the role array-supply",
        "rig.toml:38: conditions.three.high: has no meaning for supply.compliance; remove it",
        "rig.toml:42: conditions.four.high: 300 is not above low = 300",
        "rig.toml:43: conditions.four.poll_s: is 0, must be 0.01 or more",
    ]


def test_limits_that_the_driver_cannot_keep_are_refused_when_the_rig_is_made() -> None:
    for old, new, fault in (
        ("low = 290.0", "low = 270.0", "rig.toml:7: axes.chuck.low: 270 K limits nothing, or everything; what the dri"),
        ("high = 360.0", "high = 401", "rig.toml:8: axes.chuck.high: 401 K limits nothing, or everything; what the dr"),
        ("safe_value = 300.0", "safe_value = 285", "rig.toml:15: axes.chuck.settings.safe_value: chuck: 285 K is b"),
        ("tolerance = 0.5", "tolerance = -1", "rig.toml:14: axes.chuck.settings.tolerance: -1 is not a positive numb"),
    ):
        with pytest.raises(ConfigError) as caught:
            open_rig(config(WITHOUT_METER.replace(old, new)))
        assert str(caught.value).startswith(fault)


async def test_a_rig_opens_names_and_closes_its_axes() -> None:
    async with open_rig(config(WITHOUT_METER)) as rig:
        assert rig.identities()["chuck"].model == "MOCK-AXIS"
        chuck = rig.axes["chuck"]
        assert (chuck.quantity, chuck.unit, chuck.low, chuck.high, chuck.safe_value) == (
            "temperature", "K", 290.0, 360.0, 300.0,
        )  # fmt: skip
        assert abs((await chuck.move_to(350.0)).value - 350.0) <= 0.5
    with pytest.raises(StateError):
        await chuck.read()


async def test_every_reason_against_a_value_is_named_and_nothing_moves() -> None:
    inner = MockAxis(SETTINGS, LagSettings(300.0))
    watched: list[str] = []

    async def before_move() -> None:
        watched.append("watched")

    async with GuardedAxis(inner, AxisEnvelope("chuck", 290.0, 360.0), before_move) as axis:
        for value, reasons in (
            (370.0, ("chuck: 370 K exceeds axes.chuck.high = 360 K",)),
            (
                410.0,
                (
                    "chuck: 410 K exceeds axes.chuck.high = 360 K",
                    "chuck: 410 K is not what it can do, 280 to 400 K",
                ),
            ),
            (285.0, ("chuck: 285 K is below axes.chuck.low = 290 K",)),
        ):
            with pytest.raises(SafetyError) as caught:
                await axis.move_to(value)
            assert caught.value.reasons == reasons
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(SafetyError):
                await axis.move_to(value)
        assert inner.physics.target == 300.0
        assert watched == []
        await axis.move_to(310.0)
        assert watched == ["watched"]
    async with GuardedAxis(inner, AxisEnvelope("chuck")) as axis:
        assert (axis.low, axis.high) == (280.0, 400.0)


async def test_nothing_moves_when_its_watch_cannot_stand_ready() -> None:
    inner = MockAxis(SETTINGS, LagSettings(300.0))

    async def before_move() -> None:
        raise StateError("no watchdog")

    async with GuardedAxis(inner, AxisEnvelope("chuck"), before_move) as axis:
        with pytest.raises(StateError, match="no watchdog"):
            await axis.move_to(350.0)
    assert inner.physics.target == 300.0


async def test_check_shows_where_axes_and_conditions_stand() -> None:
    text = WITHOUT_METER.replace("[axes.chuck.settings]", "[axes.chuck.settings]\nstart = 320.0")
    text += band("chuck-band", "axes.chuck", "high = 310.0") + band("die", "board.temperature", "low = 250.0")
    read = config(text)
    console = Console(width=200, record=True)
    check._print(console, read, await survey(read))
    shown = console.export_text()
    assert "axis chuck: temperature at 320 K, may be set to 290 to 360 K; goes to 300 K at the end, if it was" in shown
    assert "condition chuck-band (axes.chuck): 320 K exceeds 310 K" in shown
    assert "condition die (board.temperature): holds" in shown


async def test_a_condition_that_cannot_be_looked_at_hides_nothing_else() -> None:
    class Deaf(MockBoard):
        async def temperature_k(self) -> float:
            raise LinkLostError("the sensor is gone")

    read = config(WITHOUT_METER + band("die", "board.temperature", "low = 250.0"))
    rig = Rig(read, Deaf(), {}, axes={"chuck": MockAxis(SETTINGS, LagSettings(300.0))})
    async with rig:
        (condition,) = rig_conditions(rig)
        assert await _fault(condition) == "cannot be looked at: the sensor is gone"
