"""The simulated Keithley 2400 understands SCPI as the instrument does, obeys physics, and survives anything."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import DiodeLoad, Load, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent


@dataclass
class Clock:
    """Moves by hand."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class RecordingLoad:
    """Remembers what it was asked and told."""

    windows: list[tuple[float, float]] = field(default_factory=list)
    supplies: list[tuple[float, float]] = field(default_factory=list)

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:
        self.windows.append((start_s, stop_s))
        return voltage_v / 1000.0

    def supply_changed(self, voltage_v: float, time_s: float) -> None:
        self.supplies.append((voltage_v, time_s))


def ask(instrument: SimulatedKeithley2400, line: str) -> str | None:
    """Runs a line without waiting."""
    run = instrument.run(line)
    while True:
        try:
            next(run)
        except StopIteration as end:
            answer: str | None = end.value
            return answer


def make(load: Load | None = None) -> SimulatedKeithley2400:
    return SimulatedKeithley2400(load or ResistorLoad(1000.0), clock=Clock())


def sourcing(load: Load, level_v: float, limit_a: float) -> SimulatedKeithley2400:
    instrument = make(load)
    for line in (f":SENS:CURR:PROT {limit_a!r}", f":SOUR:VOLT:LEV {level_v!r}", ":FORM:ELEM VOLT,CURR,STAT", ":OUTP 1"):
        ask(instrument, line)
    assert ask(instrument, ":SYST:ERR?") == '0,"No error"'
    return instrument


def read(instrument: SimulatedKeithley2400) -> list[float]:
    """Voltage, current and status of one reading."""
    answer = ask(instrument, ":READ?")
    assert answer is not None
    return [float(text) for text in answer.split(",")]


@pytest.mark.parametrize(
    "header",
    [
        ":SOUR:VOLT:LEV",
        ":SOUR:VOLT",
        ":SOURCE:VOLTAGE:LEVEL:IMMEDIATE:AMPLITUDE",
        "sour1:volt:lev:imm",
        ":Source1:Voltage:Level1",
    ],
)
def test_headers_have_a_long_and_a_short_form(header: str) -> None:
    instrument = make()
    assert ask(instrument, f"{header} 1.5") is None
    assert ask(instrument, f"{header}?") == "1.5"


@pytest.mark.parametrize(
    "header", [":SOURC:VOLT", ":SOUR:VOLTA", ":SOUR2:VOLT", "SOUR", ":LEV", "::", "?", "*IDN", "*RST?"]
)
def test_other_headers_are_undefined(header: str) -> None:
    instrument = make()
    assert ask(instrument, header) is None
    assert ask(instrument, ":SYST:ERR?") == '-113,"Undefined header"'
    assert ask(instrument, ":SYST:ERR?") == '0,"No error"'


def test_units_of_one_line_share_the_path() -> None:
    instrument = make()
    assert ask(instrument, ":SOUR:VOLT:LEV 2;MODE FIX;*OPC?;LEV?;:SENS:CURR:PROT?") == "1;2.0;0.000105"


def test_a_fault_ends_its_line() -> None:
    instrument = make()
    assert ask(instrument, "*OPC?;:NONSENSE;:OUTP 1") == "1"
    assert not instrument.output_on


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (":SOUR:VOLT:LEV 211", -222),
        (":SOUR:VOLT:LEV nan", -222),
        (":SOUR:VOLT:LEV inf", -222),
        (":SENS:CURR:PROT 0", -222),
        (":SENS:CURR:PROT 2", -222),
        (":SENS:CURR:NPLC 11", -222),
        (":SOUR:VOLT:LEV", -109),
        (":SOUR:VOLT:LEV abc", -104),
        (":OUTP MAYBE", -104),
        (":SOUR:FUNC MEM", -224),
        (":READ?", 803),
    ],
)
def test_bad_parameters_are_refused_and_change_nothing(line: str, code: int) -> None:
    instrument = make()
    assert ask(instrument, line) is None
    answer = ask(instrument, ":SYST:ERR?")
    assert answer is not None
    assert int(answer.split(",")[0]) == code
    assert (instrument.output_on, instrument.level_v, instrument.limit_a) == (False, 0.0, 1.05e-4)


