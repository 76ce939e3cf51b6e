"""The board protocol: every message survives the wire, and no damage to a frame ever passes for a message."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

from labrig_drivers.board_messages import (
    Conductance,
    Done,
    Fault,
    FaultCode,
    Hello,
    Message,
    Mvm,
    MvmAnswer,
    MvmPart,
    Ping,
    Pong,
    Program,
    Programmed,
    ReadConductance,
    Safe,
    StreamMvm,
    Welcome,
    info_from_json,
    info_to_json,
)
from labrig_drivers.board_protocol import (
    MAX_PAYLOAD_BYTES,
    BoardFraming,
    decode,
    decode_verified,
    encode,
    ends_answer,
    request_id_of,
)
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ProtocolError
from labrig_drivers.instrument import Identity

U8, U16 = st.integers(0, 2**8 - 1), st.integers(0, 2**16 - 1)
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
FLOAT64, FLOAT32 = st.floats(allow_nan=False), st.floats(width=32, allow_nan=False)
# A text of n characters has at most 4 n bytes.
TEXT = st.text(st.characters(codec="utf-8"), max_size=50)
SHAPES = nst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
MATRICES = SHAPES.flatmap(lambda shape: nst.arrays(np.float32, shape))


@st.composite
def mvm_answers(draw: st.DrawFn) -> MvmAnswer:
    shape = draw(SHAPES)
    return MvmAnswer(
        write_index=draw(U32),
        time_s=draw(nst.arrays(np.float64, shape[0])),
        code=draw(nst.arrays(np.int16, shape)),
        saturated=draw(nst.arrays(np.bool_, shape)),
    )


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, U8, U8),
    st.builds(Welcome, U8, U32, U32, U16, FLOAT32, st.builds(Identity, TEXT, TEXT, TEXT, TEXT), TEXT),
    st.builds(Program, U16, U64, MATRICES),
    st.builds(Programmed, U32, FLOAT64, U64, FLOAT64),
    st.builds(Mvm, U16, MATRICES),
    mvm_answers(),
    st.builds(StreamMvm, U16, U32, MATRICES),
    st.builds(MvmPart, U32, st.booleans(), mvm_answers()),
    st.builds(ReadConductance, U16),
    st.builds(Conductance, MATRICES),
    st.builds(Ping, U64),
    st.builds(Pong, U64),
    st.builds(Safe),
    st.builds(Done),
    st.builds(Fault, U16, TEXT),
)

INFO = BoardInfo(
    chip_id="chip-7",
    arrays=2,
    rows=3,
    columns=2,
    conductance_min_s=1e-6,
    conductance_max_s=0.1 + 0.2,
    voltage_min_v=-0.3,
    voltage_max_v=0.3,
    dac_bits=8,
    adc_bits=10,
    adc_full_scale_a=(1.1e-4, 1.2e-4),
    mvm_latency_s=1e-5,
    program_latency_s=5e-3,
    capabilities=frozenset({"temperature", "floating-lines"}),
)


def assert_same(left: Message, right: Message) -> None:
    assert type(left) is type(right)
    for field in dataclasses.fields(left):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        elif isinstance(one, MvmAnswer):
            assert_same(one, other)
        else:
            assert one == other


@given(MESSAGES, U32)
def test_every_message_comes_back_equal(message: Message, request_id: int) -> None:
    frame = encode(message, request_id)
    buffer = bytearray(frame + b"LR")
    taken = BoardFraming().take(buffer)
    assert taken is not None
    assert taken == frame
    assert buffer == b"LR"
    assert request_id_of(taken) == request_id
    for read in (decode, decode_verified):
        back_id, back = read(taken)
        assert back_id == request_id
        assert_same(back, message)


@given(MESSAGES)
def test_only_parts_before_the_last_leave_an_answer_open(message: Message) -> None:
    assert ends_answer(encode(message, 1)) == (not isinstance(message, MvmPart) or message.last)


@given(MESSAGES, st.data())
def test_what_is_missing_from_a_frame_is_never_overstated(message: Message, data: st.DataObject) -> None:
    frame = encode(message, 1)
    there = data.draw(st.integers(0, len(frame) - 1))
    missing = BoardFraming().missing(bytearray(frame[:there]))
    assert 1 <= missing <= len(frame) - there
    if there >= 12:
        assert missing == len(frame) - there


def test_arrays_in_any_order_of_memory_are_sent_row_by_row() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    for other in (np.asfortranarray(rows), rows[::-1][::-1], np.repeat(rows, 2, axis=1)[:, ::2], rows.astype(">f4")):
        assert encode(Mvm(0, other), 1) == encode(Mvm(0, rows), 1)


def test_a_mark_that_is_neither_last_nor_not_is_refused() -> None:
    answer = MvmAnswer(0, np.zeros(1), np.zeros((1, 3), dtype=np.int16), np.zeros((1, 3), dtype=np.bool_))
    payload = bytearray(encode(MvmPart(0, True, answer), 9)[12:-4])
    payload[0] = 2
    with pytest.raises(ProtocolError, match="neither 0 nor 1"):
        decode(_framed(0x87, bytes(payload)))


@given(MESSAGES, U32, st.data())
def test_no_flipped_bit_passes_for_a_message(message: Message, request_id: int, data: st.DataObject) -> None:
    frame = bytearray(encode(message, request_id))
    position = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[position // 8] ^= 1 << position % 8
    with pytest.raises(ProtocolError):
        decode(bytes(frame))
    with contextlib.suppress(ProtocolError):
        # A longer length can only be waited for; the deadline of the exchange ends that.
        assert BoardFraming().take(frame) is None


def test_no_flipped_bit_of_one_frame_passes_at_all() -> None:
    good = encode(Mvm(1, np.ones((2, 3), dtype=np.float32)), 77)
    for position in range(8 * len(good)):
        frame = bytearray(good)
        frame[position // 8] ^= 1 << position % 8
        with pytest.raises(ProtocolError):
            decode(bytes(frame))


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_split_into_pieces_gives_the_same_messages(messages: list[Message], sizes: list[int]) -> None:
    stream = b"".join(encode(message, index) for index, message in enumerate(messages))
    framing, buffer, received = BoardFraming(), bytearray(), []
    start = piece = 0
    while start < len(stream):
        size = sizes[piece % len(sizes)]
        buffer += stream[start : start + size]
        start, piece = start + size, piece + 1
        while (frame := framing.take(buffer)) is not None:
            received.append(decode(frame))
    assert [request_id for request_id, _ in received] == list(range(len(messages)))
    for (_, back), message in zip(received, messages, strict=True):
        assert_same(back, message)
    assert not buffer


@given(st.binary(max_size=200))
def test_garbage_never_crashes(garbage: bytes) -> None:
    buffer = bytearray(garbage)
    with contextlib.suppress(ProtocolError):
        assert BoardFraming().take(buffer) is None
    assert buffer == garbage
    with pytest.raises(ProtocolError):
        decode(garbage)


@given(U8, st.binary(max_size=60))
def test_a_sound_frame_around_garbage_gives_a_message_or_a_protocol_error(kind: int, payload: bytes) -> None:
    frame = _framed(kind, payload)
    try:
        _, message = decode(frame)
    except ProtocolError:
        return
    # One encoding for each message; only the bits inside a NaN may differ.
    again = encode(message, 9)
    assert again[:12] == frame[:12]
    assert len(again) == len(frame)


@given(MESSAGES, st.integers(1, 30))
def test_a_payload_cut_short_or_too_long_is_refused(message: Message, cut: int) -> None:
    frame = encode(message, 9)
    kind, payload = frame[3], frame[12:-4]
    with pytest.raises(ProtocolError, match=r"too many|too short|padding"):
        decode(_framed(kind, payload + bytes(cut)))
    if payload:
        with pytest.raises(ProtocolError):
            decode(_framed(kind, payload[:-cut]))


PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "board-protocol.md"
INPUT_V = np.array([[0.25, -0.125]], dtype=np.float32)
OUTPUT = MvmAnswer(2, np.array([0.5]), np.array([[1, -2, 511]], dtype=np.int16), np.array([[False, False, True]]))
CELLS_S = np.array([[1e-5, 2e-5]], dtype=np.float32)
EXAMPLES: dict[str, tuple[Message, int]] = {
    "Hello": (Hello(1, 1), 1),
    "Welcome": (Welcome(1, 7, 4096, 4, 1.0, Identity("ACME", "X1", "S9", "1.2"), "{}"), 1),
    "Program": (Program(0, 7 * 2**32 + 1, CELLS_S), 4),
    "Programmed": (Programmed(0, 0.5, 16, 1e-7), 4),
    "Mvm": (Mvm(0, INPUT_V), 2),
    "MvmAnswer": (OUTPUT, 2),
    "StreamMvm": (StreamMvm(0, 16, INPUT_V), 3),
    "MvmPart": (MvmPart(0, True, OUTPUT), 3),
    "ReadConductance": (ReadConductance(0), 8),
    "Conductance": (Conductance(CELLS_S), 8),
    "Ping": (Ping(0x1122334455667788), 5),
    "Pong": (Pong(0x1122334455667788), 5),
    "Safe": (Safe(), 6),
    "Done": (Done(), 6),
    "Fault": (Fault(FaultCode.NOT_PROGRAMMED, "no"), 2),
}


def test_the_page_shows_one_frame_of_every_type() -> None:
    rows = re.findall(r"^\| (\w+) \| (\d+) \| `([0-9a-f ]+)` \|$", PAGE.read_text(), re.MULTILINE)
    expected = {name: (str(number), encode(message, number).hex(" ")) for name, (message, number) in EXAMPLES.items()}
    assert {name: (number, frame) for name, number, frame in rows} == expected
    assert {type(message) for message, _ in EXAMPLES.values()} == set(get_args(Message))


def test_the_frames_that_the_page_takes_apart_are_whole() -> None:
    blocks = re.findall(r"(?:^ {4}(?:[0-9a-f]{2} )+ .*\n)+", PAGE.read_text(), re.MULTILINE)
    frames = [
        " ".join(
            match[0] for line in block.splitlines() if (match := re.match(r"(?:[0-9a-f]{2}(?: |$))+", line.strip()))
        )
        for block in blocks
    ]
    shown = [" ".join(frame.split()) for frame in frames]
    assert shown == [encode(*EXAMPLES[name]).hex(" ") for name in ("Hello", "Mvm", "MvmAnswer")]


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"X", "not a frame"),
        (b"LX", "not a frame"),
        (b"LR\x02", "version 2"),
        (b"LR\x01\x05" + b"\xff" * 8, "limit"),
    ],
)
def test_a_wrong_start_is_refused_before_the_rest_came(start: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        BoardFraming().take(bytearray(start))


def test_a_frame_over_the_limit_of_the_receiver_is_refused() -> None:
    frame = encode(Mvm(0, np.zeros((10, 10), dtype=np.float32)), 1)
    assert BoardFraming(max_payload_bytes=408).take(bytearray(frame)) == frame
    with pytest.raises(ProtocolError, match="over the limit of 407"):
        BoardFraming(max_payload_bytes=407).take(bytearray(frame))


@pytest.mark.parametrize(
    "message",
    [
        ReadConductance(2**16),
        Ping(-1),
        Fault(FaultCode.INTERNAL, "x" * 70_000),
        Fault(FaultCode.INTERNAL, "\ud800"),
        Mvm(0, np.zeros((MAX_PAYLOAD_BYTES // 4, 1), dtype=np.float32)),
        Conductance(np.zeros((2**16, 1), dtype=np.float32)),
    ],
)
def test_what_does_not_fit_is_not_sent(message: Message) -> None:
    with pytest.raises(ProtocolError):
        encode(message, 1)


def test_padding_of_the_flags_has_to_be_zero() -> None:
    answer = MvmAnswer(0, np.zeros(1), np.zeros((1, 3), dtype=np.int16), np.zeros((1, 3), dtype=np.bool_))
    payload = bytearray(encode(answer, 9)[12:-4])
    payload[-1] |= 0x80
    with pytest.raises(ProtocolError, match="padding"):
        decode(_framed(0x83, bytes(payload)))


def test_the_description_of_a_board_keeps_every_digit() -> None:
    assert info_from_json(info_to_json(INFO)) == INFO


def test_unknown_keys_of_a_newer_board_are_left_aside() -> None:
    values = {**json.loads(info_to_json(INFO)), "colour": "green"}
    assert info_from_json(json.dumps(values)) == INFO


def test_a_wrong_description_names_every_fault() -> None:
    values = {**json.loads(info_to_json(INFO)), "rows": 0, "voltage_max_v": math.nan, "chip_id": 7}
    values["adc_full_scale_a"] = [1.0]
    with pytest.raises(ProtocolError) as caught:
        info_from_json(json.dumps(values))
    for fault in (
        "rows is 0, not a positive whole number",
        "voltage_max_v is NaN, not a finite number",
        "chip_id is 7, not a text",
        "adc_full_scale_a has 1 number, not one for each column",
    ):
        assert fault in str(caught.value)


@given(
    st.text() | st.recursive(st.none() | st.booleans() | FLOAT64 | st.text(), st.lists, max_leaves=5).map(json.dumps)
)
def test_no_text_crashes_the_reader_of_descriptions(text: str) -> None:
    with pytest.raises(ProtocolError):
        info_from_json(text)


@given(
    st.sampled_from(sorted(dataclasses.asdict(INFO))),
    st.none() | st.booleans() | st.text() | st.integers() | FLOAT64 | st.lists(st.integers() | st.text()),
)
def test_any_value_of_a_field_is_read_or_refused(field: str, value: object) -> None:
    values = {**json.loads(info_to_json(INFO)), field: value}
    try:
        info = info_from_json(json.dumps(values))
    except ProtocolError:
        return
    assert json.loads(info_to_json(info)).keys() == values.keys()


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    for text in ("1e999", "9" * 400, "true"):
        with pytest.raises(ProtocolError, match="mvm_latency_s"):
            info_from_json(info_to_json(INFO).replace('"mvm_latency_s": 1e-05', f'"mvm_latency_s": {text}'))


def _framed(kind: int, payload: bytes) -> bytes:
    """A frame with a right checksum, whatever is in it."""
    body = struct.pack("<2sBBII", b"LR", 1, kind, 9, len(payload)) + payload
    return body + struct.pack("<I", zlib.crc32(body))
