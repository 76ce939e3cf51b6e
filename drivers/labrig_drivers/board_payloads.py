"""The payloads of labrig's board protocol: the bytes of every message, without the frame around them.

Numbers are little endian. Arrays are neither copied on the way out, until the frame is put together, nor on the way
in: what `read_payload` returns looks into the frame's own bytes and cannot be written to.
"""

from __future__ import annotations

import struct
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
    MvmPart,
    Ping,
    Pong,
    Program,
    Programmed,
    ReadConductance,
    Safe,
    StreamMvm,
    Welcome,
)
from labrig_drivers.errors import ProtocolError
from labrig_drivers.instrument import Identity

MVM_PART_KIND: Final = 0x87
# What a payload holds beside its numbers, for those who split a batch or judge whether an array fits.
PROGRAM_HEAD_BYTES: Final = 14
MVM_HEAD_BYTES: Final = 8
STREAM_MVM_HEAD_BYTES: Final = 12
MVM_ANSWER_HEAD_BYTES: Final = 10
MVM_PART_HEAD_BYTES: Final = 5 + MVM_ANSWER_HEAD_BYTES

_WELCOME_HEAD = struct.Struct("<BIIHf")
_PROGRAM_HEAD = struct.Struct("<HHHQ")
_PROGRAMMED = struct.Struct("<IQdd")
_MVM_HEAD = struct.Struct("<HHI")
_STREAM_MVM_HEAD = struct.Struct("<HHII")
_MVM_ANSWER_HEAD = struct.Struct("<IIH")
_MVM_PART_HEAD = struct.Struct("<BI")
_SHAPE = struct.Struct("<HH")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_VERSIONS = struct.Struct("<BB")

Piece = bytes | memoryview


def payload_of(message: Message) -> tuple[int, list[Piece]]:
    """The type of a message and its payload, in pieces that belong one after another.

    Raises:
        struct.error, OverflowError, UnicodeEncodeError: A value does not fit its field.
    """
    match message:
        case Hello():
            return 0x01, [_VERSIONS.pack(message.min_version, message.max_version)]
        case Welcome():
            return 0x81, _welcome_pieces(message)
        case Program():
            rows, columns = message.conductance_s.shape
            head = _PROGRAM_HEAD.pack(message.array, rows, columns, message.idempotency_key)
            return 0x02, [head, _raw(message.conductance_s, "<f4")]
        case Programmed():
            report = (message.write_index, message.pulses, message.time_s, message.rms_error_s)
            return 0x82, [_PROGRAMMED.pack(*report)]
        case Mvm():
            batch, rows = message.voltage_v.shape
            return 0x03, [_MVM_HEAD.pack(message.array, rows, batch), _raw(message.voltage_v, "<f4")]
        case MvmAnswer():
            return 0x83, _mvm_answer_pieces(message)
        case ReadConductance():
            return 0x04, [_U16.pack(message.array)]
        case Conductance():
            return 0x84, [_SHAPE.pack(*message.conductance_s.shape), _raw(message.conductance_s, "<f4")]
        case Ping():
            return 0x05, [_U64.pack(message.nonce)]
        case Pong():
            return 0x85, [_U64.pack(message.nonce)]
        case Safe():
            return 0x06, []
        case Done():
            return 0x86, []
        case StreamMvm():
            batch, rows = message.voltage_v.shape
            head = _STREAM_MVM_HEAD.pack(message.array, rows, batch, message.part_vectors)
            return 0x07, [head, _raw(message.voltage_v, "<f4")]
        case MvmPart():
            head = _MVM_PART_HEAD.pack(message.last, message.first)
            return MVM_PART_KIND, [head, *_mvm_answer_pieces(message.answer)]
        case Fault():
            return 0xFF, [_U16.pack(message.code), _short_text(message.text)]


