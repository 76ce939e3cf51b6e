"""labrig's board protocol on the wire: frames with a length, a request id and a checksum.

The whole of it is in docs/reference/board-protocol.md. A frame is `magic "LR" | version u8 | type u8 |
request id u32 | payload length u32 | payload | CRC32 u32`, all little endian; the CRC (that of zlib) covers
everything before it. Answers come in the order of their requests and carry their ids, so that none is ever taken for
the answer to another request.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from labrig_drivers.board_messages import Message
from labrig_drivers.board_payloads import MVM_PART_KIND, payload_of, read_payload
from labrig_drivers.errors import ProtocolError

MAGIC: Final = b"LR"
FRAME_VERSION: Final = 1
PROTOCOL_VERSION: Final = 1
MAX_PAYLOAD_BYTES: Final = 64 * 2**20

_HEADER = struct.Struct("<2sBBII")
_CRC = struct.Struct("<I")
_KIND_AT: Final = 3


class BoardFraming:
    """Cuts a stream of bytes into verified frames; keeps `links.base.Framing` and `links.framing.SizedFraming`.

    Args:
        max_payload_bytes: A longer payload is refused as soon as its length was read.
    """

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._max_payload_bytes = max_payload_bytes

    def take(self, buffer: bytearray) -> bytes | None:
        """Removes the first frame from `buffer` and returns it whole, header and checksum included.

        Returns:
            The frame, for `decode_verified`, or None while it is incomplete.

        Raises:
            ProtocolError: Wrong magic, unknown frame version, too long, or wrong checksum.
        """
        end = self._frame_bytes(buffer)
        if end is None or len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            frame = bytes(view[:end])
        _verify_checksum(frame)
        del buffer[:end]
        return frame

    def missing(self, buffer: bytearray) -> int:
        """Number of bytes that are certain to be missing from the incomplete frame in `buffer`."""
        end = self._frame_bytes(buffer)
        return max(1, (_HEADER.size if end is None else end) - len(buffer))

    def _frame_bytes(self, buffer: bytearray) -> int | None:
        """Length of the whole first frame, or None while its header is incomplete."""
        if not MAGIC.startswith(bytes(buffer[:2])):
            raise ProtocolError(f"not a frame: it begins with {bytes(buffer[:8])!r}, expected {MAGIC!r}")
        if len(buffer) > 2 and buffer[2] != FRAME_VERSION:
            raise ProtocolError(f"frame version {buffer[2]} is not known here, expected {FRAME_VERSION}")
        if len(buffer) < _HEADER.size:
            return None
        payload_bytes: int = _HEADER.unpack_from(buffer)[4]
        if payload_bytes > self._max_payload_bytes:
            raise ProtocolError(f"a payload of {payload_bytes} bytes is over the limit of {self._max_payload_bytes}")
        return _HEADER.size + payload_bytes + _CRC.size


def request_id_of(frame: bytes) -> int:
    """The request id of a verified frame, also when its payload cannot be decoded."""
    request_id: int = _HEADER.unpack_from(frame)[3]
    return request_id


def ends_answer(frame: bytes) -> bool:
    """Whether a verified frame ends the answer to its request: all do but the parts of a stream before the last."""
    return frame[_KIND_AT] != MVM_PART_KIND or frame[_HEADER.size] != 0


def encode(message: Message, request_id: int) -> bytes:
    """Writes one message as a frame.

    Raises:
        ProtocolError: A value does not fit its field, or the payload is over the limit.
    """
    try:
        kind, pieces = payload_of(message)
        payload_bytes = sum(map(len, pieces))
        if payload_bytes > MAX_PAYLOAD_BYTES:
            raise ProtocolError(f"a payload of {payload_bytes} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        header = _HEADER.pack(MAGIC, FRAME_VERSION, kind, request_id, payload_bytes)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise ProtocolError(f"{type(message).__name__} cannot be sent: {error}") from error
    checksum = zlib.crc32(header)
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return b"".join((header, *pieces, _CRC.pack(checksum)))


def decode(frame: bytes) -> tuple[int, Message]:
    """Verifies and reads one whole frame.

    Returns:
        The request id and the message.

    Raises:
        ProtocolError: The frame is damaged, its type is unknown, or its payload does not fit its type.
    """
    if len(frame) < _HEADER.size + _CRC.size:
        raise ProtocolError(f"a frame of {len(frame)} bytes is too short")
    magic, version, _, _, payload_bytes = _HEADER.unpack_from(frame)
    if magic != MAGIC or version != FRAME_VERSION or payload_bytes != len(frame) - _HEADER.size - _CRC.size:
        raise ProtocolError("a frame's header does not fit its content")
    _verify_checksum(frame)
    return decode_verified(frame)


def decode_verified(frame: bytes) -> tuple[int, Message]:
    """Reads a frame that `BoardFraming` gave out and has verified; arrays look into the frame and are read-only.

    Returns:
        The request id and the message.

    Raises:
        ProtocolError: Its type is unknown, or its payload does not fit its type.
    """
    _, _, kind, request_id, _ = _HEADER.unpack_from(frame)
    return request_id, read_payload(kind, memoryview(frame)[_HEADER.size : -_CRC.size])


def _verify_checksum(frame: bytes) -> None:
    stated = _CRC.unpack_from(frame, len(frame) - _CRC.size)[0]
    if zlib.crc32(memoryview(frame)[: -_CRC.size]) != stated:
        raise ProtocolError("a frame's checksum is wrong: bytes were damaged or lost on the way")
