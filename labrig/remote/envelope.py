"""The envelope of version 1: what a request or an answer is as bytes, over MQTT and over the direct link alike.

A message is `header length u32 | header (JSON, UTF-8) | arrays (safetensors)`. It travels in one packet or several; a
packet is `magic "LRMT" | version u8 | reserved u8 | part u16 | parts u16 | reserved u16 | message u64 | total u32 |
offset u32 | bytes`, all little endian, reserved fields zero. Nothing is ever unpickled. The whole of it is in
docs/reference/mqtt-topics.md.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from labrig_drivers.errors import ProtocolError

VERSION: Final = 1
MAGIC: Final = b"LRMT"
PART_BYTES: Final = 512 * 1024
"""What one packet carries at most; below the limit on messages that any common broker has by itself."""
LONGEST_MESSAGE_BYTES: Final = 64 * 2**20
"""Longest message, header and arrays together."""
LONGEST_HEADER_BYTES: Final = 256 * 1024
MOST_ARRAYS: Final = 16

_PACKET = struct.Struct("<4sBBHHHQII")
_LENGTH = struct.Struct("<I")
_DTYPES: Final = frozenset(map(np.dtype, (np.float64, np.int16, np.uint8, np.bool_, np.int64)))

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Body:
    """A message, its header not looked into.

    Attributes:
        header: The JSON text, UTF-8.
        arrays: Its arrays by name.
    """

    header: bytes
    arrays: Arrays


def body_bytes(header: bytes, arrays: Arrays) -> bytes:
    """One message as bytes.

    Raises:
        ProtocolError: It is longer than a message may be.
    """
    packed = save({name: np.ascontiguousarray(values) for name, values in arrays.items()}) if arrays else b""
    total = _LENGTH.size + len(header) + len(packed)
    if total > LONGEST_MESSAGE_BYTES or len(header) > LONGEST_HEADER_BYTES:
        raise ProtocolError(
            f"a message of {total} bytes is over the limit of {LONGEST_MESSAGE_BYTES}; send smaller batches"
        )
    return b"".join((_LENGTH.pack(len(header)), header, packed))


def read_body(message: bytes | memoryview) -> Body:
    """Reads one whole message.

    Raises:
        ProtocolError: It is damaged: lengths that do not fit, or arrays that are none.
    """
    if len(message) < _LENGTH.size:
        raise ProtocolError(f"a message of {len(message)} bytes is too short")
    (header_bytes,) = _LENGTH.unpack_from(message)
    end = _LENGTH.size + header_bytes
    if header_bytes > LONGEST_HEADER_BYTES or end > len(message):
        raise ProtocolError(f"a header of {header_bytes} bytes does not fit a message of {len(message)} bytes")
    with memoryview(message) as whole:
        return Body(bytes(whole[_LENGTH.size : end]), _read_arrays(bytes(whole[end:])))


def packets(message: bytes, number: int, part_bytes: int | None = PART_BYTES) -> Iterator[bytes]:
    """Cuts one message into packets, in order.

    Args:
        message: The whole message, not empty.
        number: What tells the messages of a sender apart, 64 bits; random, so that senders do not meet.
        part_bytes: What each carries at most; None cuts nothing.
    """
    total = len(message)
    if part_bytes is None or total <= part_bytes:
        yield b"".join((_PACKET.pack(MAGIC, VERSION, 0, 0, 1, 0, number, total, 0), message))
        return
    parts = -(-total // part_bytes)
    whole = memoryview(message)
    for part in range(parts):
        offset = part * part_bytes
        head = _PACKET.pack(MAGIC, VERSION, 0, part, parts, 0, number, total, offset)
        yield b"".join((head, whole[offset : offset + part_bytes]))


@dataclass
class _Partial:
    """A message of which parts are missing."""

    total: int
    parts: int
    started_s: float
    pieces: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    held_bytes: int = 0


class Assembler:
    """Puts packets together to messages, with bounds on what it holds.

    Parts may come in any order; one that comes twice is left aside. When there are too many unfinished messages, or
    one is too old, the oldest is given up.

    Args:
        most_messages: How many unfinished messages are held.
        most_bytes: How many bytes of them.
        longest_s: How long in s one may take from its first part to its last.
    """

    def __init__(
        self, most_messages: int = 8, most_bytes: int = 2 * LONGEST_MESSAGE_BYTES, longest_s: float = 60.0
    ) -> None:
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._longest_s = longest_s
        self._open: OrderedDict[int, _Partial] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Bytes of unfinished messages."""
        return sum(one.held_bytes for one in self._open.values())

    def take(self, packet: bytes, now_s: float) -> bytes | memoryview | None:
        """Takes a packet in.

        Args:
            packet: As it came.
            now_s: The time in s, of any clock that does not go back.

        Returns:
            The message that it completes, if it completes one; one that came in one packet is a view into it.

        Raises:
            ProtocolError: It is no packet of this version, or does not fit those before it; it was left out.
        """
        part, parts, number, total, offset = _read_head(packet)
        if parts == 1:
            view = memoryview(packet)[_PACKET.size :]
            if offset or len(view) != total:
                raise ProtocolError(f"a packet holds {len(view)} of {total} bytes and says that it is all")
            return view
        piece = packet[_PACKET.size :]
        if not piece or offset + len(piece) > total:
            raise ProtocolError(f"a part of {len(piece)} bytes at {offset} does not fit a message of {total} bytes")
        self._give_up_old(now_s)
        partial = self._open.setdefault(number, _Partial(total, parts, now_s))
        if (partial.total, partial.parts) != (total, parts):
            raise ProtocolError("parts of one message disagree about its size")
        if part in partial.pieces:
            return None
        partial.pieces[part] = (offset, piece)
        partial.held_bytes += len(piece)
        if len(partial.pieces) < parts:
            self._make_room(number)
            return None
        del self._open[number]
        return _joined(partial)

    def _give_up_old(self, now_s: float) -> None:
        for number in [one for one, partial in self._open.items() if now_s - partial.started_s > self._longest_s]:
            del self._open[number]

    def _make_room(self, newest: int) -> None:
        while len(self._open) > self._most_messages or self.held_bytes > self._most_bytes:
            oldest = next(iter(self._open))
            del self._open[oldest]
            if oldest == newest:
                raise ProtocolError("too many bytes of unfinished messages; this one is given up")


