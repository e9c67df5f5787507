"""Ollama's routes, for the models that are served."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from hetero.errors import RequestError
from hetero.gateway.answers.ollama import Ollama, now
from hetero.gateway.requests.ollama import OllamaChat, OllamaGenerate
from hetero.gateway.requests.openai import CompletionRequest
from hetero.gateway.requests.reading import checked
from hetero.gateway.routes.chats import chat
from hetero.gateway.routes.documents import takes
from hetero.gateway.routes.generation import as_own, read, respond
from hetero.gateway.routes.openai import completion
from hetero.gateway.state import Card, GatewayState

_VERSION = "0.13.0"  # of the Ollama whose answers these are like: clients ask for one that is new enough


def routes(state: GatewayState) -> APIRouter:
    """Them."""
    router = APIRouter()

    @router.get("/api/version")
    async def version() -> dict[str, str]:
        return {"version": _VERSION}

    @router.get("/api/tags")
    async def tags() -> dict[str, Any]:
        return {"models": [_model(card) for card in state.cards]}

    @router.get("/api/ps")
    async def running() -> dict[str, Any]:
        kept = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0}
        loaded = [card for card in state.cards if card.loaded]
        return {"models": [{**_model(card), **kept, "context_length": card.context} for card in loaded]}

    @router.post("/api/show")
    async def show() -> dict[str, Any]:
        shape = state.shape
        can = ["completion", "tools", *["thinking"] * bool(state.format(True).end_of_thinking())]
        info = {
            "general.architecture": shape.family,
            f"{shape.family}.block_count": shape.layers,
            f"{shape.family}.context_length": state.context,
            f"{shape.family}.embedding_length": shape.width,
        }
        return {
            "license": "",
            "modelfile": "",
            "parameters": "",
            "template": state.template.source(False),
            "details": _details(state.card),
            "model_info": info,
            "capabilities": can,
            "modified_at": state.since,
        }

    @router.post("/api/chat", openapi_extra=takes(OllamaChat))
    async def chats(request: Request) -> Response:
        body, ignored = await read(state, request, OllamaChat)
        if not body.messages:
            said = {"message": {"role": "assistant", "content": ""}}
            return JSONResponse({"model": state.name, "created_at": now(), **said, "done": True, "done_reason": "load"})
        made, paths, more = body.as_chat()
        found, ignored = as_own(made, paths, ignored + more)
        return await respond(state, request, await chat(state, found, Ollama(True, body.logprobs), ignored))

    @router.post("/api/generate", openapi_extra=takes(OllamaGenerate))
    async def generate(request: Request) -> Response:
        body, ignored = await read(state, request, OllamaGenerate)
        if not body.prompt:
            loaded = {"response": "", "done": True, "done_reason": "load"}
            return JSONResponse({"model": state.name, "created_at": now(), **loaded})
        dialect = Ollama(False, body.logprobs)
        if body.raw:
            plain, more = body.as_completion()
            asked, _ = checked(plain, CompletionRequest)
            return await respond(state, request, await completion(state, asked, ignored + more, dialect))
        made, paths, more = body.as_chat()
        found, ignored = as_own(made, paths, ignored + more)
        return await respond(state, request, await chat(state, found, dialect, ignored))

    @router.post("/api/pull", include_in_schema=False)
    async def pull() -> dict[str, str]:
        return {"status": "success"}  # what is served is here

    @router.post("/api/embed")
    @router.post("/api/embeddings", include_in_schema=False)
    async def embed() -> Response:
        raise no_embeddings(state)

    return router


def no_embeddings(state: GatewayState) -> RequestError:
    """What is said to who asks for embeddings."""
    why = f"embeddings are not to be had: the engine {state.engine} gives no hidden states; ask another server for them"
    return RequestError(why, status=501, code="not_implemented")


def _details(card: Card) -> dict[str, Any]:
    shape = card.model.metadata
    return {
        "parent_model": "",
        "format": "gguf" if card.model.is_gguf else "safetensors",
        "family": shape.family,
        "families": [shape.family],
        "parameter_size": _size(card.model.shape.parameters),
        "quantization_level": shape.quantisation,
    }


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"


def _model(card: Card) -> dict[str, Any]:
    digest = hashlib.sha256(f"{card.name} {card.model.metadata}".encode()).hexdigest()
    head = {"name": card.name, "model": card.name, "modified_at": card.since, "size": card.model.shape.weights}
    return {**head, "digest": digest, "details": _details(card)}
