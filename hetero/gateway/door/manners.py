"""What every answer has, whatever route it comes from: an id, leave for pages to read it; and what every request may
be."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hetero.gateway.door.origins import allowed

_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SEEN = ("x-request-id", "x-hetero-ignored", "x-hetero-model", "x-hetero-relaxed", "retry-after")
_METHODS = "GET, HEAD, POST, OPTIONS"
_DAY = "86400"


class Manners:
    """ASGI middleware, the outermost: request ids, CORS, HEAD, trailing slashes.

    A preflight is answered before any key is asked for: browsers send none with it.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        origin = headers.get("origin", "")
        may = bool(origin) and allowed(origin, self._origins)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                found["x-request-id"] = name
                if may:
                    found["Access-Control-Allow-Origin"] = origin
                    found["Access-Control-Expose-Headers"] = ", ".join(_SEEN)
                    found.add_vary_header("Origin")
            await send(message)

        scope = dict(scope)
        if scope["method"] == "OPTIONS":
            await _preflight(headers, may)(scope, receive, told)
            return
        if scope["method"] == "HEAD":  # the server below leaves the body out
            scope["method"] = "GET"
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/") or "/"
            scope["raw_path"] = scope["path"].encode()
        await self._app(scope, receive, told)


def _preflight(headers: Headers, may: bool) -> PlainTextResponse:
    """The answer to OPTIONS; what a page may do is told to those that may."""
    found = {"Allow": _METHODS}
    if may:
        wanted = headers.get("access-control-request-headers", "")
        found |= {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": wanted or "*",
            "Access-Control-Max-Age": _DAY,
        }
        if headers.get("access-control-request-private-network") == "true":
            found["Access-Control-Allow-Private-Network"] = "true"
    return PlainTextResponse("", 200, found)
