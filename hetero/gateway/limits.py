"""What a server takes on: requests, tokens and bytes; and who may ask."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hetero.errors import Busy, RequestError
from hetero.gateway.format import failure

_RETRY = 2  # seconds after which a refused client should ask again


@dataclass(frozen=True)
class Limits:
    """``sequences`` and ``tokens`` (prompt and most output) under way or waiting at once; 0 tokens: no limit.
    ``body``: bytes of a request. ``seconds`` of a request, waiting included; 0: no limit."""

    sequences: int = 260
    tokens: int = 0
    body: int = 32 << 20
    seconds: float = 0.0


class Admission:
    """Counts what is under way. A place is taken in the moment it is found free."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.sequences = self.tokens = 0
        self.refused = 0

    def reserve(self, sequences: int, tokens: int) -> Reservation:
        """Room for so many sequences and tokens together. Raises Busy, and RequestError for what never fits."""
        limits = self._limits
        full = None
        if sequences > limits.sequences:
            most = f"{limits.sequences} choices at once (--parallel, --max-waiting)"
            raise RequestError(f"n: {sequences} choices are asked for, and this server takes {most}", "n")
        if limits.tokens and tokens > limits.tokens:
            most = f"{limits.tokens} tokens of prompt and output at once (--max-pending-tokens)"
            raise RequestError(f"max_tokens: {tokens} tokens are asked for, and this server takes {most}", "max_tokens")
        if self.sequences + sequences > limits.sequences:
            full = f"{self.sequences} of {limits.sequences} sequences run or wait (--parallel, --max-waiting)"
        elif limits.tokens and self.tokens + tokens > limits.tokens:
            full = f"{self.tokens} of {limits.tokens} tokens are asked for already (--max-pending-tokens)"
        if full is not None:
            self.refused += 1
            raise Busy(f"the server is full: {full}; ask again in {_RETRY} s", _RETRY)
        self.sequences += sequences
        self.tokens += tokens
        return Reservation(self, sequences, tokens)


class Reservation:
    """What one request has taken, until it is released."""

    def __init__(self, admission: Admission, sequences: int, tokens: int) -> None:
        self._admission, self._sequences, self._tokens = admission, sequences, tokens

    def release(self) -> None:
        """Give it back; safe to call twice."""
        self._admission.sequences -= self._sequences
        self._admission.tokens -= self._tokens
        self._sequences = self._tokens = 0


class Guard:
    """ASGI middleware: API keys and the size of bodies, before anything is parsed.

    A key comes as ``Authorization: Bearer KEY``, or as the password of HTTP Basic, which is what lets a browser ask
    its user for it. ``/health`` needs none.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], limits: Limits) -> None:
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
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._body:
            await JSONResponse(failure(self._message, "invalid_request_error"), 413)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._body:
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, counted, send)

    def _known(self, authorization: str) -> bool:
        kind, _, given = authorization.partition(" ")
        key = given.strip().encode()
        if kind.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        same = [hmac.compare_digest(key, known) for known in self._keys]  # all of them: in constant time
        return any(same)
