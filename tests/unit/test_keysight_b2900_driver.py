"""The Keysight B2900 driver says exactly what it should, over a link in memory."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from labrig_drivers.keysight_b2900 import KeysightB2900
from labrig_drivers.links import LinkState, MemoryLink
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import DiodeLoad, Load, ResistorLoad
from labrig_drivers.source_meter import Reading, SourceMeter


@dataclass
class Clock:
    """Moves by hand."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


Answer = str | bytes | None
NO_ERROR = b'+0,"No error"\n'


@dataclass
class Bench:
    """A simulated instrument behind a link in memory, which writes down what is said and lies where told to."""

    load: Load = field(default_factory=lambda: ResistorLoad(1000.0))
    second_load: Load | None = None
    model: str | None = None
    said: list[str] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    answers: dict[str, Answer | Iterator[Answer]] = field(default_factory=dict)
    refused: str | None = None

    def __post_init__(self) -> None:
        self.instrument = SimulatedKeysightB2900(
            self.load, self.second_load, serial="S1", model=self.model, clock=Clock()
        )
        self.link = MemoryLink(self.handle)

    def handle(self, request: bytes) -> bytes:
        answers = b""
        for line in request.decode("ascii").splitlines():
            self.said.append(line)
            answer = self.answers[line] if line in self.answers else run_at_once(self.instrument, line)
            if isinstance(answer, Iterator):
                answer = next(answer)
            if line == self.refused:
                self.instrument.errors.add(-221, "Settings conflict")
            if answer is not None:
                answers += answer if isinstance(answer, bytes) else answer.encode() + b"\n"
        if answers:
            self.heard.append(answers)
        return answers

    def driver(
        self, *, expected: ExpectedIdentity | None = None, channel: int = 1, ramp_step_v: float = 0.05
    ) -> KeysightB2900:
        return KeysightB2900(
            self.link, channel=channel, expected=expected, ramp_v_per_s=1e6, ramp_step_v=ramp_step_v, timeout_s=0.5
        )

    def settings_said(self) -> list[str]:
        """What was said, without the looks into the error queue."""
        return [line for line in self.said if line != ":SYST:ERR?"]


async def ready(bench: Bench, driver: KeysightB2900, level_v: float = 0.1) -> None:
    """Switches on at `level_v`."""
    await driver.open()
    await driver.configure(source="voltage", nplc=0.01)
    await driver.set_limit(current_a=1e-3)
    await driver.set_level(voltage_v=level_v)
    await driver.output_on()
    bench.said.clear()


def block(*values: float) -> bytes:
    """An answer in doubles."""
    data = struct.pack(f">{len(values)}d", *values)
    return b"#%d%d%s\n" % (len(str(len(data))), len(data), data)


def checked(*commands: str) -> list[str]:
    """Settings, each with the look into the error queue that follows it."""
    return [line for command in commands for line in (command, ":SYST:ERR?")]


SET_UP = checked(
    ":OUTP1:ON:AUTO 0",
    ":ABOR:ALL (@1)",
    ":OUTP1:OFF:AUTO 0",
    ":OUTP1:PROT 0",
    ":SOUR1:FUNC:MODE VOLT",
    ":SOUR1:FUNC:SHAP DC",
    ":SOUR1:FUNC:TRIG:CONT 1",
    ":SOUR1:VOLT:MODE FIX",
    ":SOUR1:VOLT:RANG:AUTO 1",
    ":SOUR1:SWE:RANG BEST",
    ":SOUR1:SWE:DIR UP",
    ":SOUR1:VOLT 0.0",
    ":SOUR1:CURR 0.0",
    ":ARM1:ALL:SOUR AINT",
    ":ARM1:ALL:COUN 1",
    ":ARM1:ALL:DEL 0.0",
    ":TRIG1:ALL:SOUR AINT",
    ":TRIG1:ALL:COUN 1",
    ":TRIG1:ALL:DEL 0.0",
    ":SENS1:FUNC:OFF:ALL",
    ':SENS1:FUNC "VOLT","CURR"',
    ":SENS1:CURR:RANG:AUTO 1",
    ":SENS1:CURR:NPLC:AUTO 0",
    ":SENS1:CURR:NPLC 0.1",
    ":SENS1:REM 1",
    ":FORM:ELEM:SENS VOLT,CURR,TIME,STAT",
    ":FORM:DATA REAL,64",
    ":FORM:BORD NORM",
    ":SYST:TIME:TIM:COUN:RES:AUTO 0",
)


