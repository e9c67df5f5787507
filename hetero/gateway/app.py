"""The routes. A request's way: schema -> handlers -> client (and on to the verifier) -> responses."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from hetero.errors import RequestError
from hetero.gateway.auth import Guard
from hetero.gateway.errors import answer_errors, unavailable
from hetero.gateway.handlers import encode, respond, text_of, tokens_of
from hetero.gateway.metrics import CONTENT_TYPE
from hetero.gateway.schema import ChatRequest, CompletionRequest
from hetero.gateway.state import GatewayState
from hetero.gateway.tools import instructions, offered, rendered

_PAGE = Path(__file__).with_name("page.html")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


def make_app(state: GatewayState) -> FastAPI:
    """The gateway's application."""
    app = FastAPI(title="hetero", docs_url=None, redoc_url=None)  # they load scripts from elsewhere
    app.add_middleware(Guard, keys=state.keys, limits=state.limits)
    template = state.template
    created = int(time.time())
    answer_errors(app)

    @app.get("/health")
    async def health() -> Response:
        trouble = state.trouble()
        return JSONResponse({"status": "ok"}) if trouble is None else unavailable(trouble)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(_PAGE.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": _POLICY})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(state.metrics.text), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(state, created)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != state.name:
            raise RequestError(f"model {name!r} is not served here: {state.name!r} is", "model", 404)
        return _model(state, created)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        prompts, echoes = [], []
        for asked in body.prompts:
            tokens = await tokens_of(state, asked)
            prompts.append(tokens)
            echoes.append(text_of(state, asked) if body.echo else "")
        return await respond(state, request, body, prompts, body.max_tokens or _COMPLETION_TOKENS, echoes, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        messages = [rendered(message) for message in body.messages]
        tools = offered(body)
        if tools and not template.knows_tools:
            messages.insert(0, {"role": "system", "content": instructions(tools)})
        text = await template.render(messages, [tool.model_dump(exclude_none=True) for tool in tools])
        # A template that writes the BOS token itself must not get a second one.
        special = not (template.bos and text.startswith(template.bos))
        prompt = await encode(state, text, "messages", special)
        if not prompt:
            raise RequestError("messages: the model's chat template makes an empty prompt of them", "messages")
        limit = body.max_completion_tokens or body.max_tokens or state.context
        return await respond(state, request, body, [prompt], limit, [""], chat=True)

    return app


def _model(state: GatewayState, created: int) -> dict[str, Any]:
    return {
        "id": state.name,
        "object": "model",
        "created": created,
        "owned_by": "hetero",
        "max_model_len": state.context,
    }
