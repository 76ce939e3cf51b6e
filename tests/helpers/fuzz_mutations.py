"""Inputs that are almost right: valid ones, damaged in the ways that files, wires and people damage them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Parts = tuple[bytes, ...]
"""One valid input, cut where its lengths and checksums are worked out anew after a mutation."""

Join = Callable[[Sequence[bytes]], bytes]
"""Puts parts together again, with lengths and checksums that fit."""

# Values at the borders of counters and of floating point, as little-endian bytes and as text.
_NUMBERS = tuple(
    (value & (2 ** (8 * size) - 1)).to_bytes(size, "little")
    for size in (1, 2, 4, 8)
    for value in (
        0,
        1,
        -1,
        2 ** (8 * size - 1),
        2 ** (8 * size - 1) - 1,
        2 ** (8 * size - 2),
        0x7FF0 << 48,
        0x7FF8 << 48,
    )
)
_TEXTS = (
    *(
        b"0",
        b"-1",
        b"1e309",
        b"-1e309",
        b"nan",
        b"inf",
        b"1e-400",
        b"9" * 400,
        b"18446744073709551616",
        b"0x10",
        b"1_0",
    ),
    *(
        b"true",
        b"null",
        b"[]",
        b"{}",
        b'""',
        b"'",
        b'"',
        b"\\",
        b"=",
        b"\n",
        b"\r\n",
        b"\0",
        b"#",
        b"[[",
        b"]]",
        b"..",
        b"/",
    ),
    *(b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", "é".encode(), b"__class__", b"\x1b[2J", b"%s", b"${x}", b"../../x"),
    *(b"[" * 3000, b'{"a":' * 2000, b"a." * 500, b"( " * 50, b"1979-05-27T07:32:00Z"),
)
_MOST_BYTES = 2 << 20
_RANDOM_SHARE, _RAW_SHARE = 0.08, 0.4


def make_input(rng: random.Random, seeds: Sequence[Parts], join: Join) -> bytes:
    """One input: random bytes, or a valid input with one to eight mutations, before or after its checksums.

    Args:
        rng: Source of every choice.
        seeds: Valid inputs.
        join: Puts the parts of one together.
    """
    if rng.random() < _RANDOM_SHARE:
        return rng.randbytes(rng.choice((0, 1, 4, 16, 64, 300, 2000)))
    parts = list(rng.choice(seeds))
    if rng.random() < _RAW_SHARE:
        return _mutated(rng, join(parts), join(rng.choice(seeds)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(parts))
        other = rng.choice(seeds)
        parts[at] = _mutated(rng, parts[at], other[at % len(other)])
    return join(parts)


def _mutated(rng: random.Random, content: bytes, other: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
        rng.choice(_MUTATIONS)(rng, data, other)
        del data[_MOST_BYTES:]
    return bytes(data)


def _place(rng: random.Random, data: bytearray) -> int:
    # Half of all places are near the beginning, where headers are.
    end = len(data) + 1
    return rng.randrange(min(end, 200)) if rng.random() < 0.5 else rng.randrange(end)


def _span(rng: random.Random, data: bytes | bytearray) -> slice:
    start = rng.randrange(len(data) + 1)
    return slice(start, start + rng.choice((1, 2, 4, 8, 16, 64, 512, len(data))))


def _flip_bit(rng: random.Random, data: bytearray, _: bytes) -> None:
    if data:
        data[_place(rng, data) % len(data)] ^= 1 << rng.randrange(8)


def _set_number(rng: random.Random, data: bytearray, _: bytes) -> None:
    number = rng.choice(_NUMBERS)
    start = _place(rng, data)
    data[start : start + len(number)] = number


def _insert_text(rng: random.Random, data: bytearray, _: bytes) -> None:
    start = _place(rng, data)
    data[start:start] = rng.choice(_TEXTS)


def _replace_word(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Puts something else in place of a run of letters or digits."""
    start = stop = _place(rng, data)
    while stop < len(data) and stop - start < 40 and chr(data[stop]).isalnum():
        stop += 1
    data[start:stop] = rng.choice(_TEXTS)


def _remove(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[_span(rng, data)]


def _repeat(rng: random.Random, data: bytearray, _: bytes) -> None:
    span = _span(rng, data)
    piece = bytes(data[span]) * rng.choice((1, 1, 2, 20))
    data[span.start : span.start] = piece[:_MOST_BYTES]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    piece = other[_span(rng, other)]
    start = _place(rng, data)
    if rng.random() < 0.5:
        data[start : start + len(piece)] = piece
    else:
        data[start:start] = piece


def _fill(rng: random.Random, data: bytearray, _: bytes) -> None:
    span = _span(rng, data)
    size = len(data[span])
    data[span] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _cut(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[_place(rng, data) :]


def _swap_lines(rng: random.Random, data: bytearray, _: bytes) -> None:
    lines = bytes(data).split(b"\n")
    rng.shuffle(lines)
    data[:] = b"\n".join(lines)


_MUTATIONS: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    *(_flip_bit, _flip_bit, _set_number, _set_number, _insert_text, _replace_word, _replace_word),
    *(_remove, _repeat, _splice, _fill, _cut, _swap_lines),
)