async def test_golden_transcript() -> None:
    bench = Bench(ResistorLoad(1e9))
    meter: SourceMeter = bench.driver(ramp_step_v=0.0625)
    async with meter:
        await meter.configure(source="voltage", nplc=0.1, wires=4)
        await meter.set_limit(current_a=1e-9)
        await meter.set_level(voltage_v=0.0625)
        await meter.output_on()
        reading = await meter.measure()
        inside = await meter.sweep(voltage_v=[0.0625, 0.125, 0.09375])
        outside = await meter.sweep(voltage_v=[0.1875, 0.0])
        limit_a = bench.instrument.limit_a
    assert bench.said == [
        *("*IDN?", "*OPC?", ":OUTP1:ON:AUTO?", ":SYST:ERR?", ":OUTP1?"),
        *SET_UP,
        *checked(":SENS1:CURR:PROT 1e-09"),
        *(":OUTP1?", ":SOUR1:VOLT 0.0625", ":SYST:ERR?", ":OUTP1 1", ":SYST:ERR?"),
        *(":OUTP1?", ":MEAS? (@1)"),
        # A sweep with small steps, in the instrument.
        *(":OUTP1?", ":SOUR1:VOLT?", ":OUTP1?"),
        *checked(":SOUR1:LIST:VOLT 0.0625,0.125,0.09375", ":SENS1:DATA:CLE", ":TRIG1:ALL:COUN 3"),
        *checked(":TRIG1:ACQ:DEL 6.25e-08", ":SOUR1:VOLT:MODE LIST"),
        *(":INIT (@1)", "*OPC?", ":SYST:ERR?", ":IDLE1:ALL?", ":FETC:ARR? (@1)"),
        *checked(":SOUR1:VOLT 0.09375", ":SOUR1:VOLT:MODE FIX", ":TRIG1:ACQ:DEL 0.0", ":TRIG1:ALL:COUN 1"),
        # One with large steps, point by point.
        *(":OUTP1?", ":SOUR1:VOLT?"),
        *checked(":SOUR1:VOLT 0.140625", ":SOUR1:VOLT 0.1875"),
        *(":OUTP1?", ":MEAS? (@1)", ":OUTP1?", ":SOUR1:VOLT?"),
        *checked(":SOUR1:VOLT 0.125", ":SOUR1:VOLT 0.0625", ":SOUR1:VOLT 0.0"),
        *(":OUTP1?", ":MEAS? (@1)"),
        # Off.
        *(":OUTP1?", ":SOUR1:FUNC:MODE?", ":SOUR1:VOLT:MODE?", ":SOUR1:VOLT?"),
        *(":OUTP1 0", ":SYST:ERR?", ":OUTP1?"),
    ]
    assert limit_a == 1e-9
    assert (reading.voltage_v, reading.current_a, reading.in_compliance) == (0.0625, 6.25e-11, False)
    assert reading.instrument_time_s == 0.002
    assert [(one.voltage_v, one.current_a) for one in inside] == [
        *((0.0625, 6.25e-11), (0.125, 1.25e-10), (0.09375, 9.375e-11))
    ]
    assert [one.voltage_v for one in outside] == [0.1875, 0.0]
    assert bench.link.state is LinkState.CLOSED
    assert [answer for answer in bench.heard if answer != NO_ERROR] == [
        *(b"Keysight Technologies,B2901A,S1,3.4.2011.5100\n", b"1\n", b"1\n", b"0\n", b"0\n"),
        *(b"1\n", block(0.0625, 6.25e-11, 0.002, 0.0)),
        *(b"1\n", b"0.0625\n", b"1\n", b"1\n", b"1\n"),
        block(*(0.0625, 6.25e-11, 0.002, 0.0), *(0.125, 1.25e-10, 0.002, 0.0), *(0.09375, 9.375e-11, 0.002, 0.0)),
        *(b"1\n", b"0.09375\n", b"1\n", block(0.1875, 1.875e-10, 0.002, 0.0)),
        *(b"1\n", b"0.1875\n", b"1\n", block(0.0, 0.0, 0.002, 0.0)),
        *(b"1\n", b"VOLT\n", b"FIX\n", b"0.0\n", b"0\n"),
    ]


