"""The direct link on the rig's side: a WebSocket that only the holder of the lease knows how to enter.

It carries the same messages as the broker, without the broker's detour. Where it is and a token that opens it once are
told with the lease; it ends with the lease.
"""

from __future__ import annotations

import hmac
import ipaddress
import itertools
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from labrig.addresses import bind_reason
from labrig.remote.direct_limits import HEARTBEAT_S, LONGEST_PACKET_BYTES
from labrig.remote.envelope import Assembler, packets, read_body
from labrig.remote.messages import Values, read_request
from labrig.remote.service import RigService
from labrig_drivers.errors import ConfigError, LabrigError, LinkLostError

if TYPE_CHECKING:
    from aiohttp import web

PATH: Final = "/labrig/1"


@dataclass(frozen=True)
class DirectSettings:
    """Where the direct link listens.

    Attributes:
        host: Address that it binds to, and that users are told.
        port: Its port; 0 takes a free one.
        cert_file: Certificate (PEM), to encrypt, with `key_file`.
        key_file: Its key.
        in_the_clear: Whether an address that others can reach may do without a certificate.
    """

    host: str = "127.0.0.1"
    port: int = 0
    cert_file: Path | None = None
    key_file: Path | None = None
    in_the_clear: bool = False

    def check(self) -> None:
        """Refuses what is not safe, or cannot be.

        Raises:
            ConfigError: Every fault at once.
        """
        faults = []
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            faults.append(f"{self.host!r} is no IP address; the direct link binds to one, such as 127.0.0.1")
        else:
            if address.is_unspecified:
                faults.append(f"{self.host} is no address that users could be told; name one of this machine")
            elif not address.is_loopback and self.cert_file is None and not self.in_the_clear:
                faults.append(
                    f"tokens and data would travel to {self.host} in the clear; give a certificate (--cert and "
                    "--key), or say --open-broker"
                )
        if (self.cert_file is None) != (self.key_file is None):
            faults.append("a certificate needs its key, and a key its certificate (--cert and --key)")
        if faults:
            raise ConfigError("\n".join(faults))


class DirectDoor:
    """Lets the holder of the lease in, once for each token, and nobody else.

    Args:
        service: Carries requests out.
    """

    def __init__(self, service: RigService) -> None:
        self._service = service
        self._numbers = itertools.count(secrets.randbits(48))
        self._token: str | None = None
        self._socket: web.WebSocketResponse | None = None
        self.url = ""
        self.entered = 0

    def offer(self) -> Values:
        """What the holder of the lease is told; an earlier token opens nothing any more."""
        self._token = secrets.token_urlsafe(24)
        return {"direct": self.url, "direct_token": self._token}

    async def shut(self) -> None:
        """Sends the holder away; its token opens nothing any more."""
        self._token = None
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One connection."""
        from aiohttp import WSMsgType, web

        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._token is None or not hmac.compare_digest(token.encode(), self._token.encode()):
            return web.Response(status=403, text="this needs the token that comes with the lease\n")
        self._token = None
        self.entered += 1
        socket = web.WebSocketResponse(max_msg_size=LONGEST_PACKET_BYTES, compress=False, heartbeat=HEARTBEAT_S)
        await socket.prepare(request)
        self._socket = socket
        try:
            async for message in socket:
                if message.type is not WSMsgType.BINARY or not self._take(message.data, socket):
                    break
        finally:
            await socket.close()
        return socket

    def _take(self, packet: bytes, socket: web.WebSocketResponse) -> bool:
        """Takes a packet in; False when it was no request, which ends the connection."""
        try:
            whole = Assembler().take(packet, 0.0)
            request = read_request(read_body(whole or b""))
        except LabrigError as error:
            self._service.refuse(error, "direct")
            return False

        async def outlet(answer: bytes) -> None:
            for one in packets(answer, next(self._numbers), None):
                await socket.send_bytes(one)

        self._service.take(request, outlet)
        return True


@asynccontextmanager
async def direct_door(service: RigService, settings: DirectSettings) -> AsyncIterator[DirectDoor]:
    """Offers the direct link as long as the block lasts.

    Args:
        service: Carries requests out, and tells the holder of the lease.
        settings: Where it listens.

    Raises:
        ConfigError: The settings are not safe, or aiohttp is not installed.
        LinkLostError: The port is taken, or may not be listened on.
    """
    settings.check()
    try:
        from aiohttp import web
    except ImportError as error:
        raise ConfigError(f"the direct link needs aiohttp ({error}); run: pip install 'labrig[remote]'") from None
    context: ssl.SSLContext | None = None
    if settings.cert_file is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file)
        except OSError as error:  # what is no certificate is an OSError, too
            raise ConfigError(f"{settings.cert_file}: cannot be used: {error.strerror or error}") from None
    door = DirectDoor(service)
    app = web.Application()
    app.router.add_get(PATH, door.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise LinkLostError(f"the direct link cannot listen on {where}: {bind_reason(error)}") from None
        port = runner.addresses[0][1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        door.url = f"{'ws' if context is None else 'wss'}://{host}:{port}{PATH}"
        service.offer_direct(door)
        try:
            yield door
        finally:
            service.offer_direct(None)
            await door.shut()
    finally:
        await runner.cleanup()
