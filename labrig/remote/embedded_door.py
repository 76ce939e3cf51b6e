"""The door of the embedded broker: looks at the first bytes of a connection before amqtt gets it.

amqtt speaks MQTT 3.1.1. It reads on in the CONNECT of another version as if it were one of its own, and then waits for
ever for bytes that do not come when there is an account in it; so it never sees one.
"""

from __future__ import annotations

import asyncio
from typing import Final

_FIRST_S: Final = 5.0
_CONNECT: Final = 0x10
_LEVEL_311: Final = 4
_NAME: Final = b"\x00\x04MQTT"
_WRONG_VERSION: Final = b"\x20\x02\x00\x01"


class Begun:
    """A connection whose first bytes were read already; what amqtt calls a reader adapter.

    Args:
        reader: The connection.
        beginning: What was read.
    """

    def __init__(self, reader: asyncio.StreamReader, beginning: bytes) -> None:
        self._reader = reader
        self._beginning = beginning

    async def read(self, n: int = -1) -> bytes:
        """The next `n` bytes; all to the end of the connection when -1."""
        if n == -1:
            piece, self._beginning = self._beginning, b""
            return piece + await self._reader.read(n)
        if not self._beginning:
            return await self._reader.readexactly(n)
        piece, self._beginning = self._beginning[:n], self._beginning[n:]
        return piece if len(piece) == n else piece + await self._reader.readexactly(n - len(piece))

    def feed_eof(self) -> None:
        """Ends the connection for whoever reads."""
        self._reader.feed_eof()


async def first_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
    """Reads as far as the version that a client speaks.

    Returns:
        What was read; None when the client does not speak 3.1.1 (it was told so, as that version has it), says
        nothing, or speaks no MQTT.
    """
    try:
        async with asyncio.timeout(_FIRST_S):
            head = await reader.readexactly(2)
            # The length has one to four bytes; the highest bit of each says whether another one follows.
            while head[-1] & 0x80 and len(head) < 5:
                head += await reader.readexactly(1)
            head += await reader.readexactly(len(_NAME) + 1)
    except (TimeoutError, asyncio.IncompleteReadError, OSError):
        return None
    if head[0] != _CONNECT or not head[:-1].endswith(_NAME):
        return None
    if head[-1] != _LEVEL_311:
        writer.write(_WRONG_VERSION)
        await writer.drain()
        return None
    return head
