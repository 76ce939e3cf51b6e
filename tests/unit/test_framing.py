"""Framings find the same messages however the bytes were cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_drivers.errors import ProtocolError
from labrig_drivers.links import BlockFraming, Framing, LineFraming

lines = st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"").rstrip(b"\r")), max_size=6)
line_ends = st.sampled_from([b"\n", b"\r\n"])
blocks = st.lists(st.binary(max_size=300), max_size=5)
cuts = st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=20)


def definite(data: bytes, end: bytes = b"\n") -> bytes:
    count = str(len(data)).encode()
    return b"#" + str(len(count)).encode() + count + data + end


def messages(framing: Framing, stream: bytes, sizes: list[int]) -> list[bytes]:
    """Feeds `stream` in pieces of the given sizes, over and over, and takes whatever is complete after each."""
    buffer, found, start, turn = bytearray(), [], 0, 0
    while start < len(stream):
        size = sizes[turn % len(sizes)]
        buffer += stream[start : start + size]
        start, turn = start + size, turn + 1
        while True:
            before = bytes(buffer)
            message = framing.take(buffer)
            if message is None:
                assert bytes(buffer) == before
                break
            found.append(message)
    assert not buffer
    return found


@given(lines, line_ends, cuts)
def test_lines_do_not_depend_on_pieces(expected: list[bytes], end: bytes, sizes: list[int]) -> None:
    stream = b"".join(line + end for line in expected)
    assert messages(LineFraming(), stream, sizes) == expected


@given(st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"|", b"")), max_size=5), cuts)
def test_lines_with_a_terminator_of_several_bytes(expected: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(line + b"|>" for line in expected)
    wanted = [line.removesuffix(b"\r") for line in expected]
    assert messages(LineFraming(b"|>"), stream, sizes) == wanted


@given(blocks, line_ends, cuts)
def test_blocks_do_not_depend_on_pieces(expected: list[bytes], end: bytes, sizes: list[int]) -> None:
    stream = b"".join(definite(data, end) for data in expected)
    assert messages(BlockFraming(), stream, sizes) == expected


@given(blocks, cuts)
def test_definite_blocks_need_no_terminator(expected: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(definite(data, b"") for data in expected)
    assert messages(BlockFraming(terminator=b""), stream, sizes) == expected


@given(lines, cuts)
def test_indefinite_blocks_end_with_the_line(expected: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(b"#0" + data + b"\n" for data in expected)
    assert messages(BlockFraming(), stream, sizes) == expected


@given(st.binary(max_size=300), st.sampled_from([b"\n", b""]), st.data())
def test_missing_never_asks_for_more_than_the_message_has(data: bytes, end: bytes, draw: st.DataObject) -> None:
    stream, framing = definite(data, end), BlockFraming(terminator=end)
    length = draw.draw(st.integers(min_value=0, max_value=len(stream) - 1))
    assert 1 <= framing.missing(bytearray(stream[:length])) <= len(stream) - length


def test_reading_exactly_what_is_missing_ends_with_the_message() -> None:
    stream, framing, buffer = definite(bytes(range(256))) + b"next", BlockFraming(), bytearray()
    while (message := framing.take(buffer)) is None:
        start = len(buffer)
        buffer += stream[start : start + framing.missing(buffer)]
    assert message == bytes(range(256))
    assert not buffer


@pytest.mark.parametrize(
    ("framing", "stream"),
    [
        (LineFraming(max_bytes=4), b"12345\n"),
        (LineFraming(max_bytes=4), b"12345"),
        (BlockFraming(), b"1.0E+00\n"),
        (BlockFraming(), b"#x"),
        (BlockFraming(), b"#2 7"),
        (BlockFraming(), b"#13abcX"),
        (BlockFraming(), b"#13abc\rX"),
        (BlockFraming(max_bytes=99), b"#3100"),
        (BlockFraming(max_bytes=4), b"#012345\n"),
        (BlockFraming(max_bytes=4), b"#012345"),
        (BlockFraming(terminator=b""), b"#0abc"),
    ],
)
def test_what_can_never_become_a_message_is_refused(framing: Framing, stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        framing.take(bytearray(stream))


@pytest.mark.parametrize("stream", [b"", b"#", b"#3", b"#31", b"#3100", b"#13ab", b"#13abc", b"#13abc\r", b"#0ab"])
def test_an_incomplete_block_is_waited_for(stream: bytes) -> None:
    buffer = bytearray(stream)
    assert BlockFraming().take(buffer) is None
    assert buffer == stream


def test_the_longest_line_is_still_a_line() -> None:
    assert LineFraming(max_bytes=4).take(bytearray(b"1234\n")) == b"1234"
    assert LineFraming(max_bytes=4).take(bytearray(b"1234")) is None


def test_a_line_needs_a_terminator() -> None:
    with pytest.raises(ValueError, match="terminator"):
        LineFraming(b"")
