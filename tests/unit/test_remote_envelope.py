"""Envelope, headers and errors: what is packed comes out again, and what is not packed is refused."""

from __future__ import annotations

import contextlib
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from labrig.remote.envelope import LONGEST_MESSAGE_BYTES, Assembler, body_bytes, packets, read_body
from labrig.remote.faults import BusyError, LeaseEndedError, error_of, fault_of
from labrig.remote.messages import Answer, Request, read_answer, read_request
from labrig.remote.results import mvm_from, mvm_parts, reading_arrays, readings_from
from labrig_drivers.crossbar import MvmResult
from labrig_drivers.errors import (
    CapabilityError,
    IdentityError,
    InstrumentError,
    LabrigError,
    LinkTimeoutError,
    ProtocolError,
    SafetyError,
    StateError,
)
from labrig_drivers.source_meter import Reading

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.dictionaries(
    st.text(max_size=8),
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), NUMBERS, st.text(max_size=20)),
)
ARRAYS = st.dictionaries(
    st.from_regex(r"\A[a-z_]{1,8}\Z"), arrays(np.float64, array_shapes(max_dims=3, max_side=5)), max_size=3
)


@given(VALUES, ARRAYS, st.integers(0, 2**53 - 1), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_a_request_comes_out_as_it_went_in_whatever_it_is_cut_into(
    values: dict[str, object], content: dict[str, np.ndarray], number: int, part_bytes: int
) -> None:
    try:
        sent = Request("mvm", "me", number, "token", 1.5, "board", values, content)  # type: ignore[arg-type]
        message = sent.encoded()
    except ProtocolError:
        # Lone surrogates have no UTF-8.
        assert any(not text.isprintable() for text in [*values, *map(str, values.values())])
        return
    assembler = Assembler()
    whole = [assembler.take(packet, 0.0) for packet in packets(message, 7, part_bytes)]
    assert whole[:-1] == [None] * (len(whole) - 1)
    assert whole[-1] is not None
    got = read_request(read_body(whole[-1]))
    assert (got.verb, got.client, got.number, got.lease, got.start_by_s) == ("mvm", "me", number, "token", 1.5)
    assert got.values == values
    assert got.arrays.keys() == content.keys()
    for name, one in content.items():
        np.testing.assert_array_equal(got.arrays[name], one)


@given(st.integers(2, 9), st.randoms(), st.integers(0, 3))
def test_parts_may_come_in_any_order_and_twice(parts: int, random: object, repeats: int) -> None:
    message = bytes(range(100))
    cut = list(packets(message, 5, -(-100 // parts)))
    sent = cut + cut[:repeats]
    random.shuffle(sent)  # type: ignore[attr-defined]
    assembler = Assembler()
    done = []
    for packet in sent:
        if (whole := assembler.take(packet, 0.0)) is not None:
            done.append(whole)
            break
    assert done == [message]


def test_unfinished_messages_are_bounded_in_number_bytes_and_time() -> None:
    assembler = Assembler(most_messages=3, most_bytes=250, longest_s=10.0)
    for number in range(10):
        assembler.take(next(packets(bytes(100), number, 60)), 0.0)
        assert assembler.held_bytes <= 180
    assembler = Assembler(most_messages=3, most_bytes=100, longest_s=10.0)
    with pytest.raises(ProtocolError, match="too many bytes"):
        assembler.take(next(packets(bytes(300), 1, 150)), 0.0)
    first, second = packets(bytes(100), 1, 60)
    assert assembler.take(first, 0.0) is None
    # Too late: the first part is given up, and the second waits for it in vain.
    assert assembler.take(second, 11.0) is None


@given(st.binary(max_size=200))
def test_what_is_no_packet_is_refused(noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        Assembler().take(noise, 0.0)


def damaged(message: bytes, at: int, to: int) -> bytes:
    return message[:at] + bytes([to]) + message[at + 1 :]


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(deadline=None)
def test_a_damaged_packet_is_refused_or_still_a_request(at: int, to: int) -> None:
    message = Request("mvm", "me", 1, arrays={"voltage_v": np.ones((2, 3))}).encoded()
    (packet,) = packets(message, 1)
    with contextlib.suppress(ProtocolError):
        whole = Assembler().take(damaged(packet, at % len(packet), to), 0.0)
        if whole is not None:
            read_request(read_body(whole))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "header"),
        (b"[" * 100_000, "header"),
        (b'{"verb":"mvm","client":"me"}', "number"),
        (b'{"verb":"mvm","client":"../state","number":1}', "client"),
        (b'{"verb":"mvm","client":"a/b","number":1}', "client"),
        (b'{"verb":"mvm","client":"me","number":1,"exec":"x"}', "exec"),
        (b'{"verb":"mvm","client":"me","number":"1"}', "number"),
        (b'{"verb":"mvm","client":"me","number":1,"values":{"array":NaN}}', "header|values"),
        (b'{"verb":"mvm","client":"me","number":1,"start_by_s":Infinity}', "header|start_by_s"),
        (b'{"verb":"MVM","client":"me","number":-1}', "verb.*number"),
    ],
)
def test_a_header_that_is_no_request_is_refused_with_every_fault(header: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        read_request(read_body(body_bytes(header, {})))


def test_versions_and_sizes_are_checked() -> None:
    (packet,) = packets(b"abcd", 1)
    with pytest.raises(ProtocolError, match="envelope version 2 is not known here, expected 1"):
        Assembler().take(damaged(packet, 4, 2), 0.0)
    with pytest.raises(ProtocolError, match="over the limit"):
        Assembler().take(packet[:20] + struct.pack("<I", LONGEST_MESSAGE_BYTES + 1) + packet[24:], 0.0)
    with pytest.raises(ProtocolError, match="over the limit"):
        body_bytes(bytes(300_000), {})
    with pytest.raises(ProtocolError, match="type that is not taken"):
        read_body(body_bytes(b"{}", {"a": np.ones(3, dtype=np.complex64)}))
    with pytest.raises(ProtocolError, match="at most 16"):
        read_body(body_bytes(b"{}", {f"a{index}": np.ones(1) for index in range(17)}))
    truths = body_bytes(b"{}", {"a": np.array([True, False, True])})
    with pytest.raises(ProtocolError, match="neither 0 nor 1: a"):
        read_body(damaged(truths, len(truths) - 2, 7))
    # A pickle is bytes like any others.
    with pytest.raises(ProtocolError, match="cannot be read"):
        read_body(body_bytes(b"{}", {}) + b"\x80\x04\x95")


@pytest.mark.parametrize(
    "error",
    [
        SafetyError(["too high", "too low"]),
        InstrumentError(-113, "Undefined header", "FOO", "meter"),
        IdentityError("serial 'a'", "serial 'b'", "here"),
        StateError("closed"),
        CapabilityError("no"),
        LinkTimeoutError("late"),
        BusyError("busy"),
        LeaseEndedError("over"),
    ],
)
def test_an_error_is_the_same_one_on_the_other_side(error: LabrigError) -> None:
    answer = read_answer(read_body(Answer("me", 3, fault=fault_of(error)).encoded()))
    assert answer.fault is not None
    again = error_of(answer.fault)
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name in ("reasons", "code", "text", "command", "expected", "got"):
        assert getattr(again, name, None) == getattr(error, name, None)


def test_a_bug_on_the_rig_is_told_as_one() -> None:
    fault = fault_of(ZeroDivisionError("division by zero"))
    assert fault.kind == "LabrigError"
    assert "bug there: ZeroDivisionError" in fault.text
    # A name that is none is no door to other classes.
    assert type(error_of(type(fault)("SystemExit", "bye"))) is LabrigError


def test_results_keep_every_bit() -> None:
    rng = np.random.default_rng(0)
    lsb_a = rng.uniform(1e-8, 1e-7, 4)
    code = rng.integers(-512, 512, (3, 4)).astype(np.int16)
    exact = MvmResult(code, code * lsb_a, code == 511, rng.random(3), 7)
    other = MvmResult(code, np.nextafter(code * lsb_a, 1.0), code == 511, rng.random(3), 7)
    for result, sent in ((exact, 3), (other, 4)):
        values, content = mvm_parts(result, lsb_a)
        assert len(content) == sent
        got = mvm_from(values, content, lsb_a, 3)
        for name in ("code", "current_a", "saturated", "time_s"):
            np.testing.assert_array_equal(getattr(got, name), getattr(result, name))
    with pytest.raises(ProtocolError, match="shape"):
        mvm_from(values, content, lsb_a, 2)
    readings = [Reading(0.1, math.inf, True, 1.0), Reading(-0.1, 1e-9, False, 2.0, 0.5)]
    assert readings_from(reading_arrays(readings)) == readings
