"""The Keithley 2450 driver says exactly what it should, over a link in memory."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.testing.transcript import Transcript
from labrig_drivers.errors import (
    ConfigError,
    IdentityError,
    InstrumentError,
    LinkTimeoutError,
    ProtocolError,
    SafetyError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.keithley2450 import Keithley2450
from labrig_drivers.links import LinkState
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.keithley2450 import SimulatedKeithley2450
from labrig_drivers.mock.loads import Load, ResistorLoad
from labrig_drivers.source_meter import SourceMeter

READ = ':READ? "defbuffer1",SOUR,READ,REL,SOURSTAT'


class Bench(Transcript):
    """A simulated 2450 and drivers of it."""

    def __init__(self, load: Load | None = None, language: str = "SCPI") -> None:
        self.instrument = SimulatedKeithley2450(load or ResistorLoad(1000.0), language=language)
        super().__init__(self.instrument)

    def driver(self, *, expected: ExpectedIdentity | None = None, ramp_step_v: float = 0.05) -> Keithley2450:
        return Keithley2450(self.link, expected=expected, ramp_v_per_s=1e6, ramp_step_v=ramp_step_v)

    def settings_said(self) -> list[str]:
        """What was said, without the looks into the error queue."""
        return [line for line in self.said if line != ":SYST:ERR?"]


async def ready(bench: Bench, driver: Keithley2450, level_v: float = 0.1) -> None:
    """Switches on at `level_v`."""
    await driver.open()
    await driver.configure(source="voltage")
    await driver.set_limit(current_a=1e-3)
    await driver.set_level(voltage_v=level_v)
    await driver.output_on()
    bench.said.clear()
    bench.heard.clear()


def checked(*commands: str) -> list[str]:
    """Settings as they go out: each with a look into the error queue."""
    return [line for command in commands for line in (command, ":SYST:ERR?")]


def numbers(answer: str) -> list[float]:
    return [float(text) for text in answer.split(",")]


async def test_golden_transcript() -> None:
    bench = Bench(ResistorLoad(1e8))
    meter: SourceMeter = bench.driver(ramp_step_v=0.0625)
    async with meter:
        await meter.configure(source="voltage", nplc=0.1, wires=4)
        await meter.set_limit(current_a=1e-9)
        await meter.set_ranges(voltage_v=2.0, current_a=1e-7)
        assert bench.instrument.limit_a == 1e-9
        await meter.set_level(voltage_v=0.0625)
        await meter.output_on()
        reading = await meter.measure()
        inside = await meter.sweep(voltage_v=[0.0625, 0.125, 0.1875])
        listed = await meter.sweep(voltage_v=[0.1875, 0.1875, 0.125])
        apart = await meter.sweep(voltage_v=[0.125, 0.25])
        await meter.output_off()
    block = [":TRIG:BLOC:BRAN:ALW 2,4", ':TRIG:BLOC:MEAS 5,"defbuffer1",1', ":TRIG:BLOC:BRAN:COUN 6,3,3"]

    def model(name: str) -> list[str]:
        return checked(
            ':TRIG:LOAD "Empty"',
            f':TRIG:BLOC:CONF:REC 1,"{name}",1',
            block[0],
            f':TRIG:BLOC:CONF:NEXT 3,"{name}"',
            ":TRIG:BLOC:DEL:CONS 4,1.67e-07",
            *block[1:],
        )

    def run(first: int) -> list[str]:
        return [
            ':TRAC:ACT? "defbuffer1"',
            ':TRAC:POIN? "defbuffer1"',
            ":INIT",
            "*OPC?",
            ":SYST:ERR?",
            ":OUTP?",
            f':TRAC:DATA? {first},{first + 2},"defbuffer1",SOUR,READ,REL,SOURSTAT',
        ]

    set_up = checked(
        "*RST",
        ":SOUR:FUNC VOLT",
        ":SOUR:VOLT:RANG:AUTO 1",
        ":SOUR:VOLT:READ:BACK 1",
        ':SENS:FUNC "CURR"',
        ":SENS:CURR:RANG:AUTO 1",
        ":SENS:CURR:NPLC 0.1",
        ":SENS:CURR:RSEN 1",
        ":FORM:DATA ASC",
        ":FORM:ASC:PREC 16",
        ':TRAC:CLE "defbuffer1"',
    )
    even = ':SOUR:SWE:VOLT:LIN 0.0625,0.1875,3,0,1,FIX,OFF,OFF,"defbuffer1"'
    at_level = [":OUTP?", ":SOUR:VOLT?"]
    assert bench.said == [
        *("*IDN?", "*OPC?", "*LANG?", ":SYST:ERR?", ":OUTP?"),
        *set_up,
        *checked(":SOUR:VOLT:ILIM 1e-09"),
        *(":OUTP?", *checked(":SOUR:VOLT:RANG 2.0", ":SENS:CURR:RANG 1e-07", ":SOUR:VOLT:ILIM 1e-09")),
        *(":OUTP?", *checked(":SOUR:VOLT 0.0625", ":OUTP 1")),
        *(":OUTP?", READ),
        *(*at_level, ":OUTP?", ":SOUR:VOLT:RANG:AUTO?", *checked(even), *model("VoltLinearSweepList"), *run(2)),
        *(*at_level, ":OUTP?", *checked(":SOUR:LIST:VOLT 0.1875,0.1875,0.125"), *model("VoltCustomSweepList"), *run(5)),
        *(*at_level, ":OUTP?", READ),
        *(*at_level, *checked(":SOUR:VOLT 0.1875", ":SOUR:VOLT 0.25"), ":OUTP?", READ),
        *(":OUTP?", ":SOUR:FUNC?", ":SOUR:VOLT?"),
        *checked(":SOUR:VOLT 0.1875", ":SOUR:VOLT 0.125", ":SOUR:VOLT 0.0625", ":SOUR:VOLT 0.0"),
        *checked(":OUTP 0"),
        ":OUTP?",
    ]
    readings = [answer for answer in bench.heard if answer.count(",") % 4 == 3 and "KEITHLEY" not in answer]
    assert [len(numbers(answer)) for answer in readings] == [4, 12, 12, 4, 4]
    assert numbers(readings[0]) == [0.0625, 6.25e-10, 0.0, 192.0]
    # 1.25 nA are more than the limit of 1 nA, which holds the voltage at 0.1 V.
    assert numbers(readings[1])[::4] == [0.0625, 0.1, 0.1]
    assert numbers(readings[1])[3::4] == [192.0, 224.0, 224.0]
    assert (reading.voltage_v, reading.current_a, reading.in_compliance) == (0.0625, 6.25e-10, False)
    assert [(one.voltage_v, one.current_a, one.in_compliance) for one in (*inside, *listed, *apart)] == [
        (0.0625, 6.25e-10, False)
    ] + [(0.1, 1e-9, True)] * 7
    assert bench.link.state is LinkState.CLOSED


@given(st.floats(-210.0, 210.0), st.floats(1e-9, 1.05))
def test_numbers_arrive_bit_for_bit(level_v: float, limit_a: float) -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.driver() as meter:
            await meter.configure(source="voltage")
            await meter.set_limit(current_a=limit_a)
            await meter.set_level(voltage_v=level_v)
        assert (bench.instrument.limit_a, bench.instrument.level_v) == (limit_a, level_v)

    asyncio.run(run())


@pytest.mark.parametrize("language", ["TSP", "SCPI2400"])
async def test_another_command_set_is_refused_with_what_to_do(language: str) -> None:
    bench = Bench(language=language)
    with pytest.raises(StateError, match=rf"command set is {language}, not SCPI.*\*LANG SCPI.*off and on"):
        await bench.driver().open()
    assert bench.said == ["*IDN?", "*OPC?", "*LANG?"]
    assert bench.link.state is LinkState.CLOSED


@pytest.mark.parametrize("expected", [None, ExpectedIdentity(serial="7654321"), ExpectedIdentity(model="2400")])
async def test_a_wrong_identity_is_refused_before_anything_else_is_said(expected: ExpectedIdentity | None) -> None:
    bench = Bench()
    if expected is None:
        bench.answers["*IDN?"] = "KEITHLEY INSTRUMENTS,MODEL 2460,04123456,1.7.12b"
    run_at_once(bench.instrument, ":SOUR:VOLT 1.5;:OUTP 1")
    with pytest.raises(IdentityError, match="04123456"):
        await bench.driver(expected=expected).open()
    assert bench.said == ["*IDN?", "*OPC?"]
    assert (bench.instrument.output_on, bench.instrument.level_v) == (True, 1.5)


async def test_open_and_close_touch_no_output_that_was_left_on() -> None:
    bench = Bench()
    run_at_once(bench.instrument, ":SOUR:VOLT 1.5;:OUTP 1")
    async with bench.driver() as meter:
        assert await meter.output_is_on()
        with pytest.raises(StateError, match="output is on"):
            await meter.configure(source="voltage")
    assert (bench.instrument.output_on, bench.instrument.level_v) == (True, 1.5)


@pytest.mark.parametrize("empty", ['0,"No error;0,0,0"', '0,"No error;0;0 0"', '0,"No error"'])
async def test_every_form_of_an_empty_error_queue_is_understood(empty: str) -> None:
    bench = Bench()
    bench.answers = {":SYST:ERR?": empty}
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        assert await meter.errors() == []


async def test_the_error_after_any_setting_is_raised_with_number_text_and_command() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        await meter.set_limit(current_a=1e-3)
        run_at_once(bench.instrument, ":SOUR:VOLT:RANG 0.2")
        with pytest.raises(InstrumentError) as caught:
            await meter.set_level(voltage_v=1.0)
        assert (caught.value.code, caught.value.command) == (-222, ":SOUR:VOLT 1.0")
        assert caught.value.text.startswith("Parameter data out of range;1;")
        run_at_once(bench.instrument, "NONSENSE")
        ((code, text),) = await meter.errors()
        assert (code, text.split(";")[0]) == (-113, "Undefined header")


async def test_errors_of_an_earlier_session_are_not_ours() -> None:
    bench = Bench()
    run_at_once(bench.instrument, "NONSENSE")
    async with bench.driver() as meter:
        await meter.configure(source="voltage")


async def test_ranges_are_fixed_or_automatic_and_the_limit_is_written_again() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        await meter.set_ranges(voltage_v=210.0)
        assert bench.settings_said()[-2:] == [":SOUR:VOLT:RANG 200.0", ":SENS:CURR:RANG:AUTO 1"]
        await meter.set_limit(current_a=1e-6)
        with pytest.raises(InstrumentError, match="Settings conflict") as caught:
            await meter.set_ranges(current_a=0.1)
        assert caught.value.command == ":SOUR:VOLT:ILIM 1e-06"
        with pytest.raises(SafetyError, match=r"current range 2 A is not in 0 to 1\.05 A"):
            await meter.set_ranges(current_a=2)
        await meter.configure(source="current")
        await meter.set_ranges(voltage_v=2.0)
        assert bench.settings_said()[-2:] == [":SOUR:CURR:RANG:AUTO 1", ":SENS:VOLT:RANG 2.0"]


async def test_currents_are_sourced_measured_and_ramped_too() -> None:
    bench = Bench()
    driver = bench.driver()
    async with driver:
        await driver.configure(source="current")
        await driver.set_limit(voltage_v=2.0)
        await driver.set_level(current_a=4e-9)
        assert ":SOUR:CURR:VLIM 2.0" in bench.said
        await driver.output_on()
        await driver.set_level(current_a=1e-3)
        reading = await driver.measure()
        assert (reading.voltage_v, reading.current_a, reading.in_compliance) == (1.0, 1e-3, False)
        readings = await driver.sweep(current_a=[1e-3, 1.1e-3, 1.2e-3, 1.3e-3] * 8 + [1e-3])
        assert [one.voltage_v for one in readings[:4]] == pytest.approx([1.0, 1.1, 1.2, 1.3])
        with pytest.raises(StateError, match="current_a"):
            await driver.set_level(voltage_v=0.1)
        bench.said.clear()
    assert len([line for line in bench.said if line.startswith(":SOUR:CURR ")]) == 20
    assert not bench.instrument.output_on


async def test_a_limit_in_voltage_marks_the_reading_too() -> None:
    async with Bench().driver() as driver:
        await driver.configure(source="current")
        await driver.set_limit(voltage_v=0.5)
        await driver.set_level(current_a=1e-3)
        await driver.output_on()
        reading = await driver.measure()
    assert (reading.voltage_v, reading.current_a, reading.in_compliance) == (0.5, 5e-4, True)


@pytest.mark.parametrize(("status", "tripped"), [("128", False), ("160", True), ("1.600000E+02", True), ("216", False)])
async def test_compliance_is_bit_5_of_the_source_status(status: str, tripped: bool) -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[READ] = f"0.1, 1.0E-04,0.25 , {status}"
    reading = await driver.measure()
    assert (reading.voltage_v, reading.current_a, reading.instrument_time_s) == (0.1, 1e-4, 0.25)
    assert reading.in_compliance is tripped
    await driver.close()


async def test_beyond_the_measuring_range_a_reading_is_infinite() -> None:
    bench = Bench()
    driver = bench.driver()
    await driver.open()
    await driver.configure(source="voltage")
    await driver.set_limit(current_a=1e-3)
    await driver.set_ranges(current_a=1e-6)
    await driver.set_level(voltage_v=-0.5)
    await driver.output_on()
    assert (await driver.measure()).current_a == -math.inf
    await driver.close()


@pytest.mark.parametrize(
    "answer", ["0.1,1e-4,0", "0.1,1e-4,0,128,0", "0.1,abc,0,128", "0.1,9.91E37,0,128", "0.1,1e-4,0,0.5", "", "#0abc"]
)
async def test_an_answer_that_is_no_reading_is_refused(answer: str) -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[READ] = answer
    with pytest.raises(ProtocolError):
        await driver.measure()
    del bench.answers[READ]
    assert (await driver.measure()).current_a == pytest.approx(1e-4)
    await driver.close()
    assert not bench.instrument.output_on


async def test_stamps_count_on_through_readings_and_sweeps() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver, level_v=0.0)
    readings = [await driver.measure(), *await driver.sweep(voltage_v=[0.0, 0.01, 0.02]), await driver.measure()]
    stamps = [one.instrument_time_s or 0.0 for one in readings]
    assert stamps[0] == 0.0
    assert all(after > before for before, after in pairwise(stamps))
    # A buffer that cannot take a whole sweep is emptied first, and stamps begin anew.
    run_at_once(bench.instrument, ':TRAC:POIN 10,"defbuffer1"')
    for _ in range(8):
        await driver.measure()
    readings = await driver.sweep(voltage_v=[0.02, 0.01, 0.0])
    assert [one.voltage_v for one in readings] == [0.02, 0.01, 0.0]
    assert readings[0].instrument_time_s == 0.0
    await driver.close()


async def test_the_interlock_is_asked_and_its_refusal_reported() -> None:
    bench = Bench(ResistorLoad(1e6))
    bench.instrument.interlock_closed = False
    async with bench.driver() as driver:
        assert not await driver.interlock_closed()
        await driver.configure(source="voltage")
        await driver.set_limit(current_a=1e-3)
        await driver.set_level(voltage_v=50.0)
        with pytest.raises(InstrumentError, match="interlock"):
            await driver.output_on()
        bench.instrument.interlock_closed = True
        assert await driver.interlock_closed()
    assert bench.said[-1] == ":OUTP?"


async def test_a_sweep_that_ends_with_the_output_off_is_not_believed() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver, level_v=0.0)
    bench.answers["*OPC?"] = "1"
    # As if the trigger model had switched the output off at its end.
    run = bench.instrument.run

    def tampered(line: str) -> object:
        if line == ":INIT":
            run_at_once(bench.instrument, ":TRIG:BLOC:SOUR:STAT 7,OFF")
        return run(line)

    bench.instrument.run = tampered  # type: ignore[assignment,method-assign]
    with pytest.raises(StateError, match="off at the end of the sweep"):
        await driver.sweep(voltage_v=[0.0, 0.01])
    await driver.close()


async def test_after_a_timeout_identity_comes_first_and_no_setting_is_repeated() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[READ] = None
    with pytest.raises(LinkTimeoutError):
        await driver.measure()
    assert bench.link.state is LinkState.DESYNCHRONISED
    del bench.answers[READ]
    bench.said.clear()
    assert (await driver.measure()).voltage_v == 0.1
    assert bench.said == ["*IDN?", "*OPC?", ":OUTP?", READ]
    await driver.close()


async def test_an_abort_with_nothing_to_abort_is_no_obstacle_to_the_ramp() -> None:
    """Whatever the instrument logs on it, the ramp to zero goes on from the level that the instrument names."""
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver, level_v=0.2)
    bench.answers[":INIT"] = None
    bench.answers["*OPC?"] = None
    with pytest.raises(LinkTimeoutError):
        await driver.sweep(voltage_v=[0.2, 0.21])
    bench.answers.clear()
    bench.answers[":ABOR"] = None
    bench.said.clear()
    bench.heard.clear()
    run_at_once(bench.instrument, "NONSENSE")
    await driver.close()
    assert bench.said[:4] == [":ABOR", "*IDN?", "*OPC?", ":ABOR"]
    assert bench.heard[2].startswith("-113,")
    levels = [float(line.split()[1]) for line in bench.said if line.startswith(":SOUR:VOLT ")]
    assert levels == pytest.approx([0.15, 0.1, 0.05, 0.0])
    assert not bench.instrument.output_on


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


async def test_it_has_nothing_that_protects_when_the_host_is_lost() -> None:
    async with Bench().driver() as driver:
        assert driver.host_loss_protection.silence_s is None


async def test_a_rig_file_makes_one() -> None:
    bench = Bench()
    with pytest.raises(ConfigError, match="terminals"):
        Keithley2450.from_settings(bench.link, ExpectedIdentity(), "supply", settings={"terminals": "rear"})
    driver = Keithley2450.from_settings(bench.link, ExpectedIdentity(serial="1"), "supply", ramp_v_per_s=2.0)
    with pytest.raises(IdentityError, match="serial '1'"):
        await driver.open()
