"""The simulated Keysight B2900 understands SCPI as the instrument does, with its traps, and obeys physics."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import DiodeLoad, Load, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent


@dataclass
class Clock:
    """Moves by hand."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(load: Load | None = None, *, two: bool = False) -> SimulatedKeysightB2900:
    return SimulatedKeysightB2900(
        load or ResistorLoad(1000.0), ResistorLoad(500.0) if two else None, clock=Clock(), serial="S1"
    )


def ask(instrument: SimulatedKeysightB2900, line: str) -> str | None:
    """Runs a line, and the sweep that it starts, without waiting; the answer is text."""
    answer = run_at_once(instrument, line)
    assert not isinstance(answer, bytes)
    return answer


def errors(instrument: SimulatedKeysightB2900) -> list[int]:
    """Empties the error queue."""
    found = []
    while not (answer := ask(instrument, ":SYST:ERR?") or "").startswith("+0"):
        found.append(int(answer.split(",")[0]))
    return found


def say(instrument: SimulatedKeysightB2900, *lines: str) -> None:
    """Runs lines that nothing is wrong with."""
    for line in lines:
        assert ask(instrument, line) is None, line
    assert errors(instrument) == []


def sourcing(load: Load, level_v: float, limit_a: float) -> SimulatedKeysightB2900:
    instrument = make(load)
    say(instrument, f":SENS:CURR:PROT {limit_a!r}", f":VOLT {level_v!r}", ":FORM:ELEM:SENS VOLT,CURR,STAT", ":OUTP 1")
    return instrument


def numbers(instrument: SimulatedKeysightB2900, line: str) -> list[float]:
    """An answer in text, as numbers."""
    answer = ask(instrument, line)
    assert answer is not None, line
    return [float(text) for text in answer.split(",")]


@pytest.mark.parametrize(
    "header",
    [
        ":SOUR1:VOLT",
        ":VOLT",
        "sour:volt:lev",
        ":SOURCE1:VOLTAGE:LEVEL:IMMEDIATE:AMPLITUDE",
        ":Source:Voltage:Immediate",
        "VOLT:AMPL",
    ],
)
def test_headers_have_a_long_and_a_short_form(header: str) -> None:
    instrument = make()
    say(instrument, f"{header} 1.5")
    assert ask(instrument, f"{header}?") == "1.5"


@pytest.mark.parametrize("header", [":SOURC:VOLT", ":SOUR1:VOLTA", "SOUR", ":LEV", "::", "*RST?", ":BSOUR:VOLT 1"])
def test_other_headers_are_undefined(header: str) -> None:
    instrument = make()
    assert ask(instrument, header) is None
    assert errors(instrument) == [-113]


def test_no_error_has_a_sign() -> None:
    assert ask(make(), ":SYST:ERR?") == '+0,"No error"'


def test_channels_have_their_own_settings() -> None:
    instrument = make(two=True)
    say(instrument, ":SOUR2:VOLT 2", ":SOUR1:VOLT 1", ":SENS2:CURR:PROT 0.02", ":OUTP2 ON", ":TRIG2:COUN 7")
    assert (ask(instrument, ":SOUR1:VOLT?"), ask(instrument, ":SOUR2:VOLT?")) == ("1.0", "2.0")
    assert (ask(instrument, ":OUTP1?"), ask(instrument, ":OUTP2?")) == ("0", "1")
    assert (ask(instrument, ":TRIG1:COUN?"), ask(instrument, ":TRIG2:COUN?")) == ("1", "7")
    assert ask(instrument, ":SOUR2:VOLT 3;CURR 1E-3;VOLT?;:SOUR:VOLT?") == "3.0;1.0"


@pytest.mark.parametrize("line", [":SOUR2:VOLT 1", ":OUTP2 1", ":IDLE2?", ":SOUR3:VOLT?", "*OPC?;:OUTP2 1"])
def test_a_channel_that_is_not_there_is_an_error(line: str) -> None:
    instrument = make()
    assert ask(instrument, line) is None
    assert errors(instrument) == [-114]


@pytest.mark.parametrize("channels", ["(@2)", "(@1,2)", "(@1:2)", "(@3)", "@1", "(@)", "1"])
def test_a_channel_list_names_channels_that_are_there(channels: str) -> None:
    instrument = make()
    assert ask(instrument, f":MEAS? {channels}") is None
    assert errors(instrument) == [-224]
    assert not instrument.output_on


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (":VOLT 211", -222),
        (":VOLT nan", -222),
        (":CURR 3.1", -222),
        (":SENS:CURR:PROT 0", -222),
        (":SENS:CURR:PROT 4", -222),
        (":VOLT", -109),
        (":VOLT abc", -104),
        (":OUTP MAYBE", -104),
        (":FUNC:MODE RES", -224),
        (":FORM:DATA REAL", -224),
        (":FORM:DATA REAL,16", -224),
        (":TRIG:SOUR BUS", -224),
        (":TRIG:COUN 100001", -222),
        (f":LIST:VOLT {','.join(['0'] * 2501)}", -223),
    ],
)
def test_bad_parameters_are_refused_and_change_nothing(line: str, code: int) -> None:
    instrument = make()
    assert ask(instrument, line) is None
    assert errors(instrument) == [code]
    assert (instrument.output_on, instrument.level_v, instrument.limit_a) == (False, 0.0, 1e-4)


