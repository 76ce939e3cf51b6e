"""Leases, duplicates, and hostile messages: one refusal each, nothing moves, and the service goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_rig import MOCK

from labrig.addresses import BrokerAddress
from labrig.config import parse_rig
from labrig.remote.answered import Answered, Seen
from labrig.remote.bench import ServedBench
from labrig.remote.broker_side import BrokerSide
from labrig.remote.envelope import Assembler, body_bytes, packets, read_body
from labrig.remote.faults import LeaseEndedError
from labrig.remote.leases import Lease, LeaseBook, Place
from labrig.remote.messages import Answer, Request, read_answer
from labrig.remote.notices import Notices
from labrig.remote.service import RigService
from labrig.rig import Rig
from labrig.telemetry.broker import Broker
from labrig_drivers.errors import StateError
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings


def book(lease_s: float = 10.0, longest_queue: int = 2) -> LeaseBook:
    tokens = iter(f"token-{number}" for number in range(100))
    return LeaseBook(lease_s, lambda: next(tokens), longest_queue)


def test_one_holder_and_a_queue_in_the_order_of_asking() -> None:
    leases = book()
    first = leases.ask("a", "ada", 0.0)
    assert isinstance(first, Lease)
    assert leases.ask("b", "bob", 1.0) == Place(0, "ada", 10.0)
    assert leases.ask("c", "cy", 1.0) == Place(1, "ada", 10.0)
    with pytest.raises(StateError, match="2 clients wait"):
        leases.ask("d", "dan", 1.0)
    # Asking again gives the same lease, as the answer may have been lost.
    again = leases.ask("a", "ada", 2.0)
    assert isinstance(again, Lease)
    assert (again.token, again.until_s) == (first.token, 12.0)
    assert leases.end("given back") is not None
    # While the rig is made safe nobody gets it.
    assert leases.ask("b", "bob", 3.0) == Place(0, None, 3.0)
    leases.reopen()
    assert isinstance(leases.ask("c", "cy", 4.0), Place)
    assert isinstance(leases.ask("b", "bob", 4.0), Lease)


def test_who_waits_and_falls_silent_loses_the_place() -> None:
    leases = book(lease_s=5.0)
    leases.ask("a", "ada", 0.0)
    leases.ask("b", "bob", 0.0)
    leases.renew("token-0", 4.0)
    assert not leases.overdue(8.0)
    assert leases.overdue(9.0)
    assert leases.ask("c", "cy", 8.0) == Place(0, "ada", 9.0)


def test_a_lease_that_ended_says_why() -> None:
    leases = book()
    leases.ask("a", "ada", 0.0)
    leases.end("bob took it")
    with pytest.raises(LeaseEndedError, match="bob took it"):
        leases.check("token-0")
    with pytest.raises(LeaseEndedError, match="started again"):
        leases.renew("another", 0.0)
    with pytest.raises(StateError, match="needs a lease"):
        leases.check(None)


def test_answers_are_kept_within_bounds_and_numbers_for_longer() -> None:
    answered = Answered(numbers=10, most_answers=2, most_bytes=100)
    assert answered.begin(0) is None
    assert answered.begin(0) is Seen.RUNNING
    answered.end(0, b"zero")
    assert answered.begin(0) == b"zero"
    for number in range(1, 4):
        assert answered.begin(number) is None
        answered.end(number, bytes(60))
    # The latest is kept even where it is all that fits.
    assert answered.begin(3) == bytes(60)
    assert answered.begin(2) is Seen.FORGOTTEN
    assert answered.begin(0) is Seen.FORGOTTEN
    for number in range(4, 40):
        answered.begin(number)
        answered.end(number, b"")
    assert answered.begin(1) is Seen.FORGOTTEN
    # Turned away, and therefore not seen.
    assert answered.begin(50) is None
    answered.forget(50)
    assert answered.begin(50) is None


@given(st.lists(st.integers(0, 30), max_size=120))
def test_no_number_is_ever_begun_twice(numbers: list[int]) -> None:
    answered = Answered(numbers=8, most_answers=3, most_bytes=50)
    begun = []
    for number in numbers:
        if answered.begin(number) is None:
            begun.append(number)
            answered.end(number, bytes(number))
    assert len(begun) == len(set(begun))


class Watched(MockBoard):
    """A mock that notes whatever drives it."""

    moved = 0

    async def program(self, array: int, conductance_s: object) -> object:  # type: ignore[override]
        self.moved += 1
        return await super().program(array, conductance_s)  # type: ignore[arg-type]

    async def mvm(self, array: int, voltage_v: object) -> object:  # type: ignore[override]
        self.moved += 1
        return await super().mvm(array, voltage_v)  # type: ignore[arg-type]


class Served:
    """A service without a broker: what came goes straight into it."""

    def __init__(self, board: MockBoard) -> None:
        self.board = board
        self.rig = Rig(parse_rig(MOCK, Path("rig.toml")), board, {})
        self.notices = Notices(most_events=10_000)
        self.service = RigService(ServedBench(self.rig), self.notices, lambda _: None)
        broker = Broker(BrokerAddress("127.0.0.1", 1, tls=False))
        self.side = BrokerSide(broker, "labrig/1/lab/bench", self.service, self.notices, lambda _: None)
        self.assembler = Assembler()
        self.sent: list[tuple[str, bytes]] = []

        async def send(reply_to: str, number: int, answer: bytes) -> None:
            self.sent.append((reply_to, answer))

        self.side._send = send  # type: ignore[method-assign]

    def come(self, verb: str, payload: object) -> None:
        class Message:
            topic = f"labrig/1/lab/bench/cmd/{verb}"

        message = Message()
        message.payload = payload  # type: ignore[attr-defined]
        self.side._take(cast("object", message), self.assembler)  # type: ignore[arg-type]

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def refusals(self) -> int:
        events = []
        while (notice := self.notices.take()) is not None:
            events.append(notice)
        told = [json.loads(one.payload) for one in events if one.topic == "event/refused"]
        assert all(one["kind"] == "ProtocolError" and one["text"] for one in told)
        return len(told) + sum(read_answer(read_body(answer)).fault is not None for _, answer in self.sent)


def hostile(run: Callable[[Served], Sequence[tuple[str, object]]]) -> None:
    """Has messages come, and looks that each was refused once, nothing moved, and the service still serves."""

    async def attack() -> None:
        board = Watched(ChipSettings(seed=1, arrays=2, rows=12, columns=9))
        served = Served(board)
        async with served.rig, served.service.running():
            await served.settle()
            served.refusals()
            messages = run(served)
            for verb, payload in messages:
                served.come(verb, payload)
            await served.settle()
            assert served.refusals() == len(messages)
            assert board.moved == 0
            assert all(topic.startswith("labrig/1/lab/bench/reply/") for topic, _ in served.sent)
            served.sent.clear()
            lease = await answer_of(served, Request("acquire", "me", 0, values={"who": "me"}))
            token = str(lease.values["lease"])
            program = Request("program", "me", 1, token, None, "board", {"array": 0}, {"conductance_s": GOOD_S})
            assert (await answer_of(served, program)).values["write_index"] == 0
            assert board.moved == 1

    asyncio.run(attack())


GOOD_S = np.full((12, 9), 2e-5)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


async def answer_of(served: Served, request: Request) -> Answer:
    for packet in packets(request.encoded(), request.number + 1):
        served.come(request.verb, packet)
    for _ in range(1000):
        for _topic, message in served.sent:
            answer = read_answer(read_body(message))
            if answer.number == request.number:
                assert answer.fault is None, answer.fault
                return answer
        await asyncio.sleep(0.001)
    raise AssertionError("no answer")


@given(st.lists(st.one_of(st.binary(max_size=300), st.none()), min_size=1, max_size=8))
@QUICK
def test_bytes_that_mean_nothing_are_refused(payloads: list[bytes | None]) -> None:
    hostile(lambda _: [("mvm", payload) for payload in payloads])


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=6))
@QUICK
def test_packets_around_nonsense_are_refused(bodies: list[bytes]) -> None:
    hostile(lambda _: [("mvm", next(packets(body or b"\0", number))) for number, body in enumerate(bodies)])


VERBS = st.sampled_from(
    ["program", "mvm", "read-conductance", "open", "close", "restore", "let-pass", "output-on", "sweep", "exec", "x"]
)
STRANGE = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-1e9, 1e9), st.just("__class__"))
CONTENT = st.dictionaries(
    st.sampled_from(["conductance_s", "voltage_v", "driven", "array"]),
    st.sampled_from([np.ones((12, 9)), np.zeros((0, 12)), np.ones(3), np.array(1.0), np.ones((2, 12), dtype=np.int16)]),
    max_size=3,
)


@given(
    st.lists(
        st.tuples(VERBS, st.dictionaries(st.sampled_from(["array", "row", "now_s"]), STRANGE), CONTENT),
        min_size=1,
        max_size=6,
    )
)
@QUICK
def test_requests_without_a_lease_are_refused_whatever_they_ask(
    asked: list[tuple[str, dict[str, object], dict[str, np.ndarray]]],
) -> None:
    def messages(_: Served) -> list[tuple[str, object]]:
        made: list[tuple[str, object]] = []
        for number, (verb, values, content) in enumerate(asked):
            request = Request(verb, "eve", number, "guessed", None, "board", values, content)  # type: ignore[arg-type]
            made.append((verb, next(packets(request.encoded(), number + 1))))
        return made

    hostile(messages)


@given(
    st.lists(
        st.tuples(VERBS, st.dictionaries(st.sampled_from(["array", "row", "now_s"]), STRANGE), CONTENT), max_size=6
    )
)
@QUICK
def test_a_holder_that_asks_nonsense_gets_one_answer_each_and_spoils_nothing(
    asked: list[tuple[str, dict[str, object], dict[str, np.ndarray]]],
) -> None:
    async def nonsense() -> None:
        served = Served(MockBoard(ChipSettings(seed=1, arrays=2, rows=12, columns=9)))
        async with served.rig, served.service.running():
            lease = await answer_of(served, Request("acquire", "me", 0, values={"who": "me"}))
            token = str(lease.values["lease"])
            for number, (verb, values, content) in enumerate(asked, start=1):
                name = "board" if number % 3 else "no-such-thing"
                request = Request(verb, "me", number, token, None, name, values, content)  # type: ignore[arg-type]
                served.come(verb, next(packets(request.encoded(), number)))
            async with asyncio.timeout(10.0):
                while len(served.sent) < len(asked) + 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            answers = [read_answer(read_body(message)) for _, message in served.sent]
            assert sorted(one.number for one in answers) == list(range(len(asked) + 1))
            bugs = [one.fault.text for one in answers if one.fault is not None and "bug there" in one.fault.text]
            assert bugs == []
            await answer_of(served, Request("open", "me", 1000, token, None, "board"))
            program = Request("program", "me", 1001, token, None, "board", {"array": 1}, {"conductance_s": GOOD_S})
            assert "write_index" in (await answer_of(served, program)).values

    asyncio.run(nonsense())


def test_a_verb_under_the_topic_of_another_is_refused() -> None:
    request = Request("stop", "eve", 0, values={"reason": "r"})
    hostile(lambda _: [("hello", next(packets(request.encoded(), 1)))])


def test_a_lease_is_of_no_use_to_another_client() -> None:
    async def steal() -> None:
        served = Served(MockBoard(ChipSettings(seed=1, arrays=2, rows=12, columns=9)))
        async with served.rig, served.service.running():
            lease = await answer_of(served, Request("acquire", "me", 0, values={"who": "me"}))
            stolen = Request("program", "eve", 1, str(lease.values["lease"]), None, "board", {"array": 0})
            served.come("program", next(packets(stolen.encoded(), 9)))
            await served.settle()
            fault = read_answer(read_body(served.sent[-1][1])).fault
            assert fault is not None
            assert "belongs to another client" in fault.text
            # Nor does the name of its holder help without it.
            for number, token in enumerate((None, "guessed"), start=2):
                forged = Request("program", "me", number, token, None, "board", {"array": 0}, {"conductance_s": GOOD_S})
                served.come("program", next(packets(forged.encoded(), 10 + number)))
                await served.settle()
                fault = read_answer(read_body(served.sent[-1][1])).fault
                assert fault is not None
                assert "lease" in fault.text

    asyncio.run(steal())


def test_a_header_that_would_cost_much_to_read_is_refused_by_its_length() -> None:
    hostile(lambda _: [("mvm", next(packets(body_bytes(b"{" + b" " * 200_000, {}), 1)))])