@given(st.floats(-210.0, 210.0), st.floats(1e-12, 3.03))
def test_numbers_arrive_bit_for_bit(level_v: float, limit_a: float) -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.driver() as meter:
            await meter.configure(source="voltage")
            await meter.set_limit(current_a=limit_a)
            await meter.set_level(voltage_v=level_v)
        assert (bench.instrument.limit_a, bench.instrument.level_v) == (limit_a, level_v)

    asyncio.run(run())


async def sweep_of(levels: list[float], ramp_step_v: float) -> tuple[list[Reading], list[str]]:
    bench = Bench(DiodeLoad(1e-9, 1.5))
    driver = bench.driver(ramp_step_v=ramp_step_v)
    await ready(bench, driver, 0.0)
    readings = await driver.sweep(voltage_v=levels)
    await driver.close()
    return readings, bench.said


async def one_by_one(levels: list[float]) -> list[Reading]:
    bench = Bench(DiodeLoad(1e-9, 1.5))
    driver = bench.driver(ramp_step_v=1.0)
    await ready(bench, driver, 0.0)
    readings = []
    for level_v in levels:
        await driver.set_level(voltage_v=level_v)
        readings.append(await driver.measure())
    assert ":INIT (@1)" not in bench.said
    await driver.close()
    return readings


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=40))
def test_inside_and_point_by_point_agree(levels: list[float]) -> None:
    inside, said = asyncio.run(sweep_of(levels, ramp_step_v=1.0))
    assert ":INIT (@1)" in said
    assert [one.voltage_v for one in inside] == [float(f"{level:.6E}") for level in levels]
    assert [(one.voltage_v, one.current_a, one.in_compliance) for one in inside] == [
        (one.voltage_v, one.current_a, one.in_compliance) for one in asyncio.run(one_by_one(levels))
    ]
    assert all(before.time_s <= after.time_s for before, after in pairwise(inside))


async def test_a_long_list_goes_in_pieces_of_a_hundred() -> None:
    levels = [index / 1000.0 for index in range(250)]
    readings, said = await sweep_of(levels, 0.05)
    assert [one.voltage_v for one in readings] == pytest.approx(levels)
    assert sum(line.startswith(":SOUR1:LIST:VOLT ") for line in said) == 1
    assert sum(line.startswith(":SOUR1:LIST:VOLT:APP ") for line in said) == 2


async def test_currents_are_sourced_and_swept_too() -> None:
    bench = Bench(ResistorLoad(1e6))
    driver = bench.driver()
    async with driver:
        await driver.configure(source="current")
        await driver.set_limit(voltage_v=2.0)
        await driver.set_level(current_a=0.0)
        await driver.output_on()
        levels = [index * 1e-7 for index in range(26)]
        readings = await driver.sweep(current_a=levels)
    assert ":SOUR1:CURR:MODE LIST" in bench.said
    assert ":SENS1:VOLT:PROT 2.0" in bench.said
    assert [one.voltage_v for one in readings] == pytest.approx([min(level * 1e6, 2.0) for level in levels])
    assert [one.in_compliance for one in readings] == [False] * 21 + [True] * 5


async def test_the_second_channel_says_so_everywhere() -> None:
    bench = Bench(ResistorLoad(1e3), ResistorLoad(500.0))
    driver = bench.driver(channel=2)
    await ready(bench, driver)
    readings = await driver.sweep(voltage_v=[0.1, 0.11])
    await driver.close()
    assert [one.current_a for one in readings] == pytest.approx([2e-4, 2.2e-4])
    own = [line for line in bench.said if not line.startswith((":SYST:ERR?", "*OPC?", ":FORM"))]
    assert [line for line in own if "2" not in line.split(" ")[0] and "(@2)" not in line] == []
    assert not bench.instrument.output_on


@pytest.mark.parametrize("channel", [0, 3])
def test_there_are_two_channels_at_most(channel: int) -> None:
    with pytest.raises(ValueError, match="channels 1 and 2"):
        Bench().driver(channel=channel)


