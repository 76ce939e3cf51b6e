"""The simulated matrix understands channel lists as mainframes do, wears, sticks, and survives anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.switch_matrix import SimulatedSwitchMatrix, SwitchEvent


def ask(instrument: SimulatedSwitchMatrix, line: str) -> str | None:
    answer = run_at_once(instrument, line)
    assert answer is None or isinstance(answer, str)
    return answer


@pytest.mark.parametrize(
    ("line", "closed"),
    [
        (":ROUT:CLOS (@1101)", {(1, 1)}),
        ("route:close (@ 1101 , 1204 )", {(1, 1), (2, 4)}),
        (":ROUTe:MULTiple:CLOSe (@1102:1103,1201)", {(1, 2), (1, 3), (2, 1)}),
        (":ROUT:CLOS (@1104:1202)", {(1, 4), (2, 1), (2, 2)}),
        (":ROUT:CLOS (@1101,1102);OPEN (@1101)", {(1, 2)}),
        (":ROUT:CLOS (@1101);:ROUT:OPEN:ALL", set()),
        (":ROUT:CLOS (@1101);*RST", set()),
    ],
)
def test_channel_lists(line: str, closed: set[tuple[int, int]]) -> None:
    instrument = SimulatedSwitchMatrix(2, 4)
    ask(instrument, line)
    assert instrument.closed == closed
    assert ask(instrument, ":SYST:ERR?") == '0,"No error"'


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (":ROUT:CLOS", -109),
        (":ROUT:CLOS 1101", -171),
        (":ROUT:CLOS (@)", -171),
        (":ROUT:CLOS (@1101", -171),
        (":ROUT:CLOS (@1101,)", -171),
        (":ROUT:CLOS (@1101:1102:1103)", -171),
        (":ROUT:CLOS (@1101,1105)", -222),
        (":ROUT:CLOS (@1301)", -222),
        (":ROUT:CLOS (@1102:1101)", -222),
        (":ROUT:CLOSE:EVERYTHING", -113),
    ],
)
def test_a_bad_list_changes_nothing(line: str, code: int) -> None:
    instrument = SimulatedSwitchMatrix(2, 4)
    assert ask(instrument, line) is None
    answer = ask(instrument, ":SYST:ERR?")
    assert answer is not None
    assert int(answer.split(",")[0]) == code
    assert instrument.closed == frozenset()


def test_relays_take_time_and_conduct_after_it() -> None:
    instrument = SimulatedSwitchMatrix(2, 4, operate_s=3e-3)
    run = instrument.run(":ROUT:CLOS (@1101)")
    assert next(run) == 3e-3
    assert instrument.closed == frozenset()
    with pytest.raises(StopIteration):
        next(run)
    assert instrument.closed == {(1, 1)}


def test_life_counters_and_log_count_what_moved() -> None:
    events: list[SwitchEvent] = []
    instrument = SimulatedSwitchMatrix(2, 4, serial="S", clock=lambda: 7.0, log=events.append)
    for _ in range(3):
        ask(instrument, ":ROUT:CLOS (@1101,1204)")
        ask(instrument, ":ROUT:CLOS (@1101)")
        ask(instrument, ":ROUT:OPEN (@1101)")
    assert ask(instrument, ":DIAG:REL:CYCL? (@1101,1102,1204)") == "+3,+0,+1"
    assert len(events) == 7
    assert events[0] == SwitchEvent(7.0, "S", 1, 1, closed=True, cycles=1)


@pytest.mark.parametrize(("reads_contacts", "shown"), [(True, "1,0"), (False, "0,1")])
def test_stuck_relays_stay_and_show_only_where_contacts_are_read(*, reads_contacts: bool, shown: str) -> None:
    instrument = SimulatedSwitchMatrix(2, 4, reads_contacts=reads_contacts)
    instrument.stick((1, 1), closed=True)
    instrument.stick((1, 2), closed=False)
    ask(instrument, ":ROUT:CLOS (@1102)")
    ask(instrument, ":ROUT:OPEN (@1101)")
    assert instrument.closed == {(1, 1)}
    assert ask(instrument, ":ROUT:CLOS? (@1101,1102)") == shown


@given(st.lists(st.text(alphabet=":;*?,. ()@'\"ROUTCLOSPEN1234e+-\t\0é²", max_size=40), max_size=10))
def test_garbage_never_stops_it(garbage: list[str]) -> None:
    instrument = SimulatedSwitchMatrix(2, 4)
    for line in garbage:
        run_at_once(instrument, line)
    answer = ask(instrument, "*IDN?")
    assert answer is not None
    assert answer.startswith("Agilent Technologies,34980A,")
