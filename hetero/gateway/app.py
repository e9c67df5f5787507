"""The routes. A request's way: schema -> tokenizer -> client (and on to the verifier) -> format."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from hetero.client import Ask, Piece, VerifierClient
from hetero.errors import Busy, RequestError, SequenceFailed
from hetero.gateway.chat import ChatTemplate
from hetero.gateway.format import ALIVE, DONE, Answer, Choice, event, failure
from hetero.gateway.limits import Admission, Guard, Limits, Reservation
from hetero.gateway.metrics import CONTENT_TYPE, Facts, Metrics
from hetero.gateway.schema import ChatRequest, CompletionRequest, _Request
from hetero.gateway.streams import merge, unless_gone
from hetero.gateway.tools import grammar_of, instructions, offered
from workers.grammar import json_grammar
from workers.tokenizer import Tokenizer
from workers.wire.messages import MAX_GRAMMAR

_PAGE = Path(__file__).with_name("page.html")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
_QUIET = 15.0  # seconds without a token after which a stream gets a comment, so that proxies keep it
_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
_SHORT = 20_000  # characters tokenized at once; longer texts must not hold up the event loop
_STATUS = {"invalid_request": 400, "unavailable": 503, "request_timeout": 504}


@dataclass
class Served:
    """What the routes serve. ``ready``: whether the workers are loaded; ``failure``: why they never will be."""

    name: str
    tokenizer: Tokenizer
    context: int
    client: VerifierClient
    ready: Callable[[], bool]
    failure: Callable[[], str | None]
    limits: Limits = field(default_factory=Limits)
    keys: tuple[str, ...] = ()
    facts: Callable[[], Facts] = lambda: Facts({}, {}, 0)

    @cached_property
    def admission(self) -> Admission:
        """What is under way."""
        return Admission(self.limits)

    @cached_property
    def metrics(self) -> Metrics:
        """What is counted."""
        return Metrics(self.facts, self.admission)

    @cached_property
    def longest_piece(self) -> int:
        """Most bytes a token can stand for."""
        return max(map(len, self.tokenizer.vocabulary.pieces))


def make_app(served: Served) -> FastAPI:
    """The gateway's application."""
    app = FastAPI(title="hetero")
    app.add_middleware(Guard, keys=served.keys, limits=served.limits)
    template = ChatTemplate(served.tokenizer)
    created = int(time.time())
    _errors(app)

    @app.get("/health")
    async def health() -> Response:
        if served.failure() is not None:
            return JSONResponse(_unavailable(str(served.failure())), 503)
        if not served.ready():
            return JSONResponse(_unavailable("Loading model"), 503)
        return JSONResponse({"status": "ok"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(_PAGE.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": _POLICY})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(served.metrics.text), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(served, created)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != served.name:
            raise RequestError(f"model {name!r} is not served here: {served.name!r} is", "model", 404)
        return _model(served, created)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        prompts, echoes = [], []
        for asked in body.prompts:
            tokens = await _prompt(served, asked)
            prompts.append(tokens)
            echoes.append(_text(served, asked) if body.echo else "")
        return await _answer(served, request, body, prompts, body.max_tokens or _COMPLETION_TOKENS, echoes, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        messages = [message.model_dump(exclude_none=True) for message in body.messages]
        tools = offered(body)
        if tools and not template.knows_tools:
            messages.insert(0, {"role": "system", "content": instructions(tools)})
        text = template.render(messages, [tool.model_dump(exclude_none=True) for tool in tools])
        # A template that writes the BOS token itself must not get a second one.
        special = not (template.has_bos and text.startswith(template.has_bos))
        prompt = await _encode(served, text, "messages", special)
        if not prompt:
            raise RequestError("messages: the model's chat template makes an empty prompt of them", "messages")
        limit = body.max_completion_tokens or body.max_tokens or served.context
        return await _answer(served, request, body, [prompt], limit, [""], chat=True)

    return app


async def _prompt(served: Served, asked: str | list[int]) -> list[int]:
    """Tokens of a prompt given as text or as token ids."""
    if isinstance(asked, str):
        return await _encode(served, asked, "prompt") or await _encode(served, " ", "prompt")
    size = len(served.tokenizer.vocabulary)
    if max(asked) >= size:
        raise RequestError(f"prompt: token id {max(asked)} lies outside the vocabulary of {size}", "prompt")
    return asked


def _text(served: Served, asked: str | list[int]) -> str:
    """A prompt as text."""
    if isinstance(asked, str):
        return asked
    return b"".join(served.tokenizer.vocabulary.pieces[token] for token in asked).decode(errors="replace")


async def _encode(served: Served, text: str, param: str, special: bool = True) -> list[int]:
    """Tokens of a prompt; a text that cannot fit the context is refused before it is tokenized."""
    most = served.context * served.longest_piece
    if len(text) > most:
        raise RequestError(f"{param}: {len(text)} characters cannot fit {served.context} tokens: shorten it", param)
    if len(text) < _SHORT:
        return served.tokenizer.encode(text, special)
    return await asyncio.to_thread(served.tokenizer.encode, text, special)


async def _grammar(served: Served, body: _Request) -> str:
    """The grammar a request's output must obey, checked; "" for free text."""
    found, param = "", "response_format"
    schema = body.response_format.schema_of() if body.response_format is not None else None
    if schema is not None:
        found = json_grammar(schema)
    elif isinstance(body, ChatRequest):
        found, param = grammar_of(body), "tools"
    if not found:
        return ""
    wrong = await asyncio.to_thread(served.tokenizer.vocabulary.grammars.objection, found)
    if wrong is None and len(found) > MAX_GRAMMAR:
        wrong = f"it has {len(found)} characters, more than {MAX_GRAMMAR}"
    if wrong is not None:
        raise RequestError(f"{param}: the schema cannot be used: {wrong}", param)
    return found


async def _answer(
    served: Served, request: Request, body: _Request, prompts: list[list[int]], limit: int, echoes: list[str], *,
    chat: bool,
) -> Response:  # fmt: skip
    if body.model not in ("", served.name):
        raise RequestError(f"model {body.model!r} is not served here: {served.name!r} is", "model", 404)
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: only with stream = true", "stream_options")
    if not served.ready():
        return JSONResponse(_unavailable(served.failure() or "Loading model"), 503)
    longest = max(map(len, prompts))
    if longest >= served.context:
        raise RequestError(
            f"the prompt has {longest} tokens and the context holds {served.context}: shorten it",
            "messages" if chat else "prompt",
        )
    words = served.tokenizer.vocabulary.pieces
    biased = max(map(int, body.logit_bias), default=0)
    if biased >= len(words):
        raise RequestError(f"logit_bias: token {biased} lies outside the vocabulary of {len(words)}", "logit_bias")
    grammar = await _grammar(served, body)
    tools = isinstance(body, ChatRequest) and bool(offered(body))
    asks: list[Ask] = []
    choices: list[Choice] = []
    for prompt, echo, samplings in zip(prompts, echoes, body.samplings(len(prompts)), strict=True):
        for sampling in samplings:
            asks.append(Ask(prompt, sampling, limit, body.stops, grammar, not body.speculation))
            choices.append(Choice(len(choices), words, chat=chat, echo=echo, tools=tools))
    answer = Answer(chat, served.name, choices, body.wanted_logprobs >= 0)
    tokens = sum(len(ask.prompt) + min(limit, served.context - len(ask.prompt)) for ask in asks)
    reservation = served.admission.reserve(len(asks), tokens)
    sources = [served.metrics.watched(served.client.generate(ask, served.limits.seconds)) for ask in asks]
    pieces = merge(sources, _QUIET)
    sizes = [len(prompt) for prompt in prompts]
    if body.stream:
        return _Events(_stream(answer, pieces, body, sizes), pieces, reservation)
    try:
        gathered = await unless_gone(request, _gather(answer, pieces))
    finally:
        await pieces.aclose()
        reservation.release()
    if gathered is None:
        return Response(status_code=499)  # nobody reads it
    return JSONResponse(answer.whole(sizes))


async def _gather(answer: Answer, pieces: AsyncGenerator[tuple[int, Piece] | None]) -> bool:
    """Take all pieces into the answer."""
    async with aclosing(pieces) as source:
        async for found in source:
            if found is not None:
                answer.choices[found[0]].take(found[1])
    return True


async def _stream(
    answer: Answer, pieces: AsyncGenerator[tuple[int, Piece] | None], body: _Request, prompts: list[int]
) -> AsyncIterator[str]:
    """Server-sent events of an answer."""
    options = body.stream_options
    try:
        async for found in pieces:
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
        yield event(failure(str(error), _kind(error), code=error.code))


class _Events(StreamingResponse):
    """A stream of events that frees what it holds when it ends, also when nobody ever read of it."""

    def __init__(
        self, events: AsyncIterator[str], pieces: AsyncGenerator[tuple[int, Piece] | None], reservation: Reservation
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._pieces, self._reservation = pieces, reservation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._pieces.aclose()
            self._reservation.release()


def _model(served: Served, created: int) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": created,
        "owned_by": "hetero",
        "max_model_len": served.context,
    }


def _unavailable(message: str) -> dict[str, Any]:
    return {"error": {"code": 503, "message": message, "type": "unavailable_error", "param": None}}


def _kind(error: SequenceFailed) -> str:
    return "invalid_request_error" if error.code == "invalid_request" else "server_error"


def _errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape. Values of a request are never echoed (NaN would break the JSON)."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part != "body"]
        param = where[0] if where else None
        if first["type"] == "json_invalid":
            message, param = "the body is not valid JSON", None
        elif first["type"] == "extra_forbidden":
            message = f"{param}: this field, or this value of it, is not supported"
        else:
            message = f"{'.'.join(where) or 'body'}: {first['msg']}"
        return JSONResponse(failure(message, "invalid_request_error", param), 400)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        code = "model_not_found" if error.status == 404 else None
        return JSONResponse(failure(str(error), "invalid_request_error", error.param, code), error.status)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        body = failure(str(error), "rate_limit_error", code="busy")
        return JSONResponse(body, 429, {"Retry-After": str(error.retry)})

    @app.exception_handler(SequenceFailed)
    async def failed(request: Request, error: SequenceFailed) -> Response:
        return JSONResponse(failure(str(error), _kind(error), code=error.code), _STATUS.get(error.code, 500))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return JSONResponse(failure("an internal error; the server's log has it", "server_error"), 500)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return JSONResponse(failure(str(error.detail), "invalid_request_error"), error.status_code)