async def test_a_channel_that_the_model_has_not_is_refused() -> None:
    bench = Bench()
    with pytest.raises(IdentityError, match="two channels"):
        await bench.driver(channel=2).open()
    assert bench.said == ["*IDN?", "*OPC?"]
    assert bench.link.state is LinkState.CLOSED


@pytest.mark.parametrize("model", ["B2961A", "B2987B", "34401A", "MODEL 2400"])
async def test_other_models_are_refused(model: str) -> None:
    bench = Bench(model=model)
    with pytest.raises(IdentityError, match=model):
        await bench.driver().open()
    with pytest.raises(IdentityError, match=model):
        await bench.driver(expected=ExpectedIdentity(model=model)).open()


@pytest.mark.parametrize("model", ["B2901A", "B2902B", "B2910BL", "B2911A", "B2912B"])
async def test_every_source_meter_of_the_series_is_accepted(model: str) -> None:
    async with Bench(model=model).driver() as meter:
        assert meter.identity.model == model


async def test_a_wrong_serial_is_refused_and_nothing_touched() -> None:
    bench = Bench()
    run_at_once(bench.instrument, ":VOLT 1.5;:OUTP 1")
    with pytest.raises(IdentityError, match="S1"):
        await bench.driver(expected=ExpectedIdentity(serial="S2")).open()
    assert bench.said == ["*IDN?", "*OPC?"]
    assert (bench.instrument.output_on, bench.instrument.level_v) == (True, 1.5)


async def test_another_language_is_refused() -> None:
    bench = Bench(answers={":OUTP1:ON:AUTO?": None})
    with pytest.raises(StateError, match="imitates a 2400"):
        await bench.driver().open()
    assert bench.link.state is LinkState.CLOSED


async def test_open_and_close_touch_no_output_that_was_left_on() -> None:
    bench = Bench()
    run_at_once(bench.instrument, ":VOLT 1.5;:OUTP 1")
    async with bench.driver() as meter:
        assert await meter.output_is_on()
        with pytest.raises(StateError, match="output is on"):
            await meter.configure(source="voltage")
    assert (bench.instrument.output_on, bench.instrument.level_v) == (True, 1.5)
    assert [line for line in bench.said if "?" not in line] == []


async def test_configure_disarms_what_moves_the_output_by_itself() -> None:
    bench = Bench()
    run_at_once(bench.instrument, ":OUTP:OFF:AUTO 1;:OUTP:PROT 1;:SENS:FUNC:OFF:ALL;:FUNC:SHAP PULS")
    driver = bench.driver()
    await ready(bench, driver)
    own = bench.instrument.channels[1].settings
    assert (own.on_auto, own.off_auto, own.protection, own.shape) == (False, False, False, "DC")
    assert own.functions == {"VOLT", "CURR"}
    # More than the limit allows: limited, and still on.
    await driver.set_level(voltage_v=1.5)
    assert (await driver.measure()).in_compliance
    await driver.close()


async def test_the_other_channel_is_left_alone_by_configure() -> None:
    bench = Bench(ResistorLoad(1e3), ResistorLoad(1e3))
    run_at_once(bench.instrument, ":SOUR2:VOLT 1.5;:SENS2:CURR:PROT 0.01;:OUTP2 1")
    async with bench.driver() as meter:
        await meter.configure(source="current")
    other = bench.instrument.channels[2]
    assert (other.settings.output_on, other.present_level("VOLT"), other.settings.limit["CURR"]) == (True, 1.5, 0.01)


async def test_ranges_are_fixed_or_automatic() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        bench.said.clear()
        await meter.set_ranges(voltage_v=2.0, current_a=1e-6)
        await meter.set_ranges()
    assert bench.settings_said() == [
        *(":OUTP1?", ":SOUR1:VOLT:RANG:AUTO 0", ":SOUR1:VOLT:RANG 2.0", ":SENS1:CURR:RANG:AUTO 0"),
        *(":SENS1:CURR:RANG 1e-06", ":SOUR1:SWE:RANG FIX"),
        *(":OUTP1?", ":SOUR1:VOLT:RANG:AUTO 1", ":SENS1:CURR:RANG:AUTO 1", ":SOUR1:SWE:RANG BEST"),
    ]


