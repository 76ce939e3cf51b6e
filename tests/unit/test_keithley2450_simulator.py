"""The simulated Keithley 2450 understands SCPI as its manual says, with its traps, obeys physics, survives anything."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.keithley2450 import SimulatedKeithley2450
from labrig_drivers.mock.loads import DiodeLoad, Load, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent

NO_ERROR = '0,"No error;0;0 0"'


@dataclass
class Clock:
    """Moves by hand."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(load: Load | None = None) -> SimulatedKeithley2450:
    return SimulatedKeithley2450(load or ResistorLoad(1000.0), clock=Clock())


def tell(instrument: SimulatedKeithley2450, *lines: str) -> None:
    """Sends settings that must be accepted."""
    for line in lines:
        assert run_at_once(instrument, line) is None, line
        assert run_at_once(instrument, ":SYST:ERR?") == NO_ERROR, line


def ask(instrument: SimulatedKeithley2450, line: str) -> str:
    answer = run_at_once(instrument, line)
    assert isinstance(answer, str), line
    return answer


def error_of(instrument: SimulatedKeithley2450, line: str) -> int:
    """Sends a line that must be refused and returns the number of its error."""
    assert run_at_once(instrument, line) is None
    code = int(ask(instrument, ":SYST:ERR?").split(",")[0])
    assert ask(instrument, ":SYST:ERR?") == NO_ERROR
    return code


def sourcing(load: Load, level_v: float, limit_a: float) -> SimulatedKeithley2450:
    instrument = make(load)
    tell(instrument, f":SOUR:VOLT:ILIM {limit_a!r}", f":SOUR:VOLT {level_v!r}", ":OUTP 1")
    return instrument


def read(instrument: SimulatedKeithley2450) -> list[float]:
    """Source value, reading and source status."""
    return [float(text) for text in ask(instrument, ':READ? "defbuffer1",SOUR,READ,SOURSTAT').split(",")]


@pytest.mark.parametrize(
    "header",
    [":SOUR:VOLT", ":SOURCE1:VOLTAGE:LEVEL:IMMEDIATE:AMPLITUDE", "sour:volt:lev", "Source:Voltage:Level:Imm"],
)
def test_headers_have_a_long_and_a_short_form(header: str) -> None:
    instrument = make()
    tell(instrument, f"{header} 1.5")
    assert ask(instrument, f"{header}?") == "1.5"


@pytest.mark.parametrize(
    ("setting", "query", "answer"),
    [
        ("SENS:CURR:NPLC 0.5", ":CURR:NPLC?", "0.5"),
        ("CURR:DC:RSEN ON", ":SENSe1:CURRent:RSENse?", "1"),
        ('SENS:FUNC "VOLT"', "FUNC?", '"VOLT:DC"'),
        (":SOUR:CURR:VLIM 0.02", ":SOURCE:CURRENT:VLIMIT:LEVEL?", "0.02"),
        (":SOUR:VOLT:READ:BACK OFF", ":SOUR:VOLT:READ:BACK?", "0"),
        (":FORM:ASC:PREC 16", ":FORMAT:ASCII:PRECISION?", "16"),
        (":SOUR:VOLT:RANG 3", ":SOUR:VOLT:RANG?", "20.0"),
        (":SENS:CURR:RANG 2e-6", ":SENS:CURR:RANG:UPP?", "1e-05"),
    ],
)
def test_settings_read_back(setting: str, query: str, answer: str) -> None:
    instrument = make()
    tell(instrument, setting)
    assert ask(instrument, query) == answer


