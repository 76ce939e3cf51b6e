"""The simulated Keithley 2600 does what the manual says, refuses what it refuses, and keeps scripts in."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

import pytest

from labrig_drivers.errors import ConfigError
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent


class Instrument:
    """A simulated instrument that is spoken to line by line; a script is stepped when the test says so."""

    def __init__(self, model: str = "2602B", load_ohm: float = 1000.0) -> None:
        self.events: list[OutputEvent] = []
        self.now_s = 100.0
        self.simulated = SimulatedKeithley2600(
            ResistorLoad(load_ohm), model=model, log=self.events.append, clock=lambda: self.now_s
        )
        self.waited_s = 0.0

    def say(self, *lines: str) -> str:
        """Runs lines to their end and returns what they printed."""
        return self.say_bytes(*lines).decode("ascii")

    def say_bytes(self, *lines: str) -> bytes:
        printed = b""
        for line in lines:
            run = self.simulated.run(line)
            while True:
                try:
                    self._wait(next(run))
                except StopIteration as end:
                    printed += end.value or b""
                    break
            for pause_s in self.simulated.take_operation() or ():
                self._wait(pause_s)
        return printed

    def errors(self) -> list[tuple[int, str]]:
        """Empties the error queue."""
        found: list[tuple[int, str]] = []
        while True:
            code, text, severity, node = self.say("print(errorqueue.next())").strip().split("\t")
            if float(code) == 0.0:
                assert text == "Queue Is Empty"
                return found
            assert (float(severity), float(node)) == (20.0, 1.0)
            found.append((int(float(code)), text))

    def _wait(self, seconds: float) -> None:
        self.waited_s += seconds
        self.now_s += seconds


def test_identity_and_common_commands() -> None:
    instrument = Instrument()
    assert instrument.say("*IDN?") == "Keithley Instruments Inc., Model 2602B, 1234567, 3.4.2\n"
    assert instrument.say("print(localnode.model, localnode.serialno)") == "2602B\t1234567\n"
    assert instrument.say("*OPC?") == "1\n"
    assert instrument.say("nonsense here", "*CLS") == ""
    assert instrument.errors() == []


def test_numbers_are_printed_with_six_digits_until_more_are_asked_for() -> None:
    instrument = Instrument()
    assert instrument.say("print(1101, 2.5, true, false, nil, 'text')") == (
        "1.10100e+03\t2.50000e+00\ttrue\tfalse\tnil\ttext\n"
    )
    assert instrument.say("format.asciiprecision = 16", "print(0.1)") == "1.000000000000000e-01\n"
    assert instrument.say("printnumber(1, 2)") == "1.000000000000000e+00, 2.000000000000000e+00\n"
    instrument.say("format.asciiprecision = 17")
    assert instrument.errors() == [(1101, "Parameter too big")]


def test_settings_read_back_exactly() -> None:
    instrument = Instrument()
    instrument.say("format.asciiprecision = 16", "smua.source.limiti = 1e-9", "smua.source.levelv = 1.2345678")
    assert instrument.say("print(smua.source.limiti, smua.source.levelv)") == (
        "1.000000000000000e-09\t1.234567800000000e+00\n"
    )
    instrument.say("smua.source.rangev = 2", "smua.measure.rangei = 1e-6")
    assert instrument.say("print(smua.source.rangev == 6, smua.measure.rangei == 1e-6)") == "true\ttrue\n"
    assert instrument.say("print(smua.source.autorangev, smua.measure.autorangev)")[:11] == "0.000000000"
    assert instrument.errors() == []


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (":SOUR:VOLT 1", -285),
        ("smua.source.levelv =", -285),
        ("*NONSENSE", -285),
        ("print(#{1, 2})", -285),
        ("print(7 % 2)", -285),
        ("smux.source.levelv = 1", -286),
        ("smua.source.nothing = 1", -286),
        ("smua.source.compliance = true", -286),
        ("error('mine')", -286),
        ("while true do end", -286),
        ("smua.source.levelv = 'high'", -104),
        ("smua.source.levelv = 100", 1101),
        ("smua.source.levelv = -100", 1102),
        ("smua.source.levelv = 0 / 0", 1102),
        ("smua.source.limiti = 0", 1102),
        ("smua.measure.nplc = 30", 1101),
        ("smua.source.output = 0.5", -220),
        ("smua.source.rangev = 1 smua.source.levelv = 5", 5005),
        ("printbuffer(1, 1, smua.nvbuffer1.readings)", 4900),
        ("smua.measure.iv(smub.nvbuffer1)", 5033),
        ("delay(-1)", 1102),
    ],
)
def test_faults_are_noted_with_the_instruments_numbers(line: str, code: int) -> None:
    instrument = Instrument()
    assert instrument.say(line) == ""
    ((noted, text),) = instrument.errors()
    assert noted == code
    assert text.startswith("TSP ") == (code in {-285, -286})
    assert instrument.say("print(smua.source.levelv, smua.source.output)") == "0.00000e+00\t0.00000e+00\n"


def test_a_refused_parameter_does_not_end_a_script_but_a_runtime_error_does() -> None:
    instrument = Instrument()
    assert instrument.say("smua.source.levelv = 100 print('goes on')") == "goes on\n"
    assert instrument.say("print('before') smux.x = 1 print('after')") == "before\n"
    assert [code for code, _ in instrument.errors()] == [1101, -286]


def test_a_script_sees_nothing_of_this_machine() -> None:
    instrument = Instrument()
    names = ["os", "io", "require", "debug", "python", "package", "loadstring", "dofile", "getmetatable", "rawget"]
    assert instrument.say(f"print({', '.join(names)})") == "\t".join(["nil"] * len(names)) + "\n"
    kinds = "do local n = 0 for _, v in pairs(_G) do if type(v) == 'userdata' then n = n + 1 end end print(n) end"
    assert instrument.say(kinds) == "0.00000e+00\n"
    # Functions of the instrument are functions of Lua, which have no attributes.
    instrument.say("print(delay.__globals__)")
    assert instrument.errors()[0][0] == -286


def test_lua_5_0_has_no_newer_functions() -> None:
    instrument = Instrument()
    assert instrument.say("print(string.match, string.gmatch, select, table.maxn, math.fmod)") == (
        "nil\tnil\tnil\tnil\tnil\n"
    )
    assert instrument.say("print(table.getn({1, 2}), math.mod(7, 2), '#% in a text') -- # and % in a comment") == (
        "2.00000e+00\t1.00000e+00\t#% in a text\n"
    )
    assert instrument.errors() == []


def test_sourcing_and_measuring_take_their_time() -> None:
    instrument = Instrument()
    instrument.say("smua.source.limiti = 1e-3", "smua.source.levelv = 0.5", "smua.source.output = 1")
    instrument.say("smua.measure.nplc = 5")
    assert instrument.say("print(smua.measure.iv())") == "5.00000e-04\t5.00000e-01\n"
    assert instrument.waited_s == pytest.approx(0.1)
    assert instrument.say("print(smua.source.compliance)") == "false\n"
    instrument.say("smua.source.limiti = 1e-4")
    assert instrument.say("print(smua.source.compliance, smua.measure.v())") == "true\t1.00000e-01\n"
    assert instrument.say("print(status.measurement.instrument.smua.condition == 2048 + 2)") == "true\n"
    assert [(event.output_on, event.voltage_v, event.instrument) for event in instrument.events[-2:]] == [
        (True, 0.5, "1234567:a"),
        (True, 0.5, "1234567:a"),
    ]


def test_currents_are_sourced_up_to_the_voltage_limit() -> None:
    instrument = Instrument()
    instrument.say("smua.source.func = smua.OUTPUT_DCAMPS", "smua.source.limitv = 2", "smua.source.leveli = 1e-3")
    instrument.say("smua.source.output = smua.OUTPUT_ON")
    assert instrument.say("print(smua.measure.iv())") == "1.00000e-03\t1.00000e+00\n"
    instrument.say("smua.source.leveli = 5e-3")
    assert instrument.say("print(smua.measure.v(), smua.source.compliance)") == "2.00000e+00\ttrue\n"


def test_one_channel_is_reset_alone() -> None:
    instrument = Instrument()
    instrument.say("smua.source.levelv = 1", "smub.source.levelv = 2", "smua.source.output = 1", "smua.reset()")
    assert instrument.say("print(smua.source.levelv, smua.source.output, smub.source.levelv)") == (
        "0.00000e+00\t0.00000e+00\t2.00000e+00\n"
    )
    instrument.say("reset()")
    assert instrument.say("print(smub.source.levelv)") == "0.00000e+00\n"


@pytest.mark.parametrize(("model", "largest_v", "has_b"), [("2601B", 40.4, False), ("2636B", 202.0, True)])
def test_models_differ(model: str, largest_v: float, has_b: bool) -> None:
    instrument = Instrument(model)
    instrument.say(f"smua.source.levelv = {largest_v}")
    assert instrument.errors() == []
    instrument.say(f"smua.source.levelv = {1.01 * largest_v}")
    assert [code for code, _ in instrument.errors()] == [1101]
    assert instrument.say("print(smub ~= nil)") == f"{str(has_b).lower()}\n"


@pytest.mark.parametrize(("model", "code"), [("2612B", 802), ("2602B", 5041)])
def test_an_open_interlock_keeps_the_output_off(model: str, code: int) -> None:
    instrument = Instrument(model)
    instrument.say("smua.source.outputenableaction = smua.OE_OUTPUT_OFF", "smua.source.output = 1")
    assert instrument.simulated.output_on
    instrument.simulated.interlock_closed = False
    assert not instrument.simulated.output_on
    instrument.say("smua.source.output = 1")
    assert [found for found, _ in instrument.errors()] == [code]
    assert instrument.say("print(status.measurement.instrument.smua.condition)") == "0.00000e+00\n"
    instrument.simulated.interlock_closed = True
    instrument.say("smua.source.output = 1")
    assert instrument.simulated.output_on


def test_buffers_keep_readings_stamps_and_compliance() -> None:
    instrument = Instrument()
    instrument.say("smua.source.limiti = 2e-4", "smua.source.output = 1", "smua.sense = smua.SENSE_REMOTE")
    for buffer in ("smua.nvbuffer1", "smua.nvbuffer2"):
        instrument.say(f"{buffer}.clear()", f"{buffer}.appendmode = 1", f"{buffer}.collecttimestamps = 1")
    instrument.say("for i = 1, 3 do smua.source.levelv = 0.1 * i smua.measure.iv(smua.nvbuffer1, smua.nvbuffer2) end")
    assert instrument.say("print(smua.nvbuffer1.n, smua.nvbuffer1.readings[2])") == "3.00000e+00\t2.00000e-04\n"
    assert instrument.say("printbuffer(2, 3, smua.nvbuffer2.readings, smua.nvbuffer2)") == (
        "2.00000e-01, 2.00000e-01, 2.00000e-01, 2.00000e-01\n"
    )
    instrument.say("format.data = format.REAL64")
    data = instrument.say_bytes("printbuffer(1, 3, smua.nvbuffer1.statuses, smua.nvbuffer1.timestamps)")
    assert (data[:2], data[-1:], len(data)) == (b"#0", b"\n", 2 + 6 * 8 + 1)
    values = struct.unpack("<6d", data[2:-1])
    assert values[::2] == (16.0, 16.0, 80.0)
    assert values[1::2] == pytest.approx((0.0, 0.02, 0.04))
    instrument.say("format.data = format.REAL32", "format.byteorder = format.BIGENDIAN")
    assert instrument.say_bytes("printnumber(1.5, 2)") == b"#0" + struct.pack(">2f", 1.5, 2.0) + b"\n"
    instrument.say("smua.nvbuffer1.collecttimestamps = 0")
    assert [code for code, _ in instrument.errors()] == [5032]


def test_without_append_mode_only_the_last_reading_stays() -> None:
    instrument = Instrument()
    instrument.say("smua.measure.v(smua.nvbuffer1)", "smua.measure.v(smua.nvbuffer1)")
    assert instrument.say("print(smua.nvbuffer1.n)") == "1.00000e+00\n"


def test_scripts_are_collected_and_run() -> None:
    instrument = Instrument()
    assert instrument.say("loadandrunscript", "x = 1", "-- # is a comment", "x = x + 1", "endscript") == ""
    assert instrument.say("print(x)") == "2.00000e+00\n"
    instrument.say("loadscript mine", "x = x + 10", "endscript")
    assert instrument.say("print(x)", "mine()", "mine.run()", "print(x)") == "2.00000e+00\n2.20000e+01\n"
    instrument.say("loadandrunscript", "y = 1", "y = y y", "endscript")
    ((code, text),) = instrument.errors()
    assert (code, text[:28]) == (-285, "TSP Syntax error at line 2: ")


def test_the_timer_counts_from_its_reset() -> None:
    instrument = Instrument()
    instrument.say("timer.reset()", "delay(1.5)", "beeper.beep(0.5, 440)")
    assert instrument.say("print(timer.measure.t())") == "2.00000e+00\n"


def steps(instrument: Instrument, line: str) -> Iterator[float]:
    """The pauses of a line that becomes an operation."""
    instrument.say_bytes("print('before')")
    run = instrument.simulated.run(line)
    assert list(run) == []
    operation = instrument.simulated.take_operation()
    assert operation is not None
    return operation


def test_a_waiting_script_takes_a_trigger_before_its_turn() -> None:
    instrument = Instrument()
    operation = steps(instrument, "answer = trigger.wait(1)")
    assert sum(next(operation) for _ in range(10)) < 1.0
    assert not instrument.simulated.is_abort("*TRG")
    assert list(operation) == []
    # The same line comes in its turn, and is taken already.
    assert instrument.say("*TRG", "print(answer)") == "true\n"
    assert sum(steps(instrument, "answer = trigger.wait(1)")) == pytest.approx(1.0)
    assert instrument.say("print(answer)") == "false\n"


def test_a_trigger_of_before_is_remembered_until_it_is_cleared() -> None:
    instrument = Instrument()
    assert instrument.say("*TRG", "print(trigger.wait(1))") == "true\n"
    instrument.say("*TRG", "trigger.clear()")
    assert sum(steps(instrument, "trigger.wait(0.5)")) == pytest.approx(0.5)


def test_an_aborted_script_leaves_the_level_where_it_is() -> None:
    instrument = Instrument()
    instrument.say("loadandrunscript", "for i = 1, 9 do smua.source.levelv = i delay(1) end")
    assert list(instrument.simulated.run("endscript")) == []
    operation = instrument.simulated.take_operation()
    assert operation is not None
    assert [next(operation) for _ in range(3)] == [1.0, 1.0, 1.0]
    assert instrument.simulated.is_abort("abort")
    operation.close()
    assert instrument.simulated.level_v == 3.0
    assert instrument.say("abort", "print(1)") == "1.00000e+00\n"
    assert instrument.errors() == []


async def test_it_is_served_like_every_instrument() -> None:
    async with InstrumentServer(SimulatedKeithley2600(ResistorLoad(1000.0))) as server:
        assert server.instrument.output_on is False
        assert server.port > 0


def test_without_lupa_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lupa.lua51", None)
    with pytest.raises(ConfigError, match=r"pip install 'labrig\[simulated-tsp\]'"):
        SimulatedKeithley2600(ResistorLoad(1.0))