def _joined(partial: _Partial) -> bytes:
    end = 0
    for part in range(partial.parts):
        offset, piece = partial.pieces[part]
        if offset != end:
            raise ProtocolError(f"part {part} begins at {offset} and not at {end}, where the one before it ends")
        end += len(piece)
    if end != partial.total:
        raise ProtocolError(f"a message has {end} of {partial.total} bytes in all its parts")
    return b"".join(partial.pieces[part][1] for part in range(partial.parts))


def _read_head(packet: bytes) -> tuple[int, int, int, int, int]:
    """Part, parts, message, total and offset of a packet."""
    if len(packet) < _PACKET.size:
        raise ProtocolError(f"a packet of {len(packet)} bytes is too short")
    magic, version, reserved, part, parts, reserved_too, number, total, offset = _PACKET.unpack_from(packet)
    if magic != MAGIC:
        raise ProtocolError(f"no packet of labrig: it begins with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(f"envelope version {version} is not known here, expected {VERSION}; use equal versions")
    if reserved or reserved_too or part >= parts:
        raise ProtocolError(f"a packet says that it is part {part} of {parts}, or uses reserved fields")
    if total > LONGEST_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {total} bytes is over the limit of {LONGEST_MESSAGE_BYTES}")
    return part, parts, number, total, offset


def _read_arrays(packed: bytes) -> Arrays:
    if not packed:
        return {}
    try:
        arrays = load(packed)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise ProtocolError(f"the arrays cannot be read: {error}") from None
    if len(arrays) > MOST_ARRAYS:
        raise ProtocolError(f"{len(arrays)} arrays, at most {MOST_ARRAYS} are taken")
    if strange := sorted(name for name, values in arrays.items() if values.dtype not in _DTYPES):
        raise ProtocolError(f"arrays of a type that is not taken here: {', '.join(strange)}")
    if odd := sorted(name for name, values in arrays.items() if values.dtype == np.bool_ and _has_odd_truths(values)):
        raise ProtocolError(f"truth values that are neither 0 nor 1: {', '.join(odd)}")
    return arrays


def _has_odd_truths(values: NDArray[np.generic]) -> bool:
    # numpy takes any byte for a truth value, and two that are true need not be equal.
    return bool(values.size) and int(values.view(np.uint8).max()) > 1