async def test_what_cannot_be_right_is_refused_before_anything_is_sent() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    with pytest.raises(SafetyError):
        await driver.set_limit(current_a=3.1)
    with pytest.raises(SafetyError):
        await driver.set_level(voltage_v=-211.0)
    with pytest.raises(SafetyError, match="nplc"):
        await driver.configure(source="voltage", nplc=101.0)
    with pytest.raises(StateError):
        await driver.set_level(current_a=1e-3)
    assert bench.said == []
    await driver.close()


async def test_the_order_is_enforced() -> None:
    bench = Bench()
    async with bench.driver() as driver:
        await driver.configure(source="voltage")
        with pytest.raises(StateError, match="limit"):
            await driver.set_level(voltage_v=0.1)
        await driver.set_limit(current_a=1e-3)
        with pytest.raises(StateError, match="limit and level"):
            await driver.output_on()
        await driver.set_level(voltage_v=0.1)
        with pytest.raises(StateError, match="output is off"):
            await driver.measure()
    assert ":OUTP1 1" not in bench.said
    assert ":MEAS? (@1)" not in bench.said


async def test_status_bits_tell_compliance() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    for status, expected in ((0.0, False), (1.0, False), (2.0, True), (4.0, True), (7.0, True), (8192.0, False)):
        bench.answers[":MEAS? (@1)"] = block(0.1, 1e-4, 1.5, status)
        assert (await driver.measure()).in_compliance is expected
    await driver.close()


@pytest.mark.parametrize("overflow", [9.9e37, math.inf])
async def test_overflow_is_infinite_and_a_number_that_is_none_is_refused(overflow: float) -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":MEAS? (@1)"] = block(0.1, -overflow, 1.5, 8192.0)
    assert (await driver.measure()).current_a == -math.inf
    for nothing in (9.91e37, math.nan):
        bench.answers[":MEAS? (@1)"] = block(0.1, nothing, 1.5, 0.0)
        with pytest.raises(ProtocolError, match=r"voltage 0\.1 V, current nan A is no reading"):
            await driver.measure()
    bench.answers[":MEAS? (@1)"] = block(0.1, 1e-4, 1.5, 0.5)
    with pytest.raises(
        ProtocolError, match=r"^\S+ at \S+: 0\.1, 0\.0001, 1\.5, 0\.5 is no reading of voltage, current"
    ):
        await driver.measure()
    bench.answers.clear()
    assert (await driver.measure()).current_a == pytest.approx(1e-4)
    await driver.close()


@pytest.mark.parametrize(
    "answer",
    [
        *(block(0.1, 1e-4, 1.5), block(0.1, 1e-4, 1.5, 0.5), block(0.1, 1e-4, math.nan, 0.0), block(), b"#13abc\n"),
        *(b"+1.0,+1.0,+1.0,+0.0\n", b"#0abc\n", b"\n"),
    ],
)
async def test_an_answer_that_is_no_reading_is_refused(answer: bytes) -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":MEAS? (@1)"] = answer
    with pytest.raises(ProtocolError):
        await driver.measure()
    bench.answers.clear()
    assert (await driver.measure()).current_a == pytest.approx(1e-4)
    await driver.close()
    assert not bench.instrument.output_on


async def test_a_sweep_is_waited_for_even_where_opc_does_not() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":IDLE1:ALL?"] = iter(["0", "+0", "1"])
    assert len(await driver.sweep(voltage_v=[0.1, 0.12])) == 2
    assert bench.said.count(":IDLE1:ALL?") == 3
    bench.answers.clear()
    await driver.close()


async def test_a_sweep_with_readings_missing_is_refused() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":FETC:ARR? (@1)"] = block(0.1, 1e-4, 1.5, 0.0)
    with pytest.raises(ProtocolError, match="of 2 readings"):
        await driver.sweep(voltage_v=[0.1, 0.12])
    assert bench.instrument.level_v == 0.12
    bench.answers.clear()
    await driver.close()
    assert not bench.instrument.output_on


async def test_the_instruments_own_refusal_is_reported() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        await meter.set_limit(current_a=1e-3)
        run_at_once(bench.instrument, ":VOLT:RANG 0.2")
        with pytest.raises(InstrumentError, match="out of range") as caught:
            await meter.set_level(voltage_v=1.0)
        assert (caught.value.code, caught.value.command) == (-222, ":SOUR1:VOLT 1.0")
        with pytest.raises(StateError):
            await meter.output_on()


