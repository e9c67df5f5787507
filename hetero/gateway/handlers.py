"""From a checked request to its answer: tokens, grammar, sequences, and the way back, streamed or whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import anyio
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hetero.errors import RequestError, SequenceFailed
from hetero.gateway.admission import Reservation
from hetero.gateway.client import Ask, Delta
from hetero.gateway.errors import kind_of, unavailable
from hetero.gateway.responses import ALIVE, DONE, Choice, Reply, event, failure
from hetero.gateway.schema import ChatRequest, OpenRequest
from hetero.gateway.state import GatewayState
from hetero.gateway.streams import merge, unless_gone
from hetero.gateway.tools import grammar_of, offered
from hetero.workers.models.tokenizer import LONGEST_TEXT
from hetero.workers.sampling.grammar import json_grammar
from hetero.workers.wire.messages import MAX_GRAMMAR

_QUIET = 15.0  # seconds without a token after which a stream gets a comment, so that proxies keep it
_SHORT = 20_000  # characters tokenized at once; longer texts must not hold up the event loop


async def tokens_of(state: GatewayState, asked: str | list[int]) -> list[int]:
    """Tokens of a prompt given as text or as token ids."""
    if isinstance(asked, str):
        return await encode(state, asked, "prompt") or await encode(state, " ", "prompt")
    size = len(state.tokenizer.vocabulary)
    if max(asked) >= size:
        raise RequestError(f"prompt: token id {max(asked)} lies outside the vocabulary of {size}", "prompt")
    return asked


def text_of(state: GatewayState, asked: str | list[int]) -> str:
    """A prompt as text."""
    if isinstance(asked, str):
        return asked
    return b"".join(state.tokenizer.vocabulary.pieces[token] for token in asked).decode(errors="replace")


async def encode(state: GatewayState, text: str, param: str, special: bool = True) -> list[int]:
    """Tokens of a prompt; a text that cannot fit the context is refused before it is tokenized."""
    most = min(state.context * state.longest_piece, LONGEST_TEXT)
    if len(text) > most:
        raise RequestError(f"{param}: {len(text)} characters cannot fit {state.context} tokens: shorten it", param)
    try:
        if len(text) < _SHORT:
            return state.tokenizer.encode(text, special)
        return await asyncio.to_thread(state.tokenizer.encode, text, special)
    except UnicodeEncodeError:
        raise RequestError(f"{param}: the text holds half a surrogate pair, which is no character", param) from None


async def _grammar(state: GatewayState, body: OpenRequest) -> str:
    """The grammar a request's output must obey, checked; "" for free text."""
    found, param = "", "response_format"
    schema = body.response_format.schema_of() if body.response_format is not None else None
    param = "tools" if schema is None else param
    try:
        if schema is not None:
            found = json_grammar(schema)
        elif isinstance(body, ChatRequest):
            found = grammar_of(body)
        found.encode()
    except (ValueError, RecursionError) as error:  # half a surrogate pair among them
        raise RequestError(f"{param}: the schema cannot be used: {error}", param) from None
    if not found:
        return ""
    if len(found) > MAX_GRAMMAR:
        raise RequestError(f"{param}: the schema's {len(found)} characters are more than {MAX_GRAMMAR}", param)
    wrong = await state.objection(found)
    if wrong is not None:
        raise RequestError(f"{param}: the schema cannot be used: {wrong}", param)
    return found


async def respond(
    state: GatewayState,
    request: Request,
    body: OpenRequest,
    prompts: list[list[int]],
    limit: int,
    echoes: list[str],
    *,
    chat: bool,
) -> Response:
    """The answer to a checked request: ``limit`` output tokens for each choice of each prompt, ``echoes`` (one for each
    prompt) in front of their texts. Raises RequestError, Busy, SequenceFailed."""
    if body.model not in ("", state.name):
        raise RequestError(f"model {body.model!r} is not served here: {state.name!r} is", "model", 404)
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: only with stream = true", "stream_options")
    if not state.ready():
        return unavailable(state.trouble() or "Loading model")
    longest = max(map(len, prompts))
    if longest >= state.context:
        raise RequestError(
            f"the prompt has {longest} tokens and the context holds {state.context}: shorten it",
            "messages" if chat else "prompt",
        )
    pieces = state.tokenizer.vocabulary.pieces
    biased = max(map(int, body.logit_bias), default=0)
    if biased >= len(pieces):
        raise RequestError(f"logit_bias: token {biased} lies outside the vocabulary of {len(pieces)}", "logit_bias")
    grammar = await _grammar(state, body)
    tools = isinstance(body, ChatRequest) and bool(offered(body))
    asks: list[Ask] = []
    choices: list[Choice] = []
    for prompt, echo, samplings in zip(prompts, echoes, body.samplings(len(prompts)), strict=True):
        for sampling in samplings:
            asks.append(Ask(prompt, sampling, limit, body.stops, grammar, not body.speculation))
            choices.append(Choice(len(choices), pieces, chat=chat, echo=echo, tools=tools))
    envelope = Reply(chat, state.name, choices, body.wanted_logprobs >= 0)
    tokens = sum(len(ask.prompt) + min(limit, state.context - len(ask.prompt)) for ask in asks)
    reservation = state.admission.reserve(len(asks), tokens)
    sources = [state.metrics.watched(state.client.generate(ask, state.limits.seconds)) for ask in asks]
    stream = merge(sources, _QUIET)
    sizes = [len(prompt) for prompt in prompts]
    if body.stream:
        return _Events(_stream(envelope, stream, body, sizes), stream, reservation)
    try:
        gathered = await unless_gone(request, _gather(envelope, stream))
    finally:
        await stream.aclose()
        reservation.release()
    if gathered is None:
        return Response(status_code=499)  # nobody reads it
    return JSONResponse(envelope.whole(sizes))


async def _gather(answer: Reply, deltas: AsyncGenerator[tuple[int, Delta] | None]) -> bool:
    """Take all deltas into the answer."""
    async with aclosing(deltas) as source:
        async for found in source:
            if found is not None:
                answer.choices[found[0]].take(found[1])
    return True


async def _stream(
    answer: Reply, deltas: AsyncGenerator[tuple[int, Delta] | None], body: OpenRequest, prompts: list[int]
) -> AsyncIterator[str]:
    """Server-sent events of an answer."""
    options = body.stream_options
    try:
        async for found in deltas:
            if found is None:
                yield ALIVE
                continue
            chunk = answer.chunk(*found, windows=options is not None and options.include_windows)
            if chunk is not None:
                yield event(chunk)
        if options is not None and options.include_usage:
            yield event(answer.usage_chunk(prompts))
        yield DONE
    except SequenceFailed as error:
        yield event(failure(str(error), kind_of(error), code=error.code))


class _Events(StreamingResponse):
    """A stream of events that frees what it holds when it ends, also when nobody ever read of it."""

    def __init__(
        self, events: AsyncIterator[str], deltas: AsyncGenerator[tuple[int, Delta] | None], reservation: Reservation
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._deltas, self._reservation = deltas, reservation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._deltas.aclose()
            self._reservation.release()
