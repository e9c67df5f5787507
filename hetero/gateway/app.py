"""The routes. A request's way: schema -> tokenizer -> client (and on to the verifier) -> format."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from hetero.client import Piece, VerifierClient
from hetero.errors import RequestError, SequenceFailed
from hetero.gateway.chat import ChatTemplate
from hetero.gateway.format import ALIVE, DONE, Answer, event, failure
from hetero.gateway.schema import ChatRequest, CompletionRequest, _Request
from workers.tokenizer import Tokenizer

_QUIET = 15.0  # seconds without a token after which a stream gets a comment, so that proxies keep it
_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
_SHORT = 20_000  # characters tokenized at once; longer texts must not hold up the event loop
_STATUS = {"invalid_request": 400, "unavailable": 503}


@dataclass
class Served:
    """What the routes serve. ``ready``: whether the workers are loaded; ``failure``: why they never will be."""

    name: str
    tokenizer: Tokenizer
    context: int
    client: VerifierClient
    ready: Callable[[], bool]
    failure: Callable[[], str | None]

    @cached_property
    def longest_piece(self) -> int:
        """Most bytes a token can stand for."""
        return max(map(len, self.tokenizer.vocabulary.pieces))


def make_app(served: Served) -> FastAPI:
    """The gateway's application."""
    app = FastAPI(title="hetero")
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
        prompt = await _encode(served, body.prompt, "prompt") or await _encode(served, " ", "prompt")
        return await _answer(served, request, body, prompt, body.max_tokens or _COMPLETION_TOKENS, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        text = template.render([message.model_dump(exclude_none=True) for message in body.messages])
        # A template that writes the BOS token itself must not get a second one.
        special = not (template.has_bos and text.startswith(template.has_bos))
        prompt = await _encode(served, text, "messages", special)
        if not prompt:
            raise RequestError("messages: the model's chat template makes an empty prompt of them", "messages")
        limit = body.max_completion_tokens or body.max_tokens or served.context
        return await _answer(served, request, body, prompt, limit, chat=True)

    return app


async def _encode(served: Served, text: str, param: str, special: bool = True) -> list[int]:
    """Tokens of a prompt; a text that cannot fit the context is refused before it is tokenized."""
    most = served.context * served.longest_piece
    if len(text) > most:
        raise RequestError(f"{param}: {len(text)} characters cannot fit {served.context} tokens: shorten it", param)
    if len(text) < _SHORT:
        return served.tokenizer.encode(text, special)
    return await asyncio.to_thread(served.tokenizer.encode, text, special)


async def _answer(
    served: Served, request: Request, body: _Request, prompt: list[int], limit: int, *, chat: bool
) -> Response:
    if body.model not in ("", served.name):
        raise RequestError(f"model {body.model!r} is not served here: {served.name!r} is", "model", 404)
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: only with stream = true", "stream_options")
    if not served.ready():
        return JSONResponse(_unavailable(served.failure() or "Loading model"), 503)
    if len(prompt) >= served.context:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and the context holds {served.context}: shorten it",
            "messages" if chat else "prompt",
        )
    answer = Answer(chat, served.name)
    pieces = served.client.generate(prompt, body.sampling(), limit, body.stops)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(
            _stream(answer, pieces, usage), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
    gathered = await _unless_gone(request, _gather(pieces))
    if gathered is None:
        return Response(status_code=499)  # nobody reads it
    return JSONResponse(answer.whole(*gathered))


async def _gather(pieces: AsyncGenerator[Piece]) -> tuple[str, Piece]:
    text = ""
    async with aclosing(pieces) as source:
        async for piece in source:
            text += piece.text
            if piece.reason is not None:
                return text, piece
    raise SequenceFailed("internal", "the sequence ended without a reason")


async def _stream(answer: Answer, pieces: AsyncGenerator[Piece], usage: bool) -> AsyncIterator[str]:
    """Server-sent events. Cancelled when the client hangs up, which closes ``pieces`` and frees the sequence."""
    waiting: asyncio.Task[Piece] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(pieces))
            done, _ = await asyncio.wait([waiting], timeout=_QUIET)
            if not done:
                yield ALIVE
                continue
            piece, waiting = waiting.result(), None
            if piece.text or piece.reason is not None:
                yield event(answer.chunk(piece))
            if piece.reason is not None:
                if usage and piece.stats is not None:
                    yield event(answer.usage_chunk(piece.stats))
                yield DONE
                return
    except SequenceFailed as error:
        yield event(failure(str(error), _kind(error), code=error.code))
    finally:
        with anyio.CancelScope(shield=True):  # a client that hung up must not cut this short
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait([waiting])
            await pieces.aclose()


async def _next(pieces: AsyncGenerator[Piece]) -> Piece:
    return await anext(pieces)


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of ``work``, or None when the client hung up first (the work is then cancelled)."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait([working, watching])


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

    @app.exception_handler(SequenceFailed)
    async def failed(request: Request, error: SequenceFailed) -> Response:
        return JSONResponse(failure(str(error), _kind(error), code=error.code), _STATUS.get(error.code, 500))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return JSONResponse(failure("an internal error; the server's log has it", "server_error"), 500)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return JSONResponse(failure(str(error.detail), "invalid_request_error"), error.status_code)
