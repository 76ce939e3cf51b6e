"""The web application: a page, a stream of sections, and three things that can be asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.typedefs import Middleware

from labrig.live.access import Access, Attempts, Role, host_is_ours
from labrig.live.assets import load_assets
from labrig.live.hub import Hub
from labrig.live.steering import Steering
from labrig.live.viewers import ViewerQueue, message_of
from labrig.telemetry.documents import clean_text

COOKIE: Final = "labrig-live"

_MOST_BODY = 2048
_LONGEST_NAME = 40
_HEARTBEAT_S = 15.0
_SEND_S = 15.0

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Site:
    """What the application serves.

    Attributes:
        hub: Feeds the viewers.
        steering: What may be asked of the run.
        access: The keys.
        host: The address that it is served at.
        most_viewers: Viewers at the same time.
    """

    hub: Hub
    steering: Steering
    access: Access
    host: str
    most_viewers: int = 64


def make_app(site: Site) -> web.Application:
    """The application of a page."""
    app = web.Application(middlewares=[_guard(site)], client_max_size=_MOST_BODY)
    handlers = _Handlers(site)
    app.router.add_get("/", handlers.page)
    app.router.add_get("/whoami", handlers.whoami)
    app.router.add_get("/live", handlers.live)
    app.router.add_post("/login", handlers.login)
    app.router.add_post("/logout", handlers.logout)
    app.router.add_post("/{verb:stop|pause|resume}", handlers.steer)
    app.router.add_get("/static/{path:.+}", handlers.static)

    async def put_headers(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)

    app.on_response_prepare.append(put_headers)
    return app


def _guard(site: Site) -> Middleware:
    """Refuses requests that another site made a browser send, or that were meant for another host."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not host_is_ours(request.headers.get("Host", ""), site.host):
            raise web.HTTPForbidden(text="this page has another name\n")
        origin = request.headers.get("Origin")
        asks = request.method not in ("GET", "HEAD") or request.path == "/live"
        # A browser names the origin of every such request, and no script can forge it; no other client has to be
        # let in without one.
        if asks and (origin is None or urlsplit(origin).netloc != request.headers.get("Host")):
            raise web.HTTPForbidden(text="asked for by another site\n")
        if request.method == "POST" and request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="expected JSON\n")
        return await handler(request)

    return guard


class _Handlers:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._attempts = Attempts()
        self._assets = load_assets()

    async def page(self, request: web.Request) -> web.Response:
        return self._assets["index.html"].response(request)

    async def static(self, request: web.Request) -> web.Response:
        asset = self._assets.get(request.match_info["path"])
        if asset is None:
            raise web.HTTPNotFound
        return asset.response(request)

    async def whoami(self, request: web.Request) -> web.Response:
        return web.json_response({"role": self._role(request).name.lower()})

    async def login(self, request: web.Request) -> web.Response:
        if not self._attempts.allowed():
            raise web.HTTPTooManyRequests(text="too many wrong keys; wait a minute\n")
        key = (await _body(request)).get("key")
        role = self._site.access.role_of_key(key) if isinstance(key, str) else Role.NOBODY
        if role is Role.NOBODY:
            self._attempts.failed()
            raise web.HTTPForbidden(text="that is not a key of this page\n")
        response = web.json_response({"role": role.name.lower()})
        cookie = self._site.access.cookie_of(role)
        response.set_cookie(COOKIE, cookie, httponly=True, samesite="Strict", path="/")
        return response

    async def logout(self, _: web.Request) -> web.Response:
        response = web.json_response({})
        response.del_cookie(COOKIE, path="/")
        return response

    async def steer(self, request: web.Request) -> web.Response:
        verb, role, steering = request.match_info["verb"], self._role(request), self._site.steering
        if role < (Role.OWNER if verb == "resume" else Role.VIEWER):
            what = "going on needs the owner's key" if role is Role.VIEWER else "a key of this page is needed"
            raise web.HTTPForbidden(text=what + "\n")
        if not (steering.can_stop if verb == "stop" else steering.can_pause):
            raise web.HTTPConflict(text="there is nothing here to be asked for that\n")
        who = _who(request, role, (await _body(request)).get("name"))
        {"stop": steering.stop, "pause": steering.pause, "resume": steering.resume}[verb](who)
        return web.json_response({"who": who})

    async def live(self, request: web.Request) -> web.StreamResponse:
        if self._role(request) is Role.NOBODY:
            raise web.HTTPForbidden(text="a key of this page is needed\n")
        hub = self._site.hub
        if hub.viewers >= self._site.most_viewers:
            raise web.HTTPServiceUnavailable(text="too many viewers\n")
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=256, compress=False, timeout=1.0)
        await socket.prepare(request)
        with hub.viewing() as queue:
            sending = asyncio.create_task(_send_all(request, socket, queue), name="labrig-live-viewer")
            try:
                # Viewers only listen; whoever says something is not one.
                await socket.receive()
                await socket.close()
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        return socket

    def _role(self, request: web.Request) -> Role:
        return self._site.access.role_of_cookie(request.cookies.get(COOKIE))


async def _send_all(request: web.Request, socket: web.WebSocketResponse, queue: ViewerQueue) -> None:
    """Sends what waits for a viewer until the page closes, or the viewer takes nothing any more."""
    try:
        while (sections := await queue.take()) is not None:
            async with asyncio.timeout(_SEND_S):
                await socket.send_frame(message_of(sections), WSMsgType.TEXT)
        await socket.close(code=WSCloseCode.GOING_AWAY)
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()


async def _body(request: web.Request) -> dict[str, object]:
    try:
        content = json.loads(await request.text())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise web.HTTPBadRequest(text="expected a JSON object\n")
    return content


def _who(request: web.Request, role: Role, name: object) -> str:
    signed = clean_text(name).strip()[:_LONGEST_NAME] if isinstance(name, str) else ""
    return f"{signed or 'somebody'} ({role.name.lower()} at {request.remote})"
