"""What waits for one viewer: the newest of each section, never more."""

from __future__ import annotations

import asyncio


class ViewerQueue:
    """Sections on their way to one viewer. A newer one takes the place of one that still waits, which is counted.

    So a viewer on a slow network gets fewer pictures, and always the latest; it costs the page at most one of each
    section in memory.

    Args:
        most: Sections that wait at most; beyond that the oldest goes.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._waiting: dict[str, bytes] = {}
        self._news = asyncio.Event()
        self._closed = False
        self.dropped = 0

    def put(self, sections: dict[str, bytes]) -> None:
        """Adds sections, each as JSON."""
        for name, content in sections.items():
            if self._waiting.pop(name, None) is not None:
                self.dropped += 1
            self._waiting[name] = content
        while len(self._waiting) > self._most:
            del self._waiting[next(iter(self._waiting))]
            self.dropped += 1
        if self._waiting:
            self._news.set()

    def close(self) -> None:
        """Nothing more will come; what waits is still given."""
        self._closed = True
        self._news.set()

    async def take(self) -> dict[str, bytes] | None:
        """Everything that waits, as soon as there is something; None at the end."""
        await self._news.wait()
        waiting, self._waiting = self._waiting, {}
        if not self._closed:
            self._news.clear()
        return waiting or None

    def __len__(self) -> int:
        return len(self._waiting)


def message_of(sections: dict[str, bytes]) -> bytes:
    """One message of several sections."""
    return (
        b'{"sections":{'
        + b",".join(b'"%s":%s' % (name.encode(), content) for name, content in sections.items())
        + b"}}"
    )
