"""Blocks of a known length, and an answer with a line after it: the same however the bytes were cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_drivers.errors import ProtocolError
from labrig_drivers.links.base import Framing
from labrig_drivers.links.framing import FixedBlockFraming, LineFraming, PairFraming, SizedFraming

# Line ends and '#' are what a framing could stumble over.
data_of_blocks = st.one_of(st.binary(max_size=80), st.text("\n#0\r", max_size=40).map(str.encode))
lines = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"").rstrip(b"\r"))
cuts = st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=20)


def taken(framing: Framing, stream: bytes, sizes: list[int]) -> bytes:
    """Feeds `stream` in pieces, over and over the given sizes; only the last piece may complete the message."""
    buffer, start, turn = bytearray(), 0, 0
    while start < len(stream):
        before = bytes(buffer)
        assert framing.take(buffer) is None
        assert bytes(buffer) == before
        size = sizes[turn % len(sizes)]
        buffer += stream[start : start + size]
        start, turn = start + size, turn + 1
    message = framing.take(buffer)
    assert not buffer
    assert message is not None
    return message


def read_exactly(framing: Framing, stream: bytes) -> tuple[bytes, bytes]:
    """Reads as a VISA link does, never more than is certain to be missing; returns message and unread bytes."""
    assert isinstance(framing, SizedFraming)
    buffer, start = bytearray(), 0
    while (message := framing.take(buffer)) is None:
        size = framing.missing(buffer)
        assert 1 <= size <= len(stream) - start
        buffer += stream[start : start + size]
        start += size
    assert not buffer
    return message, stream[start:]


@given(data_of_blocks, cuts)
def test_a_block_does_not_depend_on_pieces(data: bytes, sizes: list[int]) -> None:
    assert taken(FixedBlockFraming(len(data)), b"#0" + data + b"\n", sizes) == data


@given(data_of_blocks, lines, cuts)
def test_a_pair_does_not_depend_on_pieces(data: bytes, line: bytes, sizes: list[int]) -> None:
    framing = PairFraming(FixedBlockFraming(len(data)))
    message = taken(framing, b"#0" + data + b"\n" + line + b"\n", sizes)
    assert message.rpartition(b"\n") == (data, b"\n", line)


@given(lines, lines, cuts)
def test_a_pair_of_lines(first: bytes, second: bytes, sizes: list[int]) -> None:
    message = taken(PairFraming(LineFraming()), first + b"\n" + second + b"\r\n", sizes)
    assert message.rpartition(b"\n") == (first, b"\n", second)


@given(data_of_blocks, lines, st.binary(max_size=5))
def test_reading_what_is_missing_ends_with_the_message(data: bytes, line: bytes, rest: bytes) -> None:
    block = b"#0" + data + b"\n"
    assert read_exactly(FixedBlockFraming(len(data)), block + rest) == (data, rest)
    pair = PairFraming(FixedBlockFraming(len(data)))
    assert read_exactly(pair, block + line + b"\n" + rest) == (data + b"\n" + line, rest)
    assert read_exactly(PairFraming(LineFraming()), line + b"\n1\n" + rest) == (line + b"\n1", rest)


@pytest.mark.parametrize(
    ("framing", "stream"),
    [
        (FixedBlockFraming(2), b"1.0"),
        (FixedBlockFraming(2), b"#1"),
        (FixedBlockFraming(2), b"#0abX"),
        (FixedBlockFraming(2), b"#0abc"),
        (PairFraming(FixedBlockFraming(2)), b"0\tlabrig\n"),
        (PairFraming(LineFraming(max_bytes=4)), b"12345\n"),
    ],
)
def test_what_can_never_become_a_message_is_refused(framing: Framing, stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        framing.take(bytearray(stream))


def test_a_block_has_a_length() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        FixedBlockFraming(-1)