@given(st.floats(-210.0, 210.0), st.floats(1e-9, 1.05))
def test_level_and_limit_read_back_bit_for_bit(level_v: float, limit_a: float) -> None:
    instrument = make()
    tell(instrument, f":SOUR:VOLT {level_v!r}", f":SOUR:VOLT:ILIM {limit_a!r}")
    assert float(ask(instrument, ":SOUR:VOLT?")) == level_v
    assert float(ask(instrument, ":SOUR:VOLT:ILIM?")) == limit_a


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (":SOUR:VOLT:MODE FIX", -113),  # the 2400's
        (":SENS:CURR:PROT 1", -113),
        (":TRAC:POIN:ACT?", -113),
        (":SOUR:VOLT 211", -222),
        (":SOUR:VOLT:RANG 210", -222),
        (":SOUR:VOLT:ILIM 9e-10", -222),
        (":SOUR:VOLT nan", -222),
        (":SOUR:VOLT", -109),
        (":OUTP MAYBE", -104),
        (':SENS:FUNC "VOLT","CURR"', -224),
        (':READ? "nobuffer"', -224),
        (':READ? "defbuffer1",CURR', 1133),
        (':TRAC:DATA? 1,1,"defbuffer1",READ', -230),
        (":TRIG:BLOC:DEL:CONS 1,1e-8", -222),
        (':TRIG:BLOC:CONF:REC 1,"NoList"', 2790),
        (":SOUR:SWE:VOLT:LIST 1", 2790),
        (":SOUR:SWE:VOLT:LIN 0,1,3,x", -104),
        (":SOUR:LIST:VOLT " + ",".join(["0"] * 101), -223),
        (":INIT", 2730),
    ],
)
def test_what_it_does_not_know_or_take_is_refused_and_changes_nothing(line: str, code: int) -> None:
    instrument = make()
    assert error_of(instrument, line) == code
    assert (instrument.output_on, instrument.level_v, instrument.limit_a) == (False, 0.0, 1.05e-4)


def test_errors_carry_their_type_and_time_and_end_with_no_error() -> None:
    instrument = make()
    run_at_once(instrument, "NONSENSE")
    answer = ask(instrument, ":SYST:ERR?")
    assert re.fullmatch(r'-113,"Undefined header;1;\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3}"', answer)
    assert ask(instrument, ":SYSTEM:ERROR:NEXT?") == NO_ERROR


def test_a_resistor_obeys_ohm_and_the_status_says_that_the_output_is_on() -> None:
    assert read(sourcing(ResistorLoad(1e6), 1.2345678, 0.1)) == [1.234568, 1.234568e-6, 128]


