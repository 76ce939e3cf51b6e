"""A link to a function in the same process, for tests and in-process instruments."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable

from labrig_drivers.errors import LinkTimeoutError, ProtocolError
from labrig_drivers.links.base import Framing, LinkState
from labrig_drivers.links.guard import LinkGuard


class MemoryLink:
    """A link whose peer is a function; keeps the `Link` contract without time passing.

    Args:
        handler: Gets the bytes of a request and returns the bytes of its answer, `b""` for none.
        name: What the address says, after `memory:`.
    """

    def __init__(self, handler: Callable[[bytes], bytes], name: str = "handler") -> None:
        self._handler = handler
        self._guard = LinkGuard(f"memory:{name}")
        self._buffer = bytearray()

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._guard.address

    @property
    def state(self) -> LinkState:
        """Where the link is in its life cycle."""
        return self._guard.state

    async def open(self, *, timeout_s: float = 5.0) -> None:  # noqa: ARG002 - the contract names it
        """Becomes ready.

        Raises:
            StateError: The link is open already.
        """
        self._guard.require_closed()
        async with self._guard.opening(failed=LinkState.CLOSED):
            self._buffer.clear()

    async def exchange(self, request: bytes, framing: Framing | None, *, timeout_s: float = 5.0) -> bytes:
        """Calls the handler and takes one message from what it returned; with None, returns `b""`.

        Raises:
            LinkTimeoutError: The handler returned no complete message; no time passes, since none can come later.
            LinkDesyncedError: An earlier exchange did not complete.
            ProtocolError: Bytes are there that nobody asked for, or the answer cannot be framed.
            StateError: The link is not open.
        """
        async with self._guard.exchanging():
            self._require_silence()
            self._buffer += self._handler(request)
            if framing is None:
                return b""
            message = self._take(framing, request, timeout_s)
            self._require_nothing_more(request)
            return message

    async def exchange_many(
        self,
        requests: Iterable[bytes],
        framing: Framing,
        *,
        timeout_s: float = 5.0,
        window: int = 1,
        is_last: Callable[[bytes], bool] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Sends up to `window` requests ahead and yields every message as it comes; see `Link.exchange_many`."""
        async with self._guard.exchanging():
            self._require_silence()
            waiting = iter(requests)
            under_way = 0
            request = b""
            message: bytes | None = None
            while True:
                while under_way < window and (following := next(waiting, None)) is not None:
                    request = following
                    self._buffer += self._handler(request)
                    under_way += 1
                if message is not None:
                    yield message
                if under_way == 0:
                    break
                message = self._take(framing, request, timeout_s)
                if is_last is None or is_last(message):
                    under_way -= 1
            self._require_nothing_more(request)

    async def reopen(self, *, timeout_s: float = 5.0) -> None:  # noqa: ARG002 - the contract names it
        """Throws away what is buffered and becomes ready."""
        async with self._guard.opening(failed=LinkState.BROKEN):
            self._buffer.clear()

    async def close(self) -> None:
        """Becomes closed; harmless when closed."""
        async with self._guard.closing():
            self._buffer.clear()

    def _require_silence(self) -> None:
        if self._buffer:
            raise ProtocolError(f"{self.address}: bytes came that nobody asked for ({bytes(self._buffer[:60])!r})")

    def _take(self, framing: Framing, request: bytes, timeout_s: float) -> bytes:
        message = framing.take(self._buffer)
        if message is None:
            raise LinkTimeoutError(
                f"{self.address}: no complete answer to {request[:60]!r} (would have waited {timeout_s:g} s)"
            )
        return message

    def _require_nothing_more(self, request: bytes) -> None:
        if self._buffer:
            raise ProtocolError(f"{self.address}: more than one message came after {request[:60]!r}")
