"""The files of the page, read once: serving them touches no disk while a run goes on."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

STATIC: Final = Path(__file__).with_name("static")

_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Asset:
    """One file.

    Attributes:
        body: Its content.
        kind: Its media type.
        tag: A name for its content, for browsers that have it already.
    """

    body: bytes
    kind: str
    tag: str

    def response(self, request: web.Request) -> web.Response:
        """The file, or the news that the browser's copy is still right."""
        headers = {"ETag": f'"{self.tag}"'}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=self.body, content_type=self.kind, charset="utf-8", headers=headers)


def load_assets(folder: Path = STATIC) -> dict[str, Asset]:
    """Every file below a folder, by its path in it."""
    return {path.relative_to(folder).as_posix(): _asset(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _asset(path: Path) -> Asset:
    body = path.read_bytes()
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
    return Asset(body, kind, hashlib.sha256(body).hexdigest()[:20])