def test_with_the_output_off_it_measures_zero_volts_and_says_so() -> None:
    instrument = make()
    tell(instrument, ":SOUR:VOLT 5")
    assert read(instrument) == [0.0, 0.0, 0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_compliance_holds_the_current_and_marks_the_reading(sign: float) -> None:
    instrument = sourcing(ResistorLoad(1000.0), sign * 5.0, 1e-3)
    assert read(instrument) == [sign * 1.0, sign * 1e-3, 128 + 32]
    assert ask(instrument, ":SOUR:VOLT:ILIM:TRIP?") == "1"
    tell(instrument, f":SOUR:VOLT {sign * 0.5}")
    assert read(instrument)[2] == 128
    assert ask(instrument, ":SOUR:VOLT:ILIM:LEV:TRIP?") == "0"


def test_a_diode_in_compliance_sits_at_its_forward_voltage() -> None:
    voltage_v, current_a, status = read(sourcing(DiodeLoad(1e-12, 1.5), 5.0, 1e-3))
    assert voltage_v == pytest.approx(1.5 * 0.025852 * math.log(1e9 + 1.0), rel=1e-6)
    assert (current_a, status) == (1e-3, 160)


def test_a_current_source_is_limited_in_voltage() -> None:
    instrument = make()
    tell(instrument, ":SOUR:FUNC CURR", ':SENS:FUNC "VOLT"', ":SOUR:CURR:VLIM 2", ":SOUR:CURR 1e-3", ":OUTP 1")
    assert read(instrument) == [1e-3, 1.0, 128]
    tell(instrument, ":SOUR:CURR 1")
    assert read(instrument) == [2e-3, 2.0, 160]
    assert ask(instrument, ":SOUR:CURR:VLIM:TRIP?") == "1"


def test_without_readback_the_source_value_is_what_was_set() -> None:
    instrument = sourcing(ResistorLoad(1000.0), 5.0, 1e-3)
    tell(instrument, ":SOUR:VOLT:READ:BACK 0")
    assert read(instrument)[:2] == [5.0, 1e-3]


def test_beyond_a_fixed_measuring_range_it_reads_overflow() -> None:
    instrument = sourcing(ResistorLoad(1000.0), -1.0, 0.1)
    tell(instrument, ":SENS:CURR:RANG 1e-4")
    assert read(instrument)[1] == -9.9e37
    tell(instrument, ":SENS:CURR:RANG:AUTO 1")
    assert read(instrument)[1] == -1e-3


def test_ranges_bound_levels_and_limits() -> None:
    instrument = make()
    tell(instrument, ":SOUR:VOLT:RANG 2", ":SOUR:VOLT 2.1", ":SENS:CURR:RANG 1e-3", ":SOUR:VOLT:ILIM 1.1e-6")
    assert error_of(instrument, ":SOUR:VOLT 2.2") == -222
    assert error_of(instrument, ":SOUR:VOLT:ILIM 1e-6") == -221
    assert (instrument.level_v, instrument.limit_a) == (2.1, 1.1e-6)


def test_an_open_interlock_keeps_the_output_below_21_volts() -> None:
    instrument = make()
    instrument.interlock_closed = False
    assert ask(instrument, ":OUTP:INT:TRIP?") == "0"
    tell(instrument, ":SOUR:VOLT 30")
    assert error_of(instrument, ":OUTP 1") == 802
    assert not instrument.output_on
    tell(instrument, ":SOUR:VOLT 20", ":OUTP 1")
    assert error_of(instrument, ":SOUR:VOLT 30") == 802
    assert instrument.level_v == 20.0
    instrument.interlock_closed = True
    assert ask(instrument, ":OUTP:INT:TRIP?") == "1"
    tell(instrument, ":SOUR:VOLT 30")


@pytest.mark.parametrize("line", [":SOUR:FUNC CURR", ":SENS:CURR:RSEN 1", "*RST"])
def test_another_function_or_wiring_switches_the_output_off(line: str) -> None:
    instrument = sourcing(ResistorLoad(1000.0), 1.0, 0.1)
    tell(instrument, ":SOUR:FUNC VOLT", ":SENS:CURR:RSEN 0")
    assert instrument.output_on
    tell(instrument, line)
    assert not instrument.output_on


@pytest.mark.parametrize("language", ["TSP", "SCPI2400"])
def test_in_another_command_set_only_common_commands_are_answered(language: str) -> None:
    instrument = SimulatedKeithley2450(ResistorLoad(1.0), language=language)
    assert ask(instrument, "*LANG?") == language
    assert ask(instrument, "*IDN?").split(",")[1] == "MODEL 2450"
    assert run_at_once(instrument, "*LANG SCPI") is None
    # It takes a power cycle.
    assert ask(instrument, "*LANG?") == language
    assert run_at_once(instrument, ":SYST:ERR?") is None


def test_times_count_from_the_first_reading_of_the_buffer() -> None:
    clock = Clock()
    instrument = SimulatedKeithley2450(ResistorLoad(1000.0), clock=clock, line_frequency_hz=60.0)
    tell(instrument, ":SENS:CURR:NPLC 3")
    run = instrument.run(':READ? "defbuffer1",REL')
    assert next(run) == pytest.approx(3 / 60.0)
    clock.now_s += 0.075
    with pytest.raises(StopIteration) as end:
        next(run)
    assert end.value.value == "0.000000E+00"
    clock.now_s += 1.0
    assert float(ask(instrument, ':READ? "defbuffer1",REL')) == pytest.approx(1.05)
    assert ask(instrument, ':TRAC:ACT? "defbuffer1"') == "2"
    tell(instrument, ':TRAC:CLE "defbuffer1"')
    assert float(ask(instrument, ":READ? 'defbuffer1',REL")) == 0.0


def test_a_full_buffer_loses_its_oldest_reading() -> None:
    instrument = sourcing(ResistorLoad(1.0), 0.0, 1.0)
    tell(instrument, ':TRAC:POIN 10,"defbuffer1"')
    for step in range(12):
        tell(instrument, f":SOUR:VOLT {step * 0.01!r}")
        read(instrument)
    assert ask(instrument, ":TRAC:ACT?") == "10"
    assert float(ask(instrument, ':TRAC:DATA? 1,1,"defbuffer1",SOUR')) == 0.02


@pytest.mark.parametrize(("border", "mark"), [("NORM", ">"), ("SWAP", "<")])
@pytest.mark.parametrize(("form", "letter"), [("REAL", "d"), ("SRE", "f")])
def test_binary_answers_have_no_length_and_few_elements(border: str, mark: str, form: str, letter: str) -> None:
    instrument = sourcing(ResistorLoad(1000.0), 2.0, 0.1)
    tell(instrument, f":FORM:DATA {form}", f":FORM:BORD {border}")
    answer = run_at_once(instrument, ':READ? "defbuffer1",SOUR,READ')
    values = struct.pack(f"{mark}2{letter}", 2.0, 2e-3)
    assert answer == b"#0" + values + b"\n"
    for element in ("SOURSTAT", "STAT"):
        assert error_of(instrument, f':READ? "defbuffer1",READ,{element}') == 1133


@pytest.mark.parametrize("sweep", [":SOUR:SWE:VOLT:LIN 0,1,3,0,1,AUTO", ":SOUR:SWE:VOLT:LIST 1"])
def test_its_own_sweeps_end_with_the_output_off(sweep: str) -> None:
    events: list[OutputEvent] = []
    instrument = SimulatedKeithley2450(ResistorLoad(1000.0), log=events.append)
    tell(instrument, ":SOUR:VOLT:ILIM 0.1", ":SOUR:LIST:VOLT 0,0.5", ":SOUR:LIST:VOLT:APP 1")
    assert ask(instrument, ":SOUR:LIST:VOLT:POIN?") == "3"
    tell(instrument, sweep, ":INIT")
    found = ask(instrument, ':TRAC:DATA? 1,3,"defbuffer1",SOUR,READ,SOURSTAT').split(", ")
    assert [float(text) for text in found] == [0.0, 0.0, 128, 0.5, 5e-4, 128, 1.0, 1e-3, 128]
    assert not instrument.output_on
    assert [event.voltage_v for event in events if event.output_on] == [0.0, 0.5, 1.0]


def test_a_dual_sweep_comes_back() -> None:
    instrument = make()
    tell(instrument, ":SOUR:VOLT:ILIM 0.1", ':SOUR:SWE:VOLT:LIN 0,1,3,-1,1,FIX,OFF,ON,"defbuffer2"', ":INIT")
    found = ask(instrument, ':TRAC:DATA? 1,5,"defbuffer2",SOUR').split(", ")
    assert [float(text) for text in found] == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_counters_repeat_blocks_and_may_be_nested() -> None:
    """The example of the manual's buffer-clear block: five readings, three times."""
    instrument = make()
    tell(instrument, ':TRIG:LOAD "EMPTY"', ":TRIG:BLOC:BUFF:CLE 1", ":TRIG:BLOC:MEAS 2", ":TRIG:BLOC:BRAN:COUN 3,5,2")
    tell(instrument, ":TRIG:BLOC:DEL:CONS 4,1", ":TRIG:BLOC:BRAN:COUN 5,3,2", ":INIT")
    assert ask(instrument, ":TRAC:ACT?") == "15"


def test_blocks_switch_the_source_and_recall_around_the_list() -> None:
    events: list[OutputEvent] = []
    instrument = SimulatedKeithley2450(ResistorLoad(1000.0), log=events.append)
    tell(instrument, ":SOUR:LIST:VOLT 0.1,0.2", ':TRIG:BLOC:CONF:NEXT 1,"VoltCustomSweepList"')
    tell(
        instrument,
        ":SOUR:VOLT:ILIM 0.1",
        ":TRIG:BLOC:SOUR:STAT 2,ON",
        ":TRIG:BLOC:MEAS 3",
        ":TRIG:BLOC:BRAN:COUN 4,3,1",
    )
    tell(instrument, ":TRIG:BLOC:BRAN:ALW 5,0", ":TRIG:BLOC:SOUR:STAT 6,OFF", ":INIT")
    assert [event.voltage_v for event in events if event.output_on] == [0.1, 0.2, 0.2, 0.1, 0.1]
    assert instrument.output_on


def test_an_index_beyond_the_list_ends_the_run_with_an_event() -> None:
    instrument = make()
    tell(instrument, ":SOUR:LIST:VOLT 0.1", ':TRIG:BLOC:CONF:REC 1,"VoltCustomSweepList",2')
    assert error_of(instrument, ":INIT") == 2790


@given(st.lists(st.text(alphabet=":;*?,. \"'[]()\\ abcOUTPREADSOURVOLTIGLINSWE019eE+-\t\0é", max_size=40), max_size=10))
def test_garbage_never_stops_it(garbage: list[str]) -> None:
    instrument = make()
    for line in garbage:
        run_at_once(instrument, line)
    assert ask(instrument, "*IDN?").startswith("KEITHLEY INSTRUMENTS,MODEL 2450,04123456,")
