"""VISA links: every call of one session on one thread of its own.

pyvisa blocks, and two threads on one pyvisa-py session silently swap answers, so a link owns exactly one thread for
its session's whole life, opening and closing included. A caller that is cancelled waits until the thread is back,
which VISA's own timeout, kept a little under ours, guarantees.

pyvisa-py cannot see that a socket's peer is gone: it waits out its timeout. It cannot set TCP_NODELAY either (0.8.1
recurses without end), so a request right after one without an answer may wait 40 ms for the peer's acknowledgement.
Prefer `TcpLink` where TCP is spoken.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from labrig_drivers.errors import LabrigError, LinkLostError, LinkTimeoutError, ProtocolError
from labrig_drivers.links.base import Framing, LinkState
from labrig_drivers.links.framing import LineFraming, SizedFraming
from labrig_drivers.links.guard import LinkGuard
from labrig_drivers.links.words import system_words
from labrig_drivers.settling import settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvisa.resources import MessageBasedResource

T = TypeVar("T")

_LINE_PIECE_BYTES = 4096
# VISA gives up this much before our deadline (at most a tenth of the time), so that its thread is back by then.
_MARGIN_S = 0.05
# pyvisa looks for the backend's manager and makes one when there is none; two threads at once would make two.
_MANAGER_LOCK = threading.Lock()


class VisaLink:
    """A link to a VISA resource; keeps the `Link` contract.

    Args:
        resource: VISA resource name, such as `TCPIP::192.168.0.5::5025::SOCKET` or `GPIB0::24::INSTR`.
        backend: VISA library, as pyvisa names it; `@py` is pyvisa-py.
    """

    def __init__(self, resource: str, backend: str = "@py") -> None:
        self._resource_name = resource
        self._backend = backend
        self._guard = LinkGuard(f"visa://{resource}")
        self._executor: ThreadPoolExecutor | None = None
        self._session: _Session | None = None

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._guard.address

    @property
    def state(self) -> LinkState:
        """Where the link is in its life cycle."""
        return self._guard.state

    async def open(self, *, timeout_s: float = 5.0) -> None:
        """Opens a session on a new thread.

        Raises:
            LinkLostError: The resource cannot be reached, or VISA does not know it.
            StateError: The link is open already.
        """
        self._guard.require_closed()
        async with self._guard.opening(failed=LinkState.CLOSED):
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"visa {self._resource_name}")
            try:
                await self._connect(timeout_s)
            except BaseException:
                await self._disconnect()
                raise

    async def exchange(self, request: bytes, framing: Framing | None, *, timeout_s: float = 5.0) -> bytes:
        """Sends `request` and waits for one message in `framing`; with None, sends only and returns `b""`.

        Framings other than `LineFraming` and those with a `missing()` are read byte by byte. A peer that is gone
        shows as a timeout with pyvisa-py.

        Raises:
            LinkTimeoutError: No complete message before the deadline; the link is desynchronised now.
            LinkLostError: The peer is gone; the link is broken now.
            LinkDesyncedError: An earlier exchange did not complete.
            ProtocolError: Bytes came that nobody asked for, or the answer cannot be framed; desynchronised now.
            StateError: The link is not open.
        """
        async with self._guard.exchanging():
            session = self._session
            assert session is not None  # ready implies an open session
            return await self._on_thread(lambda: session.exchange(request, framing, timeout_s))

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
            session = self._session
            assert session is not None  # ready implies an open session
            waiting = iter(requests)
            # One hop to the thread for a window, written and read in turn there.
            while window_of := list(islice(waiting, window)):
                for message in await self._on_thread(
                    partial(session.exchange_many, window_of, framing, timeout_s, is_last)
                ):
                    yield message

    async def reopen(self, *, timeout_s: float = 5.0) -> None:
        """Drops the session with everything in it and opens a new one; broken when that fails.

        On a bus (GPIB, USB, VXI-11) the instrument is sent a device clear too, which empties its output queue and
        changes no setting.

        Raises:
            LinkLostError: The resource cannot be reached.
        """
        async with self._guard.opening(failed=LinkState.BROKEN):
            if self._executor is None:
                self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"visa {self._resource_name}")
            await self._end_session()
            session = await self._connect(timeout_s)
            await self._on_thread(session.clear)

    async def close(self) -> None:
        """Closes the session and ends its thread; harmless when closed. Waits for an exchange in flight."""
        async with self._guard.closing():
            await self._disconnect()

    async def _connect(self, timeout_s: float) -> _Session:
        def connect() -> None:
            # Kept by the thread itself, so that a caller who was cancelled meanwhile still closes it.
            self._session = _Session(self._resource_name, self._backend, timeout_s, self.address)

        await self._on_thread(connect)
        assert self._session is not None
        return self._session

    async def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await self._on_thread(session.close)

    async def _disconnect(self) -> None:
        try:
            await self._end_session()
        finally:
            executor, self._executor = self._executor, None
            if executor is not None:
                # The thread is idle here, so this does not wait.
                executor.shutdown()

    async def _on_thread(self, job: Callable[[], T]) -> T:
        assert self._executor is not None
        future = asyncio.get_running_loop().run_in_executor(self._executor, job)
        cancelled = await settle(future)
        if cancelled is not None:
            future.exception()  # the cancellation is what the caller sees
            raise cancelled
        return future.result()


class _Session:
    """One VISA session; every method runs on the link's thread."""

    def __init__(self, resource_name: str, backend: str, timeout_s: float, address: str) -> None:
        import pyvisa
        from pyvisa.resources import MessageBasedResource, SerialInstrument, TCPIPSocket

        self._address = address
        with _MANAGER_LOCK, self._translated(f"no VISA library {backend!r}"):
            # One manager for the process and backend; closing it would close every other link's session too.
            self._manager = pyvisa.ResourceManager(backend)
        with self._translated(f"cannot open within {timeout_s:g} s", timeout_s):
            resource = self._manager.open_resource(resource_name, open_timeout=_milliseconds(timeout_s))
        if not isinstance(resource, MessageBasedResource):
            resource.close()
            raise LinkLostError(f"{address}: VISA opened a {type(resource).__name__}, which exchanges no messages")
        self._resource: MessageBasedResource = resource
        self._is_socket = isinstance(resource, TCPIPSocket)
        self._is_stream = self._is_socket or isinstance(resource, SerialInstrument)
        try:
            # pyvisa-py opens a refused socket without complaint; only touching it tells.
            self._require_silence()
        except LinkLostError as error:
            self.close()
            why = f" ({system_words(cause)})" if isinstance(cause := error.__cause__, Exception) else ""
            raise LinkLostError(
                f"{address}: cannot connect{why}; is the instrument on, and the address right?"
            ) from error
        except BaseException:
            self.close()
            raise

    def exchange(self, request: bytes, framing: Framing | None, timeout_s: float) -> bytes:
        """The whole exchange, so that one hop to the thread is enough."""
        messages = self._converse(request, framing, timeout_s, None)
        return messages[-1] if messages else b""

    def exchange_many(
        self, requests: list[bytes], framing: Framing, timeout_s: float, is_last: Callable[[bytes], bool] | None
    ) -> list[bytes]:
        """One exchange after another; an answer ends with the first message that `is_last` says yes to."""
        return [message for request in requests for message in self._converse(request, framing, timeout_s, is_last)]

    def _converse(
        self, request: bytes, framing: Framing | None, timeout_s: float, is_last: Callable[[bytes], bool] | None
    ) -> list[bytes]:
        margin_s = min(_MARGIN_S, timeout_s / 10)
        deadline = time.monotonic() + timeout_s - margin_s
        self._require_silence()
        messages: list[bytes] = []
        with self._translated(f"no complete answer to {request[:60]!r}", timeout_s):
            self._resource.timeout = _milliseconds(deadline - time.monotonic())
            self._resource.write_raw(request)
            if framing is None:
                return messages
            buffer = bytearray()
            while True:
                while (message := framing.take(buffer)) is None:
                    self._resource.timeout = self._remaining_ms(deadline, request, timeout_s)
                    buffer += self._piece(framing, buffer)
                messages.append(message)
                if is_last is None or is_last(message):
                    break
                deadline = time.monotonic() + timeout_s - margin_s
        if buffer:
            raise ProtocolError(f"{self._address}: more than one message came after {request[:60]!r}")
        # Reading stops at a line's end; a second line, which makes the first one doubtful, would wait unseen.
        self._require_silence(f"after {request[:60]!r} and its answer, so nothing tells which one is the answer")
        return messages

    def clear(self) -> None:
        """Device clear on a bus; a stream has none (pyvisa-py would only wait for silence)."""
        if not self._is_stream:
            with self._translated("no answer to a device clear"):
                self._resource.clear()

    def close(self) -> None:
        """Closes the session, never the manager."""
        with self._translated("cannot close"):
            self._resource.close()

    def _piece(self, framing: Framing, buffer: bytearray) -> bytes:
        """Some more bytes: never more than the message has, unless a line end tells where to stop."""
        if isinstance(framing, LineFraming):
            last = framing.terminator[-1:].decode("latin-1")
            if self._resource.read_termination != last:
                self._resource.read_termination = last
            return self._resource.read_bytes(_LINE_PIECE_BYTES, break_on_termchar=True)
        count = framing.missing(buffer) if isinstance(framing, SizedFraming) else 1
        if self._resource.read_termination is not None:
            # With it on, pyvisa-py stops at every such byte of binary data and copies what it has.
            self._resource.read_termination = None
        return self._resource.read_bytes(count, chunk_size=count)

    def _require_silence(self, when: str = "and nothing was sent") -> None:
        """Refuses to go on while bytes wait on a stream; a bus instrument sends nothing unasked."""
        from pyvisa.constants import StatusCode
        from pyvisa.errors import VisaIOError
        from pyvisa.resources import SerialInstrument

        waiting = b""
        with self._translated("cannot look for waiting bytes"):
            if isinstance(self._resource, SerialInstrument):
                count = self._resource.bytes_in_buffer
                waiting = self._resource.read_bytes(count) if count else b""
            elif self._is_socket and not _is_silent(self._resource):
                self._resource.timeout = 0
                try:
                    waiting = self._resource.read_bytes(1)
                except VisaIOError as error:
                    if error.error_code != StatusCode.error_timeout:
                        raise
        if waiting:
            raise ProtocolError(f"{self._address}: bytes came that nobody asked for ({waiting[:60]!r}) {when}")

    def _remaining_ms(self, deadline: float, request: bytes, timeout_s: float) -> int:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0.0:
            raise LinkTimeoutError(
                f"{self._address}: no complete answer to {request[:60]!r} within {timeout_s:g} s; "
                "the link needs to be reopened"
            )
        return _milliseconds(remaining_s)

    @contextmanager
    def _translated(self, what: str, timeout_s: float | None = None) -> Iterator[None]:
        """Raises VISA's and the backend's errors as ours (pyvisa-py raises bare `Exception` and `OSError` too)."""
        from pyvisa.constants import StatusCode
        from pyvisa.errors import VisaIOError

        try:
            yield
        except LabrigError:
            raise
        except VisaIOError as error:
            if error.error_code == StatusCode.error_timeout:
                limit = "in time" if timeout_s is None else f"within {timeout_s:g} s"
                raise LinkTimeoutError(f"{self._address}: {what} {limit}; the link needs to be reopened") from error
            raise LinkLostError(f"{self._address}: {what} ({system_words(error)})") from error
        except Exception as error:
            raise LinkLostError(f"{self._address}: {what} ({system_words(error)})") from error


def _is_silent(resource: MessageBasedResource) -> bool:
    """Whether it is certain that no byte waits in pyvisa-py's socket; False where that cannot be seen.

    A look through VISA costs a millisecond, because pyvisa-py never waits for less; its session's own socket and buffer
    tell at once. Other backends, and a pyvisa-py that names them otherwise, are looked at through VISA.
    """
    session = getattr(resource.visalib, "sessions", {}).get(resource.session)
    interface, pending = getattr(session, "interface", None), getattr(session, "_pending_buffer", None)
    if not isinstance(interface, socket.socket) or not isinstance(pending, bytearray):
        return False
    return not pending and not select.select([interface], [], [], 0)[0]


def _milliseconds(duration_s: float) -> int:
    # VISA takes 0 for "do not wait at all".
    return max(1, int(duration_s * 1000))