@pytest.mark.parametrize("refused", SET_UP[::2])
async def test_every_setting_is_followed_by_a_look_into_the_error_queue(refused: str) -> None:
    bench = Bench(refused=refused)
    async with bench.driver() as meter:
        with pytest.raises(InstrumentError, match="Settings conflict") as caught:
            await meter.configure(source="voltage", nplc=0.1, wires=4)
        assert (caught.value.code, caught.value.command) == (-221, refused)
        with pytest.raises(StateError, match="configure"):
            await meter.set_limit(current_a=1e-3)


async def test_old_readings_do_not_tell_where_a_sweep_stands_that_never_began() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver, 0.0)
    await driver.sweep(voltage_v=[0.0, 0.05, 0.1, 0.15, 0.2])
    await driver.set_level(voltage_v=0.0)
    bench.answers |= {":INIT (@1)": None, "*OPC?": None}
    with pytest.raises(LinkTimeoutError):
        await driver.sweep(voltage_v=[0.0, 0.01])
    bench.answers.clear()
    bench.said.clear()
    await driver.set_level(voltage_v=0.05)
    assert [line for line in bench.said if line.startswith(":SOUR1:VOLT ")] == [":SOUR1:VOLT 0.0", ":SOUR1:VOLT 0.05"]
    await driver.close()


async def test_a_sweep_that_somebody_left_is_ended_before_the_ramp() -> None:
    bench = Bench()
    for line in (":SENS:CURR:PROT 1", ":VOLT 0.2", ":FUNC:TRIG:CONT 1", ":LIST:VOLT 0.2,0.25,0.3", ":VOLT:MODE LIST"):
        run_at_once(bench.instrument, line)
    run_at_once(bench.instrument, ":OUTP 1")
    run_at_once(bench.instrument, ":TRIG:COUN 3;:INIT")
    assert bench.instrument.level_v == 0.3
    async with bench.driver() as meter:
        await meter.output_off()
    levels = [float(line.split()[1]) for line in bench.said if line.startswith(":SOUR1:VOLT ")]
    assert levels[0] == 0.3
    assert levels[-1] == 0.0
    assert max(abs(after - before) for before, after in pairwise(levels)) <= 0.05 + 1e-12
    assert not bench.instrument.output_on


async def test_after_a_timeout_the_identity_comes_first_and_no_setting_is_repeated() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":MEAS? (@1)"] = None
    with pytest.raises(LinkTimeoutError):
        await driver.measure()
    bench.answers.clear()
    bench.said.clear()
    assert (await driver.measure()).voltage_v == 0.1
    assert bench.said == ["*IDN?", "*OPC?", ":OUTP1?", ":MEAS? (@1)"]
    await driver.close()


async def test_an_output_that_stays_on_is_a_persons_business() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[":OUTP1 0"] = None
    with pytest.raises(StateError, match="still on; press OUTPUT OFF"):
        await driver.output_off()
    bench.answers.clear()
    await driver.close()
    assert not bench.instrument.output_on


async def test_the_interlock_and_the_loss_of_the_host() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        assert await meter.interlock_closed()
        bench.instrument.interlock_closed = False
        assert not await meter.interlock_closed()
        assert meter.host_loss_protection.silence_s is None


async def test_a_rig_file_makes_one() -> None:
    bench = Bench(ResistorLoad(1e3), ResistorLoad(1e3))
    meter = KeysightB2900.from_settings(
        bench.link, ExpectedIdentity(serial="S1"), "gate", settings={"channel": 2}, ramp_v_per_s=5.0
    )
    async with meter:
        assert not await meter.output_is_on()
    assert ":OUTP2?" in bench.said
    with pytest.raises(StateError, match="gate: not open"):
        await meter.measure()


@pytest.mark.parametrize(
    ("table", "fault"),
    [({"channel": 3}, "channel: 3"), ({"channel": "b"}, "channel: 'b'"), ({"chanel": 1}, "chanel: unknown")],
)
def test_wrong_settings_are_refused(table: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=f"source_meters.gate.settings.{fault}"):
        KeysightB2900.from_settings(Bench().link, ExpectedIdentity(), "gate", settings=table)
