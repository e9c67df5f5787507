"""Who may ask, and how large a body may be: looked at before anything is parsed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hetero.gateway.admission import AdmissionLimits
from hetero.gateway.responses import failure

_CHUNK, _BODY = 30.0, 300.0  # seconds in which more of a body, and all of it, must come


class Guard:
    """ASGI middleware: API keys and the size of bodies, before anything is parsed.

    A key comes as ``Authorization: Bearer KEY``, or as the password of HTTP Basic, which is what lets a browser ask
    its user for it. ``/health`` needs none. Without keys the server is this machine's alone, and only asked under a
    name of the loopback: else a page from elsewhere, whose name is made to mean this machine, could ask it (DNS
    rebinding).
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], limits: AdmissionLimits) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._body = limits.body
        self._message = f"the body exceeds {limits.body / 2**20:g} MiB (--max-body)"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._keys and scope["path"] != "/health" and not self._known(headers.get("authorization", "")):
            body = failure("a valid API key is wanted: Authorization: Bearer KEY", "authentication_error")
            wanted = {"WWW-Authenticate": 'Basic realm="hetero: any name, the API key as password"'}
            await JSONResponse(body, 401, wanted)(scope, receive, send)
            return
        if not self._keys and scope["path"] != "/health" and not _is_here(headers.get("host", "")):
            body = failure(
                "this server is asked by other names than localhost's with an API key only (--api-key-file)",
                "authentication_error",
            )
            await JSONResponse(body, 403)(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._body:
            await JSONResponse(failure(self._message, "invalid_request_error"), 413)(scope, receive, send)
            return
        taken, whole, due = 0, False, time.monotonic() + _BODY

        async def counted() -> Message:
            nonlocal taken, whole
            if whole:  # the next is the client's end, whenever that comes
                return await receive()
            try:
                async with asyncio.timeout(min(_CHUNK, due - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                why = f"the body did not come within {_BODY:g} s, or stopped for {_CHUNK:g}"
                raise HTTPException(408, why) from None
            taken, whole = taken + len(message.get("body", b"")), not message.get("more_body", False)
            if taken > self._body:
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, counted, send)

    def _known(self, authorization: str) -> bool:
        kind, _, given = authorization.partition(" ")
        key = given.strip().encode("latin-1")  # as it came: headers are read so
        if kind.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        same = [hmac.compare_digest(key, known) for known in self._keys]  # all of them: in constant time
        return any(same)


def _is_here(host: str) -> bool:
    """Whether a Host header names the loopback."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
