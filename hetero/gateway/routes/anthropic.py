"""Anthropic's routes: messages, and how many tokens they are."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from hetero.gateway.answers.anthropic import Messages
from hetero.gateway.requests.anthropic import MessagesRequest, as_chat
from hetero.gateway.requests.openai import ChatRequest
from hetero.gateway.routes.chats import chat, prompt_of
from hetero.gateway.routes.documents import takes
from hetero.gateway.routes.generation import as_own, read, respond, told
from hetero.gateway.state import GatewayState


def routes(state: GatewayState) -> APIRouter:
    """Them."""
    router = APIRouter()

    async def asked(request: Request) -> tuple[ChatRequest, list[str]]:
        body, ignored = await read(state, request, MessagesRequest)
        made, paths, more = as_chat(body)
        return as_own(made, paths, ignored + more)

    @router.post("/v1/messages", openapi_extra=takes(MessagesRequest))
    async def messages(request: Request) -> Response:
        body, ignored = await asked(request)
        return await respond(state, request, await chat(state, body, Messages(), ignored))

    @router.post("/v1/messages/count_tokens", openapi_extra=takes(MessagesRequest))
    async def count(request: Request) -> Response:
        body, ignored = await asked(request)
        prompt = await prompt_of(state, body)
        return JSONResponse({"input_tokens": len(prompt.tokens)}, headers=told(ignored))

    return router
