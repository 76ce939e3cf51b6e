"""The direct link on the user's side."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from labrig.remote.direct_limits import HEARTBEAT_S, LONGEST_PACKET_BYTES
from labrig.remote.envelope import Assembler, packets, read_body
from labrig.remote.messages import Answer, read_answer
from labrig.remote.tasks import end_tasks
from labrig_drivers.errors import LinkLostError, ProtocolError

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse

_CONNECT_S: Final = 3.0


class DirectLine:
    """A WebSocket to a rig that is held.

    Args:
        url: Where it is.
        token: What opens it.
        ca_file: Certificates that an encrypted one is checked with; those of the system when None.
        take: Gets each answer.
        ended: Called once when it ends by itself, with what happened.
    """

    def __init__(
        self,
        url: str,
        token: str,
        ca_file: str | None,
        take: Callable[[Answer], None],
        ended: Callable[[str], None],
    ) -> None:
        self._url = url
        self._token = token
        self._ca_file = ca_file
        self._take = take
        self._ended = ended
        self._numbers = itertools.count(secrets.randbits(48))
        self._session: ClientSession | None = None
        self._socket: ClientWebSocketResponse | None = None
        self._reading: asyncio.Task[None] | None = None
        self._alive = False

    @property
    def alive(self) -> bool:
        """Whether it is open, and has not ended by itself."""
        return self._alive

    async def open(self) -> None:
        """Connects.

        Raises:
            LinkLostError: It cannot be reached, or does not let this client in.
        """
        try:
            from aiohttp import ClientError, ClientSession, ClientTimeout, ClientWSTimeout
        except ImportError:
            raise LinkLostError("the direct link needs aiohttp; pip install 'labrig[remote]'") from None
        try:
            tls = ssl.create_default_context(cafile=self._ca_file) if self._url.startswith("wss:") else None
            self._session = ClientSession(timeout=ClientTimeout(total=None, sock_connect=_CONNECT_S))
            async with asyncio.timeout(_CONNECT_S):
                self._socket = await self._session.ws_connect(
                    self._url,
                    headers={"Authorization": f"Bearer {self._token}"},
                    max_msg_size=LONGEST_PACKET_BYTES,
                    compress=0,
                    heartbeat=HEARTBEAT_S,
                    timeout=ClientWSTimeout(ws_close=1.0),  # pyright: ignore[reportCallIssue]
                    ssl=True if tls is None else tls,
                )
        except (ClientError, OSError, TimeoutError, ValueError) as error:
            await self.close()
            raise LinkLostError(f"{self._url}: no direct link: {error or type(error).__name__}") from None
        except BaseException:
            await self.close()
            raise
        self._alive = True
        self._reading = asyncio.create_task(self._read(self._socket), name="labrig-remote-direct")

    async def send(self, message: bytes) -> None:
        """Sends one message.

        Raises:
            LinkLostError: It has ended.
        """
        from aiohttp import ClientError

        socket = self._socket
        if socket is None or socket.closed:
            raise LinkLostError(f"{self._url}: the direct link has ended")
        try:
            for packet in packets(message, next(self._numbers), None):
                await socket.send_bytes(packet)
        except (ClientError, OSError) as error:
            raise LinkLostError(f"{self._url}: the direct link has ended: {error}") from None

    async def close(self) -> None:
        """Ends it; harmless when it has ended."""
        self._alive = False
        if self._reading is not None:
            await end_tasks(self._reading)
            self._reading = None
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _read(self, socket: ClientWebSocketResponse) -> None:
        from aiohttp import WSMsgType

        why = "the rig closed it"
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                break
            try:
                whole = Assembler().take(message.data, 0.0)
                answer = read_answer(read_body(whole or b""))
            except ProtocolError as error:
                why = f"an answer that cannot be read: {error}"
                break
            self._take(answer)
        self._alive = False
        self._ended(why)
