"""labrig's board protocol on the wire: frames, and the bytes of every message.

The whole of it is in docs/reference/board-protocol.md. A frame is `magic "LR" | version u8 | type u8 |
request id u32 | payload length u32 | payload | CRC32 u32`, all little endian; the CRC (that of zlib) covers
everything before it. A host sends one request at a time, and the answer carries its id, so that it is never
taken for the answer to another request.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.board_messages import (
    Conductance,
    Done,
    Fault,
    Float32Array,
    Hello,
    Message,
    Mvm,
    MvmAnswer,
    Ping,
    Pong,
    Program,
    Programmed,
    ReadConductance,
    Safe,
    Welcome,
)
from labrig_drivers.errors import ProtocolError
from labrig_drivers.instrument import Identity

MAGIC: Final = b"LR"
FRAME_VERSION: Final = 1
PROTOCOL_VERSION: Final = 1
MAX_PAYLOAD_BYTES: Final = 64 * 2**20
# What a payload holds beside its numbers, for those who split a batch or judge whether an array fits.
PROGRAM_HEAD_BYTES: Final = 14
MVM_HEAD_BYTES: Final = 8
MVM_ANSWER_HEAD_BYTES: Final = 10

_HEADER = struct.Struct("<2sBBII")
_CRC = struct.Struct("<I")
_WELCOME_HEAD = struct.Struct("<BIIf")
_PROGRAM_HEAD = struct.Struct("<HHHQ")
_PROGRAMMED = struct.Struct("<IQdd")
_MVM_HEAD = struct.Struct("<HHI")
_MVM_ANSWER_HEAD = struct.Struct("<IIH")
_SHAPE = struct.Struct("<HH")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_VERSIONS = struct.Struct("<BB")


class BoardFraming:
    """Cuts a stream of bytes into verified frames; keeps `links.base.Framing`.

    Args:
        max_payload_bytes: A longer payload is refused as soon as its length was read.
    """

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._max_payload_bytes = max_payload_bytes

    def take(self, buffer: bytearray) -> bytes | None:
        """Removes the first frame from `buffer` and returns it whole, header and checksum included.

        Returns:
            The frame, for `decode`, or None while it is incomplete.

        Raises:
            ProtocolError: Wrong magic, unknown frame version, too long, or wrong checksum.
        """
        if not MAGIC.startswith(bytes(buffer[:2])):
            raise ProtocolError(f"not a frame: it begins with {bytes(buffer[:8])!r}, expected {MAGIC!r}")
        if len(buffer) > 2 and buffer[2] != FRAME_VERSION:
            raise ProtocolError(f"frame version {buffer[2]} is not known here, expected {FRAME_VERSION}")
        if len(buffer) < _HEADER.size:
            return None
        payload_bytes: int = _HEADER.unpack_from(buffer)[4]
        if payload_bytes > self._max_payload_bytes:
            raise ProtocolError(f"a payload of {payload_bytes} bytes is over the limit of {self._max_payload_bytes}")
        end = _HEADER.size + payload_bytes + _CRC.size
        if len(buffer) < end:
            return None
        frame = bytes(buffer[:end])
        _verify_checksum(frame)
        del buffer[:end]
        return frame


def request_id_of(frame: bytes) -> int:
    """The request id of a verified frame, also when its payload cannot be decoded."""
    request_id: int = _HEADER.unpack_from(frame)[3]
    return request_id


def encode(message: Message, request_id: int) -> bytes:
    """Writes one message as a frame.

    Raises:
        ProtocolError: A value does not fit its field, or the payload is over the limit.
    """
    try:
        kind, payload = _payload(message)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ProtocolError(f"a payload of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        body = _HEADER.pack(MAGIC, FRAME_VERSION, kind, request_id, len(payload)) + payload
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise ProtocolError(f"{type(message).__name__} cannot be sent: {error}") from error
    return body + _CRC.pack(zlib.crc32(body))


def decode(frame: bytes) -> tuple[int, Message]:
    """Reads one whole frame.

    Returns:
        The request id and the message.

    Raises:
        ProtocolError: The frame is damaged, its type is unknown, or its payload does not fit its type.
    """
    if len(frame) < _HEADER.size + _CRC.size:
        raise ProtocolError(f"a frame of {len(frame)} bytes is too short")
    magic, version, kind, request_id, payload_bytes = _HEADER.unpack_from(frame)
    if magic != MAGIC or version != FRAME_VERSION or payload_bytes != len(frame) - _HEADER.size - _CRC.size:
        raise ProtocolError("a frame's header does not fit its content")
    _verify_checksum(frame)
    reader = _PAYLOAD_READERS.get(kind)
    if reader is None:
        raise ProtocolError(f"message type 0x{kind:02x} is not known")
    payload = _Cursor(frame[_HEADER.size : -_CRC.size])
    message = reader(payload)
    payload.finish()
    return request_id, message


def _verify_checksum(frame: bytes) -> None:
    stated = _CRC.unpack_from(frame, len(frame) - _CRC.size)[0]
    if zlib.crc32(memoryview(frame)[: -_CRC.size]) != stated:
        raise ProtocolError("a frame's checksum is wrong: bytes were damaged or lost on the way")


def _payload(message: Message) -> tuple[int, bytes]:
    match message:
        case Hello():
            return 0x01, _VERSIONS.pack(message.min_version, message.max_version)
        case Welcome():
            head = _WELCOME_HEAD.pack(message.version, message.session, message.max_payload_bytes, message.silence_s)
            who = message.identity
            texts = (who.manufacturer, who.model, who.serial, who.firmware)
            info = message.info_json.encode()
            return 0x81, head + b"".join(_short_text(text) for text in texts) + _U32.pack(len(info)) + info
        case Program():
            rows, columns = message.conductance_s.shape
            head = _PROGRAM_HEAD.pack(message.array, rows, columns, message.idempotency_key)
            return 0x02, head + message.conductance_s.astype("<f4").tobytes()
        case Programmed():
            report = (message.write_index, message.pulses, message.time_s, message.rms_error_s)
            return 0x82, _PROGRAMMED.pack(*report)
        case Mvm():
            batch, rows = message.voltage_v.shape
            return 0x03, _MVM_HEAD.pack(message.array, rows, batch) + message.voltage_v.astype("<f4").tobytes()
        case MvmAnswer():
            batch, columns = message.code.shape
            flags = np.packbits(message.saturated, axis=None, bitorder="little").tobytes()
            codes = message.code.astype("<i2").tobytes()
            head = _MVM_ANSWER_HEAD.pack(message.write_index, batch, columns)
            return 0x83, head + message.time_s.astype("<f8").tobytes() + codes + flags
        case ReadConductance():
            return 0x04, _U16.pack(message.array)
        case Conductance():
            return 0x84, _SHAPE.pack(*message.conductance_s.shape) + message.conductance_s.astype("<f4").tobytes()
        case Ping():
            return 0x05, _U64.pack(message.nonce)
        case Pong():
            return 0x85, _U64.pack(message.nonce)
        case Safe():
            return 0x06, b""
        case Done():
            return 0x86, b""
        case Fault():
            return 0xFF, _U16.pack(message.code) + _short_text(message.text)


def _short_text(text: str) -> bytes:
    encoded = text.encode()
    return _U16.pack(len(encoded)) + encoded


class _Cursor:
    """Reads a payload from front to back and never past its end."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._position = 0

    def take(self, count: int) -> bytes:
        piece = self._payload[self._position : self._position + count]
        if len(piece) != count:
            raise ProtocolError(f"a payload of {len(self._payload)} bytes is too short for what it announces")
        self._position += count
        return piece

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a text in a message is not UTF-8: {error}") from None

    def short_text(self) -> str:
        return self.text(_U16.unpack(self.take(2))[0])

    def float32(self, rows: int, columns: int) -> Float32Array:
        values = np.frombuffer(self.take(4 * rows * columns), dtype="<f4")
        return values.astype(np.float32).reshape(rows, columns)

    def finish(self) -> None:
        if self._position != len(self._payload):
            raise ProtocolError(f"{len(self._payload) - self._position} bytes too many at the end of a message")


