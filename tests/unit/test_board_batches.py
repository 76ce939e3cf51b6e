"""How batches are cut: nothing over the board's longest payload, nothing lost, no request for a vector or two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from labrig_drivers.board_batches import (
    Collected,
    StreamOrder,
    check_frames_hold_a_vector,
    pieces,
    vectors_per_part,
    vectors_per_request,
    vectors_per_stream,
)
from labrig_drivers.board_messages import Message, Mvm, MvmAnswer, MvmPart, StreamMvm, Welcome
from labrig_drivers.board_protocol import encode
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ProtocolError
from labrig_drivers.instrument import Identity

INFO = BoardInfo(
    chip_id="C",
    arrays=1,
    rows=3,
    columns=2,
    conductance_min_s=0.0,
    conductance_max_s=1e-4,
    voltage_min_v=-1.0,
    voltage_max_v=1.0,
    dac_bits=8,
    adc_bits=10,
    adc_full_scale_a=(1e-4, 1e-4),
    mvm_latency_s=0.0,
    program_latency_s=0.0,
)


def welcome(max_payload_bytes: int, max_requests: int) -> Welcome:
    return Welcome(1, 1, max_payload_bytes, max_requests, 0.0, Identity("", "", "", ""), "")


def payload_bytes(message: Message) -> int:
    return len(encode(message, 1)) - 16


def answer_to(vectors: int, columns: int) -> MvmAnswer:
    code = np.arange(vectors * columns).reshape(vectors, columns).astype(np.int16)
    return MvmAnswer(0, np.arange(vectors, dtype=float), code, code % 3 == 0)


SIZES = st.integers(1, 40)
PAYLOADS = st.integers(20, 40_000)


@given(SIZES, SIZES, PAYLOADS, st.integers(1, 8), st.integers(1, 3000))
def test_no_frame_is_too_long_and_no_vector_is_lost(
    rows: int, columns: int, longest: int, requests: int, batch: int
) -> None:
    info = replace(INFO, rows=rows, columns=columns, adc_full_scale_a=(1e-4,) * columns)
    try:
        check_frames_hold_a_vector(info, longest)
    except ProtocolError:
        assume(False)
    greeting = welcome(longest, requests)
    step, stream_step = vectors_per_request(info, greeting, batch), vectors_per_stream(info, greeting, batch)
    for most in (step, stream_step):
        cut = [len(piece) for piece in pieces(np.zeros((batch, rows)), most)]
        assert sum(cut) == batch
        assert max(cut) == most
        assert max(cut) - min(cut) < len(cut)
    assert payload_bytes(Mvm(0, np.zeros((step, rows), np.float32))) <= longest
    assert payload_bytes(answer_to(step, columns)) <= longest
    assert payload_bytes(StreamMvm(0, 1, np.zeros((stream_step, rows), np.float32))) <= longest
    if (part := vectors_per_part(info, longest)) >= 1:
        assert payload_bytes(MvmPart(0, True, answer_to(part, columns))) <= longest


@given(st.integers(1, 100_000))
def test_a_board_that_queues_gets_requests_that_overlap(batch: int) -> None:
    one, several = (vectors_per_request(INFO, welcome(2**22, count), batch) for count in (1, 8))
    assert several <= one
    # 32 KiB of three voltages each.
    assert several <= 2730
    if batch > 2730:
        assert several > 1300


def test_frames_that_hold_no_vector_or_no_array_are_refused() -> None:
    # 14 + 24 bytes of an array, 8 + 12 of an input, 10 + 8 + 4 + 1 of an answer.
    check_frames_hold_a_vector(INFO, 38)
    with pytest.raises(ProtocolError, match="too short"):
        check_frames_hold_a_vector(INFO, 37)


@given(st.integers(1, 50), st.integers(1, 50))
def test_answers_are_put_together_in_order(batch: int, step: int) -> None:
    step = min(step, batch)
    whole = answer_to(batch, 2)
    collected = Collected(INFO, batch, step)
    for start in range(0, batch, step):
        with pytest.raises(ProtocolError, match="missing"):
            collected.result()
        stop = start + step
        collected.add(MvmAnswer(0, whole.time_s[start:stop], whole.code[start:stop], whole.saturated[start:stop]))
    result = collected.result()
    np.testing.assert_array_equal(result.code, whole.code)
    np.testing.assert_array_equal(result.current_a, whole.code * INFO.adc_lsb_a)
    np.testing.assert_array_equal(result.saturated, whole.saturated)
    np.testing.assert_array_equal(result.time_s, whole.time_s)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_parts_in_order_are_taken_and_no_others(batch: int, step: int, part: int) -> None:
    step = min(step, batch)
    order = StreamOrder(INFO, batch, step)
    for start in range(0, batch, step):
        size = min(step, batch - start)
        for first in range(0, size, part):
            count = min(part, size - first)
            good = MvmPart(first, first + count == size, answer_to(count, 2))
            for bad in (
                replace(good, first=first + 1),
                replace(good, last=not good.last),
                replace(good, answer=answer_to(size - first + 1, 2)),
                replace(good, answer=answer_to(count, 3)),
            ):
                with pytest.raises(ProtocolError):
                    order.take(bad)
            assert not order.complete
            np.testing.assert_array_equal(order.take(good).code, good.answer.code)
    assert order.complete
    with pytest.raises(ProtocolError):
        order.take(MvmPart(0, True, answer_to(1, 2)))
