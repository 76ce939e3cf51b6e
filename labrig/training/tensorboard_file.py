"""Event files that TensorBoard shows, written without TensorBoard.

A file is a row of TFRecords (length, its checksum, content, its checksum), each a `tensorflow.Event` message of which
only the wall time, the step and scalar values are used: `tensorflow/core/util/event.proto` and
`tensorflow/core/lib/io/record_writer.h`. Checksums are CRC-32C, rotated and shifted as the format wants them.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

FOLDER = "tensorboard"

_VERSION = b"brain.Event:2"
_CASTAGNOLI = 0x82F63B78
_MASK = 0xA282EAD8
# Fields of the messages, as protocol buffers number them, with their wire type in the lowest three bits.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY = 0x09, 0x10, 0x1A, 0x2A
_VALUE, _TAG, _SIMPLE_VALUE = 0x0A, 0x0A, 0x15


class EventFile:
    """Appends scalars of a run to a file of its own.

    Args:
        folder: The folder that TensorBoard is pointed at; made where it is missing.
        name: What tells this file from others of the folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard takes files whose name has `tfevents` in it.
        self._file = (folder / f"events.out.tfevents.{name}").open("wb")
        self._write(bytes([_FILE_VERSION]) + _sized(_VERSION))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step, by their tags."""
        summary = b"".join(
            bytes([_VALUE])
            + _sized(bytes([_TAG]) + _sized(tag.encode()) + bytes([_SIMPLE_VALUE]) + struct.pack("<f", value))
            for tag, value in values.items()
        )
        self._write(bytes([_STEP]) + _varint(step) + bytes([_SUMMARY]) + _sized(summary))

    def flush(self) -> None:
        """Hands everything to the system."""
        self._file.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        content = bytes([_WALL_TIME]) + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(content))
        self._file.write(length + _checksum(length) + content + _checksum(content))


def scalars_of(line: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl`, by tags: its phase, and what is nested in it, before the name."""
    phase = str(line.get("phase", "run"))
    return {f"{phase}/{tag}": value for tag, value in _numbers(line) if tag not in {"step", "steps"}}


def _numbers(values: Mapping[str, object], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{name}", float(value)


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _checksum(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli), as RFC 3720 has it."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@lru_cache(maxsize=1)
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return tuple(table)
