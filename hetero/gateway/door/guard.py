"""Who may ask, and how large a body may be: looked at before anything is parsed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hetero.gateway.admission import AdmissionLimits
from hetero.gateway.answers.errors import failure, refusal
from hetero.gateway.door.origins import foreign, host_of, is_loopback

_CHUNK, _BODY = 30.0, 300.0  # seconds in which more of a body, and all of it, must come


class Guard:
    """ASGI middleware: API keys, which pages may ask, and the size of bodies, before anything is parsed.

    A key comes as ``Authorization: Bearer KEY``, as ``X-Api-Key: KEY``, or as the password of HTTP Basic, which is what
    lets a browser ask its user for it. ``/health`` needs none. A page from elsewhere could have a browser ask in its
    user's name, without reading the answer: it is refused unless it is one of ``origins``. Without keys the server is
    this machine's alone, and only asked under a name of the loopback: else a page from elsewhere, whose name is made to
    mean this machine, could ask it (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], limits: AdmissionLimits, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._origins = origins
        self._keys = [key.encode() for key in keys]
        self._body = limits.body
        self._message = f"the body exceeds {limits.body / 2**20:g} MiB (--max-body)"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (refused := self._objection(scope, headers)) is not None:
            status, words, more = refused
            kind = "authentication_error" if status in (401, 403) else "invalid_request_error"
            await refusal(scope["path"], status, failure(words, kind), more)(scope, receive, send)
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

    def _objection(self, scope: Scope, headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        """Why a request is refused: status, words, headers."""
        open_ = scope["path"] in ("/health", "/ping") and scope["method"] == "GET"
        scope.setdefault("state", {})["owner"] = owner = self._owner(headers)
        if self._keys and not open_ and not owner:
            wanted = {"WWW-Authenticate": 'Basic realm="hetero: any name, the API key as password"'}
            return 401, "a valid API key is wanted: Authorization: Bearer KEY", wanted
        if not self._keys and not open_ and not is_loopback(host_of(headers.get("host", ""))):
            why = "this server is asked by other names than localhost's with an API key only (--api-key-file)"
            return 403, why, {}
        if not open_ and (origin := foreign(headers, self._origins)):
            return 403, f"pages of {origin:.200} may not ask this server: start it with --cors-origin", {}
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._body:
            return 413, self._message, {}
        return None

    def _owner(self, headers: Headers) -> str:
        """Whose request it is: a name for the key it brings, "" for none."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip().encode("latin-1")  # as it came: headers are read so
        if (own := headers.get("x-api-key", "")) and kind.lower() != "basic":
            key = key if kind.lower() == "bearer" and self._named(key) else own.strip().encode("latin-1")
        elif kind.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return ""
        elif kind.lower() != "bearer":
            return ""
        return self._named(key)

    def _named(self, key: bytes) -> str:
        same = [hmac.compare_digest(key, known) for known in self._keys]  # all of them: in constant time
        return f"key {same.index(True)}" if any(same) else ""
