"""The Keithley 2600 driver says exactly what it should, over a link in memory."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_drivers.errors import (
    ConfigError,
    IdentityError,
    InstrumentError,
    LinkDesyncedError,
    LinkTimeoutError,
    ProtocolError,
    SafetyError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.keithley2600 import Keithley2600
from labrig_drivers.links import LinkState, MemoryLink
from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.loads import Load, ResistorLoad
from labrig_drivers.mock.scpi_parser import Run
from labrig_drivers.source_meter import SourceMeter
from labrig_drivers.tsp_session import NEXT_ERRORS

IDN = "Keithley Instruments Inc., Model 2602B, 1234567, 3.4.2"
READ = "do local i, v = smua.measure.iv() print(v, i, smua.source.compliance, timer.measure.t()) end"


@dataclass
class Bench:
    """A simulated instrument behind a link in memory, which writes down what is said and lies where told to.

    A script runs when the next line comes: to its end, or until that line is a trigger or an abort.
    """

    load: Load = field(default_factory=lambda: ResistorLoad(1000.0))
    model: str = "2602B"
    said: list[str] = field(default_factory=list)
    answers: dict[str, str | bytes | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.instrument = SimulatedKeithley2600(self.load, model=self.model)
        self.link = MemoryLink(self.handle)
        self._script: Run | None = None

    def handle(self, request: bytes) -> bytes:
        answers = b""
        for line in request.decode("ascii").splitlines():
            self.said.append("errors?" if line == NEXT_ERRORS else line)
            if self.said[-1] not in self.answers:
                answers += self.run(line)
                continue
            answer = self.answers[self.said[-1]]
            if isinstance(answer, str):
                answer = answer.encode("latin-1") + b"\n"
            answers += answer or b""
        return answers

    def run(self, line: str) -> bytes:
        if self._script is not None:
            if self.instrument.is_abort(line):
                self._script.close()
            for _ in self._script:
                pass
        run, printed = self.instrument.run(line), b""
        while True:
            try:
                next(run)
            except StopIteration as end:
                printed = end.value or b""
                break
        self._script = self.instrument.take_operation()
        return printed

    def driver(self, *, expected: ExpectedIdentity | None = None, ramp_step_v: float = 0.05) -> Keithley2600:
        return Keithley2600(self.link, expected=expected, ramp_v_per_s=1e6, ramp_step_v=ramp_step_v)

    def settings_said(self) -> list[str]:
        """What was said, without the looks into the error queue."""
        return [line for line in self.said if line != "errors?"]


async def ready(bench: Bench, driver: Keithley2600, level_v: float = 0.1) -> None:
    """Switches on at `level_v`."""
    await driver.open()
    await driver.configure(source="voltage")
    await driver.set_limit(current_a=1e-3)
    await driver.set_level(voltage_v=level_v)
    await driver.output_on()
    bench.said.clear()


def checked(commands: list[str]) -> list[str]:
    """Settings, each followed by a look into the error queue."""
    return [line for command in commands for line in (command, "errors?")]


# An unfinished script of somebody before would swallow every question; these lines end it.
UNFINISHED = [")", "endscript"]
RECOVERED = ["abort", *UNFINISHED, "errorqueue.clear()", "*IDN?", "print('labrig 1')"]
IDENTIFIED = [*UNFINISHED, "*IDN?", "print(localnode.model, smua ~= nil)", "errors?", "print(smua.source.output)"]
SET_UP = [
    "smua.reset()",
    "smua.source.func = smua.OUTPUT_DCVOLTS",
    "smua.source.autorangev = smua.AUTORANGE_ON",
    "smua.measure.autorangei = smua.AUTORANGE_ON",
    "smua.measure.nplc = 0.1",
    "smua.sense = smua.SENSE_REMOTE",
    "format.asciiprecision = 16",
    "format.data = format.REAL64",
    "format.byteorder = format.LITTLEENDIAN",
]
SWEEP = [
    *("loadandrunscript", "local levels = {", "0.0625, 0.125, 0.1875,", "}"),
    *("smua.nvbuffer1.clear()", "smua.nvbuffer2.clear()"),
    *("smua.nvbuffer1.appendmode = 1", "smua.nvbuffer2.appendmode = 1"),
    *("smua.nvbuffer1.collecttimestamps = 1", "smua.nvbuffer2.collecttimestamps = 1"),
    *("for index, level in ipairs(levels) do", "smua.source.levelv = level", "delay(6.25e-08)"),
    "smua.measure.iv(smua.nvbuffer1, smua.nvbuffer2)",
    *("if index == 1 then labrig_first_s = timer.measure.t() end", "end", "endscript", "errors?"),
    "print(smua.nvbuffer1.n, labrig_first_s)",
    "printbuffer(1, 3, smua.nvbuffer2.readings, smua.nvbuffer1.readings, "
    "smua.nvbuffer1.statuses, smua.nvbuffer1.timestamps)",
]


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
        stepped = await meter.sweep(voltage_v=[0.1875, 0.0625])
        await meter.output_off()
        limit_a = bench.instrument.limit_a
    on = "print(smua.source.output)"
    level = "print(smua.source.levelv)"
    assert bench.said == [
        *IDENTIFIED,
        *checked([*SET_UP, "smua.source.limiti = 1e-09"]),
        *(on, *checked(["smua.source.rangev = 2.0", "smua.measure.rangei = 1e-06"])),
        *(on, *checked(["smua.source.levelv = 0.0625", "smua.source.output = 1"]), on, READ),
        *(on, level, on, *SWEEP),
        # Point by point, since 0.125 V is more than a step of the ramp.
        *(on, level, on, READ),
        *(on, level, *checked(["smua.source.levelv = 0.125", "smua.source.levelv = 0.0625"]), on, READ),
        *(on, "print(smua.source.func == smua.OUTPUT_DCVOLTS)", level),
        *checked(["smua.source.levelv = 0.0", "smua.source.output = 0"]),
        on,
    ]
    assert limit_a == 1e-9
    assert (reading.voltage_v, reading.current_a, reading.in_compliance) == (0.0625, 6.25e-10, False)
    assert [one.voltage_v for one in swept] == pytest.approx([0.0625, 0.1, 0.1])
    assert [one.current_a for one in swept] == pytest.approx([6.25e-10, 1e-9, 1e-9])
    assert [one.in_compliance for one in swept] == [False, True, True]
    assert [one.voltage_v for one in stepped] == pytest.approx([0.1, 0.0625])
    stamps_s = [one.instrument_time_s for one in (reading, *swept, *stepped)]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(stamps_s))
    assert bench.link.state is LinkState.CLOSED


@given(st.floats(-40.0, 40.0), st.floats(1e-12, 3.0))
def test_numbers_arrive_bit_for_bit(level_v: float, limit_a: float) -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.driver() as meter:
            await meter.configure(source="voltage")
            await meter.set_limit(current_a=limit_a)
            await meter.set_level(voltage_v=level_v)
        assert (bench.instrument.limit_a, bench.instrument.level_v) == (limit_a, level_v)

    asyncio.run(run())


@pytest.mark.parametrize("expected", [ExpectedIdentity(serial="7654321"), ExpectedIdentity(model="2450")])
async def test_a_wrong_identity_is_refused_and_nothing_touched(expected: ExpectedIdentity) -> None:
    bench = Bench()
    bench.run("smua.source.levelv = 1.5 smua.source.output = 1")
    driver = bench.driver(expected=expected)
    with pytest.raises(IdentityError, match="1234567"):
        await driver.open()
    await driver.close()
    assert bench.said == [*UNFINISHED, "*IDN?"]
    assert (bench.instrument.output_on, bench.instrument.level_v) == (True, 1.5)


async def test_another_model_and_a_channel_that_is_not_there_are_refused() -> None:
    bench = Bench(answers={"*IDN?": "KEITHLEY INSTRUMENTS INC.,MODEL 2400,1234567,C30"})
    with pytest.raises(IdentityError, match="MODEL 2400"):
        await bench.driver().open()
    single = Bench(model="2601B")
    with pytest.raises(StateError, match="2601B at memory:handler has no channel 'smub'"):
        await Keithley2600(single.link, channel="b").open()
    assert single.link.state is LinkState.CLOSED


async def test_an_output_that_was_left_on_is_left_and_can_be_switched_off() -> None:
    bench = Bench()
    bench.run("smua.source.limiti = 1 smua.source.levelv = 0.2 smua.source.output = 1")
    async with bench.driver() as meter:
        assert await meter.output_is_on()
        with pytest.raises(StateError, match="output is on"):
            await meter.configure(source="voltage")
    assert (bench.instrument.output_on, bench.instrument.level_v) == (True, 0.2)
    async with bench.driver() as meter:
        await meter.output_off()
    assert (bench.instrument.output_on, bench.instrument.level_v) == (False, 0.0)


async def test_limits_of_the_model_are_checked_before_anything_is_sent() -> None:
    for model, level_v, limit_a in (("2602B", 41.0, 3.1), ("2636B", 203.0, 1.6)):
        bench = Bench(model=model)
        async with bench.driver() as meter:
            await meter.configure(source="voltage")
            bench.said.clear()
            with pytest.raises(SafetyError):
                await meter.set_limit(current_a=limit_a)
            await meter.set_limit(current_a=1e-3)
            with pytest.raises(SafetyError):
                await meter.set_level(voltage_v=level_v)
            assert bench.settings_said() == ["smua.source.limiti = 0.001"]


async def test_the_order_is_enforced() -> None:
    bench = Bench()
    async with bench.driver() as driver:
        await driver.configure(source="voltage")
        with pytest.raises(StateError, match="limit"):
            await driver.set_level(voltage_v=0.1)
        with pytest.raises(StateError, match="limit and level"):
            await driver.output_on()
        await driver.set_limit(current_a=1e-3)
        await driver.set_level(voltage_v=0.1)
        with pytest.raises(StateError, match="output is off"):
            await driver.measure()
    assert READ not in bench.said


async def test_ranges_are_fixed_and_automatic_again() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        await meter.configure(source="current")
        bench.said.clear()
        await meter.set_ranges(current_a=1e-3)
        await meter.set_ranges(voltage_v=2.0)
    assert bench.settings_said()[1:3] == ["smua.source.rangei = 0.001", "smua.measure.autorangev = smua.AUTORANGE_ON"]
    assert bench.settings_said()[4:6] == ["smua.source.autorangei = smua.AUTORANGE_ON", "smua.measure.rangev = 2.0"]


async def test_currents_are_sourced_swept_and_ramped() -> None:
    bench = Bench()
    driver = bench.driver()
    await driver.open()
    await driver.configure(source="current")
    await driver.set_limit(voltage_v=2.0)
    await driver.set_level(current_a=4e-9)
    await driver.output_on()
    await driver.set_level(current_a=1e-3)
    assert (await driver.measure()).voltage_v == pytest.approx(1.0)
    levels = [1e-3 + 5e-5 * index for index in range(30)]
    swept = await driver.sweep(current_a=levels)
    assert "loadandrunscript" in bench.said
    assert [one.current_a for one in swept[:21]] == pytest.approx(levels[:21])
    assert [one.in_compliance for one in swept] == [level > 2e-3 for level in levels]
    bench.said.clear()
    await driver.close()
    assert len([line for line in bench.said if line.startswith("smua.source.leveli = ")]) == 20
    assert not bench.instrument.output_on


@pytest.mark.parametrize(
    ("answer", "current_a"), [("1.0\t9.9e+37\tfalse\t2.0", math.inf), ("1.0\t-9.90000e+37\tfalse\t2.0", -math.inf)]
)
async def test_beyond_the_range_is_infinite(answer: str, current_a: float) -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[READ] = answer
    assert (await driver.measure()).current_a == current_a
    await driver.close()


@pytest.mark.parametrize(
    "answer",
    ["1.0\t1.0\tfalse", "1.0\tnil\tfalse\t0", "1.0\t9.91e+37\tfalse\t0", "1\t1\t2\t0", "", "nan\t1\ttrue\t0", "\xff"],
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


@pytest.mark.parametrize("answer", [b"#0" + bytes(96) + b"X", b"#0" + bytes(95) + b"\n\n\n", b"1.0, 2.0\n", None])
async def test_a_buffer_that_is_no_block_is_refused(answer: bytes | None) -> None:
    bench = Bench()
    driver = bench.driver(ramp_step_v=0.0625)
    await ready(bench, driver, level_v=0.0625)
    bench.answers[SWEEP[-1]] = answer
    with pytest.raises((ProtocolError, LinkTimeoutError)):
        await driver.sweep(voltage_v=[0.0625, 0.125, 0.1875])
    bench.answers.clear()
    assert (await driver.measure()).voltage_v == 0.1875
    await driver.close()


async def test_the_instruments_own_refusals_are_reported_together() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        await meter.configure(source="voltage")
        await meter.set_limit(current_a=1e-3)
        bench.run("smua.source.rangev = 1")
        with pytest.raises(InstrumentError, match="Value too big for range") as caught:
            await meter.set_level(voltage_v=10.0)
        assert (caught.value.code, caught.value.command) == (5005, "smua.source.levelv = 10.0")
        bench.run("no lua")
        bench.run("x.y = 1")
        assert [code for code, _ in await meter.errors()] == [-285, -286]
        assert await meter.errors() == []


@pytest.mark.parametrize("answer", ["", "1", "1\t5005", "2\t1\ta\t2", "1\tx\ta", "0\t5\ttext", "1\t1\ta\t2\tb"])
async def test_an_answer_that_is_no_error_queue_is_refused(answer: str) -> None:
    bench = Bench()
    async with bench.driver() as meter:
        bench.answers["errors?"] = answer
        with pytest.raises(ProtocolError):
            await meter.errors()


async def test_a_script_that_a_killed_host_left_half_sent_is_ended_unrun() -> None:
    bench = Bench()
    bench.run("loadandrunscript")
    bench.run("smua.source.levelv = 1.5")
    async with bench.driver() as driver:
        assert not await driver.output_is_on()
        assert await driver.errors() == []
    assert float(bench.run("print(smua.source.levelv)")) == 0.0


async def test_after_a_timeout_scripts_are_aborted_and_the_identity_comes_first() -> None:
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
    assert bench.said == [*RECOVERED, "print(smua.source.output)", READ]
    await driver.close()


async def test_a_setting_without_confirmation_is_not_repeated() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers["errors?"] = None
    with pytest.raises(LinkTimeoutError):
        await driver.set_limit(current_a=2e-3)
    del bench.answers["errors?"]
    assert (await driver.measure()).voltage_v == 0.1
    assert Counter(bench.said)["smua.source.limiti = 0.002"] == 1
    await driver.close()


async def test_a_question_may_be_asked_again_after_its_link_failed() -> None:
    bench = Bench()
    driver = Keithley2600(bench.link, ramp_v_per_s=1e6, reconnect=Reconnect(attempts=2, first_pause_s=0.001))
    await driver.open()
    asked = "print(smua.source.output)"
    bench.answers[asked] = None
    task = asyncio.create_task(driver.output_is_on())
    while asked not in bench.said:  # noqa: ASYNC110 - the link has no event for it
        await asyncio.sleep(0)
    del bench.answers[asked]
    assert await task is False
    assert Counter(bench.said)[asked] == 2
    await driver.close()


async def test_another_instrument_after_a_timeout_is_refused() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[READ] = None
    with pytest.raises(LinkTimeoutError):
        await driver.measure()
    bench.answers["*IDN?"] = IDN.replace("1234567", "9999999")
    with pytest.raises(IdentityError, match="9999999"):
        await driver.measure()
    with pytest.raises(StateError, match="press OUTPUT OFF"):
        await driver.close()


async def test_answers_of_before_do_not_pass_for_recovery() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers[READ] = None
    with pytest.raises(LinkTimeoutError):
        await driver.measure()
    bench.answers.update({f"print('labrig {number}')": IDN for number in range(1, 4)})
    with pytest.raises(LinkDesyncedError, match="off and on"):
        await driver.measure()
    bench.answers.clear()
    assert (await driver.measure()).voltage_v == 0.1
    await driver.close()


async def test_an_output_that_stays_on_is_a_persons_business() -> None:
    bench = Bench()
    driver = bench.driver()
    await ready(bench, driver)
    bench.answers["smua.source.output = 0"] = None
    with pytest.raises(StateError, match="still on; press OUTPUT OFF"):
        await driver.output_off()
    assert Counter(bench.said)["smua.source.output = 0"] == 2
    bench.answers.clear()
    await driver.close()
    assert not bench.instrument.output_on


async def test_the_interlock_is_asked_for() -> None:
    bench = Bench()
    async with bench.driver() as meter:
        assert await meter.interlock_closed()
        bench.instrument.interlock_closed = False
        assert not await meter.interlock_closed()


async def test_two_channels_share_one_link() -> None:
    bench = Bench()
    link = SharedLink(bench.link)
    meters = [Keithley2600(link, channel=name, ramp_v_per_s=1e6, name=name) for name in ("a", "b")]
    await asyncio.gather(*(meter.open() for meter in meters))
    for meter, level_v in zip(meters, (0.25, 0.5), strict=True):
        await meter.configure(source="voltage")
        await meter.set_limit(current_a=1e-3)
        await meter.set_level(voltage_v=level_v)
        await meter.output_on()
    readings = await asyncio.gather(*(meter.measure() for meter in meters))
    assert [reading.voltage_v for reading in readings] == [0.25, 0.5]
    await meters[0].close()
    assert not bench.instrument.channels["a"].output_on
    # The first one's close left the connection to the second.
    assert (await meters[1].measure()).voltage_v == 0.5
    await meters[1].close()
    assert not bench.instrument.channels["b"].output_on
    assert link.state is LinkState.CLOSED


async def test_a_fault_of_one_channel_is_mended_for_both() -> None:
    bench = Bench()
    link = SharedLink(bench.link)
    a, b = Keithley2600(link, channel="a", ramp_v_per_s=1e6), Keithley2600(link, channel="b", ramp_v_per_s=1e6)
    async with a, b:
        bench.answers["print(smua.source.output)"] = None
        with pytest.raises(LinkTimeoutError):
            await a.output_is_on()
        bench.said.clear()
        assert not await b.output_is_on()
        assert bench.said == [*RECOVERED, "print(smub.source.output)"]
        bench.answers.clear()
        assert not await a.output_is_on()
        assert bench.said[len(RECOVERED) + 1 :] == ["print(smua.source.output)"]


def settings_of(settings: dict[str, object]) -> Callable[[], Keithley2600]:
    return lambda: Keithley2600.from_settings(Bench().link, ExpectedIdentity(), "gate", settings=settings)


async def test_a_rig_file_makes_one() -> None:
    bench = Bench()
    settings = {"channel": "b", "host_loss_s": 10}
    driver = Keithley2600.from_settings(bench.link, ExpectedIdentity(), "gate", settings=settings, ramp_v_per_s=2.0)
    async with driver:
        assert "armed with the output (10 s)" in driver.host_loss_protection.text
        await driver.output_is_on()
    assert bench.said[-1] == "print(smub.source.output)"
    with pytest.raises(StateError, match="gate: not open"):
        await driver.measure()
    async with settings_of({})() as quiet:
        assert quiet.host_loss_protection.silence_s is None
        assert "host_loss_s" in quiet.host_loss_protection.text


def test_bad_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of({"channel": "c", "host_loss_s": -1, "colour": "red"})()
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        f"source_meters.gate.settings.{key}" for key in ("channel", "host_loss_s", "colour")
    ]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="neither 'a' nor 'b'"):
        Keithley2600(Bench().link, channel="c")  # type: ignore[arg-type]
    for host_loss_s in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive"):
            Keithley2600(Bench().link, host_loss_s=host_loss_s)
