"""Bands and the supply's limit: what is said when, on a clock that the test owns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from labrig.compliance import ComplianceWatch
from labrig.conditions import Band
from labrig.config import ConditionConfig, parse_rig
from labrig_drivers.errors import LinkLostError, PlanAbortedError
from labrig_drivers.source_meter import Reading

AT_LIMIT = Reading(0.2, 0.1, in_compliance=True, time_s=0.0)


class Thermometer:
    """A quantity that the test sets, on a clock that it moves."""

    def __init__(self, config: ConditionConfig) -> None:
        self.now_s = 0.0
        self.value = 300.0
        self.looks = 0
        self.band = Band(config, self.read, "K", lambda: self.now_s)

    async def read(self) -> float:
        self.looks += 1
        return self.value

    async def at(self, now_s: float, value: float) -> str | None:
        self.now_s, self.value = now_s, value
        return await self.band.fault()


async def test_it_is_read_no_more_often_than_asked_for() -> None:
    one = Thermometer(ConditionConfig(reads="board.temperature", high=310.0, poll_s=2.0))
    assert await one.at(0.0, 300.0) is None
    # Not looked at again yet.
    assert await one.at(1.9, 400.0) is None
    assert one.looks == 1
    assert await one.at(2.0, 400.0) == "400 K exceeds 310 K"
    assert await one.at(3.9, 300.0) == "400 K exceeds 310 K"
    assert await one.at(4.0, 300.0) is None
    assert one.looks == 3


async def test_it_counts_as_back_only_after_it_stayed() -> None:
    one = Thermometer(ConditionConfig(reads="board.temperature", low=290.0, high=310.0, poll_s=0.5, hold_s=3.0))
    # No wait where it never was outside.
    assert await one.at(0.0, 300.0) is None
    assert await one.at(1.0, 289.9) == "289.9 K is below 290 K"
    assert await one.at(2.0, 300.0) == "300 K, back for 0 s of 3 s"
    assert await one.at(4.0, 301.0) == "301 K, back for 2 s of 3 s"
    assert await one.at(4.5, 310.5) == "310.5 K exceeds 310 K"
    assert await one.at(5.0, 301.0) == "301 K, back for 0 s of 3 s"
    assert await one.at(8.0, 310.0) is None
    assert await one.at(9.0, 310.0) is None


async def test_no_number_is_in_no_band_and_a_failure_is_no_value() -> None:
    one = Thermometer(ConditionConfig(reads="board.temperature", low=290.0))
    assert await one.at(0.0, math.nan) == "nan K is below 290 K"
    assert await one.at(1.0, 1e9) is None

    async def lost() -> float:
        raise LinkLostError("gone")

    with pytest.raises(LinkLostError):
        await Band(ConditionConfig(reads="board.temperature", low=290.0), lost, "K").fault()


class Supply:
    """A watch on a clock that the test moves."""

    def __init__(self, retry_s: float = 10.0, retries: int = 2) -> None:
        self.now_s = 0.0
        self.watch = ComplianceWatch("feed", "supply", retry_s, retries, "the limit", lambda: self.now_s)

    def reaches_its_limit(self, after_s: float) -> None:
        """Fed for a time, then at its limit, then off."""
        self.watch.switched_on()
        self.now_s += after_s
        self.watch.note(AT_LIMIT)
        self.watch.switched_off()


def test_a_supply_at_its_limit_rests() -> None:
    supply = Supply()
    assert supply.watch.reason() is None
    supply.watch.switched_off()  # for another reason: no rest
    assert supply.watch.reason() is None
    supply.watch.note(AT_LIMIT)
    assert supply.watch.reached.is_set()
    assert supply.watch.reason() == "feed: the array supply is at its limit (0.2 V, 0.1 A)"
    supply.watch.switched_off()
    supply.now_s = 4.0
    assert supply.watch.reason() == "feed: the array supply rests for 6 s more"
    supply.watch.switched_off()  # still off: the same rest
    supply.now_s = 10.0
    assert supply.watch.reason() is None
    supply.watch.switched_on()
    assert not supply.watch.reached.is_set()
    assert supply.watch.reason() is None


@pytest.mark.parametrize(("retry_s", "fed_s", "ends"), [(0.0, 1.0, True), (0.0, 5.0, False), (60.0, 59.0, True)])
def test_only_failures_in_a_row_count(retry_s: float, fed_s: float, *, ends: bool) -> None:
    supply = Supply(retry_s)
    for _ in range(2):
        supply.reaches_its_limit(fed_s)
    if not ends:
        for _ in range(20):
            supply.reaches_its_limit(fed_s)
        return
    with pytest.raises(PlanAbortedError, match=r"also after 2 retries; it is off now\. Look for a short .*the limit"):
        supply.reaches_its_limit(fed_s)


def test_a_watch_is_made_of_the_rig_file() -> None:
    text = """\
[rig]
name = "bench"
[board]
driver = "mock-board"
[source_meters.psu]
driver = "keithley2400"
link = "tcp://127.0.0.1:1"
role = "array-supply"
level_voltage_v = 1.2
limit_current_a = 0.1
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 100.0
max_read_voltage_v = 0.25
"""
    assert ComplianceWatch.of_rig(parse_rig(text, Path("rig.toml"))) is None
    asks = text + '[conditions.feed]\nreads = "supply.compliance"\nretries = 0\n'
    watch = ComplianceWatch.of_rig(parse_rig(asks, Path("rig.toml")))
    assert watch is not None
    watch.note(AT_LIMIT)
    with pytest.raises(PlanAbortedError, match=r"'psu' was .*\.psu\.limit_current_a = 0\.1 A \(rig\.toml:10"):
        watch.switched_off()