def test_the_error_queue_overflows_into_its_newest_entry() -> None:
    instrument = make()
    for _ in range(12):
        ask(instrument, "NONSENSE")
    answers = [ask(instrument, ":SYST:ERR?") for _ in range(11)]
    assert answers[:9] == ['-113,"Undefined header"'] * 9
    assert answers[9:] == ['-350,"Queue overflow"', '0,"No error"']


def test_event_status_and_clear() -> None:
    instrument = make()
    assert ask(instrument, "*ESR?") == "128"
    ask(instrument, "NONSENSE")
    ask(instrument, ":SOUR:VOLT:LEV 1000")
    ask(instrument, ":READ?")
    assert ask(instrument, "*ESR?") == str(32 + 16 + 8)
    assert ask(instrument, "*ESR?") == "0"
    ask(instrument, "*CLS")
    assert ask(instrument, ":SYST:ERR?") == '0,"No error"'


def test_a_fixed_range_limits_the_level() -> None:
    instrument = make()
    ask(instrument, ":SOUR:VOLT:RANG 2")
    ask(instrument, ":SOUR:VOLT:LEV 3")
    assert ask(instrument, ":SYST:ERR?") == '-222,"Parameter data out of range"'
    ask(instrument, ":SOUR:VOLT:RANG:AUTO ON")
    ask(instrument, ":SOUR:VOLT:LEV 3")
    assert instrument.level_v == 3.0


@given(st.floats(-210.0, 210.0), st.floats(1e-9, 1.05))
def test_settings_read_back_bit_for_bit(level_v: float, limit_a: float) -> None:
    instrument = make()
    ask(instrument, f":SOUR:VOLT:LEV {level_v!r}")
    ask(instrument, f":SENS:CURR:PROT {limit_a!r}")
    assert float(ask(instrument, ":SOUR:VOLT:LEV?") or "") == level_v
    assert float(ask(instrument, ":SENS:CURR:PROT?") or "") == limit_a


