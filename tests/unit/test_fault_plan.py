"""What happens to bytes on one way through a fault proxy, step by step and without a socket."""

from __future__ import annotations

import pytest

from labrig.testing.fault_lane import (
    End,
    EndKind,
    FaultLane,
    Freeze,
    LaneCount,
    Send,
    Step,
    Wait,
    cut_frames,
    cut_lines,
    cut_pieces,
)
from labrig.testing.fault_plan import (
    CLEAN,
    TEXT_LINE_MENU,
    TEXT_MENU,
    Fault,
    FaultMenu,
    FaultPlan,
    Injected,
    PlannedFault,
    checked_menu,
)
from labrig_drivers.board_messages import Ping
from labrig_drivers.board_protocol import encode


def steps_for(plan: FaultPlan, *pieces: bytes, end: bool = False) -> list[Step]:
    """What a lane of answers does with these pieces, one after another."""
    lane, count = FaultLane("answers", cut_lines, 1, lambda _: None), LaneCount()
    steps = [step for piece in pieces for step in lane.feed(piece, plan, count)]
    return [*steps, *lane.finish(plan, count)] if end else steps


def faulty(fault: Fault, **numbers: object) -> FaultPlan:
    return FaultPlan.of(PlannedFault(fault, message=1, **numbers))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        (CLEAN, [Send(b"one\ntwo\nsix\n")]),
        (faulty(Fault.DROP), [Send(b"one\nsix\n")]),
        (faulty(Fault.DROP, offset=1, count=1), [Send(b"one\nto\nsix\n")]),
        (faulty(Fault.DELAY, duration_s=2.0), [Send(b"one\n"), Wait(2.0), Send(b"two\nsix\n")]),
        (faulty(Fault.DUPLICATE), [Send(b"one\ntwo\ntwo\nsix\n")]),
        (faulty(Fault.DUPLICATE, duration_s=1.0), [Send(b"one\ntwo\n"), Wait(1.0), Send(b"two\nsix\n")]),
        (faulty(Fault.SPLIT, offset=2), [Send(b"one\ntw"), Wait(0.0), Send(b"o\n"), Wait(0.0), Send(b"six\n")]),
        (faulty(Fault.MERGE, duration_s=1.0), [Send(b"one\ntwo\nsix\n")]),
        (faulty(Fault.SWAP), [Send(b"one\nsix\ntwo\n")]),
        (faulty(Fault.GARBAGE, offset=3, data=b"#"), [Send(b"one\ntwo#\nsix\n")]),
        (faulty(Fault.CORRUPT, offset=1, data=b"\x80"), [Send(b"one\nt\xf7o\nsix\n")]),
        (faulty(Fault.NOTICE, data=b"hot\n"), [Send(b"one\nhot\ntwo\nsix\n")]),
        (faulty(Fault.STALE), [Send(b"one\none\ntwo\nsix\n")]),
        (faulty(Fault.HALF_CLOSE), [Send(b"one\ntwo\n"), End(EndKind.HALF_CLOSE), Send(b"six\n")]),
        (faulty(Fault.FREEZE, duration_s=3.0), [Send(b"one\n"), Freeze(3.0), Send(b"two\nsix\n")]),
        (faulty(Fault.RESET), [Send(b"one\n"), End(EndKind.RESET), Send(b"six\n")]),
        (faulty(Fault.CUT, offset=2), [Send(b"one\ntw"), End(EndKind.CUT), Send(b"six\n")]),
        (faulty(Fault.REFUSE, duration_s=1.0), [Send(b"one\n"), End(EndKind.RESET, 1.0), Send(b"six\n")]),
    ],
    ids=lambda value: value.script[0].fault.value if isinstance(value, FaultPlan) and value.script else "",
)
def test_each_fault(plan: FaultPlan, steps: list[Step]) -> None:
    assert steps_for(plan, b"one\ntwo\nsix\n") == steps


def test_an_offset_of_zero_splits_at_every_byte() -> None:
    sent = steps_for(FaultPlan.of(PlannedFault(Fault.SPLIT, message=0)), b"one\n")
    assert [step.data for step in sent if isinstance(step, Send)] == [b"o", b"n", b"e", b"\n"]
    assert sum(isinstance(step, Wait) for step in sent) == 4


def test_without_a_fault_parts_of_a_message_pass_as_they_come() -> None:
    pieces = [b"on", b"e\nt", b"w", b"o\n"]
    assert steps_for(CLEAN, *pieces) == [Send(piece) for piece in pieces]


def test_a_message_that_may_be_hit_waits_until_it_is_whole() -> None:
    plan = faulty(Fault.CORRUPT, data=b"\x01")
    assert steps_for(plan, b"on", b"e\nt", b"w", b"o\n") == [Send(b"on"), Send(b"e\n"), Send(b"uwo\n")]


def test_what_is_left_at_the_end_is_a_message_too() -> None:
    end = End(EndKind.HALF_CLOSE)
    assert steps_for(faulty(Fault.DROP), b"one\ntw", end=True) == [Send(b"one\n"), end]
    assert steps_for(faulty(Fault.MERGE), b"one\ntwo\n", end=True) == [Send(b"one\n"), Send(b"two\n"), end]