def test_the_integration_time_is_clipped_without_an_error() -> None:
    instrument = make()
    say(instrument, ":SENS:CURR:NPLC 1000")
    assert ask(instrument, ":SENS:VOLT:NPLC?") == "100.0"
    say(instrument, ":SENS:CURR:NPLC 0")
    assert float(ask(instrument, ":SENS:CURR:NPLC?") or "") == pytest.approx(4e-4)


@given(st.floats(-210.0, 210.0), st.floats(1e-12, 3.03))
def test_settings_read_back_bit_for_bit(level_v: float, limit_a: float) -> None:
    instrument = make()
    say(instrument, f":VOLT {level_v!r}", f":SENS:CURR:PROT {limit_a!r}")
    assert float(ask(instrument, ":VOLT?") or "") == level_v
    assert float(ask(instrument, ":SENS:CURR:PROT?") or "") == limit_a


def test_a_resistor_obeys_ohm() -> None:
    assert numbers(sourcing(ResistorLoad(1e6), 1.2345678, 0.1), ":MEAS?") == [1.234568, 1.234568e-6, 0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_compliance_holds_the_current_and_finds_the_voltage(sign: float) -> None:
    instrument = sourcing(ResistorLoad(1000.0), sign * 5.0, 1e-3)
    assert numbers(instrument, ":MEAS? (@1)") == [sign * 1.0, sign * 1e-3, 2]
    assert ask(instrument, ":SENS:CURR:PROT:TRIP?") == "1"
    say(instrument, f":VOLT {sign * 0.5}")
    assert ask(instrument, ":SENS:CURR:PROT:TRIP?") == "0"


def test_a_diode_in_compliance_sits_at_its_forward_voltage() -> None:
    voltage_v, current_a, status = numbers(sourcing(DiodeLoad(1e-12, 1.5), 5.0, 1e-3), ":MEAS?")
    assert voltage_v == pytest.approx(1.5 * 0.025852 * math.log(1e9 + 1.0), rel=1e-6)
    assert (current_a, status) == (1e-3, 2)


@pytest.mark.parametrize(("level_a", "expected"), [(1e-3, [1.0, 1e-3, 1]), (1.0, [2.0, 2e-3, 3])])
def test_a_current_source_is_limited_in_voltage(level_a: float, expected: list[float]) -> None:
    instrument = make()
    say(instrument, ":FUNC:MODE CURR", ":SENS:VOLT:PROT 2", f":CURR {level_a}", ":FORM:ELEM:SENS VOLT,CURR,STAT")
    say(instrument, ":OUTP 1")
    assert numbers(instrument, ":MEAS?") == expected


@pytest.mark.parametrize("line", [":MEAS? (@1)", ":READ? (@1)", ":INIT (@1)"])
def test_a_measurement_switches_the_output_on_unless_told_not_to(line: str) -> None:
    instrument = make()
    ask(instrument, line)
    assert instrument.output_on
    instrument = make()
    say(instrument, ":OUTP1:ON:AUTO 0")
    ask(instrument, line)
    assert not instrument.output_on


def test_measuring_with_the_output_off_gives_no_number() -> None:
    instrument = make()
    say(instrument, ":OUTP:ON:AUTO 0", ":FORM:ELEM:SENS VOLT,CURR")
    assert ask(instrument, ":MEAS?") == "+9.910000E+37,+9.910000E+37"


def test_what_was_not_measured_is_no_number() -> None:
    instrument = sourcing(ResistorLoad(1e3), 1.0, 0.1)
    say(instrument, ":SENS:FUNC:OFF:ALL", ':SENS:FUNC "CURR"')
    assert ask(instrument, ":SENS:FUNC?") == '"CURR"'
    assert ask(instrument, ":MEAS?") == "+9.910000E+37,+1.000000E-03,+0.000000E+00"


def test_beyond_the_measuring_range_is_infinite() -> None:
    instrument = sourcing(ResistorLoad(1e3), -1.0, 0.1)
    say(instrument, ":SENS:CURR:RANG 1E-4")
    assert ask(instrument, ":MEAS?") == f"-1.000000E+00,-9.900000E+37,{8192.0:+.6E}"


def test_the_order_of_elements_is_the_instruments() -> None:
    instrument = sourcing(ResistorLoad(1e3), 1.0, 0.1)
    say(instrument, ":FORM:ELEM:SENS SOUR,STAT,CURR,VOLT")
    assert ask(instrument, ":FORM:ELEM:SENS?") == "VOLT,CURR,STAT,SOUR"
    assert numbers(instrument, ":MEAS?") == [1.0, 1e-3, 0.0, 1.0]


@pytest.mark.parametrize(("order", "code"), [("NORM", ">"), ("SWAP", "<")])
@pytest.mark.parametrize(("bits", "letter"), [(64, "d"), (32, "f")])
def test_blocks_hold_the_same_numbers_as_text(order: str, code: str, bits: int, letter: str) -> None:
    instrument = sourcing(ResistorLoad(1e6), 1.2345678, 0.1)
    say(instrument, f":FORM:DATA REAL,{bits}", f":FORM:BORD {order}")
    answer = run_at_once(instrument, ":MEAS? (@1)")
    assert isinstance(answer, bytes)
    size = bits // 8 * 3
    assert answer[: 2 + len(str(size))] == f"#{len(str(size))}{size}".encode()
    assert answer.endswith(b"\n")
    assert struct.unpack(f"{code}3{letter}", answer[2 + len(str(size)) : -1]) == pytest.approx(
        (1.234568, 1.234568e-6, 0.0), rel=1e-7
    )


def test_a_list_sweep_reads_every_level_in_order() -> None:
    instrument = sourcing(ResistorLoad(1e3), 0.0, 0.1)
    say(instrument, ":LIST:VOLT 0.1,0.3", ":LIST:VOLT:APP -0.2", ":VOLT:MODE LIST", ":TRIG:COUN 3", ":INIT (@1)")
    assert ask(instrument, ":LIST:VOLT:POIN?") == "3"
    assert numbers(instrument, ":FETC:ARR? (@1)") == [0.1, 1e-4, 0, 0.3, 3e-4, 0, -0.2, -2e-4, 0]
    assert numbers(instrument, ":FETC:ARR:SOUR? (@1)") == [0.1, 0.3, -0.2]
    assert numbers(instrument, ":FETC?") == [-0.2, -2e-4, 0]
    say(instrument, ":SENS1:DATA:CLE")
    assert ask(instrument, ":FETC:ARR:VOLT?") == "+9.910000E+37"


@pytest.mark.parametrize(("direction", "expected"), [("UP", [0.0, 0.1, 0.2]), ("DOWN", [0.2, 0.1, 0.0])])
def test_a_staircase_goes_from_start_to_stop(direction: str, expected: list[float]) -> None:
    instrument = sourcing(ResistorLoad(1e3), 0.0, 0.1)
    say(instrument, ":VOLT:STAR 0", ":VOLT:STOP 0.2", ":VOLT:POIN 3", f":SWE:DIR {direction}", ":VOLT:MODE SWE")
    say(instrument, ":TRIG:COUN 3", ":INIT")
    assert numbers(instrument, ":FETC:ARR:VOLT?") == pytest.approx(expected)


@pytest.mark.parametrize(("continuous", "after_v"), [(0, 0.05), (1, 0.3)])
def test_after_a_sweep_the_level_stays_only_where_it_was_asked_to(continuous: int, after_v: float) -> None:
    instrument = sourcing(ResistorLoad(1e3), 0.05, 0.1)
    say(instrument, f":FUNC:TRIG:CONT {continuous}", ":LIST:VOLT 0.1,0.3", ":VOLT:MODE LIST", ":TRIG:COUN 2", ":INIT")
    assert instrument.level_v == after_v
    say(instrument, ":VOLT 0.2")
    assert instrument.level_v == 0.2


def test_a_sweep_takes_delays_and_conversions_and_keeps_its_place_when_aborted() -> None:
    instrument = sourcing(ResistorLoad(1e3), 0.0, 0.1)
    say(instrument, ":FUNC:TRIG:CONT 1", ":LIST:VOLT 0.1,0.2,0.3", ":VOLT:MODE LIST", ":TRIG:COUN 3")
    say(instrument, ":TRIG:ACQ:DEL 0.5", ":SENS:CURR:NPLC 2")
    assert not instrument.is_abort(":ABOR:ALL (@1)")
    assert list(instrument.run(":INIT (@1)")) == []
    sweep = instrument.take_operation()
    assert sweep is not None
    assert instrument.take_operation() is None
    assert [next(sweep) for _ in range(5)] == [0.0, 0.5, 2 / 50.0, 0.0, 0.5]
    assert instrument.is_abort(":ABOR:ALL (@1)")
    assert instrument.is_abort("abort")
    assert not instrument.is_abort(":ABOR:ALL (@2)")
    assert not instrument.is_abort(":OUTP 0")
    sweep.close()
    assert (instrument.level_v, ask(instrument, ":IDLE1:ALL?")) == (0.2, "1")
    assert numbers(instrument, ":FETC:ARR:SOUR?") == [0.1]


def test_stamps_count_from_the_reset_of_the_timer() -> None:
    clock = Clock()
    instrument = SimulatedKeysightB2900(ResistorLoad(1e3), clock=clock)
    say(instrument, ":FORM:ELEM:SENS TIME", ":SENS:CURR:NPLC 1", ":SYST:TIME:TIM:COUN:RES:AUTO 0")
    clock.now_s += 3.0
    assert numbers(instrument, ":MEAS?") == [3.02]
    say(instrument, ":SYST:TIME:TIM:COUN:RES:AUTO 1")
    assert numbers(instrument, ":MEAS?") == [0.02]


def test_protection_switches_off_at_compliance() -> None:
    instrument = sourcing(ResistorLoad(1e3), 0.5, 1e-3)
    say(instrument, ":OUTP:PROT 1")
    assert instrument.output_on
    say(instrument, ":VOLT 1.5")
    assert not instrument.output_on


def test_automatic_off_switches_off_after_a_sweep() -> None:
    instrument = sourcing(ResistorLoad(1e3), 0.5, 1e-3)
    say(instrument, ":OUTP:OFF:AUTO 1", ":INIT")
    assert not instrument.output_on


def test_reset_reaches_both_channels() -> None:
    instrument = make(two=True)
    say(instrument, ":SOUR2:VOLT 2", ":OUTP2 1", ":SENS2:CURR:PROT 1", ":FORM:DATA REAL,64", "*RST")
    assert (ask(instrument, ":OUTP2?"), ask(instrument, ":SOUR2:VOLT?"), ask(instrument, ":FORM?")) == (
        "0",
        "0.0",
        "ASC",
    )
    assert ask(instrument, ":SENS2:CURR:PROT?") == "0.0001"


def test_an_open_interlock_allows_42_v() -> None:
    instrument = sourcing(ResistorLoad(1e6), 42.0, 0.1)
    instrument.interlock_closed = False
    assert ask(instrument, ":SYST:INT:TRIP?") == "1"
    ask(instrument, ":VOLT 43")
    assert (errors(instrument), instrument.level_v) == ([-221], 42.0)
    instrument.interlock_closed = True
    assert ask(instrument, ":SYST:INT:TRIP?") == "0"
    say(instrument, ":VOLT 43")


def test_a_fixed_range_limits_the_level() -> None:
    instrument = make()
    say(instrument, ":VOLT:RANG 2")
    ask(instrument, ":VOLT 3")
    assert errors(instrument) == [-222]
    assert ask(instrument, ":VOLT:RANG:AUTO?") == "0"
    say(instrument, ":VOLT:RANG:AUTO ON", ":VOLT 3")


def test_the_log_names_instrument_and_channel() -> None:
    events: list[OutputEvent] = []
    instrument = SimulatedKeysightB2900(
        ResistorLoad(1e3), ResistorLoad(1e3), serial="S2", log=events.append, clock=Clock()
    )
    say(instrument, ":SENS2:CURR:PROT 0.5", ":SOUR2:VOLT 1", ":OUTP2 1")
    assert events[-1] == OutputEvent(100.0, "S2:2", output_on=True, voltage_v=1.0, current_limit_a=0.5)
    say(instrument, ":FUNC:MODE CURR", ":CURR 1E-3", ":OUTP 1")
    assert events[-1].instrument == "S2:1"
    assert events[-1].voltage_v == pytest.approx(1.0)
    assert events[-1].current_limit_a == 1e-3


def test_two_channels_answer_in_one_line() -> None:
    instrument = make(two=True)
    say(instrument, ":FORM:ELEM:SENS CURR", ":VOLT 0.01", ":SOUR2:VOLT 0.01")
    assert numbers(instrument, ":MEAS? (@1,2)") == [1e-5, 2e-5]
    say(instrument, ":TRIG2:COUN 2", ":INIT (@1:2)")
    assert ask(instrument, ":FETC:ARR? (@2,1)") == "+1.000000E-05,+2.000000E-05,+9.910000E+37,+2.000000E-05"


@given(st.lists(st.text(alphabet=":;*?,. \"'[]()@\\ abcOUTP2READSOURVOLT019eE+-\t\0é", max_size=40), max_size=10))
def test_garbage_never_stops_it(garbage: list[str]) -> None:
    instrument = make()
    for line in garbage:
        instrument.is_abort(line)
        run_at_once(instrument, line)
    assert (ask(instrument, "*IDN?") or "").startswith("Keysight Technologies,B2901A,S1,")
