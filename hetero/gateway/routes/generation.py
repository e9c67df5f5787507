"""From what is asked to its answer: sequences at the verifier, and the way back, streamed or whole."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from msgspec import structs
from starlette.types import Receive, Scope, Send

from hetero.errors import RequestError, SequenceFailed
from hetero.gateway.admission import Reservation
from hetero.gateway.answers.answer import Answer, Dialect
from hetero.gateway.answers.errors import unavailable
from hetero.gateway.requests.openai import ChatRequest, OpenRequest
from hetero.gateway.requests.reading import Body, checked, named, parsed, printable
from hetero.gateway.state import GatewayState
from hetero.gateway.streams import merge, unless_gone
from hetero.gateway.verifiers.pool import QUIET
from hetero.gateway.verifiers.sequences import SILENCE, Delta
from hetero.workers.models.tokenizer import LONGEST_TEXT
from hetero.workers.wire.messages import Open

_SHORT = 20_000  # characters tokenized at once; longer texts must not hold up the event loop


@dataclass
class Asked:
    """What a route makes of a request. ``headers`` of the answer tell what was not done as asked."""

    answer: Answer
    openings: list[Open]
    dialect: Dialect
    stream: bool
    headers: dict[str, str] = field(default_factory=dict)


_Kind = TypeVar("_Kind", bound=Body)


async def read(state: GatewayState, request: Request, kind: type[_Kind]) -> tuple[_Kind, list[str]]:
    """The body of a request, and the paths of the fields that were ignored. Raises RequestError."""
    return checked(await parsed(request, state.options.limits.body), kind, state.options.strict)


def told(ignored: list[str]) -> dict[str, str]:
    """The header that tells that fields were ignored."""
    return {"x-hetero-ignored": named(ignored)} if ignored else {}


def as_own(chat: dict[str, Any], paths: list[str], ignored: list[str]) -> tuple[ChatRequest, list[str]]:
    """A chat that another dialect's body was made into, and what was ignored. What is wrong is told by that dialect's
    ``paths``, of each message. Raises RequestError."""
    try:
        found, more = checked(chat, ChatRequest)
    except RequestError as error:
        where = re.match(r"messages\.(\d+)", str(error))
        if where is None:
            raise
        path = paths[int(where[1])]
        words = path + str(error)[where.end() :]
        raise RequestError(words, path.partition(".")[0], error.status, error.code) from None
    return found, [*ignored, *(paths[int(part[1])] + part[2] for path in more if (part := _in_message(path)))]


def _in_message(path: str) -> re.Match[str] | None:
    return re.fullmatch(r"messages\.(\d+)(.*)", path)


def check_model(state: GatewayState, name: str) -> dict[str, str]:
    """The one model there is answers to any name, and says so in a header. Raises RequestError where strict."""
    if name in ("", state.name, f"{state.name}:latest"):  # as Ollama's clients say it
        return {}
    if state.options.strict:
        raise RequestError(f"model {name:.100} is not served here: {state.name} is", "model", 404, "model_not_found")
    return {"x-hetero-model": printable(state.name)}


async def encode(state: GatewayState, text: str, param: str, special: bool = True) -> list[int]:
    """Tokens of a prompt; a text that cannot fit the context is refused before it is tokenized."""
    most = min(state.context * state.longest_piece, LONGEST_TEXT)
    if len(text) > most:
        why = (
            f"{param}: {len(text)} characters cannot fit: this model's maximum context length is {state.context} tokens"
        )
        raise RequestError(why, param, code="context_length_exceeded")
    try:
        if len(text) < _SHORT:
            return state.tokenizer.encode(text, special)
        return await asyncio.to_thread(state.tokenizer.encode, text, special)
    except UnicodeEncodeError:
        raise RequestError(f"{param}: the text holds half a surrogate pair, which is no character", param) from None


def check_prompt(state: GatewayState, prompts: Sequence[Sequence[int]], param: str) -> None:
    """Raise RequestError for one that leaves no room for an answer."""
    longest = max(map(len, prompts))
    if longest >= state.context:
        raise RequestError(
            f"{param}: this model's maximum context length is {state.context} tokens, and the prompt has {longest}: "
            "shorten it, or serve with a larger --context",
            param,
            code="context_length_exceeded",
        )


def check_tokens(state: GatewayState, body: OpenRequest) -> None:
    """Raise RequestError for tokens that are none."""
    size = len(state.tokenizer.vocabulary)
    for field_, tokens in (("logit_bias", map(int, body.logit_bias)), ("stop_token_ids", body.stop_token_ids)):
        if (largest := max(tokens, default=0)) >= size:
            raise RequestError(f"{field_}: token {largest} lies outside the vocabulary of {size}", field_)


async def respond(state: GatewayState, request: Request, asked: Asked) -> Response:
    """The answer. Raises RequestError, Busy, SequenceFailed."""
    if not state.ready():
        return unavailable(request.url.path, state.trouble() or "Loading model")
    tokens = sum(len(o.prompt) + min(o.max_tokens, state.context - len(o.prompt)) for o in asked.openings)
    reservation = state.admission.reserve(len(asked.openings), tokens)
    seconds = state.options.limits.seconds
    owner = "" if state.options.share_lookup else request.state.owner
    openings = [structs.replace(opening, owner=owner) for opening in asked.openings]
    sources = [state.metrics.watched(state.verifiers.generate(opening, seconds)) for opening in openings]
    stream = merge(sources)
    if asked.stream:
        return _Events(asked, _stream(asked, stream), stream, reservation)
    try:
        gathered = await unless_gone(request, _gather(asked.answer, stream))
    finally:
        await stream.aclose()
        reservation.release()
    if gathered is None:
        return Response(status_code=499)  # nobody reads it
    return JSONResponse(asked.dialect.whole(asked.answer), headers=asked.headers)


async def _gather(answer: Answer, deltas: AsyncGenerator[tuple[int, Delta]]) -> bool:
    """Take all deltas into the answer."""
    async with aclosing(deltas) as source:
        async for index, delta in source:
            if delta is not SILENCE:
                answer.choices[index].take(delta)
    return True


async def _stream(asked: Asked, deltas: AsyncGenerator[tuple[int, Delta]]) -> AsyncGenerator[str]:
    """Events of an answer; where there was none for ``QUIET`` seconds, one that says so."""
    answer, dialect, last = asked.answer, asked.dialect, time.monotonic()
    try:
        for text in dialect.begin(answer):
            yield text
        async for index, delta in deltas:
            for text in dialect.part(answer, answer.choices[index].take(delta)) if delta is not SILENCE else ():
                last = time.monotonic()
                yield text
            if dialect.alive and time.monotonic() - last >= QUIET:
                last = time.monotonic()
                yield dialect.alive
        for text in dialect.end(answer):
            yield text
    except SequenceFailed as error:
        for text in dialect.failed(answer, error):
            yield text


class _Events(StreamingResponse):
    """A stream of events that frees what it holds when it ends, also when nobody ever read of it."""

    def __init__(
        self,
        asked: Asked,
        events: AsyncGenerator[str],
        deltas: AsyncGenerator[tuple[int, Delta]],
        reservation: Reservation,
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **asked.headers}
        super().__init__(events, media_type=asked.dialect.media, headers=headers)
        self._events, self._deltas, self._reservation = events, deltas, reservation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
                await self._deltas.aclose()
            self._reservation.release()