def test_a_held_message_is_released_when_no_other_comes() -> None:
    lane, count = FaultLane("answers", cut_lines, 1, lambda _: None), LaneCount()
    plan = FaultPlan.of(PlannedFault(Fault.SWAP, message=0, duration_s=0.5))
    assert lane.feed(b"one\n", plan, count) == []
    assert lane.patience_s == 0.5
    assert lane.release() == [Send(b"one\n")]
    assert lane.patience_s is None


@pytest.mark.parametrize("byte", range(12))
def test_a_fault_at_a_byte_is_in_the_message_that_holds_it(byte: int) -> None:
    plan = FaultPlan.of(PlannedFault(Fault.CORRUPT, byte=byte, data=b"\x80"))
    whole = b"one\ntwo\nsix\n"
    expected = bytearray(whole)
    expected[byte] ^= 0x80
    assert steps_for(plan, whole) == [Send(bytes(expected))]


@pytest.mark.parametrize("byte", range(1, 12))
def test_a_cut_at_a_byte(byte: int) -> None:
    steps = steps_for(FaultPlan.of(PlannedFault(Fault.CUT, byte=byte)), b"one\ntwo\nsix\n")
    assert steps[:2] == [Send(b"one\ntwo\nsix\n"[:byte]), End(EndKind.CUT)]


def test_messages_end_where_the_protocol_says() -> None:
    frame = encode(Ping(5), 1)
    assert cut_frames(bytearray(frame[:-1])) == 0
    assert cut_frames(bytearray(frame + frame)) == len(frame)
    assert cut_frames(bytearray(b"no frame at all")) == 15
    assert cut_lines(bytearray(b"a\nb")) == 2
    assert cut_lines(bytearray(b"ab")) == 0
    assert cut_pieces(bytearray(b"a\nb")) == 3


def everything_injected(plan: FaultPlan, messages: int) -> list[Injected]:
    injected: list[Injected] = []
    lane, count = FaultLane("answers", cut_lines, 1, injected.append), LaneCount()
    for number in range(messages):
        lane.feed(b"%d\n" % number, plan, count)
    return injected


def test_random_faults_are_those_of_their_seed() -> None:
    plan = FaultPlan.random(1, 0.1)
    injected = everything_injected(plan, 2000)
    assert 150 < len(injected) < 250
    assert everything_injected(plan, 2000) == injected
    assert everything_injected(FaultPlan.random(2, 0.1), 2000) != injected
    assert {one.planned.fault for one in injected} == set(TEXT_MENU.answers)


def test_what_was_injected_can_be_replayed() -> None:
    injected = everything_injected(FaultPlan.random(3, 0.05), 500)
    assert injected
    assert everything_injected(FaultPlan.replay(injected), 500) == injected


def test_a_fault_is_written_as_in_a_script() -> None:
    planned = PlannedFault(Fault.GARBAGE, "requests", message=3, offset=2, data=b"\xff")
    assert str(planned) == "PlannedFault(Fault.GARBAGE, 'requests', message=3, offset=2, data=b'\\xff')"
    assert eval(str(planned)) == planned
    assert "seed 7" in str(FaultPlan.random(7, 0.1))


def test_faults_of_a_text_protocol_can_all_be_told() -> None:
    """Nothing that looks like another answer: damage leaves ASCII, and nothing is lost or repeated by halves."""
    for one in everything_injected(FaultPlan.random(5, 1.0), 3000):
        planned = one.planned
        if planned.fault in {Fault.GARBAGE, Fault.CORRUPT}:
            assert min(planned.data) >= 0x80
        if planned.fault is Fault.DROP:
            assert planned.count == 0
        if planned.fault is Fault.DUPLICATE:
            assert planned.duration_s == 0.0


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({}, "either"),
        ({"message": 1, "byte": 1}, "either"),
        ({"message": -1}, "count from 0"),
        ({"message": 0, "duration_s": -1.0}, "count from 0"),
    ],
)
def test_a_fault_without_a_place_is_refused(numbers: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PlannedFault(Fault.DROP, **numbers)  # type: ignore[arg-type]


def test_plans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="data are needed"):
        PlannedFault(Fault.GARBAGE, message=0)
    with pytest.raises(ValueError, match="no probability"):
        FaultPlan.random(0, 1.5)
    with pytest.raises(ValueError, match="text to send"):
        FaultMenu((), (Fault.NOTICE,))
    with pytest.raises(ValueError, match="positive"):
        FaultMenu((), (Fault.DELAY,), durations_s=(0.0,))


def test_menus() -> None:
    assert set(checked_menu(b"x").answers) == set(Fault)
    assert not {Fault.RESET, Fault.CUT, Fault.REFUSE, Fault.HALF_CLOSE} & set(TEXT_LINE_MENU.answers)
    assert Fault.DUPLICATE not in TEXT_MENU.requests
