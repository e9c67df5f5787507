"""Several models behind one door: each request goes to the application of the model it names.

A request that names a model that is not loaded waits for it; one that wants a stream of events hears a comment now and
then meanwhile, so that no proxy between takes it for dead. Whoever names none, or one that is not known, is answered by
the first model (``--strict``: refused there).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import parse_qs

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hetero.errors import HeteroError, RequestError
from hetero.gateway.answers.errors import failure, refusal, unavailable
from hetero.gateway.requests.reading import expanded

_QUIET = 5.0  # seconds of loading after which, and between which, a stream hears a comment
_LATEST = ":latest"  # as Ollama's clients name what has no tag


class Guest(Protocol):
    """A model that may have to be loaded."""

    name: str

    @property
    def app(self) -> ASGIApp | None:
        """Its application, while it is loaded."""

    @property
    def full(self) -> bool:
        """Whether it is not loaded and no more may wait for it."""

    async def load(self) -> ASGIApp:
        """Its application, loaded if need be. Raises HeteroError."""

    def using(self) -> contextlib.AbstractContextManager[None]:
        """While it is asked it is not unloaded."""


class _Named(msgspec.Struct):
    """What is read of a body before it is. (Ollama's clients of old say ``name``.)"""

    model: Any = None
    name: Any = None
    stream: Any = None


class Front:
    """ASGI application of several others."""

    def __init__(self, first: ASGIApp, guests: Sequence[Guest], most: int) -> None:
        """``most``: bytes of a body."""
        self._first, self._most = first, most
        self._guests = {guest.name: guest for guest in guests}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._first(scope, receive, send)
            return
        if scope["method"] != "POST":
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("model", [""])[0]
            guest = self._find(asked)
            if guest is None:
                await self._first(scope, receive, send)
            elif guest.app is None:
                await unavailable(scope["path"], f"{guest.name} is not loaded: a request loads it")(
                    scope, receive, send
                )
            else:
                with guest.using():
                    await guest.app(scope, receive, send)
            return
        try:
            body = await _whole(receive)
        except HTTPException as error:
            kind = "invalid_request_error"
            await refusal(scope["path"], error.status_code, failure(str(error.detail), kind))(scope, receive, send)
            return
        named = _named(body, Headers(scope=scope).get("content-encoding", ""), self._most)
        again = _replayed(body, receive)
        guest = self._find(named.model if named.model or not scope["path"].startswith("/api/") else named.name)
        if guest is None:
            await self._first(scope, again, send)
            return
        if guest.full:
            busy = failure(f"{guest.name} is loading, and as many wait for it as may: ask again", "rate_limit_error",
                           code="busy")  # fmt: skip
            await refusal(scope["path"], 429, busy, {"Retry-After": "5"})(scope, again, send)
            return
        with guest.using():
            await _asked(guest, named, scope, again, send)

    def _find(self, name: Any) -> Guest | None:
        if not isinstance(name, str):
            return None
        return self._guests.get(name) or self._guests.get(name.removesuffix(_LATEST))


async def _asked(guest: Guest, named: _Named, scope: Scope, receive: Receive, send: Send) -> None:
    """Have a model answer once it is loaded."""
    loading = asyncio.ensure_future(guest.load())
    try:
        events = named.stream is True and scope["path"].startswith(
            "/v1/"
        )  # others stream lines, which know no comments
        begun = events and not await _done(loading)
        if begun:
            send = await _begun(loading, send)
        app = await loading
    except HeteroError as error:
        answer = unavailable(scope["path"], f"{guest.name} cannot be loaded: {error}")
        await (answer if not begun else _Told(answer.body))(scope, receive, send)
        return
    finally:
        loading.cancel()
    await app(scope, receive, send)


async def _done(loading: asyncio.Future[ASGIApp]) -> bool:
    return bool((await asyncio.wait([loading], timeout=_QUIET))[0])


async def _begun(loading: asyncio.Future[ASGIApp], send: Send) -> Send:
    """Comments until it is loaded; returns how to send the answer behind them."""
    kind = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": kind})
    while True:
        await send({"type": "http.response.body", "body": b": loading\n\n", "more_body": True})
        if await _done(loading):
            break
    good = True

    async def behind(message: Message) -> None:
        nonlocal good
        if message["type"] == "http.response.start":
            good = message["status"] == 200
        elif good or not message.get("body"):
            await send(message)
        else:  # what would have been an answer of its own
            await send({**message, "body": b"data: " + message["body"].replace(b"\n", b" ") + b"\n\n"})

    return behind


class _Told:
    """An error in a stream that has begun."""

    def __init__(self, body: bytes | memoryview[int]) -> None:
        self._body = bytes(body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"data: " + self._body + b"\n\n"})


async def _whole(receive: Receive) -> bytes:
    """The body; the door has bounded it. Raises HTTPException."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The same body once more, then what else comes."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _named(body: bytes, coding: str, most: int) -> _Named:
    """The model a body names; what is wrong with it, the first model's application says."""
    try:
        return msgspec.json.decode(expanded(body, coding, most), type=_Named, strict=False)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, RequestError):
        return _Named()
