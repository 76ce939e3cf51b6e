"""Framings of text instruments: lines, IEEE 488.2 arbitrary blocks, and blocks of a length known beforehand.

A framing is a value without state: it looks at the bytes that came so far and either takes one message or leaves
them alone, so that a message split anywhere by the transport is the same message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from labrig_drivers.errors import ProtocolError

_LINE_MAX_BYTES = 1 << 20
_BLOCK_MAX_BYTES = 1 << 28
_FIXED_HEAD = b"#0"


@runtime_checkable
class SizedFraming(Protocol):
    """A framing that can say how much is missing; links that cannot read "what is there" ask it."""

    def missing(self, buffer: bytearray) -> int:
        """Number of bytes, at least 1, that are certain to be missing from the incomplete message in `buffer`."""
        ...


@dataclass(frozen=True)
class LineFraming:
    r"""A message is everything up to a terminator; one carriage return before the terminator is dropped too.

    Attributes:
        terminator: Bytes that end a line.
        max_bytes: Longest line that is believed, without its terminator.

    Raises:
        ValueError: The terminator is empty.
    """

    terminator: bytes = b"\n"
    max_bytes: int = _LINE_MAX_BYTES

    def __post_init__(self) -> None:
        if not self.terminator:
            raise ValueError("a line needs a terminator of at least one byte")

    def take(self, buffer: bytearray) -> bytes | None:
        """Removes the first line from `buffer` and returns it without its terminator; None while it is incomplete.

        Raises:
            ProtocolError: The line is longer than `max_bytes`.
        """
        end = buffer.find(self.terminator)
        if end > self.max_bytes or (end < 0 and len(buffer) >= self.max_bytes + len(self.terminator)):
            raise ProtocolError(
                f"a line of more than {self.max_bytes} bytes came, beginning {bytes(buffer[:40])!r}; "
                "is this the right instrument and the right line terminator?"
            )
        if end < 0:
            return None
        line = bytes(buffer[:end]).removesuffix(b"\r")
        del buffer[: end + len(self.terminator)]
        return line


@dataclass(frozen=True)
class BlockFraming:
    r"""IEEE 488.2 arbitrary block: definite `#<digits><length><data>`, or indefinite `#0<data>` ended by a line end.

    The response terminator after the data belongs to the message (IEEE 488.2 section 8.7.9), so it is waited for and
    removed: left in the stream it would look like the next answer. The end of an indefinite block is the END line of
    a bus; on a stream of bytes only the terminator marks it, so its data must not contain the terminator.

    Attributes:
        terminator: Bytes after the data; may be empty for definite blocks.
        max_bytes: Longest data that is believed.
    """

    terminator: bytes = b"\n"
    max_bytes: int = _BLOCK_MAX_BYTES

    def take(self, buffer: bytearray) -> bytes | None:
        """Removes the first block from `buffer` and returns its data; None while it is incomplete.

        Raises:
            ProtocolError: The bytes are not a block, it is longer than `max_bytes`, or no terminator follows it.
        """
        header = self._header(buffer)
        if header is None:
            return None
        start, length = header
        if length is None:
            return self._take_indefinite(buffer)
        stop = start + length
        if len(buffer) < stop:
            return None
        tail = bytes(buffer[stop : stop + len(self.terminator)])
        # "\r\n" is accepted where "\n" is the terminator, as for lines.
        if self.terminator == b"\n" and tail == b"\r":
            stop += 1
            tail = bytes(buffer[stop : stop + 1])
        if not self.terminator.startswith(tail):
            raise ProtocolError(f"after a block of {length} bytes came {tail!r} instead of {self.terminator!r}")
        if len(tail) < len(self.terminator):
            return None
        data = bytes(buffer[start : start + length])
        del buffer[: stop + len(self.terminator)]
        return data

    def missing(self, buffer: bytearray) -> int:
        """Number of bytes that are certain to be missing from the incomplete block in `buffer`."""
        header = self._header(buffer)
        if header is None:
            return max(1, 2 - len(buffer))
        start, length = header
        if length is None:
            return 1
        return max(1, start + length + len(self.terminator) - len(buffer))

    def _header(self, buffer: bytearray) -> tuple[int, int | None] | None:
        """Where the data start and how long they are (None: indefinite), or None while the header is incomplete."""
        if not buffer:
            return None
        if buffer[:1] != b"#":
            raise ProtocolError(f"expected a block that begins with '#', got {bytes(buffer[:40])!r}")
        if len(buffer) < 2:
            return None
        if not buffer[1:2].isdigit():
            raise ProtocolError(f"bad block header {bytes(buffer[:12])!r}: no digit after '#'")
        digits = buffer[1] - ord("0")
        if digits == 0:
            if not self.terminator:
                raise ProtocolError("an indefinite block came, but without a terminator nothing marks its end")
            return 2, None
        count = bytes(buffer[2 : 2 + digits])
        if count and not count.isdigit():
            raise ProtocolError(f"bad block header {bytes(buffer[:12])!r}: the length is not a number")
        if len(count) < digits:
            return None
        length = int(count)
        if length > self.max_bytes:
            raise ProtocolError(f"a block of {length} bytes was announced, more than {self.max_bytes} are not believed")
        return 2 + digits, length

    def _take_indefinite(self, buffer: bytearray) -> bytes | None:
        end = buffer.find(self.terminator, 2)
        if end - 2 > self.max_bytes or (end < 0 and len(buffer) - 2 >= self.max_bytes + len(self.terminator)):
            raise ProtocolError(f"an indefinite block of more than {self.max_bytes} bytes came")
        if end < 0:
            return None
        data = bytes(buffer[2:end]).removesuffix(b"\r")
        del buffer[: end + len(self.terminator)]
        return data


@dataclass(frozen=True)
class FixedBlockFraming:
    r"""A block `#0<data>\n` whose length the receiver knows, because it asked for so many values.

    Some instruments (Keithley 2600: `printbuffer` with a binary format) head their data with `#0` and end them with
    a line end, so nothing in the stream tells where the data end: they may hold any byte, line ends included.

    Attributes:
        data_bytes: Length of the data.
        terminator: Bytes after the data.
    """

    data_bytes: int
    terminator: bytes = b"\n"

    def __post_init__(self) -> None:
        if not 0 <= self.data_bytes <= _BLOCK_MAX_BYTES:
            raise ValueError(f"a block of {self.data_bytes} bytes is not between 0 and {_BLOCK_MAX_BYTES}")

    def take(self, buffer: bytearray) -> bytes | None:
        """Removes the block from `buffer` and returns its data; None while it is incomplete.

        Raises:
            ProtocolError: The bytes do not begin with `#0`, or no terminator follows the data.
        """
        head = bytes(buffer[: len(_FIXED_HEAD)])
        if not _FIXED_HEAD.startswith(head):
            raise ProtocolError(f"expected a block that begins with {_FIXED_HEAD!r}, got {bytes(buffer[:40])!r}")
        stop = len(_FIXED_HEAD) + self.data_bytes
        tail = bytes(buffer[stop : stop + len(self.terminator)])
        if not self.terminator.startswith(tail):
            raise ProtocolError(
                f"after a block of {self.data_bytes} bytes came {tail!r} instead of {self.terminator!r}; "
                "does the instrument send as many values as were asked for?"
            )
        if self.missing_bytes(buffer) > 0:
            return None
        data = bytes(buffer[len(_FIXED_HEAD) : stop])
        del buffer[: stop + len(self.terminator)]
        return data

    def missing(self, buffer: bytearray) -> int:
        """Number of bytes that are certain to be missing from the incomplete block in `buffer`."""
        return max(1, self.missing_bytes(buffer))

    def missing_bytes(self, buffer: bytearray) -> int:
        """Number of bytes between the end of `buffer` and the end of the block; negative beyond it."""
        return len(_FIXED_HEAD) + self.data_bytes + len(self.terminator) - len(buffer)


@dataclass(frozen=True)
class PairFraming:
    """Two messages as one: an answer, and a line that the instrument sends right after it.

    The payload is that of the first, a line end, and the second line; the last line end separates them.

    Attributes:
        first: Framing of the answer.
        second: Framing of the line.
    """

    first: LineFraming | FixedBlockFraming
    second: LineFraming = LineFraming()

    def take(self, buffer: bytearray) -> bytes | None:
        """Removes both messages from `buffer`; None, and nothing removed, while one of them is incomplete.

        Raises:
            ProtocolError: One of them can never become complete.
        """
        rest = bytearray(buffer)
        first = self.first.take(rest)
        second = None if first is None else self.second.take(rest)
        if first is None or second is None:
            return None
        del buffer[: len(buffer) - len(rest)]
        return first + b"\n" + second

    def missing(self, buffer: bytearray) -> int:
        """Number of bytes that are certain to be missing from the incomplete pair in `buffer`."""
        if isinstance(self.first, FixedBlockFraming) and self.first.missing_bytes(buffer) > 0:
            # At least the line end of the second one is missing too.
            return self.first.missing_bytes(buffer) + len(self.second.terminator)
        return 1
