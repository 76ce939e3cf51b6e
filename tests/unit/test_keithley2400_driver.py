"""The Keithley 2400 driver says exactly what it should, over a link in memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.testing.transcript import Transcript
from labrig_drivers.errors import (
    IdentityError,
    InstrumentError,
    LinkDesyncedError,
    LinkTimeoutError,
    ProtocolError,
    SafetyError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import LinkState
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import Load, ResistorLoad
from labrig_drivers.scpi import format_float, parse_float
from labrig_drivers.source_meter import SourceMeter

IDN = "KEITHLEY INSTRUMENTS INC.,MODEL 2400,1234567,C30   Mar 17 2006 09:29:29/A02  /K/J"


class Bench(Transcript):
    """A simulated 2400 and drivers of it."""

    def __init__(self, load: Load | None = None) -> None:
        self.instrument = SimulatedKeithley2400(load or ResistorLoad(1000.0))
        super().__init__(self.instrument)

    def driver(self, *, expected: ExpectedIdentity | None = None, ramp_step_v: float = 0.05) -> Keithley2400:
        return Keithley2400(self.link, expected=expected, ramp_v_per_s=1e6, ramp_step_v=ramp_step_v)

    def settings_said(self) -> list[str]:
        """What was said, without the looks into the error queue."""
        return [line for line in self.said if line != ":SYST:ERR?"]


async def ready(bench: Bench, driver: Keithley2400, level_v: float = 0.1) -> None:
    """Switches on at `level_v`."""
    await driver.open()
    await driver.configure(source="voltage")
    await driver.set_limit(current_a=1e-3)
    await driver.set_level(voltage_v=level_v)
    await driver.output_on()
    bench.said.clear()


async def test_golden_transcript() -> None:
    bench = Bench(ResistorLoad(1e8))
    meter: SourceMeter = bench.driver(ramp_step_v=0.0625)
    async with meter:
        await meter.configure(source="voltage", nplc=0.1, wires=4)
        await meter.set_limit(current_a=1e-9)
        await meter.set_ranges(voltage_v=2.0, current_a=1e-6)
        await meter.set_level(voltage_v=0.0625)
        await meter.output_on()
        reading = await meter.measure()
        swept = await meter.sweep(voltage_v=[0.0625, 0.125, 0.1875])
        await meter.output_off()
    identified = ["*IDN?", "*OPC?", ":SYST:ERR?", ":OUTP?"]
    set_up = [
        "*RST",
        ":SOUR:FUNC VOLT",
        ":SOUR:VOLT:MODE FIX",
        ":SOUR:VOLT:RANG:AUTO 1",
        ":SENS:FUNC:CONC ON",
        ':SENS:FUNC "VOLT","CURR"',
        ":SENS:CURR:RANG:AUTO 1",
        ":SENS:CURR:NPLC 0.1",
        ":SYST:RSEN 1",
        ":FORM:ELEM VOLT,CURR,TIME,STAT",
        ":SENS:CURR:PROT 1e-09",
    ]
    ranges = [":SOUR:VOLT:RANG 2.0", ":SENS:CURR:RANG 1e-06"]
    prepared = [
        ":SOUR:LIST:VOLT 0.0625,0.125,0.1875",
        ":SOUR:DEL 6.25e-08",
        ":ARM:COUN 1",
        ":TRIG:COUN 3",
        ":TRAC:CLE",
        ":TRAC:POIN 3",
        ":TRAC:FEED SENS",
        ":TRAC:FEED:CONT NEXT",
        ":SOUR:VOLT:MODE LIST",
    ]
    fixed = [
        ":SOUR:VOLT:LEV 0.1875",
        ":SOUR:VOLT:MODE FIX",
        ":SOUR:DEL:AUTO 1",
        ":TRIG:COUN 1",
        ":TRAC:FEED:CONT NEV",
    ]
    assert bench.said == [
        *identified,
        *checked(set_up),
        ":OUTP?",
        *checked(ranges),
        *(":OUTP?", *checked([":SOUR:VOLT:LEV 0.0625", ":OUTP 1"]), ":OUTP?", ":READ?"),
        *(":OUTP?", ":SOUR:VOLT:LEV?", ":OUTP?", *checked(prepared)),
        *(":INIT", "*OPC?", ":SYST:ERR?", ":TRAC:DATA?", *checked(fixed)),
        *(":OUTP?", ":SOUR:FUNC?", ":SOUR:VOLT:MODE?", ":SOUR:VOLT:LEV?", *checked([":SOUR:VOLT:LEV 0.125"])),
        *checked([":SOUR:VOLT:LEV 0.0625", ":SOUR:VOLT:LEV 0.0", ":OUTP 0"]),
        ":OUTP?",
    ]
    assert (reading.voltage_v, reading.current_a, reading.in_compliance) == (0.0625, 6.25e-10, False)
    assert [one.voltage_v for one in swept] == pytest.approx([0.0625, 0.1, 0.1])
    assert [one.current_a for one in swept] == pytest.approx([6.25e-10, 1e-9, 1e-9])
    assert [one.in_compliance for one in swept] == [False, True, True]
    assert bench.link.state is LinkState.CLOSED
    assert bench.instrument.limit_a == 1e-9


def checked(commands: list[str]) -> list[str]:
    """Settings, each followed by a look into the error queue."""
    return [line for command in commands for line in (command, ":SYST:ERR?")]


@given(st.floats(-210.0, 210.0), st.floats(1e-12, 1.05))
def test_numbers_arrive_bit_for_bit(level_v: float, limit_a: float) -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.driver() as meter:
            await meter.configure(source="voltage")
            await meter.set_limit(current_a=limit_a)
            await meter.set_level(voltage_v=level_v)
        assert (bench.instrument.limit_a, bench.instrument.level_v) == (limit_a, level_v)

    asyncio.run(run())


async def test_small_numbers_arrive_bit_for_bit() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        await meter.set_limit(current_a=1e-7)
        await meter.set_level(voltage_v=1.2345678)
    assert (bench.instrument.limit_a, bench.instrument.level_v) == (1e-7, 1.2345678)


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: abs(value) < 9e37))
def test_floats_survive_their_text(value: float) -> None:
    assert parse_float(format_float(value)) == value


@pytest.mark.parametrize("text", ["", "1,2", "0x10", "1_000", "nan", "inf", "1e", "--1", "1 2", "infinity", "1e5x"])
def test_texts_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_float(text)


def test_reserved_numbers() -> None:
    assert math.isnan(parse_float("+9.910000E+37"))
    assert parse_float("+9.900000E+37") == math.inf
    assert parse_float("-9.900000E+37") == -math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_without_text_are_not_sent(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        format_float(value)


@pytest.mark.parametrize(
    "expected",
    [ExpectedIdentity(serial="7654321"), ExpectedIdentity(model="2450"), ExpectedIdentity(model="2400", serial="")],
)
async def test_a_wrong_identity_is_refused_and_nothing_touched(expected: ExpectedIdentity) -> None:
    bench = Bench()
    run_at_once(bench.instrument, ":SOUR:VOLT:LEV 1.5;:OUTP 1")
    driver = bench.driver(expected=expected)
    with pytest.raises(IdentityError, match="1234567"):
        await driver.open()
    await driver.close()
    assert bench.said == ["*IDN?", "*OPC?"]
    assert bench.link.state is LinkState.CLOSED
    assert (bench.instrument.output_on, bench.instrument.level_v) == (True, 1.5)
    with pytest.raises(StateError):
        _ = driver.identity


async def test_without_expectations_only_a_2400_is_accepted() -> None:
    bench = Bench()
    bench.answers = {"*IDN?": "HEWLETT-PACKARD,34401A,0,11-5-2"}
    with pytest.raises(IdentityError, match="34401A"):
        await bench.driver().open()


async def test_open_and_close_touch_no_output_that_was_left_on() -> None:
    bench = Bench()
    run_at_once(bench.instrument, ":SOUR:VOLT:LEV 1.5;:OUTP 1")
    async with bench.driver(expected=ExpectedIdentity(model="2400", serial="1234567")) as meter:
        assert meter.identity.serial == "1234567"
        assert await meter.output_is_on()
        with pytest.raises(StateError, match="output is on"):
            await meter.configure(source="voltage")
    assert (bench.instrument.output_on, bench.instrument.level_v) == (True, 1.5)


async def test_an_output_that_was_left_on_can_be_switched_off() -> None:
    bench = Bench()
    run_at_once(bench.instrument, ":SENS:CURR:PROT 1;:SOUR:VOLT:LEV 0.2;:OUTP 1")
    async with bench.driver() as meter:
        await meter.output_off()
    assert (bench.instrument.output_on, bench.instrument.level_v) == (False, 0.0)


async def test_errors_of_an_earlier_session_are_not_ours() -> None:
    bench = Bench()
    run_at_once(bench.instrument, "NONSENSE")
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        assert await meter.errors() == []
        run_at_once(bench.instrument, "NONSENSE")
        assert await meter.errors() == [(-113, "Undefined header")]


async def test_the_order_is_enforced() -> None:
    bench = Bench()
    driver = bench.driver()
    with pytest.raises(StateError, match="not open"):
        await driver.configure(source="voltage")
    async with driver:
        for call in (driver.measure, driver.output_on):
            with pytest.raises(StateError, match="configure"):
                await call()
        await driver.configure(source="voltage")
        with pytest.raises(StateError, match="limit"):
            await driver.set_level(voltage_v=0.1)
        with pytest.raises(StateError, match="limit and level"):
            await driver.output_on()
        await driver.set_limit(current_a=1e-3)
        with pytest.raises(StateError, match="limit and level"):
            await driver.output_on()
        await driver.set_level(voltage_v=0.1)
        with pytest.raises(StateError, match="output is off"):
            await driver.measure()
        await driver.output_on()
        await driver.output_off()
        with pytest.raises(StateError, match="limit and level"):
            await driver.output_on()
    assert ":OUTP 1" in bench.said
    assert ":READ?" not in bench.said


REFUSALS: dict[str, tuple[type[Exception], Callable[[Keithley2400], object]]] = {
    "nplc": (SafetyError, lambda meter: meter.configure(source="voltage", nplc=20.0)),
    "wires": (SafetyError, lambda meter: meter.configure(source="voltage", wires=3)),  # type: ignore[arg-type]
    "limit nan": (SafetyError, lambda meter: meter.set_limit(current_a=math.nan)),
    "limit zero": (SafetyError, lambda meter: meter.set_limit(current_a=0.0)),
    "limit large": (SafetyError, lambda meter: meter.set_limit(current_a=1.1)),
    "limit of source": (StateError, lambda meter: meter.set_limit(voltage_v=1.0)),
    "limit of both": (StateError, lambda meter: meter.set_limit(voltage_v=1.0, current_a=1e-3)),
    "level nan": (SafetyError, lambda meter: meter.set_level(voltage_v=math.nan)),
    "level large": (SafetyError, lambda meter: meter.set_level(voltage_v=-211.0)),
    "level of limit": (StateError, lambda meter: meter.set_level(current_a=1e-3)),
    "level of none": (StateError, lambda meter: meter.set_level()),
    "sweep": (SafetyError, lambda meter: meter.sweep(voltage_v=[0.1, 300.0])),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_cannot_be_right_is_refused_before_anything_is_sent(case: str) -> None:
    error, call = REFUSALS[case]
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    outcome = call(driver)
    assert asyncio.iscoroutine(outcome)
    with pytest.raises(error):
        await outcome
    assert bench.said == []
    await driver.close()


async def test_ramps_take_small_steps_up_and_down() -> None:
    bench = Bench()
    driver = bench.driver(ramp_step_v=0.1)
    await ready(bench, driver, level_v=0.0)
    await driver.set_level(voltage_v=1.0)
    await driver.set_level(voltage_v=-0.25)
    await driver.close()
    levels = [0.0] + [float(line.split()[1]) for line in bench.said if line.startswith(":SOUR:VOLT:LEV ")]
    assert max(abs(after - before) for before, after in pairwise(levels)) <= 0.1 + 1e-12
    assert (max(levels), min(levels), levels[-1]) == (1.0, -0.25, 0.0)
    assert len(levels) == 1 + 10 + 13 + 3
    assert bench.settings_said()[-2:] == [":OUTP 0", ":OUTP?"]


async def test_a_ramp_is_never_faster_than_its_rate() -> None:
    bench = Bench()
    driver = Keithley2400(bench.link, ramp_v_per_s=10.0, ramp_step_v=0.1)
    await ready(bench, driver, level_v=0.0)
    start_s = time.monotonic()
    # Small changes one after the other are a ramp too.
    for level_v in (0.1, 0.2, 0.3):
        await driver.set_level(voltage_v=level_v)
    await driver.close()
    # 0.6 V of way; the last step needs no pause after it.
    assert time.monotonic() - start_s >= 0.05


async def test_currents_are_sourced_and_ramped_too() -> None:
    bench = Bench()
    driver = bench.driver()
    await driver.open()
    await driver.configure(source="current")
    await driver.set_limit(voltage_v=2.0)
    await driver.set_level(current_a=4e-9)
    await driver.output_on()
    await driver.set_level(current_a=1e-3)
    reading = await driver.measure()
    assert reading.voltage_v == pytest.approx(1.0)
    assert reading.current_a == 1e-3
    with pytest.raises(StateError, match="current_a"):
        await driver.sweep(voltage_v=[0.1])
    bench.said.clear()
    await driver.close()
    assert len([line for line in bench.said if line.startswith(":SOUR:CURR:LEV ")]) == 20
    assert not bench.instrument.output_on


async def test_compliance_is_bit_3_of_the_status() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":READ?"] = "+1.000000E-01,+1.000000E-04,+2.000000E+00,+2.150400E+04"
    assert not (await driver.measure()).in_compliance
    bench.answers[":READ?"] = "+1.000000E-01,+1.000000E-04,+2.000000E+00,+2.151200E+04"
    assert (await driver.measure()).in_compliance
    bench.answers[":READ?"] = "+1.000000E-01,+9.900000E+37,+2.000000E+00,+1.000000E+00"
    assert (await driver.measure()).current_a == math.inf
    await driver.close()


async def test_time_of_a_reading_is_utc() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    before_s = time.time()
    reading = await driver.measure()
    # The clocks may be slewed against each other, never by whole seconds.
    assert before_s - 1.0 <= reading.time_s <= time.time() + 1.0
    await driver.close()


@pytest.mark.parametrize(
    "answer",
    ["+1,+1", "+1,+1,+8,+0,+0", "+1,abc,+0,+8", "+1,+9.910000E+37,+0,+0", "", "+1,+1,+0,+0.5", "\xff"],
)
async def test_an_answer_that_is_no_reading_is_refused(answer: str) -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":READ?"] = answer
    with pytest.raises(ProtocolError):
        await driver.measure()
    del bench.answers[":READ?"]
    assert (await driver.measure()).current_a == pytest.approx(1e-4)
    await driver.close()
    assert not bench.instrument.output_on


async def test_the_instruments_own_refusal_is_reported() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        await meter.set_limit(current_a=1e-3)
        run_at_once(bench.instrument, ":SOUR:VOLT:RANG 0.2")
        with pytest.raises(InstrumentError, match="out of range") as caught:
            await meter.set_level(voltage_v=1.0)
        assert (caught.value.code, caught.value.command) == (-222, ":SOUR:VOLT:LEV 1.0")
        with pytest.raises(StateError):
            await meter.output_on()


async def test_an_error_queue_without_end_is_no_endless_loop() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        bench.answers[":SYST:ERR?"] = '-113,"Undefined header"'
        with pytest.raises(ProtocolError, match="50 errors"):
            await meter.errors()


async def test_after_a_timeout_the_identity_comes_first_and_no_setting_is_repeated() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":READ?"] = None
    with pytest.raises(LinkTimeoutError):
        await driver.measure()
    assert bench.link.state is LinkState.DESYNCHRONISED
    del bench.answers[":READ?"]
    bench.said.clear()
    assert (await driver.measure()).voltage_v == 0.1
    assert bench.said == ["*IDN?", "*OPC?", ":OUTP?", ":READ?"]
    await driver.close()


async def test_a_setting_without_confirmation_is_not_repeated() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":SYST:ERR?"] = None
    with pytest.raises(LinkTimeoutError):
        await driver.set_limit(current_a=2e-3)
    del bench.answers[":SYST:ERR?"]
    assert (await driver.measure()).voltage_v == 0.1
    assert bench.said.count(":SENS:CURR:PROT 0.002") == 1
    await driver.close()


async def test_another_instrument_after_a_timeout_is_refused() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":READ?"] = None
    with pytest.raises(LinkTimeoutError):
        await driver.measure()
    bench.answers["*IDN?"] = "KEITHLEY INSTRUMENTS INC.,MODEL 2400,9999999,C30"
    for _ in range(2):
        with pytest.raises(IdentityError, match="9999999"):
            await driver.measure()
    with pytest.raises(StateError, match="press OUTPUT OFF"):
        await driver.close()
    assert bench.link.state is LinkState.CLOSED


async def test_answers_of_before_do_not_pass_for_recovery() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":READ?"] = None
    with pytest.raises(LinkTimeoutError):
        await driver.measure()
    bench.answers["*OPC?"] = IDN
    with pytest.raises(LinkDesyncedError, match="off and on"):
        await driver.measure()
    bench.answers.clear()
    assert (await driver.measure()).voltage_v == 0.1
    await driver.close()


async def test_an_output_that_stays_on_is_a_persons_business() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":OUTP 0"] = None
    with pytest.raises(StateError, match="still on; press OUTPUT OFF"):
        await driver.output_off()
    assert bench.said.count(":OUTP 0") == 2
    del bench.answers[":OUTP 0"]
    await driver.close()
    assert not bench.instrument.output_on


async def test_a_ramp_that_fails_does_not_keep_the_output_on() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":SOUR:FUNC?"] = None
    await driver.close()
    assert not bench.instrument.output_on


async def test_closing_twice_is_harmless() -> None:
    bench = Bench()
    driver = bench.driver()
    await driver.close()
    await ready(bench, driver)
    await driver.close()
    await driver.close()
    assert bench.settings_said().count(":OUTP 0") == 1


async def test_opening_twice_is_refused() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        with pytest.raises(StateError):
            await meter.open()
        assert not await meter.output_is_on()


async def test_calls_of_two_tasks_do_not_mix() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    await asyncio.gather(driver.measure(), driver.set_level(voltage_v=0.2), driver.measure())
    assert bench.settings_said()[:2] == [":OUTP?", ":READ?"]
    assert bench.settings_said()[-2:] == [":OUTP?", ":READ?"]
    await driver.close()


async def test_a_rig_file_makes_one() -> None:
    bench = Bench()
    driver = Keithley2400.from_settings(bench.link, ExpectedIdentity(serial="1"), "supply")
    with pytest.raises(IdentityError, match="serial '1'"):
        await driver.open()
    with pytest.raises(StateError, match="supply: not open"):
        await driver.measure()


@pytest.mark.parametrize(("rate", "step"), [(0.0, 0.1), (1.0, 0.0), (-1.0, 0.1), (math.nan, 0.1)])
def test_a_ramp_needs_a_rate_and_a_step(rate: float, step: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Keithley2400(Bench().link, ramp_v_per_s=rate, ramp_step_v=step)