def test_a_resistor_obeys_ohm() -> None:
    assert read(sourcing(ResistorLoad(1e6), 1.2345678, 0.1)) == [1.234568, 1.234568e-6, 0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_compliance_holds_the_current_and_finds_the_voltage(sign: float) -> None:
    instrument = sourcing(ResistorLoad(1000.0), sign * 5.0, 1e-3)
    voltage_v, current_a, status = read(instrument)
    assert (voltage_v, current_a, status) == (sign * 1.0, sign * 1e-3, 8)
    assert ask(instrument, ":SENS:CURR:PROT:TRIP?") == "1"
    ask(instrument, f":SOUR:VOLT:LEV {sign * 0.5}")
    assert ask(instrument, ":SENS:CURR:PROT:TRIP?") == "0"


def test_a_diode_in_compliance_sits_at_its_forward_voltage() -> None:
    voltage_v, current_a, status = read(sourcing(DiodeLoad(1e-12, 1.5), 5.0, 1e-3))
    assert voltage_v == pytest.approx(1.5 * 0.025852 * math.log(1e9 + 1.0), rel=1e-6)
    assert (current_a, status) == (1e-3, 8)
    assert read(sourcing(DiodeLoad(1e-12, 1.5), -5.0, 1e-3)) == [-5.0, -1e-12, 0]


@pytest.mark.parametrize(("level_a", "voltage_v", "current_a", "tripped"), [(1e-3, 1.0, 1e-3, 0), (1.0, 2.0, 2e-3, 8)])
def test_a_current_source_is_limited_in_voltage(
    level_a: float, voltage_v: float, current_a: float, tripped: int
) -> None:
    instrument = make()
    for line in (
        ":SOUR:FUNC CURR",
        ":SENS:VOLT:PROT 2",
        f":SOUR:CURR:LEV {level_a}",
        ":FORM:ELEM VOLT,CURR,STAT",
        ":OUTP 1",
    ):
        ask(instrument, line)
    assert read(instrument) == [voltage_v, current_a, tripped]


def test_a_reading_lasts_its_power_line_cycles_and_averages_over_them() -> None:
    load, clock = RecordingLoad(), Clock()
    instrument = SimulatedKeithley2400(load, clock=clock, line_frequency_hz=60.0)
    for line in (":SENS:CURR:NPLC 3", ":SENS:CURR:PROT 1", ":SOUR:VOLT:LEV 1", ":OUTP 1"):
        ask(instrument, line)
    run = instrument.run(":READ?")
    assert next(run) == pytest.approx(3 / 60.0)
    clock.now_s += 0.075
    with pytest.raises(StopIteration) as end:
        next(run)
    assert load.windows[-1] == (100.0, clock.now_s)
    assert str(end.value.value).split(",")[3] == f"{0.075:+.6E}"


def test_the_load_and_the_log_hear_of_every_change() -> None:
    load, clock, events = RecordingLoad(), Clock(), list[OutputEvent]()
    instrument = SimulatedKeithley2400(load, serial="S1", clock=clock, log=events.append)
    for line in (
        ":SENS:CURR:PROT 0.5",
        ":SOUR:VOLT:LEV 1",
        ":OUTP 1",
        ":SOUR:VOLT:LEV 2",
        ":OUTP 0",
        ":OUTP 1",
        "*RST",
    ):
        ask(instrument, line)
        clock.now_s += 1.0
    assert [voltage_v for voltage_v, _ in load.supplies] == [0.0, 0.0, 1.0, 2.0, 0.0, 2.0, 0.0]
    assert load.supplies[-1] == (0.0, 106.0)
    assert events[3] == OutputEvent(103.0, "S1", output_on=True, voltage_v=2.0, current_limit_a=0.5)
    assert [event.output_on for event in events] == [False, False, True, True, False, True, False]


def test_what_a_sweep_ended_at_is_no_level_of_another_source_function() -> None:
    events: list[OutputEvent] = []
    instrument = SimulatedKeithley2400(ResistorLoad(1000.0), clock=Clock(), log=events.append)
    lines = [":SOUR:FUNC VOLT", ":SOUR:VOLT:MODE LIST", ":SOUR:LIST:VOLT 0.1,0.2", ":TRIG:COUN 2", ":OUTP 1"]
    for line in lines:
        ask(instrument, line)
    assert ask(instrument, ":READ?")
    ask(instrument, ":SOUR:FUNC CURR")
    ask(instrument, ":OUTP 1")
    assert ask(instrument, ":SYST:ERR?") == '0,"No error"'
    assert events[-1].output_on
    assert events[-1].voltage_v == pytest.approx(0.0, abs=1e-12)


def test_another_source_function_switches_the_output_off() -> None:
    instrument = sourcing(ResistorLoad(1000.0), 1.0, 0.1)
    ask(instrument, ":SOUR:FUNC VOLT")
    assert instrument.output_on
    ask(instrument, ":SOUR:FUNC CURR")
    assert not instrument.output_on


@given(st.lists(st.text(alphabet=":;*?,. \"'[]()\\ abcOUTPREADSOURVOLT019eE+-\t\0é", max_size=40), max_size=10))
def test_garbage_never_stops_it(garbage: list[str]) -> None:
    instrument = make()
    for line in garbage:
        ask(instrument, line)
    answer = ask(instrument, "*IDN?")
    assert answer is not None
    assert answer.startswith("KEITHLEY INSTRUMENTS INC.,MODEL 2400,1234567,")