def _read_hello(payload: _Cursor) -> Hello:
    return Hello(*_VERSIONS.unpack(payload.take(_VERSIONS.size)))


def _read_welcome(payload: _Cursor) -> Welcome:
    version, session, max_payload_bytes, silence_s = _WELCOME_HEAD.unpack(payload.take(_WELCOME_HEAD.size))
    identity = Identity(payload.short_text(), payload.short_text(), payload.short_text(), payload.short_text())
    info_json = payload.text(_U32.unpack(payload.take(4))[0])
    return Welcome(version, session, max_payload_bytes, silence_s, identity, info_json)


def _read_program(payload: _Cursor) -> Program:
    array, rows, columns, key = _PROGRAM_HEAD.unpack(payload.take(_PROGRAM_HEAD.size))
    return Program(array, key, payload.float32(rows, columns))


def _read_programmed(payload: _Cursor) -> Programmed:
    write_index, pulses, time_s, rms_error_s = _PROGRAMMED.unpack(payload.take(_PROGRAMMED.size))
    return Programmed(write_index, time_s, pulses, rms_error_s)


def _read_mvm(payload: _Cursor) -> Mvm:
    array, rows, batch = _MVM_HEAD.unpack(payload.take(_MVM_HEAD.size))
    return Mvm(array, payload.float32(batch, rows))


def _read_mvm_answer(payload: _Cursor) -> MvmAnswer:
    write_index, batch, columns = _MVM_ANSWER_HEAD.unpack(payload.take(_MVM_ANSWER_HEAD.size))
    time_s = np.frombuffer(payload.take(8 * batch), dtype="<f8").astype(np.float64)
    code = np.frombuffer(payload.take(2 * batch * columns), dtype="<i2").astype(np.int16)
    saturated = _flags(payload.take((batch * columns + 7) // 8), batch * columns)
    return MvmAnswer(write_index, time_s, code.reshape(batch, columns), saturated.reshape(batch, columns))


def _flags(packed: bytes, count: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
    if bits[count:].any():
        raise ProtocolError("the padding bits of the saturation flags are not zero")
    return bits[:count].astype(np.bool_)


def _read_conductance(payload: _Cursor) -> Conductance:
    return Conductance(payload.float32(*_SHAPE.unpack(payload.take(_SHAPE.size))))


def _read_fault(payload: _Cursor) -> Fault:
    code: int = _U16.unpack(payload.take(2))[0]
    return Fault(code, payload.short_text())


_PAYLOAD_READERS: Final[dict[int, Callable[[_Cursor], Message]]] = {
    0x01: _read_hello,
    0x81: _read_welcome,
    0x02: _read_program,
    0x82: _read_programmed,
    0x03: _read_mvm,
    0x83: _read_mvm_answer,
    0x04: lambda payload: ReadConductance(_U16.unpack(payload.take(2))[0]),
    0x84: _read_conductance,
    0x05: lambda payload: Ping(_U64.unpack(payload.take(8))[0]),
    0x85: lambda payload: Pong(_U64.unpack(payload.take(8))[0]),
    0x06: lambda _payload: Safe(),
    0x86: lambda _payload: Done(),
    0xFF: _read_fault,
}