def read_payload(kind: int, payload: memoryview) -> Message:
    """Reads the payload of a message of type `kind`.

    Raises:
        ProtocolError: The type is unknown, or the payload does not fit it.
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise ProtocolError(f"message type 0x{kind:02x} is not known")
    cursor = _Cursor(payload)
    message = reader(cursor)
    cursor.finish()
    return message


def _raw(values: NDArray[np.generic], dtype: str) -> memoryview:
    return np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8).data


def _short_text(text: str) -> bytes:
    encoded = text.encode()
    return _U16.pack(len(encoded)) + encoded


def _welcome_pieces(message: Welcome) -> list[Piece]:
    limits = (message.max_payload_bytes, message.max_requests, message.silence_s)
    who = message.identity
    texts = (who.manufacturer, who.model, who.serial, who.firmware)
    info = message.info_json.encode()
    head = _WELCOME_HEAD.pack(message.version, message.session, *limits)
    return [head, *(_short_text(text) for text in texts), _U32.pack(len(info)), info]


def _mvm_answer_pieces(message: MvmAnswer) -> list[Piece]:
    batch, columns = message.code.shape
    head = _MVM_ANSWER_HEAD.pack(message.write_index, batch, columns)
    flags = np.packbits(message.saturated, axis=None, bitorder="little")
    return [head, _raw(message.time_s, "<f8"), _raw(message.code, "<i2"), flags.data]


class _Cursor:
    """Reads a payload from front to back and never past its end."""

    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self._position = 0

    def take(self, count: int) -> memoryview:
        piece = self._payload[self._position : self._position + count]
        if len(piece) != count:
            raise ProtocolError(f"a payload of {len(self._payload)} bytes is too short for what it announces")
        self._position += count
        return piece

    def text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a text in a message is not UTF-8: {error}") from None

    def short_text(self) -> str:
        return self.text(_U16.unpack(self.take(2))[0])

    def float32(self, rows: int, columns: int) -> Float32Array:
        values = np.frombuffer(self.take(4 * rows * columns), dtype="<f4")
        return values.astype(np.float32, copy=False).reshape(rows, columns)

    def finish(self) -> None:
        if self._position != len(self._payload):
            raise ProtocolError(f"{len(self._payload) - self._position} bytes too many at the end of a message")


def _read_hello(payload: _Cursor) -> Hello:
    return Hello(*_VERSIONS.unpack(payload.take(_VERSIONS.size)))


def _read_welcome(payload: _Cursor) -> Welcome:
    head: tuple[int, int, int, int, float] = _WELCOME_HEAD.unpack(payload.take(_WELCOME_HEAD.size))
    identity = Identity(payload.short_text(), payload.short_text(), payload.short_text(), payload.short_text())
    info_json = payload.text(_U32.unpack(payload.take(4))[0])
    return Welcome(*head, identity, info_json)


def _read_program(payload: _Cursor) -> Program:
    array, rows, columns, key = _PROGRAM_HEAD.unpack(payload.take(_PROGRAM_HEAD.size))
    return Program(array, key, payload.float32(rows, columns))


def _read_programmed(payload: _Cursor) -> Programmed:
    write_index, pulses, time_s, rms_error_s = _PROGRAMMED.unpack(payload.take(_PROGRAMMED.size))
    return Programmed(write_index, time_s, pulses, rms_error_s)


def _read_mvm(payload: _Cursor) -> Mvm:
    array, rows, batch = _MVM_HEAD.unpack(payload.take(_MVM_HEAD.size))
    return Mvm(array, payload.float32(batch, rows))


def _read_stream_mvm(payload: _Cursor) -> StreamMvm:
    array, rows, batch, part_vectors = _STREAM_MVM_HEAD.unpack(payload.take(_STREAM_MVM_HEAD.size))
    return StreamMvm(array, part_vectors, payload.float32(batch, rows))


def _read_mvm_answer(payload: _Cursor) -> MvmAnswer:
    write_index, batch, columns = _MVM_ANSWER_HEAD.unpack(payload.take(_MVM_ANSWER_HEAD.size))
    time_s = np.frombuffer(payload.take(8 * batch), dtype="<f8").astype(np.float64, copy=False)
    code = np.frombuffer(payload.take(2 * batch * columns), dtype="<i2").astype(np.int16, copy=False)
    saturated = _flags(payload.take((batch * columns + 7) // 8), batch * columns)
    return MvmAnswer(write_index, time_s, code.reshape(batch, columns), saturated.reshape(batch, columns))


def _read_mvm_part(payload: _Cursor) -> MvmPart:
    last, first = _MVM_PART_HEAD.unpack(payload.take(_MVM_PART_HEAD.size))
    if last > 1:
        raise ProtocolError(f"the mark of the last part is {last}, neither 0 nor 1")
    return MvmPart(first, bool(last), _read_mvm_answer(payload))


def _flags(packed: memoryview, count: int) -> NDArray[np.bool_]:
    if count % 8 and packed[-1] >> count % 8:
        raise ProtocolError("the padding bits of the saturation flags are not zero")
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count, bitorder="little").view(np.bool_)


def _read_conductance(payload: _Cursor) -> Conductance:
    return Conductance(payload.float32(*_SHAPE.unpack(payload.take(_SHAPE.size))))


def _read_fault(payload: _Cursor) -> Fault:
    code: int = _U16.unpack(payload.take(2))[0]
    return Fault(code, payload.short_text())


_READERS: Final[dict[int, Callable[[_Cursor], Message]]] = {
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
    0x07: _read_stream_mvm,
    MVM_PART_KIND: _read_mvm_part,
    0xFF: _read_fault,
}
